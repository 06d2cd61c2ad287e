//! Connections of one server: accepted up to a bound, closed when idle or old, ended in order.
//!
//! tonic's own server is not used for this: given both `max_connection_age` and its grace, tonic 0.14 never sends
//! GOAWAY and cuts requests off when the grace ends. It bounds neither connections nor how long one may say nothing.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

/// A listener that fails to accept (no descriptors left) tries again after this.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// A connection that is asked to end and has no request in flight is cut after this.
const END_GRACE: Duration = Duration::from_secs(5);

/// With a smaller budget than this the memory that connections take is counted.
const SMALL_BUDGET_BYTES: u64 = 256 << 20;
const CONNECTIONS_MAX: usize = 4096;
const CONNECTIONS_MIN: usize = 32;
const READ_BUFFER_BYTES: usize = 512 << 10;
const SMALL_READ_BUFFER_BYTES: usize = 64 << 10;
/// The kernel doubles it.
const SMALL_RECEIVE_BUFFER_BYTES: usize = 64 << 10;

/// What the connections of one server hold that the budget of bodies does not see. A cgroup is charged for both: 50
/// clients with large bodies and receive buffers that grow as the kernel likes (6 MiB each) fill 128 MiB by themselves.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionMemory {
    /// Open at a time; more wait in the listen backlog.
    pub connections_max: usize,
    /// HTTP/1's read buffer, and with it the longest header. It grows to this while large bodies arrive.
    pub read_buffer_bytes: usize,
    /// The kernel's, per connection; None: as the kernel sees fit.
    pub receive_buffer_bytes: Option<usize>,
}

impl ConnectionMemory {
    /// Beside bodies that take up to `budget_bytes`.
    pub fn beside(budget_bytes: u64) -> ConnectionMemory {
        if budget_bytes >= SMALL_BUDGET_BYTES {
            return ConnectionMemory {
                connections_max: CONNECTIONS_MAX,
                read_buffer_bytes: READ_BUFFER_BYTES,
                receive_buffer_bytes: None,
            };
        }
        let each = SMALL_READ_BUFFER_BYTES + 2 * SMALL_RECEIVE_BUFFER_BYTES;
        ConnectionMemory {
            connections_max: (budget_bytes as usize / 2 / each).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX),
            read_buffer_bytes: SMALL_READ_BUFFER_BYTES,
            receive_buffer_bytes: Some(SMALL_RECEIVE_BUFFER_BYTES),
        }
    }
}

/// What one server allows its connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    pub memory: ConnectionMemory,
    /// Closed after this (and before twice this) without a request; None: never.
    pub idle: Option<Duration>,
    /// Asked to end after this, give or take a tenth; None: never.
    pub age: Option<Duration>,
    /// What an old connection has to end its requests; None: as long as they take.
    pub age_grace: Option<Duration>,
}

/// Serves until `shutdown`; then accepts no more, lets requests in flight end, and returns.
pub async fn serve(
    listeners: Vec<TcpListener>,
    builder: Builder<TokioExecutor>,
    router: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    let server = Arc::new(Server { builder, router, limits, shutdown });
    let places = Arc::new(Semaphore::new(limits.memory.connections_max));
    if let Some(bytes) = limits.memory.receive_buffer_bytes {
        for listener in &listeners {
            // Connections inherit it.
            if let Err(error) = SockRef::from(listener).set_recv_buffer_size(bytes) {
                tracing::warn!(%error, "failed to bound the receive buffers of connections; memory may run short");
            }
        }
    }
    let accepting = listeners
        .into_iter()
        .map(|listener| accept(listener, Arc::clone(&server), connections.clone(), Arc::clone(&places)));
    futures_util::future::join_all(accepting).await;
    connections.close();
    connections.wait().await;
}

/// Whose connection a request came over.
#[derive(Clone, Copy, Debug)]
struct Peer(IpAddr);

pub fn peer(request: &Request<Body>) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0)
}

struct Server {
    builder: Builder<TokioExecutor>,
    router: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
}

async fn accept(listener: TcpListener, server: Arc<Server>, connections: TaskTracker, places: Arc<Semaphore>) {
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let accepted = tokio::select! {
            () = server.shutdown.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            (Ok(place), Ok((stream, address))) => {
                let server = Arc::clone(&server);
                connections.spawn(async move {
                    let _place = place;
                    server.connection(stream, Peer(address.ip())).await;
                });
            }
            // Nobody closes the semaphore.
            (Err(_), _) => return,
            (Ok(_), Err(error)) => {
                tracing::warn!(%error, "failed to accept a connection; trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Why a connection is asked to end.
enum End {
    Shutdown,
    Idle,
    Aged,
}

impl Server {
    async fn connection(&self, stream: TcpStream, peer: Peer) {
        // Answers are small and awaited: they must not wait for more to come.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY");
        }
        let activity = Arc::new(Activity::default());
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            answer(self.router.clone(), request, activity.enter())
        });
        let serving = self.builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(serving);
        let ended = |result: Result<(), Box<dyn std::error::Error + Send + Sync>>| {
            if let Err(error) = result {
                tracing::debug!(%error, "a connection ended early");
            }
        };
        let end = tokio::select! {
            result = serving.as_mut() => return ended(result),
            () = self.shutdown.cancelled() => End::Shutdown,
            () = activity.idle(self.limits.idle) => End::Idle,
            () = after(self.limits.age.map(jittered)) => End::Aged,
        };
        serving.as_mut().graceful_shutdown();
        let cut = async {
            match end {
                // One that is asked to end may be waiting for its client for ever; requests are waited for.
                End::Shutdown | End::Idle => activity.idle(Some(END_GRACE)).await,
                End::Aged => after(self.limits.age_grace).await,
            }
        };
        tokio::select! {
            result = serving.as_mut() => ended(result),
            () = cut => tracing::debug!("a connection was cut after its grace"),
        }
    }
}

async fn answer(mut router: Router, request: Request<Incoming>, busy: Busy) -> Result<Response, Infallible> {
    let response = router.call(request.map(Body::new)).await?;
    if response.body().size_hint().exact().is_some() {
        return Ok(response);
    }
    // A stream (gRPC health's Watch) is in flight until its end.
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _busy = &busy;
            frame
        }))
    }))
}

async fn after(delay: Option<Duration>) {
    match delay {
        Some(delay) => tokio::time::sleep(delay).await,
        None => std::future::pending().await,
    }
}

/// Connections that were opened together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// Requests of one connection.
#[derive(Debug, Default)]
struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A request in flight.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Activity {
    fn enter(self: &Arc<Activity>) -> Busy {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Resolves after a whole `limit` in which no request began or was in flight.
    async fn idle(&self, limit: Option<Duration>) {
        loop {
            let before = self.begun.load(Ordering::Relaxed);
            after(limit).await;
            let ended = self.ended.load(Ordering::Relaxed);
            if ended == before && self.begun.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}
