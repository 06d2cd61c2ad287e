//! What is wrong with a configuration, where, and what to do about it.

use super::node::Origin;
use std::collections::BTreeSet;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

/// One finding. Displays as `error: file:line:column: message`, with a `help:` line where there is advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// None for what is nobody's line, such as a missing data directory.
    pub origin: Option<Origin>,
    pub message: String,
    pub help: Option<String>,
}

impl Problem {
    pub fn error(origin: Origin, message: impl Into<String>) -> Problem {
        Problem { severity: Severity::Error, origin: Some(origin), message: message.into(), help: None }
    }

    pub fn warning(origin: Origin, message: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, ..Problem::error(origin, message) }
    }

    pub fn with_help(self, help: impl Into<String>) -> Problem {
        Problem { help: Some(help.into()), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Most findings kept; a configuration with more is not read by a person.
const PROBLEMS_MAX: usize = 200;

/// Collects findings while settings are read.
#[derive(Debug, Default)]
pub struct Problems {
    found: Vec<Problem>,
    errors: usize,
    known_keys: BTreeSet<String>,
}

impl Problems {
    pub fn add(&mut self, problem: Problem) {
        if problem.severity == Severity::Error {
            self.errors += 1;
        }
        if self.found.len() < PROBLEMS_MAX {
            self.found.push(problem);
        } else if self.found.len() == PROBLEMS_MAX {
            let message = format!("more than {PROBLEMS_MAX} problems; the rest is not shown");
            self.found.push(Problem { severity: problem.severity, origin: None, message, help: None });
        }
    }

    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Every key that a reader asked for, as a dotted path.
    pub fn known_keys(&self) -> &BTreeSet<String> {
        &self.known_keys
    }

    pub(super) fn note_known(&mut self, path: String) {
        self.known_keys.insert(path);
    }

    pub fn into_vec(self) -> Vec<Problem> {
        self.found
    }
}
