//! Sign in with an API key, and out. The key comes once, in the body of a form; the browser keeps a token instead.

use axum::Form;
use axum::extract::rejection::FormRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::api::access::sessions::LIFETIME;
use crate::api::http::error::{Problem, Result};
use crate::api::http::query::Query;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::{Frame, page};
use crate::api::ui::security::{came_over_tls, see};
use crate::api::ui::visitor::{self, cookie};

/// The page to go to after signing in.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Destination {
    next: Option<String>,
}

/// The form.
#[derive(Deserialize)]
pub(crate) struct SignIn {
    key: String,
    next: Option<String>,
}

/// Shows the form, or the page itself to whoever is signed in already or needs no key.
pub(crate) async fn show(
    State(pages): State<Pages>,
    OriginalUri(uri): OriginalUri,
    Query(destination): Query<Destination>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let next = local(destination.next);
    if visitor::find(&pages, &uri, &headers).await?.is_some() {
        return Ok(see(&next));
    }
    Ok(form(&next, None).into_response())
}

/// Begins a session.
pub(crate) async fn begin(
    State(pages): State<Pages>,
    headers: HeaderMap,
    form: Result<Form<SignIn>, FormRejection>,
) -> Result<Response, Fault> {
    let Form(SignIn { key, next }) = form.map_err(|fault| Problem::bad_request(fault.body_text()))?;
    let next = local(next);
    let Some(token) = pages.sessions.begin(&key).await? else {
        let fault = "No key with this text is in use. It may have been revoked, or have expired.";
        return Ok((StatusCode::UNAUTHORIZED, self::form(&next, Some(fault))).into_response());
    };
    let cookie = cookie(&token, LIFETIME.as_secs(), came_over_tls(&headers));
    Ok(([(header::SET_COOKIE, cookie)], see(&next)).into_response())
}

/// Ends the session of the browser.
pub(crate) async fn end(State(pages): State<Pages>, headers: HeaderMap) -> Result<Response, Fault> {
    if let Some(token) = visitor::token(&headers) {
        pages.sessions.end(token).await?;
    }
    let mut response = see("/ui/sign-in");
    for is_secure in [false, true] {
        if let Ok(gone) = cookie("", 0, is_secure).parse() {
            response.headers_mut().append(header::SET_COOKIE, gone);
        }
    }
    Ok(response)
}

/// Returns a path of the page itself: whoever makes a link must not send people elsewhere with it.
fn local(next: Option<String>) -> String {
    let is_local = |next: &String| {
        let is_below = next == "/ui" || next.starts_with("/ui/") || next.starts_with("/ui?");
        is_below && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    };
    next.filter(is_local).unwrap_or_else(|| "/ui".into())
}

fn form(next: &str, fault: Option<&str>) -> Markup {
    let body = html! {
        h1 { "Sign in" }
        form.card.narrow method="post" action="/ui/sign-in" {
            p { label for="key" { "API key" } }
            input type="password" id="key" name="key" required autocomplete="current-password" autofocus
                spellcheck="false" aria-describedby=[fault.map(|_| "fault")] aria-invalid=[fault.map(|_| "true")];
            @if let Some(fault) = fault { p.fault id="fault" role="alert" { (fault) } }
            input type="hidden" name="next" value=(next);
            p { button type="submit" { "Sign in" } }
            p.hint { "The one that programs send to this server. You are asked again after a day, and at once when the \
                      key is revoked." }
        }
    };
    page(&Frame { title: "Sign in", ..Frame::default() }, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_leads_to_pages_of_this_server_only() {
        let lead = |next: &str| local(Some(next.to_owned()));
        assert_eq!(lead("/ui/fine-tunes?after=a"), "/ui/fine-tunes?after=a");
        for foreign in
            ["https://example.com", "//example.com", "/\\example.com", "/ui/\\x", "/v1/models", "/uix", "/ui/\r\nx", ""]
        {
            assert_eq!(lead(foreign), "/ui", "{foreign:?}");
        }
    }

    #[test]
    fn what_the_form_repeats_stays_text() {
        let text = form("/ui/\"><script>alert(1)</script>", Some("<b>")).into_string();
        assert!(!text.contains("<script>alert") && !text.contains("<b>"), "{text}");
        assert!(text.contains("&quot;&gt;&lt;script&gt;"), "{text}");
    }
}
