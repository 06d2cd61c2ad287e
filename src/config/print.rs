//! The merged configuration as YAML, secrets redacted.

use crate::settings::{Node, Value};
use std::fmt::Write;

const REDACTED: &str = "[REDACTED]";

/// Words that make a key's value a secret, wherever they stand in the key.
const SECRET_WORDS: &[&str] =
    &["password", "passwd", "secret", "token", "api_key", "apikey", "key_pem", "authorization", "credential"];
/// Maps of which every value is a secret.
const SECRET_MAPS: &[&str] = &["headers"];

/// Prints a tree as YAML. Values that came by `${env:…}` or `${file:…}`, and those of keys that hold secrets, are
/// shown as `[REDACTED]`; the user information of URLs and the values in their queries too.
pub fn to_yaml(node: &Node) -> String {
    let mut out = String::new();
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => print(node, 0, false, &mut out),
        _ => {
            inline(node, false, &mut out);
            out.push('\n');
        }
    }
    out
}

fn print(node: &Node, indent: usize, secret: bool, out: &mut String) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let lower = entry.key.to_ascii_lowercase();
                let secret = secret
                    || SECRET_MAPS.contains(&lower.as_str())
                    // Where a secret lies is none.
                    || SECRET_WORDS.iter().any(|word| lower.contains(word)) && !lower.ends_with("_file");
                pad(indent, out);
                out.push_str(&text(&entry.key));
                out.push(':');
                child(&entry.node, indent, secret, out);
            }
        }
        Value::List(items) => {
            for item in items {
                pad(indent, out);
                out.push('-');
                child(item, indent, secret, out);
            }
        }
        _ => {}
    }
}

fn child(node: &Node, indent: usize, secret: bool, out: &mut String) {
    let is_block = match &node.value {
        Value::Map(entries) => !entries.is_empty(),
        Value::List(items) => !items.is_empty(),
        _ => false,
    };
    if is_block {
        out.push('\n');
        print(node, indent + 2, secret, out);
    } else if node.value == Value::Null && !node.substituted {
        out.push('\n');
    } else {
        out.push(' ');
        inline(node, secret, out);
        out.push('\n');
    }
}

fn inline(node: &Node, secret: bool, out: &mut String) {
    let shown = match &node.value {
        Value::Map(_) => "{}".to_owned(),
        Value::List(_) => "[]".to_owned(),
        Value::Null => "null".to_owned(),
        _ if secret || node.substituted => text(REDACTED),
        Value::Text(value) => text(&without_secrets(value)),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => node.scalar_text().unwrap_or_default(),
    };
    out.push_str(&shown);
}

/// `https://user:password@host/?key=value` → `https://[REDACTED]@host/?key=[REDACTED]`.
fn without_secrets(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    let (rest, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
    let (address, query) = rest.split_once('?').map_or((rest, None), |(address, query)| (address, Some(query)));
    let authority_end = address.find('/').unwrap_or(address.len());
    let mut shown = match address[..authority_end].rfind('@') {
        Some(at) => format!("{scheme}://{REDACTED}{}", &address[at..]),
        None => format!("{scheme}://{address}"),
    };
    for (index, pair) in query.iter().flat_map(|query| query.split('&')).enumerate() {
        shown.push(if index == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) => shown.push_str(&format!("{name}={REDACTED}")),
            // Without a name it is a value itself.
            None if pair.is_empty() => {}
            None => shown.push_str(REDACTED),
        }
    }
    shown + fragment
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A scalar in double quotes unless it is plainly harmless without. Dollars are doubled, so that what is printed can
/// be read again.
fn text(value: &str) -> String {
    let plain = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'))
        && matches!(super::yaml::plain_scalar(value), Value::Text(_));
    if plain {
        return value.to_owned();
    }
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '$' => out.push_str("$$"),
            c if (c as u32) < 0x20
                || (0x7f..0xa0).contains(&(c as u32))
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') =>
            {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password_and_without_the_values_in_its_query() {
        for (url, shown) in [
            ("https://user:hush@example.org/v1", "https://[REDACTED]@example.org/v1"),
            ("https://example.org/v1?key=hush", "https://example.org/v1?key=[REDACTED]"),
            (
                "https://u:p@example.org?a=hush&hush&b=#top",
                "https://[REDACTED]@example.org?a=[REDACTED]&[REDACTED]&b=[REDACTED]#top",
            ),
            ("https://example.org/a@b", "https://example.org/a@b"),
            ("https://example.org/?", "https://example.org/?"),
            ("https://example.org", "https://example.org"),
            ("no url?key=value", "no url?key=value"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
