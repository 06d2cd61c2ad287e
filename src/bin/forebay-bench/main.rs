//! `forebay-bench`: load generator, sink, and whole-process benchmark.
//!
//! `load` sends OTLP traces and counts what is acknowledged; `sink` takes OTLP and counts it, with faults on request;
//! `run` puts a real `forebay` between the two and measures it; `repeat` does one
//! step over and over.

mod histogram;
mod host;
mod load;
mod payload;
mod repeat;
mod run;
mod sink;
mod units;
mod wire;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(name = "forebay-bench", version, about = "Load, sink and whole-process benchmark for OTLP")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send OTLP traces and report what was acknowledged, and how fast
    Load(load::Arguments),
    /// Take OTLP of all signals and count it; prints JSON every interval and at SIGTERM
    Sink(sink::Arguments),
    /// Measure a whole forebay process between a load and a sink
    Run(run::Arguments),
    /// Repeat one step of a record's way, to be counted by valgrind (tests/instructions.sh)
    Repeat(repeat::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Load(arguments) => load::main(&arguments),
        Command::Sink(arguments) => sink::main(arguments),
        Command::Run(arguments) => run::main(&arguments),
        Command::Repeat(arguments) => repeat::main(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("forebay-bench: {message}");
            ExitCode::FAILURE
        }
    }
}
