//! What the environment says to the exporters: authorities (`SSL_CERT_FILE`) and proxies (`HTTPS_PROXY`, `NO_PROXY`).

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::setup::Setup;
use support::{client, eventually};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const KINDS: [&str; 2] = ["otlp_grpc", "otlp_http"];

/// A destination over TLS that takes everything over both protocols; its authority is in `ca_pem`.
struct Destination {
    address: SocketAddr,
    ca_pem: String,
    requests: Arc<AtomicU64>,
}

impl Destination {
    async fn start(name: &str) -> Destination {
        let mut params = CertificateParams::new(Vec::new()).expect("valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca_pem = params.self_signed(&key).expect("signed").pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("valid");
        let certificate = CertificateDer::from(params.signed_by(&key, &issuer).expect("signed"));
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("PEM");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        let requests = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    // A client that does not trust us hangs up here.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(request, Arc::clone(&counted)));
                    // How a connection ends is the client's side of the test.
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Destination { address, ca_pem, requests }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

type Answer = Response<http_body_util::combinators::BoxBody<Bytes, hyper::Error>>;

async fn answer(request: Request<hyper::body::Incoming>, counted: Arc<AtomicU64>) -> Result<Answer, hyper::Error> {
    let is_grpc = request.uri().path().ends_with("/Export");
    request.into_body().collect().await?;
    counted.fetch_add(1, Ordering::SeqCst);
    if !is_grpc {
        return Ok(Response::new(Full::default().map_err(|never| match never {}).boxed()));
    }
    let trailers = async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Some(Ok(trailers))
    };
    let message = Full::new(Bytes::from_static(&[0; 5])).map_err(|never| match never {}).with_trailers(trailers);
    let mut response = Response::new(message.boxed());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// A proxy that connects everything to `to`, whatever it is asked for, and remembers what that was.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("address");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                kept.lock().push(head);
                let Ok(mut there) = TcpStream::connect(to).await else { return };
                if stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.is_ok() {
                    // Ends with the connection.
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
                }
            });
        }
    });
    (address, asked)
}

fn setup(kind: &str, host: &str, port: u16) -> Setup {
    let exporter = format!(
        "{{endpoint: \"https://{host}:{port}\", retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}, \
         sending_queue: {{batch: {{flush_timeout: 1ms}}}}}}"
    );
    Setup::new(kind, &exporter, "{}")
}

#[tokio::test]
async fn a_private_authority_is_trusted_by_ssl_cert_file_alone() {
    let client = client();
    for kind in KINDS {
        let destination = Destination::start("localhost").await;
        let setup = setup(kind, "localhost", destination.address.port());
        let ca = setup.dir.path().join("ca.pem");
        std::fs::write(&ca, &destination.ca_pem).expect("written");

        let stranger = setup.start(&client).await;
        assert_eq!(setup.post(&client, "span").await.status(), 200);
        let label = format!("exporter=\"{kind}\"");
        let failed =
            async || setup.sample(&client, "otelcol_exporter_send_failed_spans", &label).await.is_some_and(|n| n > 0.0);
        eventually("nobody vouches for the destination", failed).await;
        assert_eq!(destination.requests(), 0, "{kind}");
        assert_eq!(stranger.stop().await, 0);

        let forebay = setup.start_with(&client, &[("SSL_CERT_FILE", ca.to_str().expect("UTF-8"))]).await;
        eventually("delivered", async || destination.requests() > 0).await;
        assert_eq!(forebay.stop().await, 0);
    }
}

#[tokio::test]
async fn https_proxy_is_asked_to_connect_to_a_host_that_only_it_knows() {
    let client = client();
    for kind in KINDS {
        let destination = Destination::start("backend.test").await;
        let (proxy, asked) = proxy(destination.address).await;
        let setup = setup(kind, "backend.test", 4317);
        let ca = setup.dir.path().join("ca.pem");
        std::fs::write(&ca, &destination.ca_pem).expect("written");
        let variables = [
            ("SSL_CERT_FILE", ca.to_str().expect("UTF-8")),
            ("HTTPS_PROXY", &format!("http://user:secret@{proxy}")),
            ("NO_PROXY", "other.test"),
        ];
        let forebay = setup.start_with(&client, &variables).await;
        assert_eq!(setup.post(&client, "span").await.status(), 200);
        eventually("delivered", async || destination.requests() > 0).await;
        assert_eq!(forebay.stop().await, 0);
        let head = asked.lock()[0].to_ascii_lowercase();
        assert!(head.starts_with("connect backend.test:4317 http/1.1\r\n"), "{kind}: {head}");
        // user:secret
        assert!(head.contains("proxy-authorization: basic dxnlcjpzzwnyzxq="), "{kind}: {head}");
    }
}

#[tokio::test]
async fn no_proxy_excepts_a_host() {
    let client = client();
    for kind in KINDS {
        let destination = Destination::start("localhost").await;
        let (proxy, asked) = proxy(destination.address).await;
        let setup = setup(kind, "localhost", destination.address.port());
        let ca = setup.dir.path().join("ca.pem");
        std::fs::write(&ca, &destination.ca_pem).expect("written");
        let variables = [
            ("SSL_CERT_FILE", ca.to_str().expect("UTF-8")),
            ("HTTPS_PROXY", &format!("http://{proxy}")),
            ("NO_PROXY", "other.test,localhost"),
        ];
        let forebay = setup.start_with(&client, &variables).await;
        assert_eq!(setup.post(&client, "span").await.status(), 200);
        eventually("delivered", async || destination.requests() > 0).await;
        assert_eq!(forebay.stop().await, 0);
        assert_eq!(*asked.lock(), Vec::<String>::new(), "{kind}");
    }
}
