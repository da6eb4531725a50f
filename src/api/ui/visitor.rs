//! Who looks at a page: the holder of the key that the browser signed in with, or, on a server without keys, whoever
//! runs it. The layer [`admit`] stands before every page but the sign-in; handlers receive the [`Visitor`].

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::api::access::auth::Caller;
use crate::api::access::limits::Allowance;
use crate::api::http::connections::Connection;
use crate::api::http::error::{Problem, Result};
use crate::api::http::holding_body::holding;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, Who};
use crate::api::ui::security::see;

/// Name of the cookie, where the page came over TLS and where it did not.
const SECURE_COOKIE: &str = "__Host-attune-session";
const COOKIE: &str = "attune-session";

/// What a key may look at: pages are cheap, but not free. It counts apart from the key's requests to the API, which those
/// that a page makes for its visitor are.
const LOOKS: Allowance = Allowance { requests_per_minute: 1_200, tokens_per_minute: 1, concurrent_requests: 1_000 };

/// Who looks at a page.
#[derive(Clone)]
pub(crate) struct Visitor {
    /// The holder of the key.
    pub caller: Caller,
    /// The session's token; `None` where no key is needed.
    pub token: Option<Arc<str>>,
}

impl Visitor {
    /// Returns the frame of a page of the section at `section`.
    pub(crate) fn frame<'a>(&'a self, title: &'a str, section: &'static str) -> Frame<'a> {
        let caller = &self.caller;
        let who = Who { organization: &caller.organization, admin: caller.admin, signed_in: self.token.is_some() };
        Frame { title, section: Some(section), who: Some(who), ..Frame::default() }
    }

    /// Returns true if this visitor would be let in again now: the session lives, and so does its key. Long answers ask
    /// from time to time.
    pub(crate) async fn is_still_let_in(&self, pages: &Pages) -> Result<bool, Problem> {
        match &self.token {
            Some(token) => Ok(pages.sessions.holder(token).await?.is_some()),
            // A server that has got its first key asks everybody to sign in.
            None => pages.gate.is_open().await,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let visitor = parts.extensions.get::<Self>().cloned();
        visitor.ok_or_else(|| Problem::defect("a page stands outside `visitor::admit`").into())
    }
}

/// Passes a request on with its [`Visitor`] and [`Caller`], or sends the browser to the sign-in.
pub(crate) async fn admit(State(pages): State<Pages>, mut request: Request, next: Next) -> Result<Response, Fault> {
    let Some(visitor) = find(&pages, request.uri(), request.headers()).await? else {
        return Ok(to_sign_in(request.method(), request.uri(), request.headers()));
    };
    if let Some(connection) = request.extensions().get::<Arc<Connection>>() {
        connection.belongs_to(&visitor.caller.key).map_err(Problem::from)?;
    }
    let caller = &visitor.caller;
    let permit = pages.limiters.of(&caller.key, LOOKS).admit(&caller.organization, Instant::now())?;
    request.extensions_mut().insert(caller.clone());
    request.extensions_mut().insert(visitor);
    // Held until the last byte has gone, as a stream is looked at.
    Ok(next.run(request).await.map(|body| holding(body, permit)))
}

/// Finds who sent a request; `None` if that takes a session and there is none.
pub(crate) async fn find(pages: &Pages, uri: &Uri, headers: &HeaderMap) -> Result<Option<Visitor>, Problem> {
    if let Some(caller) = pages.gate.without_key(uri, headers).await? {
        return Ok(Some(Visitor { caller, token: None }));
    }
    let Some(token) = token(headers) else { return Ok(None) };
    let caller = pages.sessions.holder(token).await?;
    Ok(caller.map(|caller| Visitor { caller, token: Some(token.into()) }))
}

/// Passes requests of admins on, and refuses the others. Stands behind [`admit`].
pub(crate) async fn admins_only(visitor: Visitor, request: Request, next: Next) -> Result<Response, Fault> {
    if visitor.caller.admin { Ok(next.run(request).await) } else { Err(Problem::not_admin().into()) }
}

/// Sends people to the form, and tells scripts that the session has ended.
fn to_sign_in(method: &Method, uri: &Uri, headers: &HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("text/html");
    if !accepts.contains("text/html") && !accepts.contains("*/*") {
        return Fault::from(Problem::missing_key()).into_json();
    }
    if *method != Method::GET {
        return see("/ui/sign-in");
    }
    let next = uri.path_and_query().map_or("/ui", |path| path.as_str());
    see(&format!("/ui/sign-in?next={}", utf8_percent_encode(next, NON_ALPHANUMERIC)))
}

/// Returns the session's token of a request.
pub(crate) fn token(headers: &HeaderMap) -> Option<&str> {
    let find = |name: &str| {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(other, _)| *other == name).map(|(_, token)| token)
    };
    find(SECURE_COOKIE).or_else(|| find(COOKIE)).filter(|token| !token.is_empty())
}

/// Writes the `Set-Cookie` of a session that lives for `seconds`, or that ends with 0. Over TLS no other site and no
/// unencrypted page can set it, which takes `Path=/`; routes outside of the page never read it.
pub(crate) fn cookie(token: &str, seconds: u64, is_secure: bool) -> String {
    let rest = format!("HttpOnly; SameSite=Strict; Max-Age={seconds}");
    if is_secure {
        format!("{SECURE_COOKIE}={token}; Path=/; Secure; {rest}")
    } else {
        format!("{COOKIE}={token}; Path=/ui; {rest}")
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(cookies: &[&'static str]) -> HeaderMap {
        cookies.iter().map(|cookies| (header::COOKIE, HeaderValue::from_static(cookies))).collect()
    }

    #[test]
    fn the_token_is_found_among_other_cookies_and_the_secure_one_counts_first() {
        let read = |cookies: &[&'static str]| token(&headers(cookies)).map(str::to_owned);
        assert_eq!(read(&["a=b; attune-session=one;c=d"]).as_deref(), Some("one"));
        assert_eq!(read(&["a=b", "attune-session=one"]).as_deref(), Some("one"));
        assert_eq!(read(&["attune-session=one; __Host-attune-session=two"]).as_deref(), Some("two"));
        assert_eq!((read(&["attune-session="]), read(&["xattune-session=one"]), read(&[])), (None, None, None));
    }

    #[test]
    fn a_cookie_is_hidden_from_scripts_other_sites_and_the_api() {
        assert_eq!(cookie("t", 9, false), "attune-session=t; Path=/ui; HttpOnly; SameSite=Strict; Max-Age=9");
        assert_eq!(
            cookie("t", 9, true),
            "__Host-attune-session=t; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=9"
        );
    }

    #[test]
    fn people_are_sent_to_the_form_and_scripts_are_told() {
        let answer = |method: &Method, accept: &'static str| {
            let headers = [(header::ACCEPT, HeaderValue::from_static(accept))].into_iter().collect();
            to_sign_in(method, &Uri::from_static("/ui/fine-tunes?after=a&b=c"), &headers)
        };
        let form = answer(&Method::GET, "text/html,*/*");
        assert_eq!(form.status(), 303);
        assert_eq!(form.headers()["location"], "/ui/sign-in?next=%2Fui%2Ffine%2Dtunes%3Fafter%3Da%26b%3Dc");
        assert_eq!(answer(&Method::POST, "text/html").headers()["location"], "/ui/sign-in");
        assert_eq!(answer(&Method::GET, "text/event-stream").status(), 401);
        assert_eq!(answer(&Method::GET, "application/json").status(), 401);
    }
}
