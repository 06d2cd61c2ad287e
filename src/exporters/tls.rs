//! The client side of TLS, shared by both OTLP exporters.

mod reload;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::settings::{Secret, Table};

use super::BuildError;

pub use reload::Reloading;

/// `tls` of an exporter.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// No TLS at all (gRPC; an HTTP endpoint says it with its scheme).
    pub insecure: bool,
    pub insecure_skip_verify: bool,
    pub ca: Option<Pem>,
    pub certificate: Option<Pem>,
    pub key: Option<Pem>,
    pub tls13_only: bool,
    /// Trust the usual authorities beside `ca`.
    pub include_system_roots: bool,
    /// The name that the server's certificate must have, in place of the endpoint's host.
    pub server_name: Option<String>,
    /// How often the files are read again; None: never.
    pub reload_interval: Option<Duration>,
}

/// A PEM text, or the file that holds it.
#[derive(Clone, Debug)]
pub enum Pem {
    File(PathBuf),
    Text(Secret),
}

impl Settings {
    pub fn read(table: &mut Table<'_>) -> Settings {
        table.unsupported(&["max_version", "cipher_suites", "curve_preferences", "tpm"]);
        let settings = Settings {
            insecure: table.flag("insecure").unwrap_or(false),
            insecure_skip_verify: table.flag("insecure_skip_verify").unwrap_or(false),
            ca: read_pem(table, "ca_file", "ca_pem"),
            certificate: read_pem(table, "cert_file", "cert_pem"),
            key: read_pem(table, "key_file", "key_pem"),
            tls13_only: table.choice("min_version", &[("1.2", false), ("1.3", true)]).unwrap_or(false),
            include_system_roots: table.flag("include_system_ca_certs_pool").unwrap_or(false),
            server_name: table.text("server_name_override").filter(|name| !name.is_empty()),
            reload_interval: table.duration("reload_interval").filter(|interval| !interval.is_zero()),
        };
        if settings.certificate.is_some() != settings.key.is_some() {
            table.problem(
                "cert_file",
                "a client certificate needs both cert_file and key_file (or cert_pem and key_pem)",
            );
        }
        if let Some(name) = &settings.server_name
            && !matches!(ServerName::try_from(name.as_str()), Ok(ServerName::DnsName(_)))
        {
            table.problem("server_name_override", "must be a host name, such as otlp.example.com");
        }
        settings
    }
}

fn read_pem(table: &mut Table<'_>, file: &'static str, text: &'static str) -> Option<Pem> {
    let path = table.text(file);
    let inline = table.secret(text);
    if path.is_some() && inline.is_some() {
        table.problem(text, format!("give either {file} or {text}"));
    }
    path.map(|path| Pem::File(path.into())).or(inline.map(Pem::Text))
}

impl Pem {
    fn load(&self, what: &str) -> Result<Vec<u8>, BuildError> {
        match self {
            Pem::Text(text) => Ok(text.0.clone().into_bytes()),
            Pem::File(path) => fs::read(path).map_err(|error| {
                BuildError(format!("cannot read the {what} file {}: {error}; check tls.{what}_file", path.display()))
            }),
        }
    }
}

/// What the files held.
#[derive(PartialEq, Eq)]
struct Pems {
    ca: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

impl Settings {
    fn load(&self) -> Result<Pems, BuildError> {
        let load = |pem: &Option<Pem>, what| pem.as_ref().map(|pem| pem.load(what)).transpose();
        Ok(Pems {
            ca: load(&self.ca, "ca")?,
            certificate: load(&self.certificate, "cert")?,
            key: load(&self.key, "key")?,
        })
    }
}

/// The configuration that both HTTP clients use. ALPN is left to them.
fn client_config(settings: &Settings, pems: &Pems) -> Result<ClientConfig, BuildError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] =
        if settings.tls13_only { &[&rustls::version::TLS13] } else { rustls::DEFAULT_VERSIONS };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| BuildError(format!("cannot set up TLS: {error}")))?;
    let builder = if settings.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    } else {
        builder.with_root_certificates(roots(settings, pems)?)
    };
    match (&pems.certificate, &pems.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate, "certificate")?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|error| BuildError(format!("the client key is not PEM: {error}; check tls.key_file")))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| BuildError(format!("the client certificate and key do not fit: {error}")))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| BuildError(format!("the {what} is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(BuildError(format!("the {what} holds no certificate")));
    }
    Ok(found)
}

/// `ca` alone where it is given; else the bundled authorities and what `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn roots(settings: &Settings, pems: &Pems) -> Result<RootCertStore, BuildError> {
    let mut roots = RootCertStore::empty();
    if pems.ca.is_none() || settings.include_system_roots {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().any(|name| std::env::var_os(name).is_some());
        if named || settings.include_system_roots {
            let loaded = rustls_native_certs::load_native_certs();
            for error in &loaded.errors {
                tracing::warn!(%error, "a trusted certificate could not be read");
            }
            roots.add_parsable_certificates(loaded.certs);
        }
    }
    if let Some(ca) = &pems.ca {
        for certificate in certificates(ca, "CA file")? {
            roots
                .add(certificate)
                .map_err(|error| BuildError(format!("the CA certificate cannot be used: {error}")))?;
        }
    }
    Ok(roots)
}

/// `insecure_skip_verify`: any certificate will do. Signatures are still checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
