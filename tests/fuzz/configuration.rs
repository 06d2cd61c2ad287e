//! Any text is a configuration or has problems that say so.

use std::path::Path;

use forebay::config::{Sources, World};

struct Text<'a>(&'a str);

impl World for Text<'_> {
    fn variable(&self, name: &str) -> Result<Option<String>, String> {
        Ok(name.len().is_multiple_of(2).then(|| "4318".to_owned()))
    }

    fn file(&self, path: &Path) -> Result<String, String> {
        if path.starts_with("/given") { Ok(self.0.to_owned()) } else { Err("there is no such file".to_owned()) }
    }
}

/// The first byte chooses the form: YAML, TOML, or an override.
pub fn check(input: &[u8]) {
    let Some((form, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let file = |name: &str| Sources { configs: vec![name.to_owned()], sets: Vec::new() };
    let sources = match form % 3 {
        0 => file("/given/a.yaml"),
        1 => file("/given/a.toml"),
        _ => Sources { configs: Vec::new(), sets: vec![text.to_owned()] },
    };
    match forebay::config::load_plan(&sources, &Text(text)) {
        Ok(plan) => assert!(!plan.pipelines.is_empty(), "a plan without a pipeline does nothing"),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            assert!(problems.iter().all(|problem| !problem.to_string().is_empty()));
        }
    }
}
