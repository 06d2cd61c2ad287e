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
    server_of(authority, name, clients, rustls::ALL_VERSIONS).await
}

async fn server_of(
    authority: &Authority,
    name: &str,
    clients: Option<&Authority>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Server {
    let (certificate, key) = authority.issue(name, ExtendedKeyUsagePurpose::ServerAuth);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
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

/// Both exporters to one server.
fn exporters(server: &Server, tls: &Settings) -> [Arc<dyn Exporter>; 2] {
    let endpoint = format!("localhost:{}", server.address.port());
    let grpc = otlp_grpc::Settings { endpoint: Some(endpoint.clone()), tls: tls.clone(), ..Default::default() };
    let http =
        otlp_http::Settings { endpoint: Some(format!("https://{endpoint}")), tls: tls.clone(), ..Default::default() };
    [
        Arc::new(otlp_grpc::build(&grpc).expect("built")) as Arc<dyn Exporter>,
        Arc::new(otlp_http::build(&http).expect("built")),
    ]
}

/// The same request over both exporters.
async fn send(server: &Server, tls: &Settings) -> [Outcome; 2] {
    let [grpc, http] = exporters(server, tls);
    [grpc.export(batch("a")).await, http.export(batch("a")).await]
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
    let error = tls::Reloading::new(&Settings { ca, ..Settings::default() }, &[]).err().expect("no such file");
    assert!(error.0.contains("/nonexistent/ca.pem") && error.0.contains("tls.ca_file"), "{error}");
}

#[tokio::test]
async fn server_name_override_is_asked_for_and_is_the_name_that_the_certificate_must_have() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ours = authority();
    let server_name = Some("other.example.com".to_owned());
    let tls = Settings { ca: file(dir.path(), "ca.pem", &ours.pem), server_name, ..Settings::default() };
    let other = server(&ours, "other.example.com", None).await;
    for outcome in send(&other, &tls).await {
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    }
    let asked = other.asked();
    assert!(asked.iter().all(|asked| asked.server_name.as_deref() == Some("other.example.com")), "{asked:?}");
    // HTTP names the host that it was given, gRPC the server that it means.
    let authorities = [asked[0].authority.as_str(), asked[1].authority.as_str()];
    assert_eq!(authorities, ["other.example.com", &format!("localhost:{}", other.address.port())]);
    for outcome in send(&server(&ours, "localhost", None).await, &tls).await {
        let failure = failure(outcome);
        assert!(failure.message.to_ascii_lowercase().contains("certificate"), "{}", failure.message);
    }
}

#[tokio::test]
async fn files_that_change_are_used_without_a_restart_and_a_half_written_one_changes_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (ours, theirs, clients) = (authority(), authority(), authority());
    let known = server(&ours, "localhost", Some(&clients)).await;
    let (certificate, key) = clients.issue("forebay", ExtendedKeyUsagePurpose::ClientAuth);
    let (stranger, stranger_key) = theirs.issue("forebay", ExtendedKeyUsagePurpose::ClientAuth);
    let tls = Settings {
        ca: file(dir.path(), "ca.pem", &theirs.pem),
        certificate: file(dir.path(), "cert.pem", &stranger),
        key: file(dir.path(), "key.pem", &stranger_key),
        reload_interval: Some(std::time::Duration::from_nanos(1)),
        ..Settings::default()
    };
    let exporters = exporters(&known, &tls);
    for exporter in &exporters {
        assert_eq!(failure(exporter.export(batch("a")).await).status, None);
    }
    file(dir.path(), "ca.pem", &ours.pem);
    file(dir.path(), "cert.pem", &certificate);
    for exporter in &exporters {
        // The certificate is new and the key still the old one.
        assert_eq!(failure(exporter.export(batch("a")).await).status, None);
    }
    file(dir.path(), "key.pem", &key);
    for exporter in &exporters {
        let outcome = exporter.export(batch("a")).await;
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    }
    file(dir.path(), "ca.pem", "-----BEGIN CERTIFICATE-----");
    for exporter in &exporters {
        let outcome = exporter.export(batch("a")).await;
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    }
}

#[tokio::test]
async fn without_an_interval_files_are_read_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (ours, theirs) = (authority(), authority());
    let tls = Settings { ca: file(dir.path(), "ca.pem", &theirs.pem), ..Settings::default() };
    let exporters = exporters(&server(&ours, "localhost", None).await, &tls);
    file(dir.path(), "ca.pem", &ours.pem);
    for exporter in &exporters {
        assert_eq!(failure(exporter.export(batch("a")).await).status, None);
    }
}

#[tokio::test]
async fn min_version_1_3_does_not_speak_to_a_server_that_knows_1_2_only() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ours = authority();
    let old = server_of(&ours, "localhost", None, &[&rustls::version::TLS12]).await;
    let tls = Settings { ca: file(dir.path(), "ca.pem", &ours.pem), ..Settings::default() };
    for outcome in send(&old, &tls).await {
        assert!(matches!(outcome, Outcome::Delivered), "{outcome:?}");
    }
    for outcome in send(&old, &Settings { tls13_only: true, ..tls }).await {
        assert_eq!(failure(outcome).status, None);
    }
}

#[test]
fn server_name_override_must_be_a_host_name() {
    for (name, is_valid) in [("otlp.example.com", true), ("10.0.0.1", false), ("a name", false)] {
        let origin = Origin::whole("test");
        let node = Node::new(origin.clone(), Value::Text(name.to_owned()));
        let entry = Entry { key: "server_name_override".to_owned(), key_origin: origin.clone(), node };
        let read = crate::settings::read(&Node::new(origin, Value::Map(vec![entry])), Settings::read);
        assert_eq!(read.is_ok(), is_valid, "{name}: {read:?}");
    }
}

#[tokio::test]
async fn server_name_override_behind_a_proxy_is_refused_with_its_remedy() {
    let tls = Settings { server_name: Some("other.example.com".to_owned()), ..Settings::default() };
    let settings = otlp_http::Settings {
        endpoint: Some("https://10.0.0.1:4318".to_owned()),
        proxy_url: Some("http://127.0.0.1:1".to_owned()),
        tls,
        ..Default::default()
    };
    let error = otlp_http::build(&settings).err().expect("refused");
    assert!(error.0.contains("server_name_override") && error.0.contains("NO_PROXY"), "{error}");
}
