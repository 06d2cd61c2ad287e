//! Start and stop order of one process.

use crate::config::Plan;
use std::path::PathBuf;

/// Why the process could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this build cannot run a plan yet")]
    NotBuilt,
}

/// Runs a plan until it is told to stop.
pub fn run(_plan: Plan, _data_dir: PathBuf) -> Result<(), Error> {
    Err(Error::NotBuilt)
}
