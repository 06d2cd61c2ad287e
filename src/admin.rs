//! Metrics page, health endpoints, and the admin API: on the control socket, and over TCP where that is configured.

pub mod api;
pub mod control;
mod guard;
mod health;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::AdminPlan;
use crate::receivers::listen::{self, BindError};
use crate::receivers::serve::{self, ConnectionLimits, ConnectionMemory};

use token::Token;

pub use health::{Health, Phase};

const MEMORY: ConnectionMemory =
    ConnectionMemory { connections_max: 64, read_buffer_bytes: 16 << 10, receive_buffer_bytes: None };
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

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
        let mut builder = Builder::new(TokioExecutor::new()).http1_only();
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(MEMORY.read_buffer_bytes);
        let limits = ConnectionLimits { memory: MEMORY, idle: Some(IDLE_TIMEOUT), age: None, age_grace: None };
        tokio::spawn(serve::serve(self.listeners, builder, self.router, limits, shutdown.clone()));
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
        // Gauges may read the disk.
        let rendering = tokio::task::spawn_blocking(move || {
            (metrics.refresh)();
            metrics.handle.render()
        });
        match rendering.await {
            Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
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
    if !["/", "/livez", "/readyz"].contains(&path) && path.starts_with('/') && !path.contains(['{', '}', '*', ':']) {
        router = router.route(path, get(ready));
    }
    Ok(Page { listeners, router: router.with_state(health) })
}

/// The admin API's port, open before there is anything that it could speak for.
pub struct AdminPort {
    listeners: Vec<TcpListener>,
    token: Option<Arc<Token>>,
}

/// Opens the port; a token file that is of no use is logged now.
pub async fn admin_port(plan: &AdminPlan) -> Result<AdminPort, BindError> {
    let listeners = listen::bind("forebay.admin.endpoint", &plan.endpoint).await?;
    let token = plan.token.clone().map(|token| Arc::new(Token::new(token)));
    if let Some(token) = &token {
        token.expected().await;
    }
    Ok(AdminPort { listeners, token })
}

impl AdminPort {
    pub fn page(self, api: Router) -> Page {
        Page { listeners: self.listeners, router: guard::guarded(api, self.token) }
    }
}
