//! The commands.

mod arguments;
mod ask;
mod dlq;
mod healthcheck;
mod output;
mod queue;

use crate::config::{self, DataDirSetting, Plan, RealWorld, Sources, World};
use crate::settings::Problem;
use arguments::{Arguments, Command, ConfigArguments, RunArguments};
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit code for a bad configuration (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;
/// Exit code for a failure of the process itself.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code for a command line that cannot be understood.
pub const EXIT_USAGE: u8 = 2;

/// Why a command ended without success.
enum Failure {
    /// Every problem, warnings too.
    Config(Vec<Problem>),
    DataDir(config::data_dir::DataDirError),
    /// The command line cannot be understood.
    Usage(String),
    /// A message for a person.
    Other(String),
}

/// Parses the command line of this process and runs it.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing sensible is left to do when even this message has no reader.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match dispatch(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Config(mut problems)) => {
            // In the order in which a person walks through the files.
            problems.sort_by_key(|problem| {
                problem.origin.as_ref().map(|origin| (origin.file.clone(), origin.line, origin.column))
            });
            problems.iter().for_each(|problem| output::complain(problem));
            output::complain(&"error: the configuration cannot be used; nothing was started");
            ExitCode::from(EXIT_CONFIG)
        }
        Err(Failure::DataDir(error)) => {
            output::complain(&format_args!("error: {error}"));
            ExitCode::from(EXIT_CONFIG)
        }
        Err(Failure::Usage(message)) => {
            output::complain(&format_args!("error: {message}"));
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Other(message)) => {
            output::complain(&format_args!("error: {message}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn dispatch(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        None => run(arguments.run),
        Some(command) if arguments.run.is_given() => Err(Failure::Usage(format!(
            "options before the command would be ignored\n  help: write them after it: forebay {} --config FILE",
            command.name()
        ))),
        Some(Command::Run(run_arguments)) => run(run_arguments),
        Some(Command::Validate(config)) => validate(&config),
        Some(Command::PrintConfig(config)) => print_config(&config),
        Some(Command::Components) => output::print(&config::components::list()),
        Some(Command::Version) => output::print(&format!("forebay {}\n", env!("CARGO_PKG_VERSION"))),
        Some(Command::Queue { command }) => queue::run(command),
        Some(Command::Dlq { command }) => dlq::run(command),
        Some(Command::Healthcheck { endpoint }) => healthcheck::check(&endpoint).map_err(Failure::Other),
    }
}

fn run(arguments: RunArguments) -> Result<(), Failure> {
    let plan = load(&arguments.config)?;
    plan.warnings.iter().for_each(|warning| output::complain(warning));
    let data_dir = data_dir(arguments.data_dir.as_deref(), plan.data_dir.as_ref())?;
    crate::app::run(plan, data_dir).map_err(|error| Failure::Other(error.to_string()))
}

fn data_dir(flag: Option<&Path>, setting: Option<&DataDirSetting>) -> Result<PathBuf, Failure> {
    use config::data_dir::{is_writable, resolve};
    resolve(flag, setting, &RealWorld, is_writable).map_err(Failure::DataDir)
}

fn sources(config: &ConfigArguments) -> Sources {
    Sources { configs: config.config.clone(), sets: config.set.clone() }
}

fn load(config: &ConfigArguments) -> Result<Plan, Failure> {
    if !config.feature_gates.is_empty() {
        output::complain(&"warning: --feature-gates has no effect: there are no feature gates here");
    }
    config::load_plan(&sources(config), &RealWorld as &dyn World).map_err(Failure::Config)
}

fn validate(config: &ConfigArguments) -> Result<(), Failure> {
    let plan = load(config)?;
    plan.warnings.iter().for_each(|warning| output::complain(warning));
    output::print(&format!(
        "the configuration is valid: {} receivers, {} pipelines, {} exporters, {} warnings\n{}",
        plan.receivers.len(),
        plan.pipelines.len(),
        plan.exporters.len(),
        plan.warnings.len(),
        config::outage::report(&plan)
    ))
}

fn print_config(config: &ConfigArguments) -> Result<(), Failure> {
    let tree = config::load(&sources(config), &RealWorld).map_err(Failure::Config)?;
    output::print(&config::print::to_yaml(&tree))
}
