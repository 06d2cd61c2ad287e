//! What a request and a span are known by: 128-bit hashes under a secret of this data directory
//! (`docs/decisions/006-dedup.md`).

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::path::Path;

use twox_hash::XxHash3_128;

use crate::otlp::spans::{self, Span, Visitor};
use crate::otlp::{Signal, edit, wire};
use crate::storage::Disk;

pub const SECRET_LEN: usize = 192;
pub const SECRET_FILE: &str = "secret";
const FILE_NEW_NAME: &str = "secret.new";
/// Magic, secret, CRC32C over both.
const MAGIC: [u8; 8] = *b"FOREBAYK";
const FILE_LEN: usize = MAGIC.len() + SECRET_LEN + 4;
/// Field numbers of times that make a log record or a data point one of its own.
const TIME: u32 = 1;
const POINT_TIME: u32 = 3;
const OBSERVED_TIME: u32 = 11;

/// Hashes under one secret. A key is never 0.
pub struct Keys {
    secret: [u8; SECRET_LEN],
}

impl Keys {
    pub fn new(secret: [u8; SECRET_LEN]) -> Keys {
        Keys { secret }
    }

    /// The secret in `dir`, and whether it is new: then nothing that was written under another can be used.
    pub fn open(disk: &dyn Disk, dir: &Path) -> io::Result<(Keys, bool)> {
        let entries = disk.list(dir)?;
        let has = |name: &str| entries.iter().any(|entry| entry.name == name);
        let path = dir.join(SECRET_FILE);
        if has(SECRET_FILE) {
            let mut bytes = [0; FILE_LEN];
            let read = disk.open(&path)?.read_at(&mut bytes, 0)?;
            let (body, check) = bytes.split_at(FILE_LEN - 4);
            if read == FILE_LEN && body[..MAGIC.len()] == MAGIC && check == crc32c::crc32c(body).to_le_bytes() {
                let mut secret = [0; SECRET_LEN];
                secret.copy_from_slice(&body[MAGIC.len()..]);
                return Ok((Keys::new(secret), false));
            }
        }
        let mut secret = [0; SECRET_LEN];
        let mut filled = 0;
        while filled < SECRET_LEN {
            filled += rustix::rand::getrandom(&mut secret[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        let mut bytes = [&MAGIC[..], &secret].concat();
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let temporary = dir.join(FILE_NEW_NAME);
        if has(FILE_NEW_NAME) {
            disk.remove(&temporary)?;
        }
        let file = disk.create(&temporary, 0)?;
        file.write_all_at(&mut [IoSlice::new(&bytes)], 0)?;
        file.sync_data()?;
        disk.rename(&temporary, &path)?;
        disk.sync_dir(dir)?;
        Ok((Keys::new(secret), true))
    }

    pub fn hash(&self, bytes: &[u8]) -> u128 {
        // The secret is long enough: its length is a constant.
        XxHash3_128::oneshot_with_secret(&self.secret, bytes).unwrap_or(1).max(1)
    }

    /// The key of a request whose message hashes to `message`.
    pub fn request(&self, message: u128, signal: Signal, metadata: &[u8], peer: Option<IpAddr>) -> u128 {
        let mut bytes = Vec::with_capacity(40 + metadata.len());
        bytes.extend_from_slice(&message.to_le_bytes());
        bytes.push(signal as u8);
        match peer {
            None => bytes.push(0),
            Some(IpAddr::V4(address)) => {
                bytes.push(4);
                bytes.extend_from_slice(&address.octets());
            }
            Some(IpAddr::V6(address)) => {
                bytes.push(6);
                bytes.extend_from_slice(&address.octets());
            }
        }
        bytes.extend_from_slice(metadata);
        self.hash(&bytes)
    }

    /// A key for each span of a valid request; 0 where it has no identity.
    pub fn spans(&self, request: &[u8], by: Match, keys: &mut Vec<u128>) {
        keys.clear();
        let mut reader = SpanKeys { keys: self, by, resource: 0, scope: 0, found: keys };
        if spans::walk(request, &mut reader).is_err() {
            // Valid requests can be walked; one that cannot is nobody's duplicate.
            keys.clear();
        }
    }
}

/// When two spans are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Match {
    /// Ids, content, scope and resource agree.
    #[default]
    Exact,
    /// Trace id and span id agree.
    Id,
}

struct SpanKeys<'a> {
    keys: &'a Keys,
    by: Match,
    resource: u128,
    scope: u128,
    found: &'a mut Vec<u128>,
}

impl SpanKeys<'_> {
    fn around(&self, parts: &[&[u8]]) -> u128 {
        if self.by == Match::Id {
            return 0;
        }
        match parts {
            [part] => self.keys.hash(part),
            parts => self.keys.hash(&parts.concat()),
        }
    }
}

impl Visitor for SpanKeys<'_> {
    fn resource(&mut self, parts: &[&[u8]]) {
        self.resource = self.around(parts);
    }

    fn scope(&mut self, parts: &[&[u8]]) {
        self.scope = self.around(parts);
    }

    fn span(&mut self, span: Span<'_>) {
        let key = match (span.identity(), self.by) {
            (None, _) => 0,
            (Some(identity), Match::Id) => self.keys.hash(&identity),
            (Some(_), Match::Exact) => {
                let mut three = [0; 48];
                three[..16].copy_from_slice(&self.keys.hash(span.bytes).to_le_bytes());
                three[16..32].copy_from_slice(&self.scope.to_le_bytes());
                three[32..].copy_from_slice(&self.resource.to_le_bytes());
                self.keys.hash(&three)
            }
        };
        self.found.push(key);
    }
}

/// Whether each item of a valid request can be told from another that looks the same: spans by their ids, log records
/// and data points by a time.
pub fn is_identified(signal: Signal, message: &[u8], summary: &wire::Summary) -> bool {
    match signal {
        Signal::Traces => summary.identified == summary.items,
        Signal::Metrics => each_has_time(signal, message, &[POINT_TIME]),
        Signal::Logs => each_has_time(signal, message, &[TIME, OBSERVED_TIME]),
    }
}

fn each_has_time(signal: Signal, message: &[u8], fields: &[u32]) -> bool {
    edit::items(signal, message).is_ok_and(|items| {
        items.iter().all(|item| {
            wire::fixed64_fields(&message[item.start..item.end])
                .is_ok_and(|found| found.iter().any(|(number, value)| fields.contains(number) && *value != 0))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
    use prost::Message;

    #[test]
    fn a_key_depends_on_secret_signal_metadata_and_peer() {
        let mut random = fastrand::Rng::with_seed(1);
        let [one, two] = std::array::from_fn(|_| Keys::new(std::array::from_fn(|_| random.u8(..))));
        assert_ne!(one.hash(b"message"), two.hash(b"message"));
        let key = |signal, metadata: &[u8], peer: Option<&str>| {
            one.request(7, signal, metadata, peer.map(|peer| peer.parse().expect("address")))
        };
        let mut found = vec![
            key(Signal::Traces, b"", None),
            key(Signal::Logs, b"", None),
            key(Signal::Traces, b"tenant=a", None),
            key(Signal::Traces, b"", Some("10.0.0.1")),
            key(Signal::Traces, b"", Some("10.0.0.2")),
            key(Signal::Traces, b"", Some("::1")),
        ];
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 6);
        assert_eq!(key(Signal::Traces, b"x", None), key(Signal::Traces, b"x", None));
    }

    fn logs(times: &[(u64, u64)]) -> Vec<u8> {
        let record = |(time, observed): &(u64, u64)| LogRecord {
            time_unix_nano: *time,
            observed_time_unix_nano: *observed,
            ..LogRecord::default()
        };
        let scope_logs = vec![ScopeLogs { log_records: times.iter().map(record).collect(), ..ScopeLogs::default() }];
        let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
        ExportLogsServiceRequest { resource_logs }.encode_to_vec()
    }

    #[test]
    fn a_request_with_any_log_record_without_time_has_no_identity() {
        let identified = |times: &[(u64, u64)]| {
            let message = logs(times);
            is_identified(Signal::Logs, &message, &wire::scan(Signal::Logs, &message).expect("valid"))
        };
        assert!(identified(&[(1, 0), (0, 1)]));
        assert!(!identified(&[(1, 0), (0, 0)]));
    }
}
