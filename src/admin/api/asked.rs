//! What a request asks for, taken in; what cannot be is refused as everything here is, in JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use super::{Api, refuse};
use crate::dlq::parse_id;
use crate::queue::Permit;
use crate::receivers::body::{self, BodyLimits, BodyReader};
use crate::receivers::ingest::Rejection;

/// Largest edited payload.
pub const PAYLOAD_BYTES_MAX: u64 = 64 << 20;
/// Any other body is words: as many ids as a command line holds.
const WORDS_BYTES_MAX: u64 = 4 << 20;
const READ_TIMEOUT: Duration = Duration::from_secs(30);

const DESCRIBED: &str = "/api/v1/openapi.yaml describes every request";

/// The query.
pub struct Wanted<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Wanted<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Wanted<T>, Response> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(wanted)) => Ok(Wanted(wanted)),
            Err(rejection) => {
                let text = rejection.body_text();
                let reason = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                Err(refuse(StatusCode::BAD_REQUEST, format!("the query cannot be read: {reason}"), DESCRIBED))
            }
        }
    }
}

/// A letter's id, as it stands in the path.
pub struct Id {
    pub number: u64,
    pub text: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Id, Response> {
        let refusal = |text: &str| super::dlq::unknown(text);
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|_| refusal("of that name"))?;
        match parse_id(&text) {
            Some(number) => Ok(Id { number, text }),
            None => Err(refusal(&text)),
        }
    }
}

/// A body of words, as JSON.
pub struct Order<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Order<T> {
    type Rejection = Response;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Order<T>, Response> {
        let (text, _permit) = read(request, api, WORDS_BYTES_MAX).await?;
        serde_json::from_slice(&text)
            .map(Order)
            .map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"), DESCRIBED))
    }
}

/// A body with a payload as JSON; its memory is accounted for.
pub struct Payload {
    pub text: Bytes,
    pub permit: Permit,
}

impl FromRequest<Arc<Api>> for Payload {
    type Rejection = Response;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Payload, Response> {
        let (text, permit) = read(request, api, PAYLOAD_BYTES_MAX).await?;
        Ok(Payload { text, permit })
    }
}

/// Reads a body that is announced as JSON, within the limit, the API's budget and a time.
async fn read(request: Request, api: &Api, bytes_max: u64) -> Result<(Bytes, Permit), Response> {
    // A form or plain text is what a page of another origin may send unasked.
    if !is_json(request.headers()) {
        let error = "the content type of a body must be application/json";
        let refusal = refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, "send `Content-Type: application/json`");
        body::discard_unread(request);
        return Err(refusal);
    }
    let waits = body::waits_for_continue(request.headers());
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let limits = BodyLimits { bytes_max, read_timeout: READ_TIMEOUT };
    let mut reader = BodyReader::new(request.into_body(), limits, &api.bodies);
    let result = match announced.map_or(Ok(()), |length| reader.announce(length)) {
        Ok(()) => reader.finish().await,
        Err(rejection) => Err(rejection),
    };
    result.map_err(|rejection| {
        if !waits {
            tokio::spawn(body::discard::<Body>(reader.into_rest()));
        }
        rejected(rejection)
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (types.next(), types.next()) else { return false };
    let name = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    name.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn rejected(rejection: Rejection) -> Response {
    match rejection {
        Rejection::TooLarge(error) => {
            refuse(StatusCode::PAYLOAD_TOO_LARGE, error, "name fewer letters, or split the payload")
        }
        Rejection::Unavailable { message, .. } => {
            refuse(StatusCode::SERVICE_UNAVAILABLE, message, "other requests to this API hold it")
        }
        Rejection::TooSlow => refuse(StatusCode::REQUEST_TIMEOUT, "the body stopped arriving", "send it faster"),
        Rejection::Malformed(flaw) => refuse(StatusCode::BAD_REQUEST, flaw.message, DESCRIBED),
        Rejection::NoPipeline(error) | Rejection::Broken(error) => refuse(StatusCode::BAD_REQUEST, error, DESCRIBED),
    }
}
