//! A letter's payload in a person's editor.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;

use crate::cli::Failure;
use crate::dlq::{BASE64_KEY, Entry};

/// `$VISUAL`, else `$EDITOR`, else vi, as a command of the shell. One that is empty is not set.
fn command(variable: impl Fn(&str) -> Option<OsString>) -> OsString {
    let is_set = |value: &OsString| !value.is_empty();
    ["VISUAL", "EDITOR"].into_iter().find_map(|name| variable(name).filter(is_set)).unwrap_or_else(|| "vi".into())
}

/// A new directory that nobody else may look into.
fn private_dir() -> std::io::Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("forebay-edit-{:016x}", fastrand::u64(..)));
    std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}

fn write(dir: &std::path::Path, id: &str, text: &[u8]) -> std::io::Result<PathBuf> {
    let path = dir.join(format!("{id}.json"));
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(text)?;
    Ok(path)
}

/// Opens the payload and waits; None when it was left as it was.
pub fn open(entry: &Entry) -> Result<Option<Vec<u8>>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Other(format!("failed to edit letter {}: {error}", entry.id));
    let before = match &entry.payload {
        Some(serde_json::Value::String(text)) => text.clone().into_bytes(),
        Some(value) if value.get(BASE64_KEY).is_some() => {
            return Err(Failure::Other(format!(
                "letter {} is no text\n  help: `forebay dlq show {0} --show-payload` prints its bytes in base64; \
                 mend them, and put OTLP-JSON in their place with --from FILE",
                entry.id
            )));
        }
        Some(value) => serde_json::to_vec_pretty(value).map_err(|error| failed(&error))?,
        None => Vec::new(),
    };
    let dir = private_dir().map_err(|error| failed(&error))?;
    let edited = (|| {
        let path = write(&dir, &entry.id, &before)?;
        // As git does: the variable may hold a command with options.
        let editor = command(|name| std::env::var_os(name));
        let status = Command::new("sh").arg("-c").arg("eval \"$0 \\\"\\$1\\\"\"").arg(editor).arg(&path).status()?;
        let after = std::fs::read(&path);
        match (status.success(), after) {
            (true, after) => after,
            // What nobody changed is in the letter; it may be personal data, and is left nowhere else.
            (false, Ok(after)) if after == before => {
                std::fs::remove_dir_all(&dir)?;
                Err(std::io::Error::other(format!("the editor ended with {status}; nothing was changed")))
            }
            (false, _) => Err(std::io::Error::other(format!(
                "the editor ended with {status}; your text is in {0}; `forebay dlq edit {1} --from {0}` takes it",
                path.display(),
                entry.id
            ))),
        }
    })();
    let after = edited.map_err(|error| failed(&error))?;
    std::fs::remove_dir_all(&dir).map_err(|error| failed(&error))?;
    Ok((after != before).then_some(after))
}

/// Keeps a text that was refused; says where, or why not.
pub fn keep(id: &str, text: &[u8]) -> String {
    match private_dir().and_then(|dir| write(&dir, id, text)) {
        Ok(path) => format!("your text is in {0}; mend it, then `forebay dlq edit {id} --from {0}`", path.display()),
        Err(error) => format!("your text could not be kept: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_counts_as_none() {
        let chosen = |visual: Option<&str>, editor: Option<&str>| {
            command(|name| if name == "VISUAL" { visual } else { editor }.map(OsString::from))
        };
        for (visual, editor, expected) in [
            (Some("code --wait"), Some("nano"), "code --wait"),
            (Some(""), Some("nano"), "nano"),
            (None, Some("nano"), "nano"),
            (Some(""), Some(""), "vi"),
            (None, None, "vi"),
        ] {
            assert_eq!(chosen(visual, editor), expected, "{visual:?} {editor:?}");
        }
    }
}
