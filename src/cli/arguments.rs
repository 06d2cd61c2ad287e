//! The command line as it is written.

use super::dlq::DlqCommand;
use super::queue::QueueCommand;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(
    name = "forebay",
    version,
    about = "An OpenTelemetry-compatible collector and forwarder: what it acknowledges is synced to disk",
    after_help = "Without a command, forebay runs. Without --config, an embedded default keeps what arrives on this machine.\n\
                  Exit codes: 0 success, 1 failure, 2 bad command line, 78 bad configuration."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArguments,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Receive, store and forward; the default
    Run(RunArguments),
    /// Check the configuration and print every problem
    Validate(ConfigArguments),
    /// Print the merged configuration as YAML, secrets redacted
    PrintConfig(ConfigArguments),
    /// List the component types of this build
    Components,
    /// Print the version
    Version,
    /// Look into a data directory, and mend it
    Queue {
        #[command(subcommand)]
        command: QueueCommand,
    },
    /// Look at dead letters, repair them, send them again or end them; also while forebay runs
    Dlq {
        #[command(subcommand)]
        command: DlqCommand,
    },
    /// Ask a running forebay whether it is alive
    Healthcheck {
        /// Where its health endpoint is
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:13133/livez")]
        endpoint: String,
    },
}

impl Command {
    pub fn name(&self) -> &'static str {
        match self {
            Command::Run(_) => "run",
            Command::Validate(_) => "validate",
            Command::PrintConfig(_) => "print-config",
            Command::Components => "components",
            Command::Version => "version",
            Command::Queue { .. } => "queue",
            Command::Dlq { .. } => "dlq",
            Command::Healthcheck { .. } => "healthcheck",
        }
    }
}

#[derive(Clone, Debug, Default, Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Where the queues are kept (also: the environment variable FOREBAY_DATA_DIR)
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

impl RunArguments {
    pub fn is_given(&self) -> bool {
        self.data_dir.is_some() || self.config.is_given()
    }
}

#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArguments {
    /// A configuration: a path (YAML, or TOML by its extension), yaml:TEXT, or env:NAME; several merge, later ones win
    #[arg(long, short = 'c', value_name = "SOURCE")]
    pub config: Vec<String>,
    /// Override one value, such as exporters.otlp_http.endpoint=https://example.org
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Accepted for the sake of existing command lines; has no effect
    #[arg(long, value_name = "GATES")]
    pub feature_gates: Vec<String>,
}

impl ConfigArguments {
    fn is_given(&self) -> bool {
        !(self.config.is_empty() && self.set.is_empty() && self.feature_gates.is_empty())
    }
}
