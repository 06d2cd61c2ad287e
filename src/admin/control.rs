//! The control socket in the data directory, through which commands on the same machine reach the running process.
//!
//! One line of JSON each way. It has no port and needs no token: who may open the data directory may use it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NAME: &str = "admin.sock";
const LINE_BYTES_MAX: u64 = 4 << 10;
/// For one request and its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the process can be asked.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Tries everything that is set aside now; None: of all queues, of all exporters.
    Retry { queue: Option<String>, exporter: Option<String> },
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Answer {
    /// Ranges that were set aside and are due now.
    pub ranges: u64,
    /// Why nothing was done.
    pub error: Option<String>,
}

/// A path to the socket that fits a socket address however long the data directory's is. Good while `File` is open.
fn reachable(dir: &Path) -> io::Result<(File, PathBuf)> {
    let dir = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()));
    Ok((dir, path))
}

/// Opens the socket and answers in the background until `shutdown`; then it is removed. From the call to the end of the
/// task that is returned the data directory must be locked: a socket that a killed process left behind is replaced, and
/// one of a successor must not be removed.
pub fn serve(
    dir: &Path,
    answer: impl Fn(Request) -> Answer + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> io::Result<JoinHandle<()>> {
    let (handle, path) = reachable(dir)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let answer = Arc::new(answer);
    Ok(tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                // One at a time: this is for people. A client that hangs is given up.
                Ok((stream, _)) => {
                    let conversation = tokio::time::timeout(TIMEOUT, converse(stream, answer.as_ref()));
                    let result = tokio::select! {
                        () = shutdown.cancelled() => break,
                        result = conversation => result,
                    };
                    match result {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::warn!(%error, "a request over the control socket failed"),
                        Err(_) => tracing::warn!("a request over the control socket took too long"),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket failed to accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, "failed to remove the control socket");
        }
        drop(handle);
    }))
}

async fn converse(mut stream: UnixStream, answer: &(impl Fn(Request) -> Answer + Sync)) -> io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut line = String::new();
    tokio::io::BufReader::new(reading.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let answered = match serde_json::from_str(&line) {
        Ok(request) => answer(request),
        Err(error) => Answer { ranges: 0, error: Some(format!("the request cannot be read: {error}")) },
    };
    let mut text = serde_json::to_string(&answered)?;
    text.push('\n');
    writing.write_all(text.as_bytes()).await
}

/// Asks the process that uses the data directory. None: nobody listens there.
pub fn ask(dir: &Path, request: &Request) -> io::Result<Option<Answer>> {
    let (_handle, path) = reachable(dir)?;
    let mut stream = match StdUnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(Some(serde_json::from_str(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_in_a_directory_with_a_long_name_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let long = dir.path().join("a".repeat(120));
        std::fs::create_dir(&long).expect("created");
        let request = Request::Retry { queue: Some("traces".to_owned()), exporter: None };
        assert_eq!(ask(&long, &request).expect("asked"), None, "nobody listens yet");
        let expected = request.clone();
        let answer = move |asked: Request| Answer { ranges: u64::from(asked == expected), error: None };
        let shutdown = CancellationToken::new();
        let serving = serve(&long, answer, shutdown.clone()).expect("serves");
        let asking = long.clone();
        let answered = tokio::task::spawn_blocking(move || ask(&asking, &request)).await.expect("no panic");
        assert_eq!(answered.expect("asked"), Some(Answer { ranges: 1, error: None }));
        let (_handle, path) = reachable(&long).expect("reachable");
        let mut stream = UnixStream::connect(path).await.expect("connected");
        stream.write_all(b"nonsense\n").await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("answered");
        assert!(text.contains("cannot be read"), "{text}");
        shutdown.cancel();
        serving.await.expect("no panic");
        assert!(!long.join(NAME).exists());
    }
}
