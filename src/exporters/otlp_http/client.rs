//! The HTTP clients of one exporter: TLS that follows its files, a server name of its own, proxies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Proxy, Url, redirect};
use rustls::ClientConfig;

use crate::exporters::{BuildError, remote, tls};

use super::Settings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection is closed after this, so that a name that moved is looked up again.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where one signal goes.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// As it is configured.
    pub url: Url,
    /// What the client is given: with the host of `server_name_override`, which TLS then sends and checks.
    pub request_url: Url,
    /// The configured host, where the client's URL has another.
    pub host_header: Option<HeaderValue>,
    rename: Option<Rename>,
}

/// Looks `to` up when it is asked for `from`.
#[derive(Clone, Debug)]
struct Rename {
    from: String,
    to: String,
}

impl Resolve for Rename {
    fn resolve(&self, name: Name) -> Resolving {
        let is_ours = name.as_str().eq_ignore_ascii_case(&self.from);
        let host = if is_ours { self.to.clone() } else { name.as_str().to_owned() };
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

impl Target {
    pub fn new(settings: &Settings, url: Url) -> Result<Target, BuildError> {
        let mut target = Target { request_url: url.clone(), url, host_header: None, rename: None };
        let name = settings.tls.server_name.as_deref().filter(|_| target.url.scheme() == "https");
        let (Some(name), Some(host)) = (name, target.url.host_str()) else { return Ok(target) };
        let is_proxied = settings.proxy_url.is_some()
            || target.url.as_str().parse::<Uri>().is_ok_and(|uri| Matcher::from_env().intercept(&uri).is_some());
        if is_proxied {
            let message = "tls.server_name_override does not go with a proxy; except the endpoint with NO_PROXY";
            return Err(BuildError(message.to_owned()));
        }
        let invalid = || BuildError(format!("tls.server_name_override \"{name}\" cannot be used for {host}"));
        let host_and_port = target.url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
        target.host_header = Some(HeaderValue::try_from(host_and_port).map_err(|_| invalid())?);
        let to = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        target.request_url.set_host(Some(name)).map_err(|_| invalid())?;
        target.rename = Some(Rename { from: name.to_owned(), to });
        Ok(target)
    }
}

pub(super) struct Clients {
    pub targets: [Option<Target>; 3],
    timeout: Duration,
    proxy_url: Option<String>,
    tls: Arc<tls::Reloading>,
    made: Mutex<Made>,
}

struct Made {
    /// Of the certificates.
    version: u64,
    /// Rises when clients are made.
    number: u64,
    /// One per signal.
    clients: [Client; 3],
}

impl Clients {
    pub fn new(settings: &Settings, targets: [Option<Target>; 3]) -> Result<Clients, BuildError> {
        let (timeout, proxy_url) = (settings.timeout, settings.proxy_url.clone());
        let tls = Arc::new(tls::Reloading::new(&settings.tls, &[])?);
        let (version, config) = tls.last();
        let clients = make(&targets, timeout, proxy_url.as_deref(), &config)?;
        Ok(Clients { targets, timeout, proxy_url, tls, made: Mutex::new(Made { version, number: 0, clients }) })
    }

    /// The client for a signal, and its number for [`Clients::renew`]; a new one, with new connections, when the
    /// certificates have changed.
    pub async fn of(&self, index: usize) -> (u64, Client) {
        let (version, config) = self.tls.current().await;
        let mut made = self.made.lock();
        if made.version != version {
            self.make_anew(&mut made, version, &config);
        }
        (made.number, made.clients[index].clone())
    }

    /// After a timeout: a connection of HTTP/2 may be dead without a word, and would be used again. Requests under way
    /// keep theirs.
    pub async fn renew(&self, number: u64) {
        let (version, config) = self.tls.current().await;
        let mut made = self.made.lock();
        if made.number == number {
            self.make_anew(&mut made, version, &config);
        }
    }

    fn make_anew(&self, made: &mut Made, version: u64, config: &ClientConfig) {
        match make(&self.targets, self.timeout, self.proxy_url.as_deref(), config) {
            Ok(clients) => *made = Made { version, number: made.number + 1, clients },
            Err(error) => tracing::warn!(%error, "the HTTP client cannot be made anew; the old one is kept"),
        }
    }
}

/// Signals whose host is renamed have a client of their own; the others share one and its connections.
fn make(
    targets: &[Option<Target>; 3],
    timeout: Duration,
    proxy_url: Option<&str>,
    config: &ClientConfig,
) -> Result<[Client; 3], BuildError> {
    let build = |rename: Option<&Rename>| {
        let mut builder = Client::builder()
            .tls_backend_preconfigured(config.clone())
            .user_agent(remote::USER_AGENT)
            .timeout(timeout)
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .redirect(redirect::Policy::none())
            .tcp_nodelay(true)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT);
        if let Some(rename) = rename {
            // HTTP/2 would show the renamed host as the request's authority.
            builder = builder.dns_resolver(Arc::new(rename.clone())).http1_only();
        }
        if let Some(proxy_url) = proxy_url {
            let proxy =
                Proxy::all(proxy_url).map_err(|error| BuildError(format!("proxy_url \"{proxy_url}\": {error}")))?;
            builder = builder.proxy(proxy);
        }
        builder.build().map_err(|error| BuildError(format!("cannot set up the HTTP client: {error}")))
    };
    let shared = build(None)?;
    let mut clients = [shared.clone(), shared.clone(), shared];
    for (client, target) in clients.iter_mut().zip(targets) {
        if let Some(rename) = target.as_ref().and_then(|target| target.rename.as_ref()) {
            *client = build(Some(rename))?;
        }
    }
    Ok(clients)
}
