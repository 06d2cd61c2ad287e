//! `forebay dlq edit`.

use std::io::Read;
use std::path::Path;

use http::Method;

use super::arguments::Edit;
use super::hints::Hints;
use super::select::escape;
use super::{editor, show};
use crate::admin::api::{Edited, PAYLOAD_BYTES_MAX};
use crate::cli::ask::Way;
use crate::cli::{Failure, output, queue};
use crate::dlq::Entry;

pub async fn edit(mut way: Way, edit: Edit) -> Result<(), Failure> {
    let path = format!("/api/v1/dlq/{}", escape(&edit.id));
    let text = match &edit.from {
        Some(from) => read(from)?,
        None => {
            let entry: Entry = way.json(Method::GET, &format!("{path}?payload=true"), Vec::new()).await?;
            refuse_incomplete(&entry, edit.force)?;
            match editor::open(&entry)? {
                Some(text) => text,
                None => return output::print("nothing was changed\n"),
            }
        }
    };
    let target = format!("{path}?force={}", edit.force);
    let edited: Edited = match way.json(Method::PUT, &target, text.clone()).await {
        // What a person has typed, or a pipe has brought, is nowhere else.
        Err(Failure::Other(message)) if edit.from.as_deref().is_none_or(is_standard_input) => {
            return Err(Failure::Other(format!("{message}\n  help: {}", editor::keep(&edit.id, &text))));
        }
        answered => answered?,
    };
    if edit.place.json {
        return queue::print_json(&edited);
    }
    let to = if edited.lacks_exporter { " --to EXPORTER" } else { "" };
    let next = Hints::of(&edit.place).complete(&format!("`forebay dlq replay {}{to}`", edited.id));
    output::print(&format!("letter {} has {} items now; {next} sends it\n", edited.id, edited.items))
}

/// Before anybody has done the work.
fn refuse_incomplete(entry: &Entry, is_forced: bool) -> Result<(), Failure> {
    match &entry.unknown_fields {
        Some(fields) if !is_forced => Err(Failure::Other(format!(
            "letter {}: its payload has {}, which no editor can show; an edit would drop them\n  help: replay it unchanged \
             where you can; --force edits it without them, and there is no other copy",
            entry.id,
            show::plain(fields)
        ))),
        _ => Ok(()),
    }
}

fn is_standard_input(from: &Path) -> bool {
    from == Path::new("-")
}

fn read(from: &Path) -> Result<Vec<u8>, Failure> {
    if !is_standard_input(from) {
        return std::fs::read(from)
            .map_err(|error| Failure::Other(format!("failed to read {}: {error}", from.display())));
    }
    let mut text = Vec::new();
    // One more than is taken, so that what is too large is refused and not cut.
    let mut input = std::io::stdin().lock().take(PAYLOAD_BYTES_MAX + 1);
    input.read_to_end(&mut text).map_err(|error| Failure::Other(format!("failed to read standard input: {error}")))?;
    Ok(text)
}
