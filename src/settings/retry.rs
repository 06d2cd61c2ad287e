//! `retry_on_failure`.

use super::Table;
use std::time::Duration;

/// When a failed request is tried again. Defaults are the collector's, but for `max_elapsed_time`: never give up.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    pub enabled: bool,
    pub initial_interval: Duration,
    pub max_interval: Duration,
    pub multiplier: f64,
    /// Share of the interval that is random, 0 to 1.
    pub randomization_factor: f64,
    /// None: never give up.
    pub max_elapsed_time: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            enabled: true,
            initial_interval: Duration::from_secs(5),
            max_interval: Duration::from_secs(30),
            multiplier: 1.5,
            randomization_factor: 0.5,
            max_elapsed_time: None,
        }
    }
}

impl Retry {
    /// Reads the table under `retry_on_failure`.
    pub fn read(table: &mut Table<'_>) -> Retry {
        let default = Retry::default();
        let retry = Retry {
            enabled: table.flag("enabled").unwrap_or(default.enabled),
            initial_interval: table.duration("initial_interval").unwrap_or(default.initial_interval),
            max_interval: table.duration("max_interval").unwrap_or(default.max_interval),
            multiplier: table.number("multiplier", 1.0..=100.0).unwrap_or(default.multiplier),
            randomization_factor: table
                .number("randomization_factor", 0.0..=1.0)
                .unwrap_or(default.randomization_factor),
            max_elapsed_time: table.duration("max_elapsed_time").filter(|elapsed| !elapsed.is_zero()),
        };
        if retry.initial_interval.is_zero() {
            table.problem("initial_interval", "initial_interval must be longer than 0");
        }
        if retry.max_interval < retry.initial_interval {
            table.problem(
                "max_interval",
                format!(
                    "max_interval {:?} is shorter than initial_interval {:?}",
                    retry.max_interval, retry.initial_interval
                ),
            );
        }
        if !retry.enabled {
            table.warn(
                "enabled",
                "nothing is deleted: with retry disabled a batch that fails once, also while its destination is away, becomes \
                 a dead letter (`retry_disabled`) and waits for `forebay dlq replay`",
            );
        }
        if let Some(elapsed) = retry.max_elapsed_time {
            table.warn(
                "max_elapsed_time",
                format!(
                    "nothing is deleted: a batch that still fails after {elapsed:?} becomes a dead letter (`expired`) and \
                     waits for `forebay dlq replay`"
                ),
            );
        }
        retry
    }
}
