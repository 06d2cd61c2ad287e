//! The admin API: dead letters and what is set aside, over HTTP. docs/openapi.yaml describes it.
//!
//! One router for all ways in: the control socket of a running process, and a command that works on the files alone.

mod dlq;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};

pub use dlq::{Edited, Progress, PurgeRequest, Purged, ReplayRequest};

use crate::dlq::DeadLetters;
use crate::storage::dead_letters::Letter;

/// Largest body: an edited payload as JSON.
const BODY_BYTES_MAX: usize = 64 << 20;
const OPENAPI: &str = include_str!("../../docs/openapi.yaml");

/// Sends one letter to an exporter, alone and past every queue.
pub trait Resend: Send + Sync {
    /// `to`: an exporter's id; without, the one that could not deliver it.
    fn resend<'a>(&'a self, letter: &'a Letter, to: Option<&'a str>) -> BoxFuture<'a, Result<(), String>>;
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
    /// One replay at a time.
    replaying: Arc<tokio::sync::Mutex<()>>,
}

impl Api {
    pub fn new(letters: Arc<DeadLetters>, resend: Arc<dyn Resend>, retry: Option<Box<Retry>>) -> Arc<Api> {
        Arc::new(Api { letters, resend, retry, replaying: Arc::default() })
    }
}

/// An answer that something cannot be done, and what to do instead.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

pub(super) fn refuse(status: StatusCode, error: impl ToString, help: Option<&str>) -> Response {
    let body = Refusal { error: error.to_string(), help: help.map(str::to_owned) };
    (status, axum::Json(body)).into_response()
}

/// Runs what reads or syncs the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Response> {
    tokio::task::spawn_blocking(work).await.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error, None))
}

async fn retry(State(api): State<Arc<Api>>, axum::Json(request): axum::Json<RetryRequest>) -> Response {
    match &api.retry {
        None => refuse(StatusCode::CONFLICT, "no process uses the data directory", None),
        Some(retry) => match retry(&request) {
            Ok(ranges) => axum::Json(Retried { ranges }).into_response(),
            Err(error) => refuse(StatusCode::NOT_FOUND, error, None),
        },
    }
}

/// Paths and methods, as docs/openapi.yaml has them.
pub const ROUTES: &[(&str, &[&str])] = &[
    ("/api/v1/dlq", &["get"]),
    ("/api/v1/dlq/export", &["get"]),
    ("/api/v1/dlq/purge", &["post"]),
    ("/api/v1/dlq/replay", &["post"]),
    ("/api/v1/dlq/{id}", &["get", "put"]),
    ("/api/v1/openapi.yaml", &["get"]),
    ("/api/v1/queue/retry", &["post"]),
];

pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/api/v1/dlq", get(dlq::list))
        .route("/api/v1/dlq/export", get(dlq::export))
        .route("/api/v1/dlq/purge", post(dlq::purge))
        .route("/api/v1/dlq/replay", post(dlq::replay))
        .route("/api/v1/dlq/{id}", get(dlq::show).put(dlq::edit))
        .route("/api/v1/openapi.yaml", get(|| async { ([(CONTENT_TYPE, "application/yaml")], OPENAPI) }))
        .route("/api/v1/queue/retry", post(retry))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dlq::{OnFull, Shelf};
    use crate::storage::{Disk, RealDisk};
    use futures_util::FutureExt;
    use tower::ServiceExt;

    struct Nobody;
    impl Resend for Nobody {
        fn resend<'a>(&'a self, _: &'a Letter, _: Option<&'a str>) -> BoxFuture<'a, Result<(), String>> {
            async { Err("nobody".to_owned()) }.boxed()
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
    async fn a_rate_whose_pause_fits_into_no_clock_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let router = empty(dir.path());
        for (rate, status) in
            [("1e-30", StatusCode::BAD_REQUEST), ("0", StatusCode::BAD_REQUEST), ("10", StatusCode::OK)]
        {
            let request = http::Request::post("/api/v1/dlq/replay")
                .header(CONTENT_TYPE, "application/json")
                .body(axum::body::Body::from(format!("{{\"all\": true, \"rate\": {rate}}}")))
                .expect("a request");
            assert_eq!(router.clone().oneshot(request).await.expect("answered").status(), status, "{rate}");
        }
    }

    #[tokio::test]
    async fn the_document_has_every_route_and_no_other() {
        let mut routes: Vec<String> = ROUTES
            .iter()
            .flat_map(|(path, methods)| methods.iter().map(move |method| format!("{path} {method}")))
            .collect();
        routes.sort();
        assert_eq!(documented(), routes);
        let dir = tempfile::tempdir().expect("temporary directory");
        let router = empty(dir.path());
        for (path, methods) in ROUTES {
            for method in ["get", "put", "post", "delete"] {
                let request = http::Request::builder()
                    .method(method.to_ascii_uppercase().as_str())
                    .uri(path.replace("{id}", "12"))
                    .body(axum::body::Body::empty())
                    .expect("a request");
                let status = router.clone().oneshot(request).await.expect("answered").status();
                assert_eq!(status != StatusCode::METHOD_NOT_ALLOWED, methods.contains(&method), "{method} {path}");
            }
        }
    }
}
