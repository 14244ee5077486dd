//! Sessions that need no memory here: a cookie names its endpoint, and a signature shows that a balancer with the same
//! secret wrote it. Pure; the time is an argument.
//!
//! `1.ENDPOINT.ISSUED.SIGNATURE`, all in hexadecimal: the hash of the endpoint's id, so that ids stay inside; seconds
//! since 1970; and half of HMAC-SHA256 (RFC 2104) over both. A cookie that was changed, is too old or comes from the
//! future is as good as none: whoever could write one would choose whom to burden.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::mix;

/// How long a cookie is honoured, in seconds; browsers are told to keep it for as long.
pub const COOKIE_AGE: u64 = 86_400;

/// Clocks of balancers may differ by so many seconds.
const SKEW_MAX: u64 = 300;

/// Shorter secrets can be guessed.
const SECRET_BYTES_MIN: usize = 16;

/// Half of the digest is as much as anybody can forge in a cookie's life.
const SIGNATURE_BYTES: usize = 16;

/// What is signed besides the numbers, so that the secret can serve other purposes, too.
const PURPOSE: &[u8] = b"balancer sticky session 1";

const VERSION: &str = "1";

/// A cookie that was signed by one of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The hash of its endpoint's id.
    pub endpoint: u64,
    /// When it was issued, in seconds since 1970.
    pub issued: u64,
}

impl Session {
    /// What leads it elsewhere while its endpoint takes no requests.
    pub fn key(&self) -> u64 {
        mix(self.endpoint ^ mix(self.issued))
    }
}

/// A secret that is too short.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret has at least {SECRET_BYTES_MIN} bytes, not {0}; try: openssl rand -hex 32")]
pub struct SecretTooShort(usize);

/// Signs and reads cookies.
pub struct Signer {
    /// The first signs, any is good for reading: so that secrets can be replaced one balancer after the other.
    keys: Vec<Hmac<Sha256>>,
}

/// Says nothing of the secrets.
impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} secrets)", self.keys.len())
    }
}

impl Signer {
    /// With `secrets`, of which there is at least one.
    pub fn new(secrets: &[String]) -> Result<Signer, SecretTooShort> {
        let key = |secret: &String| match secret.len() {
            short @ ..SECRET_BYTES_MIN => Err(SecretTooShort(short)),
            _ => Ok(Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length")),
        };
        let keys = secrets.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(SecretTooShort(0));
        }
        Ok(Signer { keys })
    }

    /// A cookie for the endpoint with this hash, as of `now`, in seconds since 1970.
    pub fn issue(&self, endpoint: u64, now: u64) -> String {
        let session = Session { endpoint, issued: now };
        let signature = signed(&self.keys[0], session).finalize().into_bytes();
        let half = signature[..SIGNATURE_BYTES].iter();
        let half = half.fold(0u128, |sum, &byte| sum << 8 | u128::from(byte));
        format!("{VERSION}.{endpoint:016x}.{now:08x}.{half:032x}")
    }

    /// What `cookie` says as of `now`; `None` if it says nothing that can be trusted.
    pub fn read(&self, cookie: &str, now: u64) -> Option<Session> {
        let mut parts = cookie.split('.');
        let (version, endpoint, issued) = (parts.next()?, parts.next()?, parts.next()?);
        let (signature, None) = (parts.next()?, parts.next()) else { return None };
        if version != VERSION {
            return None;
        }
        let session = Session { endpoint: hex(endpoint, 16)? as u64, issued: hex(issued, 16)? as u64 };
        let signature = hex(signature, 32)?.to_be_bytes();
        let is_ours = |key| signed(key, session).verify_truncated_left(&signature).is_ok();
        let is_fresh = session.issued <= now + SKEW_MAX && now < session.issued.saturating_add(COOKIE_AGE);
        (is_fresh && signature.len() == SIGNATURE_BYTES && self.keys.iter().any(is_ours)).then_some(session)
    }
}

fn signed(key: &Hmac<Sha256>, session: Session) -> Hmac<Sha256> {
    let mut mac = key.clone();
    mac.update(PURPOSE);
    mac.update(&session.endpoint.to_be_bytes());
    mac.update(&session.issued.to_be_bytes());
    mac
}

/// Up to `digits` digits, of which there is at least one; signs, which the standard library takes, are none.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "a secret of thirty-two bytes ...";
    const NOW: u64 = 1_800_000_000;

    fn signer(secrets: &[&str]) -> Signer {
        Signer::new(&secrets.iter().map(|&s| s.to_owned()).collect::<Vec<_>>()).expect("they are long enough")
    }

    #[test]
    fn what_one_signs_all_with_the_secret_read() {
        let cookie = signer(&[SECRET]).issue(7, NOW);
        expect_test::expect!["1.0000000000000007.6b49d200.f2a457fbb70ae6ffc105aabfef6b8a1f"]
            .assert_eq(&cookie);
        let session = Some(Session { endpoint: 7, issued: NOW });
        assert_eq!(signer(&[SECRET]).read(&cookie, NOW + 9), session);
        assert_eq!(signer(&["another secret, as long", SECRET]).read(&cookie, NOW), session);
        assert_eq!(signer(&["another secret, as long"]).read(&cookie, NOW), None);
    }

    #[test]
    fn too_old_or_from_the_future_is_none() {
        let signer = signer(&[SECRET]);
        let cookie = signer.issue(u64::MAX, NOW);
        assert!(signer.read(&cookie, NOW + COOKIE_AGE - 1).is_some());
        assert!(signer.read(&cookie, NOW + COOKIE_AGE).is_none());
        assert!(signer.read(&cookie, NOW - SKEW_MAX).is_some());
        assert!(signer.read(&cookie, NOW - SKEW_MAX - 1).is_none());
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused_and_none_is_shown() {
        assert_eq!(Signer::new(&["short".to_owned()]).err(), Some(SecretTooShort(5)));
        assert_eq!(Signer::new(&[]).err(), Some(SecretTooShort(0)));
        assert_eq!(format!("{:?}", signer(&[SECRET])), "Signer(1 secrets)");
    }

    #[test]
    fn nonsense_is_none() {
        let signer = signer(&[SECRET]);
        for text in ["", "1", "1...", "1.7.7.", "2.7.7.7", "1.+7.7.7", "1.7.7.7.7", "client-7", "1.é.7.7"] {
            assert_eq!(signer.read(text, NOW), None, "{text}");
        }
    }

    proptest! {
        /// Whatever character of it is replaced by another.
        #[test]
        fn a_changed_cookie_is_none(endpoint: u64, at in 0usize..60, with in "[0-9a-f.]") {
            let signer = signer(&[SECRET]);
            let cookie = signer.issue(endpoint, NOW);
            let at = at % cookie.len();
            let changed = format!("{}{with}{}", &cookie[..at], &cookie[at + 1..]);
            let session = signer.read(&changed, NOW);
            prop_assert_eq!(session.is_some(), changed == cookie);
        }

        #[test]
        fn whatever_comes_is_read_without_harm(text in ".{0,80}", now: u64) {
            prop_assert_eq!(signer(&[SECRET]).read(&text, now % (1 << 60)), None);
        }
    }
}
