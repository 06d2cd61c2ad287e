//! Why a letter is dead: what is written beside its payload, as JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::otlp::Metadata;

/// Longest message, of a server or of ours, that is kept.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Longest name (service, peer, queue).
const NAME_BYTES_MAX: usize = 256;
/// Request metadata above this is not kept with a letter: the description must fit into 64 KiB.
const METADATA_BYTES_MAX: usize = 32 << 10;

/// What made it a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The destination refused this item and takes others.
    Rejected,
    /// It is too large for the destination, alone.
    TooLarge,
    /// `max_elapsed_time` passed.
    Expired,
    /// It failed and retrying is disabled.
    RetryDisabled,
    /// The destination took the batch and rejected some items in it; which, it did not say. A copy.
    Ambiguous,
    /// It could not be decoded at the door, and the client was told so.
    Malformed,
    /// The queue was at its cap, and the exporter's `on_full` is `park`.
    QueueFull,
}

impl Reason {
    pub const ALL: [Reason; 7] = [
        Reason::Rejected,
        Reason::TooLarge,
        Reason::Expired,
        Reason::RetryDisabled,
        Reason::Ambiguous,
        Reason::Malformed,
        Reason::QueueFull,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Reason::Rejected => "rejected",
            Reason::TooLarge => "too_large",
            Reason::Expired => "expired",
            Reason::RetryDisabled => "retry_disabled",
            Reason::Ambiguous => "ambiguous",
            Reason::Malformed => "malformed",
            Reason::QueueFull => "queue_full",
        }
    }

    pub fn parse(name: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub reason: Reason,
    /// Where it waited; empty for what never got into a queue.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub queue: String,
    /// The record of that queue that all of it came in. None: of several, or written by an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The exporter that could not deliver it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exporter: Option<String>,
    /// The receiver, its client, and the client's headers without secrets, for what was malformed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Where in the inflated body reading ended, for what was malformed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset_bytes: Option<u64>,
    /// The length of the body of which only the beginning is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_from_bytes: Option<u64>,
    /// `HTTP 400` or `gRPC 3 INVALID_ARGUMENT`, if a server answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// What the server, or whoever judged it, said.
    pub message: String,
    /// Requests that held it.
    pub attempts: u32,
    /// When it was received, and when it was first tried.
    pub received_unix_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_attempt_unix_ms: Option<u64>,
    /// `service.name` of its first resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// When its payload was last put there by a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited_unix_ms: Option<u64>,
    /// Request metadata to be sent with it, in base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    metadata: Vec<(String, String)>,
}

/// Who sent what was malformed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub receiver: String,
    pub peer: String,
    /// By name; the values of those that might be secrets are left out.
    pub headers: Vec<(String, String)>,
}

/// Longest list of headers that is kept.
const HEADERS_MAX: usize = 32;
/// In place of a value.
const LEFT_OUT: &str = "(left out)";
/// Headers whose values are kept: what describes the body and the way that it came. Any other may be a secret.
const PLAIN_HEADERS: &[&str] = &[
    "accept",
    "accept-encoding",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    "host",
    "te",
    "transfer-encoding",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-real-ip",
];

impl Origin {
    pub fn new<'a>(
        receiver: &str,
        peer: Option<std::net::IpAddr>,
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Origin {
        let kept = headers.take(HEADERS_MAX).map(|(name, value)| {
            let is_plain = PLAIN_HEADERS.contains(&name);
            let value = if is_plain { String::from_utf8_lossy(value) } else { LEFT_OUT.into() };
            (cut(name, NAME_BYTES_MAX), cut(&value, NAME_BYTES_MAX))
        });
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
        Origin { receiver: cut(receiver, NAME_BYTES_MAX), peer, headers: kept.collect() }
    }
}

impl Description {
    pub fn new(reason: Reason, message: &str, received_unix_ns: u64) -> Description {
        Description {
            reason,
            queue: String::new(),
            sequence: None,
            exporter: None,
            origin: None,
            offset_bytes: None,
            cut_from_bytes: None,
            status: None,
            message: cut(message, MESSAGE_BYTES_MAX),
            attempts: 0,
            received_unix_ms: received_unix_ns / 1_000_000,
            first_attempt_unix_ms: None,
            service_name: None,
            edited_unix_ms: None,
            metadata: Vec::new(),
        }
    }

    pub fn set_service_name(&mut self, name: Option<&str>) {
        self.service_name = name.map(|name| cut(name, NAME_BYTES_MAX));
    }

    pub fn set_metadata(&mut self, metadata: &Metadata) {
        let bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len() * 2).sum();
        if bytes <= METADATA_BYTES_MAX {
            self.metadata = metadata.iter().map(|(name, value)| (name.clone(), STANDARD.encode(value))).collect();
        }
    }

    /// What is to be sent with it; values that are not base64 are left out.
    pub fn metadata(&self) -> Metadata {
        let decoded = |(name, value): &(String, String)| Some((name.clone(), STANDARD.decode(value).ok()?));
        self.metadata.iter().filter_map(decoded).collect()
    }

    pub fn to_bytes(&self) -> Bytes {
        // A map with text keys and numbers always can be written.
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Description, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// The beginning of a text, cut between characters.
pub fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_description_fits_into_a_record_and_comes_back() {
        let mut description = Description::new(Reason::Rejected, &"\u{1F600}\n".repeat(4000), 5_000_000);
        description.queue = "q".repeat(128);
        description.set_service_name(Some(&"é".repeat(4000)));
        description.set_metadata(&vec![("x".repeat(100), vec![0xFF; 15_000])]);
        let bytes = description.to_bytes();
        assert!(bytes.len() < 64 << 10, "{}", bytes.len());
        assert_eq!(Description::from_bytes(&bytes).expect("reads"), description);
        assert_eq!(description.metadata()[0].1, vec![0xFF; 15_000]);
    }

    #[test]
    fn no_secret_of_a_client_is_kept() {
        let headers: [(&str, &[u8]); 4] = [
            ("content-type", b"application/json"),
            ("authorization", b"Bearer s3cret"),
            ("x-tenant", b"acme"),
            ("cookie", b"id=1"),
        ];
        let origin = Origin::new("otlp", Some(std::net::Ipv4Addr::LOCALHOST.into()), headers.into_iter());
        let text = serde_json::to_string(&origin).expect("writes");
        assert!(text.contains("application/json") && text.contains("127.0.0.1") && text.contains("authorization"));
        assert!(!text.contains("s3cret") && !text.contains("acme") && !text.contains("id=1"), "{text}");
        let many = (0..10_000).map(|_| ("user-agent", &[b'a'; 10_000][..]));
        let mut description = Description::new(Reason::Malformed, &"x".repeat(10_000), 0);
        description.origin = Some(Origin::new("otlp", None, many));
        assert!(description.to_bytes().len() < 64 << 10);
    }

    #[test]
    fn a_reason_has_one_name_in_files_filters_and_metrics() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("writes"), reason.name());
            assert_eq!(Reason::parse(reason.name()), Some(reason));
        }
    }
}
