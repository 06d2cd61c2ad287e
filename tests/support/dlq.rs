//! `forebay dlq`, as a person calls it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

pub fn dlq(words: &[&str], data_dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("dlq").args(words).arg("--data-dir").arg(data_dir);
    command.env_remove("FOREBAY_DATA_DIR").env_remove("VISUAL").env_remove("EDITOR").output().expect("forebay runs")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Of a command that succeeded.
pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn letters(data_dir: &Path) -> Vec<Value> {
    let text = stdout(&dlq(&["list", "--json", "--limit", "0"], data_dir));
    let listed: Value = serde_json::from_str(&text).expect("JSON");
    listed["letters"].as_array().expect("a list").clone()
}
