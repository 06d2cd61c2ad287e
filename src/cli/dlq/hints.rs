//! Commands that messages name, completed with where the letters lie: copied as they stand, they do what they say.

use super::arguments::Place;

const START: &str = "`forebay dlq ";

/// The options of a command line that the next one needs too.
#[derive(Clone, Debug)]
pub struct Hints(String);

impl Hints {
    pub fn of(place: &Place) -> Hints {
        let dir = place.run.data_dir.iter().map(|dir| ("--data-dir", dir.display().to_string()));
        let configs = place.run.config.config.iter().map(|config| ("--config", config.clone()));
        let sets = place.run.config.set.iter().map(|set| ("--set", set.clone()));
        Hints(dir.chain(configs).chain(sets).map(|(name, value)| format!(" {name} {}", quoted(&value))).collect())
    }

    #[cfg(test)]
    pub fn none() -> Hints {
        Hints(String::new())
    }

    pub fn complete(&self, text: &str) -> String {
        let mut pieces = text.split(START);
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            out.push_str(START);
            match piece.split_once('`') {
                Some((command, rest)) => out.push_str(&format!("{command}{}`{rest}", self.0)),
                None => out.push_str(piece),
            }
        }
        out
    }
}

/// As a shell reads it.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_in_a_message_is_told_where_the_letters_are() {
        let hints = Hints(format!(" --data-dir {}", quoted("/var/it's here")));
        assert_eq!(
            hints.complete("see `forebay dlq list`, or `forebay dlq show ID` and `kill`"),
            "see `forebay dlq list --data-dir '/var/it'\\''s here'`, or `forebay dlq show ID --data-dir '/var/it'\\''s here'` and `kill`"
        );
        assert_eq!(Hints::none().complete("`forebay dlq list"), "`forebay dlq list");
        assert_eq!(quoted("/data/forebay-1"), "/data/forebay-1");
    }
}
