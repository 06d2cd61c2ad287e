//! The command line of `forebay dlq`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::admin::api::{FAILURES_MAX_DEFAULT, check_rate};
use crate::cli::arguments::RunArguments;

#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters, oldest first, without their payloads
    List(List),
    /// Show one letter: why it is here, and its history
    Show(Show),
    /// Write the payloads as OTLP-JSON lines
    Export(Export),
    /// Put a repaired payload (OTLP-JSON) in the place of a letter's
    Edit(Edit),
    /// Send letters again, each alone; what is delivered is removed, what fails stays
    Replay(Replay),
    /// Remove letters for good
    Purge(Purge),
}

#[derive(Clone, Debug, Args)]
pub struct Place {
    #[command(flatten)]
    pub run: RunArguments,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub struct Select {
    /// Of the pipeline with this queue id, or of this id
    #[arg(long, value_name = "QUEUE", visible_alias = "pipeline")]
    pub queue: Option<String>,
    /// That this exporter could not deliver: by its id, or by its cursor's name
    #[arg(long, value_name = "EXPORTER")]
    pub exporter: Option<String>,
    /// traces, metrics or logs
    #[arg(long, value_name = "SIGNAL", value_parser = ["traces", "metrics", "logs"])]
    pub signal: Option<String>,
    /// rejected, too_large, expired, retry_disabled, ambiguous, malformed or queue_full
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// With this service.name
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Parked not longer ago than this, such as 2h, or not before this time, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "DURATION|TIME")]
    pub since: Option<String>,
    /// Parked at least this long ago, or not after this time
    #[arg(long, value_name = "DURATION|TIME")]
    pub until: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct List {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub select: Select,
    /// At most so many; 0: all
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub limit: usize,
}

#[derive(Clone, Debug, Args)]
pub struct Show {
    #[command(flatten)]
    pub place: Place,
    pub id: String,
    /// Print the payload too; it may hold personal data
    #[arg(long)]
    pub show_payload: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Export {
    #[command(flatten)]
    pub place: Place,
    pub ids: Vec<String>,
    #[command(flatten)]
    pub select: Select,
    /// A file that must not exist; else standard output
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct Edit {
    #[command(flatten)]
    pub place: Place,
    pub id: String,
    /// The new payload, `-` for standard input; without, $VISUAL or $EDITOR opens the present one
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Also when the payload has fields that this version does not know: the edited one is without them
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Replay {
    #[command(flatten)]
    pub place: Place,
    pub ids: Vec<String>,
    /// Every letter there is
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub select: Select,
    /// Send to this exporter, not to the one that could not deliver
    #[arg(long, value_name = "EXPORTER")]
    pub to: Option<String>,
    /// Letters a second at the most
    #[arg(long, value_name = "NUMBER", value_parser = rate, allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// A destination that fails so often in a row gets no more letters, which stay as they are; 0: it gets them all
    #[arg(long, value_name = "NUMBER", default_value_t = FAILURES_MAX_DEFAULT)]
    pub max_failures: u32,
    /// Only say how many letters are meant
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Purge {
    #[command(flatten)]
    pub place: Place,
    pub ids: Vec<String>,
    /// Every letter there is
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub select: Select,
    /// Only say how many letters are meant
    #[arg(long)]
    pub dry_run: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    check_rate(text.parse().map_err(|_| "it is no number".to_owned())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        replay: Replay,
    }

    #[test]
    fn a_rate_that_is_none_is_an_error_of_the_command_line_and_not_a_replay_at_full_speed() {
        for rate in ["nan", "NaN", "inf", "infinity", "0", "-0", "-1", "1e-30", "1e999", "fast", ""] {
            let error = Line::try_parse_from(["replay", "--all", "--rate", rate]).map(drop).expect_err(rate);
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2, "{rate}");
            assert!(text.contains("at least 0.001 letters a second") || text.contains("it is no number"), "{text}");
        }
        for (rate, expected) in [("0.001", 0.001), ("10", 10.0), ("2.5", 2.5)] {
            let line =
                Line::try_parse_from(["replay", "--all", "--rate", rate]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(line.replay.rate, Some(expected));
        }
    }
}
