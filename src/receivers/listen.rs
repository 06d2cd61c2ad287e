//! Opening ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket, lookup_host};

const BACKLOG: u32 = 1024;

#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {address}: {cause}{}", hint(cause))]
pub struct BindError {
    /// The configuration key that named the address.
    pub key: String,
    pub address: String,
    pub cause: io::Error,
}

fn hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process holds the port (a second Forebay, or another collector): stop it, or change this key"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose a higher one",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address: use localhost or 0.0.0.0",
        _ => "; write it as host:port, such as localhost:4317 or 0.0.0.0:4317",
    }
}

/// Listens on every address that `endpoint` stands for.
pub async fn bind(key: &str, endpoint: &str) -> Result<Vec<TcpListener>, BindError> {
    let error = |cause| BindError { key: key.to_owned(), address: endpoint.to_owned(), cause };
    let invalid = |reason: &str| error(io::Error::new(io::ErrorKind::InvalidInput, reason.to_owned()));
    let (host, port) = endpoint.rsplit_once(':').ok_or_else(|| invalid("no port in it"))?;
    let port: u16 = port.parse().map_err(|_| invalid("the port is not a number from 0 to 65535"))?;
    if host == "localhost" {
        let first = listen((Ipv4Addr::LOCALHOST, port).into()).map_err(error)?;
        // Both loopbacks under one number, also when the system chose it.
        let chosen = first.local_addr().map_err(error)?.port();
        let mut listeners = vec![first];
        match listen((Ipv6Addr::LOCALHOST, chosen).into()) {
            Ok(second) => listeners.push(second),
            // A machine without IPv6, or a chosen port that is taken there: IPv4 is enough.
            Err(cause) if cause.kind() != io::ErrorKind::AddrInUse || port == 0 => {}
            Err(cause) => return Err(error(cause)),
        }
        return Ok(listeners);
    }
    let host = if host.is_empty() { "0.0.0.0" } else { host.trim_start_matches('[').trim_end_matches(']') };
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(error)?.collect();
    let address = addresses.first().copied().ok_or_else(|| invalid("the name has no address"))?;
    Ok(vec![listen(address).map_err(error)?])
}

/// Whether only this machine reaches a `host[:port]`, whatever its resolver says: `localhost` or a loopback address.
pub fn is_loopback(authority: &str) -> bool {
    let bracketed = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(host, _)| host);
    let host = bracketed.unwrap_or_else(|| authority.rsplit_once(':').map_or(authority, |(host, _)| host));
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_by_the_text_alone() {
        for authority in
            ["localhost", "localhost:1", "127.0.0.1:80", "127.9.9.9", "[::1]:80", "[::1]", "[::ffff:127.0.0.1]:1"]
        {
            assert!(is_loopback(authority), "{authority}");
        }
        for authority in [
            "",
            ":80",
            "0.0.0.0:80",
            "[::]:80",
            "10.0.0.1:80",
            "localhost.example:80",
            "127.0.0.1.example",
            "127.1:80",
            "[::1",
        ] {
            assert!(!is_loopback(authority), "{authority}");
        }
    }
}
