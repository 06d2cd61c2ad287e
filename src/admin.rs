//! Metrics page and health endpoints.

mod health;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::receivers::listen::{self, BindError};

pub use health::{Health, Phase};

/// A page with its port open, not served yet.
pub struct Page {
    listeners: Vec<TcpListener>,
    router: Router,
}

impl Page {
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves in the background until `shutdown`.
    pub fn serve(self, shutdown: &CancellationToken) {
        for listener in self.listeners {
            let serving =
                axum::serve(listener, self.router.clone()).with_graceful_shutdown(shutdown.clone().cancelled_owned());
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "a page of the process itself ended");
                }
            });
        }
    }
}

struct Metrics {
    handle: PrometheusHandle,
    /// Brings gauges up to date before they are read.
    refresh: Box<dyn Fn() + Send + Sync>,
}

/// The Prometheus page at `/metrics`.
pub async fn metrics_page(
    endpoint: &str,
    handle: PrometheusHandle,
    refresh: impl Fn() + Send + Sync + 'static,
) -> Result<Page, BindError> {
    let listeners = listen::bind("service.telemetry.metrics.address", endpoint).await?;
    let render = |State(metrics): State<Arc<Metrics>>| async move {
        (metrics.refresh)();
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.handle.render())
    };
    let state = Arc::new(Metrics { handle, refresh: Box::new(refresh) });
    Ok(Page { listeners, router: Router::new().route("/metrics", get(render)).with_state(state) })
}

/// `/` (and the configured path), `/livez` and `/readyz`.
pub async fn health_page(endpoint: &str, path: &str, health: Arc<Health>) -> Result<Page, BindError> {
    let listeners = listen::bind("extensions.health_check.endpoint", endpoint).await?;
    let answer = |result: Result<(), String>, uptime_s: u64| -> Response {
        let (status, word, reason) = match result {
            Ok(()) => (StatusCode::OK, "Server available", String::new()),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, "Server not available", reason),
        };
        let body = serde_json::json!({ "status": word, "reason": reason, "uptime_s": uptime_s });
        (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    };
    let ready = move |State(health): State<Arc<Health>>, RawQuery(query): RawQuery| async move {
        let with_capacity = query.is_some_and(|query| query.split('&').any(|pair| pair == "capacity=1"));
        answer(health.ready(with_capacity), health.uptime_s())
    };
    let live = move |State(health): State<Arc<Health>>| async move { answer(Ok(()), health.uptime_s()) };
    let mut router = Router::new().route("/", get(ready)).route("/livez", get(live)).route("/readyz", get(ready));
    if !["/", "/livez", "/readyz"].contains(&path) && path.starts_with('/') && !path.contains(['{', '}', '*']) {
        router = router.route(path, get(ready));
    }
    Ok(Page { listeners, router: router.with_state(health) })
}
