//! TLS of both OTLP exporters: which servers are trusted, and who we say we are.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use super::server::{Answer, Server};
use super::*;
use crate::exporters::tls::{self, Pem, Settings};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("valid");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let pem = params.self_signed(&key).expect("signed").pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

impl Authority {
    /// Certificate and key in PEM.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("valid");
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }
}

fn file(dir: &Path, name: &str, pem: &str) -> Option<Pem> {
    let path = dir.join(name);
    std::fs::write(&path, pem).expect("written");
    Some(Pem::File(path))
}

/// Takes gRPC and HTTP; asks for a client certificate of `clients` where given.
async fn server(authority: &Authority, name: &str, clients: Option<&Authority>) -> Server {
    let (certificate, key) = authority.issue(name, ExtendedKeyUsagePurpose::ServerAuth);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).expect("PEM")).expect("added");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let mut config = builder.with_single_cert(chain, key).expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let answer = Answer::grpc(b"", &[("grpc-status", "0")]);
    Server::start_with(answer, Some(TlsAcceptor::from(Arc::new(config)))).await
}

/// The same request over both exporters.
async fn send(server: &Server, tls: &Settings) -> [Outcome; 2] {
    let endpoint = format!("localhost:{}", server.address.port());
    let grpc = otlp_grpc::Settings { endpoint: Some(endpoint.clone()), tls: tls.clone(), ..Default::default() };
    let http =
        otlp_http::Settings { endpoint: Some(format!("https://{endpoint}")), tls: tls.clone(), ..Default::default() };
    [
        otlp_grpc::build(&grpc).expect("built").export(batch("a")).await,
        otlp_http::build(&http).expect("built").export(batch("a")).await,
    ]
}

#[tokio::test]
async fn a_server_of_the_given_authority_is_trusted_and_no_other() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (ours, theirs) = (authority(), authority());
    let tls = Settings { ca: file(dir.path(), "ca.pem", &ours.pem), ..Settings::default() };
    for outcome in send(&server(&ours, "localhost", None).await, &tls).await {
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    }
    for (authority, name) in [(&theirs, "localhost"), (&ours, "other.example.com")] {
        for outcome in send(&server(authority, name, None).await, &tls).await {
            let failure = failure(outcome);
            assert_eq!((failure.class, failure.status), (Class::Retryable, None));
            assert!(failure.message.to_ascii_lowercase().contains("certificate"), "{}", failure.message);
        }
    }
    for outcome in send(&server(&ours, "localhost", None).await, &Settings::default()).await {
        failure(outcome);
    }
}

#[tokio::test]
async fn insecure_skip_verify_takes_any_certificate() {
    let tls = Settings { insecure_skip_verify: true, ..Settings::default() };
    for outcome in send(&server(&authority(), "other.example.com", None).await, &tls).await {
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_server_that_wants_to_know_us_gets_the_client_certificate() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (ours, clients) = (authority(), authority());
    let server = server(&ours, "localhost", Some(&clients)).await;
    let (certificate, key) = clients.issue("forebay", ExtendedKeyUsagePurpose::ClientAuth);
    let anonymous = Settings { ca: file(dir.path(), "ca.pem", &ours.pem), ..Settings::default() };
    for outcome in send(&server, &anonymous).await {
        assert_eq!(failure(outcome).status, None);
    }
    let known = Settings {
        certificate: file(dir.path(), "cert.pem", &certificate),
        key: file(dir.path(), "key.pem", &key),
        ..anonymous
    };
    for outcome in send(&server, &known).await {
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_its_key() {
    let ca = Some(Pem::File("/nonexistent/ca.pem".into()));
    let error = tls::client_config(&Settings { ca, ..Settings::default() }).expect_err("no such file");
    assert!(error.0.contains("/nonexistent/ca.pem") && error.0.contains("tls.ca_file"), "{error}");
}
