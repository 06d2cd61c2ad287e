//! The component kinds that a configuration may name. Receivers and exporters list themselves; processors and
//! extensions are only read here, as settings of other parts.

pub use super::read::{EXTENSIONS, PROCESSORS};
pub use crate::exporters::KINDS as EXPORTERS;
pub use crate::receivers::KINDS as RECEIVERS;
use crate::settings::Kind;

/// What `forebay components` prints.
pub fn list() -> String {
    let mut text = String::new();
    section(&mut text, "receivers", RECEIVERS);
    section(&mut text, "exporters", EXPORTERS);
    section(&mut text, "processors", PROCESSORS);
    section(&mut text, "extensions", EXTENSIONS);
    text
}

fn section<S>(text: &mut String, name: &str, kinds: &[Kind<S>]) {
    text.push_str(&format!("{name}:\n"));
    for kind in kinds {
        let aliases = match kind.aliases {
            [] => String::new(),
            aliases => format!(" (also: {})", aliases.join(", ")),
        };
        text.push_str(&format!("  {:<16} {}{aliases}\n", kind.name, kind.summary));
    }
}
