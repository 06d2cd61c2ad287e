//! Requests to the admin API: of the process that uses a data directory, or of its files when none does.

use std::path::Path;

use axum::Router;
use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tower::ServiceExt;

use super::Failure;
use crate::admin::api::Refusal;
use crate::admin::control;

/// Who answers.
pub enum Way {
    Process(SendRequest<Body>),
    /// In this very process; whoever made it holds the data directory's lock.
    Files {
        router: Router,
        /// Stretches of the files that could not be read when they were opened.
        damaged: usize,
    },
}

/// Connects to the process that uses the data directory, if one does.
pub async fn process(dir: &Path) -> Result<Option<Way>, Failure> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Failure::Other(format!("failed to reach the process that uses {}: {error}", dir.display()))
    };
    let Some(stream) = control::connect(dir).await.map_err(|error| unreachable(&error))? else { return Ok(None) };
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
    // How it ends shows in the request.
    tokio::spawn(connection);
    Ok(Some(Way::Process(sender)))
}

impl Way {
    async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Body), Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "forebay")
            .header("content-type", "application/json")
            .body(Body::from(body))
            .map_err(|error| Failure::Other(format!("the request cannot be made: {error}")))?;
        let response = match self {
            Way::Process(sender) => {
                let broken = |error: hyper::Error| Failure::Other(format!("the process broke off: {error}"));
                sender.ready().await.map_err(broken)?;
                sender.send_request(request).await.map_err(broken)?.map(Body::new)
            }
            Way::Files { router, .. } => match router.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        };
        Ok((response.status(), response.into_body()))
    }

    /// Each piece of the answer as it comes. An answer that is none is a failure with its message.
    pub async fn stream(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        mut piece: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (status, mut body) = self.send(method, path, body).await?;
        if !status.is_success() {
            let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            return Err(refused(status, &text));
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failure::Other(format!("the answer broke off: {error}")))?;
            if let Some(bytes) = frame.data_ref() {
                piece(bytes)?;
            }
        }
        Ok(())
    }

    pub async fn json<T: DeserializeOwned>(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<T, Failure> {
        let mut text = Vec::new();
        let keep = |bytes: &[u8]| {
            text.extend_from_slice(bytes);
            Ok(())
        };
        self.stream(method, path, body, keep).await?;
        serde_json::from_slice(&text).map_err(|error| Failure::Other(format!("the answer cannot be read: {error}")))
    }
}

fn refused(status: StatusCode, text: &[u8]) -> Failure {
    match serde_json::from_slice::<Refusal>(text) {
        Ok(Refusal { error, help: Some(help) }) => Failure::Other(format!("{error}\n  help: {help}")),
        Ok(Refusal { error, help: None }) => Failure::Other(error),
        Err(_) => Failure::Other(format!("{status}: {}", String::from_utf8_lossy(text).trim())),
    }
}

/// Runs one command's requests.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("failed to start: {error}")))?;
    runtime.block_on(work)
}
