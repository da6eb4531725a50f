//! Authentication: finds the bearer key of a request among the keys of the configuration and of the database. The layer
//! [`authenticate`] stands before every route that reads or changes something; handlers receive the [`Caller`], or an
//! [`Admin`].

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::api::access::limits::{self, Allowance, Limiter, Limiters};
use crate::api::http::connections::Connection;
use crate::api::http::error::Problem;
use crate::api::http::headers::{is_local_host, is_local_origin};
use crate::config::{Config, Secret};
use crate::store::Store;
use crate::store::key_directory::KeyDirectory;
use crate::store::keys::{ApiKey, KeyHash, hash, is_key};
use crate::store::usage_recorder::UsageRecorder;

/// Id of the key in requests to a server that needs no key.
const LOCAL: &str = "local";

/// The holder of the key that a request came with.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Organisation that owns the files, jobs and models that the request sees.
    pub organization: Arc<str>,
    /// Id of the key: `key_…` for a key of the database, `config-1` for the first key of the configuration, `local` if
    /// the server needs none.
    pub key: Arc<str>,
    /// True if the key may change the whole server and read other organisations.
    pub admin: bool,
    /// The key's limits and what it has used of them.
    pub limiter: Arc<Limiter>,
    /// True if nobody waits for the answer: the request is a line of a batch.
    pub background: bool,
}

/// A key that counts, by the hash of its text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KnownKey {
    /// A key of the database.
    Stored(KeyHash),
    /// A key of the configuration.
    Configured(KeyHash),
}

/// A caller with an admin key; extracting it answers 403 to any other caller.
#[derive(Debug, Clone)]
pub(crate) struct Admin(pub Caller);

/// Checks the keys of requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate {
    configured: ConfiguredKeys,
    directory: KeyDirectory,
    organization: Arc<str>,
    allowance: Allowance,
    limiters: Limiters,
    usage: UsageRecorder,
}

/// The keys of the configuration: admin keys of the configured organisation.
#[derive(Debug, Clone)]
struct ConfiguredKeys {
    /// SHA-256 of each key, so that the comparison does not depend on a key's length.
    hashes: Arc<[KeyHash]>,
}

impl ConfiguredKeys {
    fn new(keys: &[Secret]) -> Self {
        Self { hashes: keys.iter().map(|key| hash(key.as_str().trim())).collect() }
    }

    /// Returns the number of the key, counted from 1, or `None` if the configuration does not have it. Compares with
    /// every key in constant time.
    fn find(&self, text: &str) -> Option<u64> {
        let hash = hash(text);
        let number = self.hashes.iter().zip(1_u64..).fold(0, |found, (other, number)| {
            let same: Choice = hash.ct_eq(other);
            u64::conditional_select(&found, &number, same)
        });
        (number > 0).then_some(number)
    }
}

impl Gate {
    /// Creates the gate of a server from its configuration and the keys of its database.
    pub(crate) fn new(config: &Config, directory: KeyDirectory, usage: UsageRecorder) -> Self {
        let limits = &config.limits;
        Self {
            configured: ConfiguredKeys::new(&config.api_keys),
            directory,
            organization: config.organization.as_str().into(),
            allowance: Allowance {
                requests_per_minute: limits.requests_per_minute,
                tokens_per_minute: limits.tokens_per_minute,
                concurrent_requests: limits.concurrent_requests,
            },
            limiters: Limiters::default(),
            usage,
        }
    }

    /// Returns true if no key was needed when the last request came.
    pub(crate) fn was_open(&self) -> bool {
        self.configured.hashes.is_empty() && !self.directory.was_closed()
    }

    async fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<Caller, Problem> {
        let key = bearer(headers);
        if let Some(number) = key.and_then(|key| self.configured.find(key)) {
            return Ok(self.operator(format!("config-{number}").into()));
        }
        // A key of the database is looked up before anything else is asked: whoever comes with the very first one must
        // not pass for one of the callers who needed none until then.
        let presented = key.filter(|key| is_key(key));
        if let Some(text) = presented
            && let Some(key) = self.directory.find(text).await?
        {
            return Ok(self.holder(&key));
        }
        if self.is_open_to(presented).await? {
            return check_local(uri, headers).map(|()| self.operator(LOCAL.into()));
        }
        Err(key.map_or_else(Problem::missing_key, Problem::wrong_key))
    }

    /// Returns true if no key is needed, for a caller who came with the key `unknown`, or with none of Attune's.
    async fn is_open_to(&self, unknown: Option<&str>) -> Result<bool, Problem> {
        if !self.configured.hashes.is_empty() {
            return Ok(false);
        }
        Ok(match unknown {
            Some(_) => !self.directory.is_closed_now().await?,
            None => !self.directory.is_closed().await?,
        })
    }

    /// Returns true if no key is needed now.
    pub(crate) async fn is_open(&self) -> Result<bool, Problem> {
        self.is_open_to(None).await
    }

    /// Returns the caller of a request without a key, or `None` if the server needs one; 403 to web pages of other sites.
    pub(crate) async fn without_key(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<Caller>, Problem> {
        if !self.is_open_to(None).await? {
            return Ok(None);
        }
        check_local(uri, headers).map(|()| Some(self.operator(LOCAL.into())))
    }

    /// Returns the key with this text, if it counts.
    pub(crate) async fn known(&self, text: &str) -> Result<Option<KnownKey>, Problem> {
        if self.configured.find(text).is_some() {
            return Ok(Some(KnownKey::Configured(hash(text))));
        }
        Ok(self.directory.find(text).await?.map(|_| KnownKey::Stored(hash(text))))
    }

    /// Returns the caller who holds the key of the database with this hash, if it still counts.
    pub(crate) async fn holder_of_stored(&self, hash: KeyHash) -> Result<Option<Caller>, Problem> {
        Ok(self.directory.find_hash(hash).await?.map(|key| self.holder(&key)))
    }

    /// Returns the caller who holds the key of the configuration for whose hash `is_meant` is true.
    pub(crate) fn holder_of_configured(&self, is_meant: impl Fn(&KeyHash) -> bool) -> Option<Caller> {
        let number = self.configured.hashes.iter().zip(1_u64..).find(|(hash, _)| is_meant(hash))?.1;
        Some(self.operator(format!("config-{number}").into()))
    }

    /// Returns the caller with the key of this id, if it still counts: for work that no request waits for.
    pub(crate) async fn holder_of_id(&self, store: &Store, id: &str) -> Result<Option<Caller>, Problem> {
        if id == LOCAL {
            return Ok(self.is_open().await?.then(|| self.operator(LOCAL.into())));
        }
        if let Some(number) = id.strip_prefix("config-") {
            let known = number.parse().is_ok_and(|number: usize| (1..=self.configured.hashes.len()).contains(&number));
            return Ok(known.then(|| self.operator(id.into())));
        }
        Ok(store.live_key_named(id).await?.map(|key| self.holder(&key)))
    }

    /// Returns the caller who runs the server: an admin with the configured limits.
    fn operator(&self, key: Arc<str>) -> Caller {
        let limiter = self.limiters.of(&key, self.allowance);
        Caller { organization: Arc::clone(&self.organization), key, admin: true, limiter, background: false }
    }

    /// Returns the caller who holds `key`, with the limits of the key or else the configured ones.
    fn holder(&self, key: &ApiKey) -> Caller {
        let own = |limit: Option<i64>, default| limit.and_then(|limit| u64::try_from(limit).ok()).unwrap_or(default);
        let allowance = Allowance {
            requests_per_minute: own(key.requests_per_minute, self.allowance.requests_per_minute),
            tokens_per_minute: own(key.tokens_per_minute, self.allowance.tokens_per_minute),
            ..self.allowance
        };
        let id: Arc<str> = key.id.as_str().into();
        self.usage.touch(&id);
        let limiter = self.limiters.of(&id, allowance);
        let organization = key.organization.as_str().into();
        Caller { organization, key: id, admin: key.admin, limiter, background: false }
    }
}

/// Passes a request on with its [`Caller`] if its key is known and within its limits, else answers 401 or 429. Without
/// keys, answers 403 to web pages of other sites.
pub(crate) async fn authenticate(
    State(door): State<Gate>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let caller = door.check(request.uri(), request.headers()).await?;
    if let Some(connection) = request.extensions().get::<Arc<Connection>>() {
        connection.belongs_to(&caller.key)?;
    }
    request.extensions_mut().insert(caller.clone());
    Ok(limits::enforce(&caller.limiter, &caller.organization, request, next).await)
}

/// Passes a request of the page on to a route of the API, within the limits of the caller's key: `ui` has asked for the
/// key already.
pub(crate) async fn admit(caller: Caller, request: Request, next: Next) -> Response {
    limits::enforce(&caller.limiter, &caller.organization, request, next).await
}

/// Refuses web pages of other sites on a server without keys. A page that the user of this machine visits could call it
/// directly, which the `Origin` shows, or under a name of its own that resolves to this machine, which the `Host`
/// shows, or the authority of a request over HTTP/2.
fn check_local(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if let Some(origin) = headers.get_all(header::ORIGIN).iter().find(|origin| !is_local_origin(origin)) {
        return Err(Problem::foreign("Origin", &shown(origin.as_bytes())));
    }
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    let mut hosts = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes).chain(authority);
    match hosts.find(|host| !is_local_host(host)) {
        Some(host) => Err(Problem::foreign("Host", &shown(host))),
        None => Ok(()),
    }
}

/// Returns the key of `Authorization: Bearer KEY`, or `None` if the header is absent or has another form.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::defect("a route that needs a caller stands outside `authenticate`"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        if caller.admin { Ok(Self(caller)) } else { Err(Problem::not_admin()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(header: Option<(header::HeaderName, &'static str)>) -> u16 {
        let headers = header.map(|(name, value)| (name, HeaderValue::from_static(value))).into_iter().collect();
        check_local(&Uri::from_static("/v1/models"), &headers).map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    #[test]
    fn without_keys_everyone_on_this_machine_is_let_in() {
        assert_eq!(status(None), 200);
        assert_eq!(status(Some((header::AUTHORIZATION, "Bearer anything"))), 200);
        assert_eq!(status(Some((header::ORIGIN, "http://localhost:3000"))), 200);
        assert_eq!(status(Some((header::ORIGIN, "http://[::1]:3000"))), 200);
    }

    #[test]
    fn without_keys_a_web_page_of_another_site_is_refused() {
        assert_eq!(status(Some((header::ORIGIN, "https://example.com"))), 403);
        assert_eq!(status(Some((header::ORIGIN, "https://localhost.example.com"))), 403);
        assert_eq!(status(Some((header::ORIGIN, "null"))), 403);
    }

    #[test]
    fn without_keys_a_name_that_points_to_this_machine_is_refused() {
        assert_eq!(status(Some((header::HOST, "127.0.0.1:8080"))), 200);
        assert_eq!(status(Some((header::HOST, "localhost:8080"))), 200);
        assert_eq!(status(Some((header::HOST, "[::1]:8080"))), 200);
        assert_eq!(status(Some((header::HOST, "rebound.example.com:8080"))), 403);
        // Over HTTP/2 it is a part of the URI.
        let over_http2 = |uri: &'static str| check_local(&Uri::from_static(uri), &HeaderMap::new());
        assert!(over_http2("http://127.0.0.1:8080/v1/models").is_ok());
        let refused = over_http2("http://rebound.example.com:8080/v1/models").expect_err("a foreign name");
        let message = refused.error.message;
        for part in ["rebound.example.com:8080", "127.0.0.1", "api_keys", "attune keys create"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_key_of_the_configuration_is_known_by_its_number() {
        let keys = ConfiguredKeys::new(&["first".into(), " second\n".into()]);
        assert_eq!((keys.find("first"), keys.find("second"), keys.find("third")), (Some(1), Some(2), None));
        assert_eq!(ConfiguredKeys::new(&[]).find(""), None);
    }

    #[test]
    fn the_key_is_what_follows_the_word_bearer() {
        let read = |text: &'static str| {
            let headers = [(header::AUTHORIZATION, HeaderValue::from_static(text))].into_iter().collect();
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read("Bearer second").as_deref(), Some("second"));
        assert_eq!(read("bearer first").as_deref(), Some("first"));
        assert_eq!((read("Bearer "), read("Basic first"), read("first")), (None, None, None));
    }
}
