//! Where requests arrive: addresses, and what a connection has to do before it may speak HTTP.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

use super::Error;

/// One address that requests arrive at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where; port 0 picks one.
    pub address: SocketAddr,
    /// Speaks TLS.
    pub tls: Option<Tls>,
    /// Expects a PROXY protocol header, from whom.
    pub proxy_protocol: Option<Trust>,
}

impl Listener {
    /// Plain HTTP.
    pub fn plain(address: SocketAddr) -> Listener {
        Listener { address, tls: None, proxy_protocol: None }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// How a listener speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates; the first serves clients that name no host, or one that none is for.
    pub certificates: Vec<Certificate>,
    /// Whether TLS 1.2 is spoken besides 1.3.
    pub takes_1_2: bool,
}

/// A certificate with those that vouch for it, and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Certificate {
    /// The chain, its own certificate first.
    pub cert: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Whose PROXY protocol headers count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Everybody's: nobody else can reach the address.
    All,
    /// Of these; connections from elsewhere are closed.
    Only(Vec<IpAddr>),
}

/// An entry of `listeners`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Keys {
    address: SocketAddr,
    tls: Option<TlsKeys>,
    #[serde(default)]
    proxy_protocol: bool,
    proxy_protocol_from: Option<Vec<IpAddr>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TlsKeys {
    certificates: Vec<Certificate>,
    #[serde(default)]
    min_version: Version,
}

#[derive(Deserialize, Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Version {
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}

/// What `keys` come to.
pub fn resolve(keys: Vec<Keys>) -> Result<Vec<Listener>, Error> {
    if keys.is_empty() {
        return Err(Error::Value(
            "listeners is empty: no request could arrive; leave it out for `port`".into(),
        ));
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for key in keys {
        let listener = listener(key)?;
        let address = listener.address;
        if address.port() != 0 && listeners.iter().any(|l| l.address == address) {
            return Err(Error::Value(format!("listeners: {address} is there twice")));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

fn listener(keys: Keys) -> Result<Listener, Error> {
    let address = keys.address;
    let trust = match (keys.proxy_protocol, keys.proxy_protocol_from) {
        (true, None) => Some(Trust::All),
        (true, Some(from)) => Some(Trust::Only(from)),
        (false, None) => None,
        (false, Some(_)) => {
            let what = "proxyProtocolFrom says whose headers count, but proxyProtocol is not true";
            return Err(Error::Value(format!("listeners: {address}: {what}")));
        }
    };
    let tls = keys
        .tls
        .map(|tls| Tls { certificates: tls.certificates, takes_1_2: tls.min_version == Version::V1_2 });
    if tls.as_ref().is_some_and(|tls| tls.certificates.is_empty()) {
        return Err(Error::Value(format!("listeners: {address}: tls needs a certificate")));
    }
    Ok(Listener { address, tls, proxy_protocol: trust })
}
