//! The command line of `forebay queue`.

use clap::{Args, Subcommand};

use crate::cli::arguments::RunArguments;

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Show queues, segments, cursors and lag; also while forebay runs
    Inspect(Place),
    /// Read and check every record; exit code 1 if anything is damaged; also while forebay runs
    Verify(Place),
    /// Check everything, cut off and set aside what is damaged, rebuild the catalogue if need be; forebay must be stopped
    Repair(Place),
    /// Drop the cursor of an exporter, or a whole queue, that left the configuration; forebay must be stopped
    Forget(Forget),
    /// Have the running forebay try what is set aside now
    Retry(Retry),
}

#[derive(Clone, Debug, Args)]
pub struct Place {
    #[command(flatten)]
    pub run: RunArguments,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Forget {
    #[command(flatten)]
    pub place: Place,
    /// The queue's id, as inspect shows it; with --exporter, the only queue in which it is forgotten
    #[arg(long, value_name = "QUEUE", required_unless_present = "exporter")]
    pub queue: Option<String>,
    /// The cursor's name, as inspect shows it
    #[arg(long, value_name = "CURSOR")]
    pub exporter: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Retry {
    #[command(flatten)]
    pub place: Place,
    /// Only of this queue
    #[arg(long, value_name = "QUEUE")]
    pub queue: Option<String>,
    /// Only of the exporter with this cursor
    #[arg(long, value_name = "CURSOR")]
    pub exporter: Option<String>,
}
