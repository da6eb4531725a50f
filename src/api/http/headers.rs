//! Headers that several rooms know: those that `access` and `generation` write into answers and `transport` lets web
//! pages read, and whether the origin or the host of a request is this machine.

use std::net::IpAddr;

use axum::http::{HeaderName, HeaderValue, Uri};

/// The limits of the caller's key and what is left of them; `access::limits` writes them.
pub(crate) const RATE_LIMITS: [HeaderName; 6] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
/// The organisation that an answer belongs to; `access::limits` writes it.
pub(crate) const ORGANIZATION: HeaderName = HeaderName::from_static("openai-organization");

/// The keywords of tools' schemas that an answer does not follow; `generation::chat` writes it.
pub(crate) const LOOSENED: HeaderName = HeaderName::from_static("x-attune-loosened");

/// Tools that the model was not shown, since this server cannot call them; `generation::responses` writes it.
pub(crate) const SKIPPED: HeaderName = HeaderName::from_static("x-attune-skipped");

/// Returns true for an `Origin` of this machine itself: its page was served by a program that runs here.
pub(crate) fn is_local_origin(origin: &HeaderValue) -> bool {
    match host(origin.as_bytes()) {
        Some(Host::Name(name)) => is_localhost(&name),
        // A page of `0.0.0.0` can only come from here.
        Some(Host::Address(address)) => address.is_loopback() || address.is_unspecified(),
        None => false,
    }
}

/// Returns true for a `Host`, or an authority of HTTP/2, that no page of another site can have made point here. The
/// owner of a name can let it resolve to this machine after a browser has loaded a page from it; an address stays what
/// it is.
pub(crate) fn is_local_host(host_and_port: &[u8]) -> bool {
    match host(host_and_port) {
        Some(Host::Name(name)) => is_localhost(&name),
        Some(Host::Address(_)) => true,
        None => false,
    }
}

/// The host of an origin or of an authority.
enum Host {
    /// In lower case, without the dot that may end it.
    Name(String),
    /// An address, IPv4 also where it is written as IPv6.
    Address(IpAddr),
}

fn host(text: &[u8]) -> Option<Host> {
    let uri = Uri::try_from(text).ok()?;
    let host = uri.host()?;
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if let Ok(address) = address {
        return Some(Host::Address(address.to_canonical()));
    }
    let name = host.to_ascii_lowercase();
    Some(Host::Name(name.strip_suffix('.').map(str::to_owned).unwrap_or(name)))
}

/// Returns true for `localhost` and the names below it, which are this machine everywhere (RFC 6761).
fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_local_if_no_other_site_can_point_it_here() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.:8080",
            "x.localhost:8080",
            "App.LocalHost.:8080",
            "127.0.0.1:8080",
            "127.8.9.1",
            "0.0.0.0:8080",
            "192.168.1.5:8080",
            "[::1]:8080",
            "[::]:8080",
            "[::ffff:127.0.0.1]:8080",
        ] {
            assert!(is_local_host(host.as_bytes()), "{host}");
        }
        for host in [
            "rebound.example.com:8080",
            "localhost.example.com",
            "notlocalhost",
            "localhost..",
            ".localhost.com",
            "127.0.0.1.example.com",
            "localhost@example.com",
            "host.docker.internal:8080",
            "",
            "a b",
        ] {
            assert!(!is_local_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn an_origin_is_local_if_its_page_was_served_here() {
        for (origin, local) in [
            ("http://localhost:3000", true),
            ("https://LOCALHOST", true),
            ("http://tauri.localhost", true),
            ("http://127.0.0.1:3000", true),
            ("http://[::1]:3000", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://0.0.0.0:3000", true),
            ("http://192.168.1.5", false),
            ("http://203.0.113.7:8080", false),
            ("https://example.com", false),
            ("https://localhost.example.com", false),
            ("null", false),
            ("chrome-extension://abcdef", false),
        ] {
            assert_eq!(is_local_origin(&HeaderValue::from_static(origin)), local, "{origin}");
        }
    }
}
