//! Headers that several rooms know: those that `access` and `generation` write into answers and `transport` lets web pages read, and
//! whether the origin or the host of a request is this machine.

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

/// Returns true for an `Origin` or a `Host` that is this machine itself.
pub(crate) fn is_local(origin: &HeaderValue) -> bool {
    let host =
        origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok()).and_then(|uri| Some(uri.host()?.to_owned()));
    host.is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}
