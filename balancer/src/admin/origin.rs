//! Whether a request that changes something may be a foreign web page's doing.
//!
//! The admin server has no passwords: who reaches its port may use it. A browser of an operator reaches it, and whatever
//! page it has open can make it send a POST. Browsers say whose page that is: `Origin` comes with every POST, and
//! `Sec-Fetch-Site` with most. What is not a browser sends neither.
//!
//! A page whose own name was made to point at this server (DNS rebinding) is of the same origin to the browser. Such a name
//! has to be a name, though: so pages may act only where the server is addressed by its IP address or as localhost.

use std::net::IpAddr;

use http::header::{HOST, HeaderMap, ORIGIN};

/// Fails with what is wrong, and what to do, if a page that is not this server's own may be asking.
pub fn check(headers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match text("sec-fetch-site") {
        None | Some("same-origin" | "none") => {}
        Some(site) => {
            return Err(format!(
                "a browser sent this for a page elsewhere (Sec-Fetch-Site: {site}); use curl, or this server's page"
            ));
        }
    }
    let Some(origin) = text(ORIGIN.as_str()) else { return Ok(()) };
    let host = text(HOST.as_str()).unwrap_or_default();
    if origin != format!("http://{host}") {
        return Err(format!("a browser sent this for a page of {origin}; use curl, or this server's page"));
    }
    match is_rebindable(host) {
        true => Err(format!(
            "a browser may be led to believe that {host:?} is here; address this server by its IP address, or use curl"
        )),
        false => Ok(()),
    }
}

/// Whether somebody else may say what the host of `authority` stands for.
fn is_rebindable(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return true };
    let host = authority.host().trim_matches(['[', ']']);
    !host.eq_ignore_ascii_case("localhost") && host.parse::<IpAddr>().is_err()
}
