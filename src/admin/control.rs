//! The control socket in the data directory, through which commands on the same machine reach the running process.
//!
//! It speaks HTTP ([`super::api`]). It has no port and needs no token: who may open the data directory may use it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

const NAME: &str = "admin.sock";
/// A request that does not begin in this time is given up.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Conversations at a time: this is for people.
const CONNECTIONS_MAX: usize = 16;

/// A path to the socket that fits a socket address however long the data directory's is. Good while `File` is open.
fn reachable(dir: &Path) -> io::Result<(File, PathBuf)> {
    let dir = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()));
    Ok((dir, path))
}

/// Opens the socket and answers in the background until `shutdown`; then it is removed. Call it only while the data
/// directory is locked: a socket that a killed process left behind is replaced.
pub fn serve(dir: &Path, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    let (handle, path) = reachable(dir)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match (accepted, Arc::clone(&places).acquire_owned().await) {
                (Ok((stream, _)), Ok(place)) => {
                    let service = TowerToHyperService::new(router.clone());
                    tokio::spawn(async move {
                        let serving = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEADER_TIMEOUT)
                            .serve_connection(TokioIo::new(stream), service);
                        if let Err(error) = serving.await {
                            tracing::debug!(%error, "a conversation over the control socket broke off");
                        }
                        drop(place);
                    });
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "the control socket failed to accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                (_, Err(_)) => break,
            }
        }
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, "failed to remove the control socket");
        }
        drop(handle);
    });
    Ok(())
}

/// Connects to the process that uses the data directory. None: nobody listens there.
pub async fn connect(dir: &Path) -> io::Result<Option<UnixStream>> {
    let (_handle, path) = reachable(dir)?;
    match UnixStream::connect(&path).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use http_body_util::{BodyExt, Empty};

    #[tokio::test]
    async fn a_request_is_answered_in_a_directory_with_a_long_name_and_the_socket_goes_at_the_end() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let long = dir.path().join("a".repeat(120));
        std::fs::create_dir(&long).expect("created");
        assert!(connect(&long).await.expect("asked").is_none(), "nobody listens yet");
        let shutdown = CancellationToken::new();
        let router = Router::new().route("/word", get(|| async { "heard" }));
        serve(&long, router, shutdown.clone()).expect("serves");
        let mode = std::fs::metadata(long.join(NAME)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let stream = connect(&long).await.expect("asked").expect("listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("connected");
        tokio::spawn(connection);
        let request = http::Request::get("/word").header("host", "forebay").body(Empty::<bytes::Bytes>::new());
        let answer = sender.send_request(request.expect("a request")).await.expect("answered");
        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "heard");
        shutdown.cancel();
        while long.join(NAME).exists() {
            tokio::task::yield_now().await;
        }
    }
}
