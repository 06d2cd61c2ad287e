//! Connections of the channel: name lookup at every connect, a proxy where the environment names one, TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, service_fn};

use super::{BuildError, Settings, tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) fn channel(settings: &Settings, target: &str, with_tls: bool) -> Result<Channel, BuildError> {
    let invalid =
        |error: &dyn std::fmt::Display| BuildError(format!("the endpoint \"{target}\" cannot be used: {error}"));
    // TLS is ours, below the channel, which therefore sees a plain scheme; `origin` says the true one.
    let plain = format!("http://{target}");
    let origin = format!("{}://{target}", if with_tls { "https" } else { "http" });
    let origin: Uri = origin.parse().map_err(|error: http::uri::InvalidUri| invalid(&error))?;
    let host = origin.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
    let override_name = settings.tls.server_name.as_deref().filter(|_| with_tls);
    let name = ServerName::try_from(override_name.unwrap_or(host).to_owned()).map_err(|error| invalid(&error))?;
    // The name that the certificate must have is also the authority of requests, as with the Collector.
    let authority = match override_name {
        Some(name) => format!("https://{name}").parse().map_err(|error: http::uri::InvalidUri| invalid(&error))?,
        None => origin.clone(),
    };
    let mut endpoint = Endpoint::from_shared(plain)
        .map_err(|error| invalid(&error))?
        .origin(authority)
        .tcp_nodelay(true)
        .keep_alive_timeout(settings.keepalive_timeout)
        .keep_alive_while_idle(settings.keepalive_while_idle);
    if let Some(time) = settings.keepalive_time {
        endpoint = endpoint.http2_keep_alive_interval(time);
    }
    let tls = if with_tls { Some(Arc::new(tls::Reloading::new(&settings.tls, &[b"h2"])?)) } else { None };
    let proxies = Arc::new(Matcher::from_env());
    let connect = service_fn(move |uri: Uri| {
        let (tls, name, proxies, origin) = (tls.clone(), name.clone(), Arc::clone(&proxies), origin.clone());
        async move {
            let connecting = connect(uri, &origin, &proxies, tls, name);
            tokio::time::timeout(CONNECT_TIMEOUT, connecting)
                .await
                .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no connection in time")))
                .map(TokioIo::new)
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connect))
}

async fn connect(
    uri: Uri,
    origin: &Uri,
    proxies: &Matcher,
    tls: Option<Arc<tls::Reloading>>,
    name: ServerName<'static>,
) -> io::Result<Box<dyn Io>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // CONNECT through the proxy is for both schemes: gRPC cannot be forwarded any other way.
    let stream = match proxies.intercept(origin) {
        Some(proxy) => {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            tunnel.call(uri).await.map_err(io::Error::other)?
        }
        None => tcp.call(uri).await.map_err(io::Error::other)?,
    };
    let stream = stream.into_inner();
    match tls {
        Some(tls) => {
            let (_, config) = tls.current().await;
            Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
        }
        None => Ok(Box::new(stream)),
    }
}
