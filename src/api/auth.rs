//! Who calls: the bearer key of a request, compared in constant time. The layer stands before every route that reads or
//! changes something; handlers receive the [`Caller`].

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use crate::Error;
use crate::api::error::Problem;
use crate::config::Config;

/// On whose behalf a request runs.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Owner of the files, jobs and models that the request sees.
    pub organization: Arc<str>,
}

/// The keys that are let in.
#[derive(Debug, Clone)]
pub struct Keys {
    /// SHA-256 of each key, so that the comparison does not depend on a key's length.
    hashes: Arc<[[u8; 32]]>,
    organization: Arc<str>,
}

impl Keys {
    /// The keys of the configuration; none leaves the server open to this machine.
    pub fn new(config: &Config) -> Self {
        let hashes = config.api_keys.iter().map(|key| Sha256::digest(key.trim()).into()).collect();
        Self { hashes, organization: config.organization.as_str().into() }
    }

    /// True where no key is needed.
    pub fn is_open(&self) -> bool {
        self.hashes.is_empty()
    }

    fn check(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let caller = Caller { organization: self.organization.clone() };
        if self.is_open() {
            // Any page that the user of this machine visits could call a server without keys: directly, which its origin
            // tells, or under a name of its own that it points to this machine, which the host tells.
            let foreign_origin = headers.get(header::ORIGIN).is_some_and(|origin| !is_local(origin));
            let foreign_host = headers.get(header::HOST).is_some_and(|host| !is_local(host));
            return if foreign_origin || foreign_host { Err(Problem::foreign_origin()) } else { Ok(caller) };
        }
        let key = bearer(headers).ok_or_else(Problem::missing_key)?;
        let hash: [u8; 32] = Sha256::digest(key).into();
        let known = self.hashes.iter().fold(Choice::from(0), |known, other| known | hash.ct_eq(other));
        if bool::from(known) { Ok(caller) } else { Err(Problem::wrong_key(key)) }
    }
}

/// Lets a request pass with its [`Caller`], or answers 401.
pub async fn authenticate(State(keys): State<Keys>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let caller = keys.check(request.headers())?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// True for an origin or a host that is this machine itself.
pub fn is_local(origin: &HeaderValue) -> bool {
    let host =
        origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok()).and_then(|uri| Some(uri.host()?.to_owned()));
    host.is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

/// The key of `Authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Error::Internal("a route that needs a caller stands outside `authenticate`".into()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(api_keys: &[&str], header: Option<(header::HeaderName, &'static str)>) -> u16 {
        let config = Config { api_keys: api_keys.iter().map(ToString::to_string).collect(), ..Config::default() };
        let headers = header.map(|(name, value)| (name, HeaderValue::from_static(value))).into_iter().collect();
        Keys::new(&config).check(&headers).map_or_else(|problem| problem.status.as_u16(), |_| 200)
    }

    #[test]
    fn without_keys_everyone_on_this_machine_is_let_in() {
        assert_eq!(status(&[], None), 200);
        assert_eq!(status(&[], Some((header::AUTHORIZATION, "Bearer anything"))), 200);
        assert_eq!(status(&[], Some((header::ORIGIN, "http://localhost:3000"))), 200);
        assert_eq!(status(&[], Some((header::ORIGIN, "http://[::1]:3000"))), 200);
    }

    #[test]
    fn without_keys_a_web_page_of_another_site_is_refused() {
        assert_eq!(status(&[], Some((header::ORIGIN, "https://example.com"))), 403);
        assert_eq!(status(&[], Some((header::ORIGIN, "https://localhost.example.com"))), 403);
        assert_eq!(status(&[], Some((header::ORIGIN, "null"))), 403);
    }

    #[test]
    fn without_keys_a_name_that_points_to_this_machine_is_refused() {
        assert_eq!(status(&[], Some((header::HOST, "127.0.0.1:8080"))), 200);
        assert_eq!(status(&[], Some((header::HOST, "localhost:8080"))), 200);
        assert_eq!(status(&[], Some((header::HOST, "[::1]:8080"))), 200);
        assert_eq!(status(&[], Some((header::HOST, "rebound.example.com:8080"))), 403);
    }

    #[test]
    fn with_keys_only_a_known_one_is_let_in() {
        let keys = ["first", "second"];
        assert_eq!(status(&keys, Some((header::AUTHORIZATION, "Bearer second"))), 200);
        assert_eq!(status(&keys, Some((header::AUTHORIZATION, "bearer first"))), 200);
        assert_eq!(status(&keys, Some((header::AUTHORIZATION, "Bearer third"))), 401);
        assert_eq!(status(&keys, Some((header::AUTHORIZATION, "Bearer "))), 401);
        assert_eq!(status(&keys, None), 401);
    }
}
