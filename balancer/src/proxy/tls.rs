//! TLS for clients: certificates from files, chosen by the name that a client asks for, replaced while running.
//!
//! A certificate that cannot be used is an error with the file's name, at start; later the one before stays in force.
//! Which names a certificate is for is read from it, so that nobody has to repeat them.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_rustls::rustls;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::listeners::{Certificate, Tls};

#[cfg(test)]
mod tests;

/// What is spoken within, the preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a certificate cannot be used; says which and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Unusable {
    path: String,
    why: String,
}

impl Unusable {
    fn new(path: &Path, why: impl fmt::Display) -> Unusable {
        Unusable { path: path.display().to_string(), why: why.to_string() }
    }
}

/// The certificates of one listener. They can be loaded anew while it serves.
pub struct Certificates {
    settings: Tls,
    chosen: Arc<Choice>,
}

#[derive(Debug)]
struct Choice(ArcSwap<Names>);

/// Whose certificate is asked for.
#[derive(Debug)]
struct Names {
    first: Arc<CertifiedKey>,
    /// By name in lower case; `*.example.com` stands for one label.
    by_name: HashMap<String, Arc<CertifiedKey>>,
}

impl Certificates {
    /// Reads and checks all of them.
    pub fn load(settings: &Tls) -> Result<Certificates, Unusable> {
        let names = Names::load(&settings.certificates)?;
        Ok(Certificates {
            settings: settings.clone(),
            chosen: Arc::new(Choice(ArcSwap::from_pointee(names))),
        })
    }

    /// Reads all of them again. If one cannot be used, those before stay.
    pub fn reload(&self) -> Result<(), Unusable> {
        self.chosen.0.store(Arc::new(Names::load(&self.settings.certificates)?));
        Ok(())
    }

    /// The files, with when they last changed and how long they are: what has to differ for a reload to be of use.
    pub fn stamp(&self) -> Vec<Option<(std::time::SystemTime, u64)>> {
        let files = self.settings.certificates.iter().flat_map(|c| [&c.cert, &c.key]);
        files.map(|file| std::fs::metadata(file).and_then(|m| Ok((m.modified()?, m.len()))).ok()).collect()
    }

    /// What handshakes go by.
    pub fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        let versions: &[&rustls::SupportedProtocolVersion] = match self.settings.takes_1_2 {
            true => &[&rustls::version::TLS13, &rustls::version::TLS12],
            false => &[&rustls::version::TLS13],
        };
        let provider = Arc::new(ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("ring speaks both")
            .with_no_client_auth()
            .with_cert_resolver(self.chosen.clone());
        config.alpn_protocols = PROTOCOLS.iter().map(|p| p.to_vec()).collect();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().find(hello.server_name()))
    }
}

impl Names {
    fn load(certificates: &[Certificate]) -> Result<Names, Unusable> {
        let (mut first, mut by_name) = (None, HashMap::new());
        for certificate in certificates {
            let (key, names) = read(certificate)?;
            // Of two for one name the earlier counts.
            for name in names {
                by_name.entry(name).or_insert_with(|| key.clone());
            }
            first.get_or_insert(key);
        }
        let none = || Unusable { path: "tls".into(), why: "there is no certificate".into() };
        Ok(Names { first: first.ok_or_else(none)?, by_name })
    }

    fn find(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let exact = |name: &str| self.by_name.get(name);
        let found = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            exact(&name).or_else(|| exact(&format!("*.{}", name.split_once('.')?.1)))
        });
        found.unwrap_or(&self.first).clone()
    }
}

/// A certificate with its key, and the names it is for.
fn read(certificate: &Certificate) -> Result<(Arc<CertifiedKey>, Vec<String>), Unusable> {
    let Certificate { cert, key } = certificate;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|e| Unusable::new(cert, format!("cannot read a certificate in PEM: {e}")))?;
    let Some(own) = chain.first() else {
        return Err(Unusable::new(cert, "holds no certificate; PEM begins with -----BEGIN CERTIFICATE-----"));
    };
    let names = webpki::EndEntityCert::try_from(own)
        .map_err(|e| Unusable::new(cert, format!("its first certificate cannot be used: {e}")))?
        .valid_dns_names()
        .map(str::to_ascii_lowercase)
        .collect();
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| Unusable::new(key, format!("cannot read a private key in PEM: {e}")))?;
    let certified = CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|e| {
        Unusable::new(key, format!("is not the key of {}, or of a kind unknown here: {e}", cert.display()))
    })?;
    Ok((Arc::new(certified), names))
}
