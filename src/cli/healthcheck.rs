//! `forebay healthcheck`: one GET, no runtime, for container images without a shell.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// For the whole check: container runtimes give a health check a few seconds.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Enough of an answer to hold its status line.
const STATUS_LINE_BYTES_MAX: usize = 256;

/// Asks `endpoint`, `http://host:port[/path]`; Ok when it answers 200. The error is a sentence for a person.
pub fn check(endpoint: &str) -> Result<(), String> {
    let bad = || {
        format!(
            "\"{endpoint}\" is no endpoint\n  help: write http://host:port/path, such as http://127.0.0.1:13133/livez"
        )
    };
    let rest = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/livez" } else { path };
    if authority.is_empty() || rest.contains("://") || endpoint.chars().any(|c| c.is_control() || c == ' ') {
        return Err(bad());
    }
    let addresses = authority.to_socket_addrs().map_err(|error| format!("{}: {error}", bad()))?;
    let deadline = Instant::now() + TIMEOUT;
    let mut last = format!("{authority} has no address");
    for address in addresses {
        match ask(address, authority, path, deadline) {
            Ok(status) if status.split(' ').nth(1) == Some("200") => return Ok(()),
            Ok(status) => return Err(format!("{endpoint} answered \"{}\"", status.escape_debug())),
            Err(error) => last = format!("cannot reach {endpoint} at {address}: {error}"),
        }
    }
    Err(format!("{last}\n  help: is forebay running, and does its health endpoint listen there?"))
}

fn ask(address: std::net::SocketAddr, host: &str, path: &str, deadline: Instant) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, left(deadline)?)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    // In one piece: the other side may answer and close after the first packet.
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nuser-agent: forebay-healthcheck\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::with_capacity(STATUS_LINE_BYTES_MAX);
    let mut piece = [0_u8; STATUS_LINE_BYTES_MAX];
    while answer.len() < STATUS_LINE_BYTES_MAX && !answer.contains(&b'\n') {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut piece)? {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
    let line = answer.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}

fn left(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
