//! The admin API: dead letters and what is set aside, over HTTP. docs/openapi.yaml describes it.
//!
//! One router for all ways in: the control socket of a running process, and a command that works on the files alone.

mod asked;
mod dlq;
mod export;
mod replay;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use futures_util::future::BoxFuture;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};

pub use asked::PAYLOAD_BYTES_MAX;
pub use dlq::{Edited, NO_LETTER, PurgeRequest, Purged};
pub use export::{INCOMPLETE_START, Incomplete, IncompleteLetter, LEFT_OUT_START, LeftOut, LeftOutLetter};
pub use replay::{FAILURES_MAX_DEFAULT, Progress, ReplayRequest, check_rate};

use asked::Order;

use crate::dlq::{DeadLetters, cut};
use crate::queue::Budget;
use crate::receivers::{body, status};
use crate::storage::dead_letters::Letter;

/// All bodies that are being read and judged: one of the largest, and what it takes to move it while it grows.
const BODIES_BYTES_MAX: u64 = 2 * asked::PAYLOAD_BYTES_MAX;
/// Longest reason of a refusal, which may name what was asked for.
const ERROR_BYTES_MAX: usize = 4 << 10;
const SEE_LOG: &str = "the process's log may say more";
const OPENAPI: &str = include_str!("../../docs/openapi.yaml");

/// Sends one letter to an exporter, alone and past every queue.
pub trait Resend: Send + Sync {
    /// The id of the exporter of that name, or an error that says which there are.
    fn exporter(&self, name: &str) -> Result<String, String>;
    /// `to`: the id of an exporter that there is.
    fn resend<'a>(&'a self, letter: &'a Letter, to: &'a str) -> BoxFuture<'a, Result<(), Unsent>>;
}

/// Why a letter was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsent {
    pub message: String,
    /// Whether the destination is ill, and not the letter: the next one would fare no better.
    pub is_destination: bool,
}

/// Makes what is set aside due now; how many ranges, or why not.
pub type Retry = dyn Fn(&RetryRequest) -> Result<u64, String> + Send + Sync;

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct RetryRequest {
    pub queue: Option<String>,
    pub exporter: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Retried {
    pub ranges: u64,
}

/// What the API speaks for.
pub struct Api {
    pub letters: Arc<DeadLetters>,
    pub resend: Arc<dyn Resend>,
    /// None: no process delivers.
    pub retry: Option<Box<Retry>>,
    /// Memory for bodies.
    bodies: Budget,
    /// One replay at a time.
    replaying: Arc<tokio::sync::Mutex<()>>,
}

impl Api {
    pub fn new(letters: Arc<DeadLetters>, resend: Arc<dyn Resend>, retry: Option<Box<Retry>>) -> Arc<Api> {
        Arc::new(Api { letters, resend, retry, bodies: Budget::new(BODIES_BYTES_MAX), replaying: Arc::default() })
    }
}

/// An answer that something cannot be done, and what to do instead.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

pub(super) fn refuse(status: StatusCode, error: impl ToString, help: &str) -> Response {
    let body = Refusal { error: cut(&error.to_string(), ERROR_BYTES_MAX), help: Some(help.to_owned()) };
    (status, axum::Json(body)).into_response()
}

/// Runs what reads or syncs the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Response> {
    tokio::task::spawn_blocking(work).await.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error, SEE_LOG))
}

async fn retry(State(api): State<Arc<Api>>, Order(request): Order<RetryRequest>) -> Response {
    match &api.retry {
        None => refuse(StatusCode::CONFLICT, "no process uses the data directory", "start one: it tries again at once"),
        Some(retry) => match retry(&request) {
            Ok(ranges) => axum::Json(Retried { ranges }).into_response(),
            Err(error) => refuse(StatusCode::NOT_FOUND, error, "name none to mean all"),
        },
    }
}

/// The methods that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Get,
    Put,
    Post,
}

impl Verb {
    fn filter(self) -> MethodFilter {
        match self {
            Verb::Get => MethodFilter::GET,
            Verb::Put => MethodFilter::PUT,
            Verb::Post => MethodFilter::POST,
        }
    }
}

/// Puts a handler behind a method.
type Serve = fn(MethodFilter) -> MethodRouter<Arc<Api>>;

/// All that is served. docs/openapi.yaml has the same, which a test compares: there is no other way into the router.
const ROUTES: &[(&str, Verb, Serve)] = &[
    ("/api/v1/dlq", Verb::Get, |method| on(method, dlq::list)),
    ("/api/v1/dlq/export", Verb::Get, |method| on(method, export::export)),
    ("/api/v1/dlq/purge", Verb::Post, |method| on(method, dlq::purge)),
    ("/api/v1/dlq/replay", Verb::Post, |method| on(method, replay::replay)),
    ("/api/v1/dlq/{id}", Verb::Get, |method| on(method, dlq::show)),
    ("/api/v1/dlq/{id}", Verb::Put, |method| on(method, dlq::edit)),
    ("/api/v1/openapi.yaml", Verb::Get, |method| on(method, document)),
    ("/api/v1/queue/retry", Verb::Post, |method| on(method, retry)),
];

pub fn router(api: Arc<Api>) -> Router {
    ROUTES
        .iter()
        .fold(Router::new(), |router, (path, verb, serve)| router.route(path, serve(verb.filter())))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

async fn document() -> Response {
    ([(CONTENT_TYPE, "application/yaml")], OPENAPI).into_response()
}

async fn nothing(request: Request) -> Response {
    let error = format!("nothing is served at {}", status::bounded(request.uri().path()));
    body::discard_unread(request);
    refuse(StatusCode::NOT_FOUND, error, "/api/v1/openapi.yaml names every path")
}

/// The router adds the methods there are, as `Allow`.
async fn wrong_method(request: Request) -> Response {
    let error = format!("{} is not allowed here", status::bounded(request.method().as_str()));
    body::discard_unread(request);
    refuse(StatusCode::METHOD_NOT_ALLOWED, error, "the Allow header has the methods of this path")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dlq::{OnFull, Shelf};
    use crate::storage::{Disk, RealDisk};
    use axum::body::Body;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    struct Nobody;
    impl Resend for Nobody {
        fn exporter(&self, _: &str) -> Result<String, String> {
            Err("nobody".to_owned())
        }
        fn resend<'a>(&'a self, _: &'a Letter, _: &'a str) -> BoxFuture<'a, Result<(), Unsent>> {
            async { unreachable!("there is no exporter") }.boxed()
        }
    }

    /// `path method` for everything under `paths:`.
    fn documented() -> Vec<String> {
        let paths = OPENAPI.split("\npaths:\n").nth(1).and_then(|rest| rest.split("\ncomponents:").next());
        let mut found = Vec::new();
        let mut path = "";
        for line in paths.expect("paths").lines() {
            let name = line.trim().trim_end_matches(':');
            match line.len() - line.trim_start().len() {
                2 => path = name,
                4 if ["get", "put", "post", "delete", "patch"].contains(&name) => found.push(format!("{path} {name}")),
                _ => {}
            }
        }
        found.sort();
        found
    }

    fn empty(dir: &std::path::Path) -> Router {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (shelf, _) = Shelf::open(&disk, dir, 1 << 20, None).expect("opens");
        router(Api::new(Arc::new(DeadLetters::new(shelf, OnFull::Block)), Arc::new(Nobody), None))
    }

    #[tokio::test]
    async fn a_rate_that_is_none_or_whose_pause_fits_into_no_clock_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let router = empty(dir.path());
        for (rate, status) in
            [("1e-30", 400), ("0", 400), ("-1", 400), ("1e999", 400), ("\"nan\"", 400), ("NaN", 400), ("10", 200)]
        {
            let request = http::Request::post("/api/v1/dlq/replay")
                .header(CONTENT_TYPE, "application/json")
                .body(Body::from(format!("{{\"all\": true, \"rate\": {rate}}}")))
                .expect("a request");
            assert_eq!(router.clone().oneshot(request).await.expect("answered").status().as_u16(), status, "{rate}");
        }
    }

    #[tokio::test]
    async fn the_document_has_every_route_and_no_other() {
        let name = |verb: Verb| format!("{verb:?}").to_ascii_lowercase();
        let mut routes: Vec<String> = ROUTES.iter().map(|(path, verb, _)| format!("{path} {}", name(*verb))).collect();
        routes.sort();
        assert_eq!(documented(), routes);
        let dir = tempfile::tempdir().expect("temporary directory");
        let router = empty(dir.path());
        for (path, _, _) in ROUTES {
            for method in ["get", "put", "post", "delete"] {
                let request = http::Request::builder()
                    .method(method.to_ascii_uppercase().as_str())
                    .uri(path.replace("{id}", "12"))
                    .body(Body::empty())
                    .expect("a request");
                let status = router.clone().oneshot(request).await.expect("answered").status();
                let is_listed = routes.contains(&format!("{path} {method}"));
                assert_eq!(status != StatusCode::METHOD_NOT_ALLOWED, is_listed, "{method} {path}");
            }
        }
    }

    /// What a refusal says, which must be JSON.
    async fn refused(router: &Router, request: http::Request<Body>) -> (u16, Refusal) {
        let shown = format!("{} {}", request.method(), request.uri());
        let response = router.clone().oneshot(request).await.expect("answered");
        let status = response.status().as_u16();
        assert_eq!(response.headers().get(CONTENT_TYPE).expect("a type"), "application/json", "{shown}: {status}");
        let text = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{shown}: {error}: {text:?}")))
    }

    #[tokio::test]
    async fn every_refusal_is_json_with_the_reason_and_what_to_do() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let router = empty(dir.path());
        let json = "application/json";
        let large = format!("{{\"filter\": {{\"ids\": [\"{}\"]}}}}", "0".repeat(10 << 20));
        let long = format!("{{\"{}\": 1}}", "x".repeat(1 << 20));
        let cases = [
            ("GET", "/", "", "", 404, "nothing is served at /"),
            ("GET", "/api/v1/dlq/1/2", "", "", 404, "nothing is served"),
            ("DELETE", "/api/v1/dlq", "", "", 405, "DELETE is not allowed"),
            ("POST", "/api/v1/dlq/12", json, "{}", 405, "POST is not allowed"),
            ("GET", "/api/v1/dlq?limit=many", "", "", 400, "the query cannot be read: limit: invalid digit"),
            ("GET", "/api/v1/dlq?limit=0", "", "", 400, "the limit must be from 1 to 1000, and is 0"),
            ("GET", "/api/v1/dlq?limit=1001", "", "", 400, "the limit must be from 1 to 1000, and is 1001"),
            ("PUT", "/api/v1/dlq/12?force=perhaps", json, "{}", 400, "the query cannot be read: force"),
            ("POST", "/api/v1/dlq/replay", json, "{\"all\": true, \"to\": \"x\"}", 400, "nobody"),
            ("GET", "/api/v1/dlq?limit=1&limit=2", "", "", 400, "limit"),
            ("GET", "/api/v1/dlq?colour=red", "", "", 400, "unknown field `colour`"),
            ("GET", "/api/v1/dlq?reason=spite", "", "", 400, "unknown variant `spite`"),
            ("GET", "/api/v1/dlq?after=zz", "", "", 400, "`zz` is no id"),
            ("GET", "/api/v1/dlq/export?ids=%ff%fe&x=1", "", "", 400, "unknown field `x`"),
            ("GET", "/api/v1/dlq/zz", "", "", 404, "there is no letter zz"),
            ("GET", "/api/v1/dlq/%ff", "", "", 404, "there is no letter"),
            ("GET", "/api/v1/dlq/12?payload=perhaps", "", "", 400, "payload"),
            ("GET", "/api/v1/dlq/12", "", "", 404, "there is no letter 12"),
            ("PUT", "/api/v1/dlq/12", json, "{}", 404, "there is no letter 12"),
            ("PUT", "/api/v1/dlq/12", "text/plain", "{}", 415, "must be application/json"),
            ("POST", "/api/v1/dlq/purge", "application/x-www-form-urlencoded", "{}", 415, "must be application/json"),
            ("POST", "/api/v1/dlq/purge", "", "{\"all\": true}", 415, "must be application/json"),
            ("POST", "/api/v1/dlq/purge", json, "", 400, "cannot be read: EOF"),
            ("POST", "/api/v1/dlq/purge", json, "{\"al", 400, "line 1 column 4"),
            ("POST", "/api/v1/dlq/purge", json, "{\"every\": true}", 400, "unknown field `every`"),
            ("POST", "/api/v1/dlq/purge", "application/json; charset=utf-8", "{}", 400, "no letters are named"),
            ("POST", "/api/v1/dlq/purge", json, &long, 400, "unknown field `xxx"),
            ("POST", "/api/v1/dlq/purge", json, &large, 413, "the 4194304 bytes that are taken"),
            ("POST", "/api/v1/dlq/replay", json, "[]]", 400, "trailing characters"),
            ("POST", "/api/v1/dlq/replay", json, "{\"all\": true, \"rate\": 0}", 400, "the rate must be"),
            ("POST", "/api/v1/queue/retry", json, "{}", 409, "no process"),
        ];
        for (method, uri, content_type, text, status, error) in cases {
            let mut request = http::Request::builder().method(method).uri(uri);
            if !content_type.is_empty() {
                request = request.header(CONTENT_TYPE, content_type);
            }
            let (found, refusal) =
                refused(&router, request.body(Body::from(text.to_owned())).expect("a request")).await;
            let case = format!("{method} {uri} {content_type} {text:.40}: {refusal:?}");
            assert_eq!(found, status, "{case}");
            assert!(refusal.error.len() <= ERROR_BYTES_MAX, "{case}");
            assert!(refusal.error.contains(error) && refusal.help.is_some_and(|help| !help.is_empty()), "{case}");
        }
    }

    #[tokio::test]
    async fn a_wrong_method_is_told_the_right_ones() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let request = http::Request::patch("/api/v1/dlq/12").body(Body::empty()).expect("a request");
        let response = empty(dir.path()).oneshot(request).await.expect("answered");
        assert_eq!(response.headers().get(http::header::ALLOW).expect("there"), "GET,HEAD,PUT");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_arriving_is_given_up() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let stuck = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        let request = http::Request::post("/api/v1/dlq/purge").header(CONTENT_TYPE, "application/json");
        let (status, refusal) =
            refused(&empty(dir.path()), request.body(Body::from_stream(stuck)).expect("a request")).await;
        assert_eq!((status, refusal.error.as_str()), (408, "the body stopped arriving"));
    }
}
