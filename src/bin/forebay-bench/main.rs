//! `forebay-bench`: load, a sink, and the two around a whole Forebay process, for figures of one's own.

mod histogram;
mod load;
mod payload;
mod sink;
mod whole;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "forebay-bench", version, about = "Measures an OTLP receiver, and Forebay as a whole process")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send traces to an OTLP receiver as fast as it acknowledges them.
    Load(load::Options),
    /// Take OTLP over HTTP and count it.
    Sink(sink::Options),
    /// Start Forebay between a load and a sink, and print a row per case.
    Run(whole::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Load(options) => load::main(&options),
        Command::Sink(options) => sink::main(&options),
        Command::Run(options) => whole::main(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
