//! `compression_algorithms`: the content encodings that the HTTP protocol takes.

use http::HeaderValue;
use http::header::{CONTENT_ENCODING, HeaderMap};

use crate::otlp::Encoding;
use crate::receivers::ingest::WireEncoding;
use crate::settings::{Problem, Table, nearest};

/// By the Collector's names; the empty one is a body that is not compressed.
const NAMES: [(&str, WireEncoding); 5] = [
    ("", WireEncoding::Stored(Encoding::Identity)),
    ("gzip", WireEncoding::Stored(Encoding::Gzip)),
    ("zstd", WireEncoding::Stored(Encoding::Zstd)),
    ("deflate", WireEncoding::Zlib),
    ("zlib", WireEncoding::Zlib),
];
const COLLECTOR_NAMES: [&str; 3] = ["lz4", "snappy", "x-snappy-framed"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encodings(Vec<WireEncoding>);

impl Default for Encodings {
    fn default() -> Encodings {
        let identity = WireEncoding::Stored(Encoding::Identity);
        let (gzip, zstd) = (WireEncoding::Stored(Encoding::Gzip), WireEncoding::Stored(Encoding::Zstd));
        Encodings(vec![identity, gzip, zstd, WireEncoding::Zlib])
    }
}

impl Encodings {
    pub(super) fn read(table: &mut Table<'_>) -> Encodings {
        const KEY: &str = "compression_algorithms";
        let Some(written) = table.texts_with_origins(KEY) else { return Encodings::default() };
        let mut encodings = Encodings(Vec::new());
        for (name, origin) in &written {
            if let Some((_, encoding)) = NAMES.iter().find(|(known, _)| known == name) {
                if !encodings.0.contains(encoding) {
                    encodings.0.push(*encoding);
                }
                continue;
            }
            let what = if COLLECTOR_NAMES.contains(&name.as_str()) {
                "known to the OpenTelemetry Collector, not supported here"
            } else {
                "unknown compression"
            };
            let message = format!("{}.{KEY}: {what}: {}", table.path(), name.escape_debug());
            let list = "known here: gzip, zstd, deflate, zlib, and \"\" for none";
            let help = match nearest(name, NAMES.iter().skip(1).map(|(name, _)| *name)) {
                Some(name) => format!("did you mean {name}? {list}"),
                None => list.to_owned(),
            };
            table.report(Problem::error(origin.clone(), message).with_help(help));
        }
        if written.is_empty() {
            table.problem(KEY, "the list is empty, so every request would be refused");
        } else if !encodings.0.contains(&WireEncoding::Stored(Encoding::Identity)) {
            table.warn(KEY, "requests that are not compressed are refused with 415; add \"\" to take them");
        }
        encodings
    }

    /// How the body is compressed; None when that is not taken here.
    pub fn of(&self, headers: &HeaderMap) -> Option<WireEncoding> {
        let name = match headers.get(CONTENT_ENCODING) {
            None => String::new(),
            Some(value) => value.to_str().ok()?.trim().to_ascii_lowercase(),
        };
        let name = match name.as_str() {
            "identity" | "none" => "",
            "x-gzip" => "gzip",
            other => other,
        };
        let (_, encoding) = NAMES.iter().find(|(known, _)| *known == name)?;
        self.0.contains(encoding).then_some(*encoding)
    }

    /// For a client that sent something else: `Accept-Encoding`, and words.
    pub fn shown(&self) -> (HeaderValue, String) {
        let names: Vec<&str> = NAMES[1..4]
            .iter()
            .filter(|(_, encoding)| self.0.contains(encoding))
            .map(|(name, _)| *name)
            .chain(self.0.contains(&WireEncoding::Stored(Encoding::Identity)).then_some("identity"))
            .collect();
        let list = names.join(", ");
        let message = format!("the content encoding must be one of {list}");
        // Names of encodings are plain ASCII.
        (HeaderValue::from_str(&list).unwrap_or(HeaderValue::from_static("identity")), message)
    }
}
