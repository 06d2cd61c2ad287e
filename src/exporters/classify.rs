//! Who is ill, the batch or the destination: one table for HTTP and one for gRPC.
//!
//! The specification makes most statuses final. Forebay does not lose data over them: what speaks about the
//! destination is held and probed, and only what speaks about the batch counts against it.

use super::Class;

/// The class of an HTTP status that the server sent, and whether it is about the batch's size.
pub fn http(status: u16) -> (Class, bool) {
    match status {
        // The specification's retryable codes, and a request that was too slow.
        408 | 429 | 502..=504 => (Class::Retryable, false),
        413 => (Class::Batch, true),
        400 | 415 | 422 | 501 => (Class::Batch, false),
        // A redirect is never followed: the endpoint is configured wrongly.
        300..=399 => (Class::Destination, false),
        401 | 403 | 404 | 405 | 407 | 500 | 505..=599 => (Class::Destination, false),
        // Any other client error, 409 or 429's odd relatives: about this request.
        400..=499 => (Class::Batch, false),
        _ => (Class::Destination, false),
    }
}

/// The class of a gRPC status that the server sent, and whether it is about the batch's size.
pub fn grpc(code: i32, has_retry_info: bool, message: &str) -> (Class, bool) {
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

/// "grpc: received message larger than max (17000000 vs. 4194304)" and its like.
fn speaks_of_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["larger than", "too large", "message size", "exceeds", "max size", "length limit"]
        .iter()
        .any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_http_status_has_the_class_of_the_design() {
        for status in 100..=599u16 {
            let (class, too_large) = http(status);
            let expected = match status {
                408 | 429 | 502 | 503 | 504 => Class::Retryable,
                400 | 413 | 415 | 422 | 501 => Class::Batch,
                401 | 403 | 404 | 405 | 407 | 500 => Class::Destination,
                300..=399 | 505..=599 => Class::Destination,
                402..=499 => Class::Batch,
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
}
