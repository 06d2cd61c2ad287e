//! Who is ill, the batch or the destination: one table for HTTP and one for gRPC, and what a configuration changes in
//! them (`status_policy`).
//!
//! The specification makes most statuses final. Forebay does not lose data over them: what speaks about the
//! destination is held and probed, and only what speaks about the batch counts against it.

use std::collections::BTreeMap;

use crate::settings::{Problem, Table, nearest};

use super::Class;

const CLASSES: &[(&str, Class)] =
    &[("retryable", Class::Retryable), ("destination", Class::Destination), ("batch", Class::Batch)];

/// gRPC's codes, by number; OK is none of a failure's.
const GRPC_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Statuses whose class may be changed: a 2xx is a delivery.
const HTTP_STATUSES: std::ops::RangeInclusive<u16> = 300..=599;

/// The tables, with the classes that one exporter's `status_policy` changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusPolicy {
    http: BTreeMap<u16, Class>,
    grpc: BTreeMap<i32, Class>,
}

impl StatusPolicy {
    /// Reads `http` and `grpc`: maps from a status or code to `retryable`, `destination` or `batch`.
    pub fn read(table: &mut Table<'_>) -> StatusPolicy {
        let http_key = |key: &str| key.parse().ok().filter(|status| HTTP_STATUSES.contains(status));
        let http = table.table("http", |table| read_classes(table, "an HTTP status from 300 to 599", http_key));
        let grpc = table.table("grpc", |table| {
            read_classes(table, "a gRPC code such as NOT_FOUND, or its number from 1 to 16", grpc_code)
        });
        StatusPolicy { http: http.unwrap_or_default(), grpc: grpc.unwrap_or_default() }
    }

    /// The class of an HTTP status that the server sent, and whether it is about the batch's size.
    pub fn http(&self, status: u16) -> (Class, bool) {
        let (class, too_large) = http(status);
        let class = self.http.get(&status).copied().unwrap_or(class);
        (class, too_large && class == Class::Batch)
    }

    /// The class of a gRPC status that the server sent, and whether it is about the batch's size. What the answer
    /// itself says of size or of a retry goes before the configured class.
    pub fn grpc(&self, code: i32, has_retry_info: bool, message: &str) -> (Class, bool) {
        let (class, too_large) = grpc(code, has_retry_info, message);
        if too_large || (has_retry_info && class == Class::Retryable) {
            return (class, too_large);
        }
        (self.grpc.get(&code).copied().unwrap_or(class), false)
    }
}

/// The name of a gRPC status code.
pub fn grpc_name(code: i32) -> Option<&'static str> {
    usize::try_from(code).ok().and_then(|code| GRPC_NAMES.get(code).copied())
}

fn grpc_code(key: &str) -> Option<i32> {
    let by_name = GRPC_NAMES.iter().position(|name| *name == key).and_then(|code| i32::try_from(code).ok());
    by_name.or_else(|| key.parse().ok()).filter(|code| (1..=16).contains(code))
}

/// A map with statuses as keys.
fn read_classes<K: Ord + Copy>(
    table: &mut Table<'_>,
    expected: &str,
    parse: impl Fn(&str) -> Option<K>,
) -> BTreeMap<K, Class> {
    let mut classes = BTreeMap::new();
    for key in table.keys() {
        let origin = table.key_origin_of(&key);
        let class = table.named_choice(&key, CLASSES);
        let Some(status) = parse(&key) else {
            let message = format!("{}: expected {expected}, found `{}`", table.path(), key.escape_debug());
            let problem = Problem::error(origin, message);
            // The first is OK, which is no failure.
            table.report(match nearest(&key.to_ascii_uppercase(), GRPC_NAMES.iter().skip(1).copied()) {
                Some(name) if expected.contains("gRPC") => problem.with_help(format!("did you mean {name}?")),
                _ => problem,
            });
            continue;
        };
        let Some(class) = class else { continue };
        if classes.insert(status, class).is_some() {
            let message = format!("{}: `{}` is there twice, by name and by number", table.path(), key.escape_debug());
            table.report(Problem::error(origin, message).with_help("remove one of them"));
        }
    }
    classes
}

/// DESIGN's table, where nothing is configured.
fn http(status: u16) -> (Class, bool) {
    match status {
        // The specification's retryable codes.
        429 | 502..=504 => (Class::Retryable, false),
        413 => (Class::Batch, true),
        400 | 415 | 422 | 501 => (Class::Batch, false),
        // A redirect is never followed: the endpoint is configured wrongly.
        300..=399 => (Class::Destination, false),
        // Who we are, what we pay, where we send it, how slow the way is, and what the law says: not this batch.
        401..=405 | 407 | 408 | 410 | 421 | 451 | 500 | 505..=599 => (Class::Destination, false),
        // Any other client error: about this request.
        400..=499 => (Class::Batch, false),
        _ => (Class::Destination, false),
    }
}

fn grpc(code: i32, has_retry_info: bool, message: &str) -> (Class, bool) {
    const CANCELLED: i32 = 1;
    const INVALID_ARGUMENT: i32 = 3;
    const DEADLINE_EXCEEDED: i32 = 4;
    const RESOURCE_EXHAUSTED: i32 = 8;
    const ABORTED: i32 = 10;
    const OUT_OF_RANGE: i32 = 11;
    const UNAVAILABLE: i32 = 14;
    const DATA_LOSS: i32 = 15;
    match code {
        OUT_OF_RANGE if speaks_of_size(message) => (Class::Batch, true),
        CANCELLED | DEADLINE_EXCEEDED | ABORTED | OUT_OF_RANGE | UNAVAILABLE | DATA_LOSS => (Class::Retryable, false),
        RESOURCE_EXHAUSTED if has_retry_info => (Class::Retryable, false),
        RESOURCE_EXHAUSTED if speaks_of_size(message) => (Class::Batch, true),
        INVALID_ARGUMENT => (Class::Batch, false),
        // UNKNOWN, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL,
        // UNAUTHENTICATED, RESOURCE_EXHAUSTED without a reason: the destination is not as it should be.
        _ => (Class::Destination, false),
    }
}

/// "grpc: received message larger than max (17000000 vs. 4194304)" and its like; not what is said of a rate or a quota,
/// which no smaller request helps against.
fn speaks_of_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    let is_of_size = says(&["larger than", "too large", "message size", "max size", "maximum size", "length limit"])
        || (message.contains("exceeds") && says(&["message", "size", "byte", "length"]));
    let mut words = message.split(|character: char| !character.is_ascii_alphanumeric());
    is_of_size && !words.any(|word| ["rate", "quota", "throttled"].contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_http_status_has_the_class_of_the_design() {
        for status in 100..=599u16 {
            let (class, too_large) = http(status);
            let expected = match status {
                429 | 502 | 503 | 504 => Class::Retryable,
                400 | 413 | 415 | 422 | 501 => Class::Batch,
                401..=405 | 407 | 408 | 410 | 421 | 451 | 500 => Class::Destination,
                300..=399 | 505..=599 => Class::Destination,
                406..=499 => Class::Batch,
                _ => Class::Destination,
            };
            assert_eq!(class, expected, "{status}");
            assert_eq!(too_large, status == 413);
        }
    }

    #[test]
    fn every_grpc_code_has_the_class_of_the_design() {
        for code in 1..=16 {
            let expected = match code {
                1 | 4 | 10 | 11 | 14 | 15 => Class::Retryable,
                3 => Class::Batch,
                _ => Class::Destination,
            };
            assert_eq!(grpc(code, false, "no").0, expected, "{code}");
        }
        assert_eq!(grpc(8, true, "slow down"), (Class::Retryable, false));
        let size = "grpc: received message larger than max (17000000 vs. 4194304)";
        assert_eq!(grpc(8, false, size), (Class::Batch, true));
        assert_eq!(grpc(11, false, size), (Class::Batch, true));
    }

    /// As gRPC's libraries put it, and what servers say when something else is exhausted.
    #[test]
    fn what_a_server_has_too_much_of_is_told_from_what_it_has_too_often() {
        for size in [
            "grpc: received message larger than max (17000000 vs. 4194304)",
            "SERVER: Received message larger than max (5000000 vs. 4194304)",
            "gRPC message exceeds maximum size 4194304: 5000000",
            "Received message exceeds the maximum configured message size.",
            "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes",
            "request body exceeds 4 MiB length limit",
            // Our own receivers.
            "the message is too large: it has 3291749 bytes, at most 1048576 are taken",
        ] {
            assert_eq!(grpc(8, false, size), (Class::Batch, true), "{size}");
        }
        for other in [
            "request rate exceeds quota of 100 messages",
            "Request rate is too large",
            "quota exceeded: message size budget of this minute",
            "too many requests",
            "no memory left",
        ] {
            assert_eq!(grpc(8, false, other), (Class::Destination, false), "{other}");
        }
    }
}
