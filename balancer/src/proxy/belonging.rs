//! What a request belongs to, where that decides who gets it: a key to hash, or a session. Pure, but for the clock of
//! signed sessions.

use std::time::{SystemTime, UNIX_EPOCH};

use super::headers;
use super::http1::Request;
use crate::picker::{HashOn, Key, Settings, Signer, Strategy};
use crate::pool::{Entry, Pool};

/// The session cookie's name, the original's.
const SESSION: &str = "SESSIONID";

/// The name of signed cookies: another one, since an application may well have its own `SESSIONID`.
const SIGNED: &str = "LBSESSION";

/// See the file's head.
#[derive(Debug, Default)]
pub struct Belonging {
    key: Option<Key>,
    /// The cookie that the client is to keep, as `NAME=VALUE`.
    cookie: Option<String>,
}

impl Belonging {
    /// Of a request from the address `client`.
    pub fn of(settings: &Settings, request: &Request, client: &str) -> Belonging {
        match settings.strategy {
            Strategy::ConsistentHash => {
                Belonging { key: hashed(&settings.hash_on, request, client), cookie: None }
            }
            Strategy::StickySessions => session(settings.signer.as_deref(), request),
            _ => Belonging::default(),
        }
    }

    /// What to pick by.
    pub fn key(&self) -> Option<Key> {
        self.key
    }

    /// The cookie that the client is told to keep, as `NAME=VALUE`.
    pub fn cookie(&self) -> Option<&str> {
        self.cookie.as_deref()
    }

    /// The request goes to `entry` of `pool`: a client without a signed session, or with one whose endpoint is gone for
    /// good, is told to come back to it. One whose endpoint is only down or overloaded keeps its session.
    pub fn settle(&mut self, settings: &Settings, pool: &Pool, entry: &Entry) {
        let Some(signer) = settings.signer.as_deref() else { return };
        if settings.strategy != Strategy::StickySessions {
            return;
        }
        let home = match self.key {
            Some(Key::Home(session)) => pool.home(session.endpoint).map(|i| &pool.entries()[i]),
            _ => None,
        };
        if home.is_none_or(|home| home.standing.tier().is_none()) {
            self.cookie = Some(format!("{SIGNED}={}", signer.issue(entry.endpoint.id_hash, now())));
        }
    }
}

fn hashed(on: &HashOn, request: &Request, client: &str) -> Option<Key> {
    let bytes = match on {
        HashOn::ClientIp => client.as_bytes(),
        HashOn::Cookie(name) => headers::cookie(&request.fields, name)?.as_bytes(),
        HashOn::Header(name) if name == "host" => request.host()?,
        HashOn::Header(name) => {
            request.fields.iter().find(|f| f.text.eq_ignore_ascii_case(name.as_bytes()))?.value
        }
    };
    Some(Key::of(bytes))
}

/// With a signer: the session that is signed, else whatever a client from before brings, else none yet. Without: the
/// client's own, or a new one.
fn session(signer: Option<&Signer>, request: &Request) -> Belonging {
    let brought = || headers::cookie(&request.fields, SESSION);
    let hashed = |key: &str| Some(Key::of(key.as_bytes()));
    match (signer, brought()) {
        (Some(signer), brought) => {
            let signed = headers::cookie(&request.fields, SIGNED).and_then(|c| signer.read(c, now()));
            Belonging { key: signed.map(Key::Home).or_else(|| brought.and_then(hashed)), cookie: None }
        }
        (None, Some(key)) => Belonging { key: hashed(key), cookie: None },
        (None, None) => {
            let fresh = format!("{:032x}", fastrand::u128(..));
            Belonging { key: hashed(&fresh), cookie: Some(format!("{SESSION}={fresh}")) }
        }
    }
}

/// In seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
