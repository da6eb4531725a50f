//! What keeps other sites and texts of users out of the page: headers on every answer, and the refusal of forms that
//! another site sends. [`guard`] stands around all pages.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::api::http::error::Problem;
use crate::api::ui::fault::Fault;

/// No script, style or connection but the server's own, none inside the page; no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Headers of every answer.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // With `no-referrer` browsers would send the page's own forms with `Origin: null`.
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Refuses what another site sends, and writes the headers. An answer that says nothing of caches is kept in none.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let mut response = match refused(request.method(), request.uri(), request.headers()) {
        Some(why) => Fault::from(foreign(why)).into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Leads the browser to `path`, to be read: the answer to a form.
pub(crate) fn see(path: &str) -> Response {
    let location = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/ui"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

/// Returns true if the browser sent this form over TLS: its `Origin` says so, whatever stands in between.
pub(crate) fn came_over_tls(headers: &HeaderMap) -> bool {
    headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

/// Returns the header that shows that a request which may change something comes from another site. Browsers send
/// `Sec-Fetch-Site` over TLS and to this machine, and `Origin` everywhere; programs send neither.
fn refused(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    if [Method::GET, Method::HEAD, Method::OPTIONS].contains(method) {
        return None;
    }
    let header = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    if let Some(site) = header("sec-fetch-site") {
        return (![&b"same-origin"[..], b"none"].contains(&site)).then_some("Sec-Fetch-Site");
    }
    let origin = header("origin")?;
    let origin = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    // Over HTTP/2 the host is a part of the URI.
    let host = uri.authority().map(|authority| authority.as_str().as_bytes()).or_else(|| header("host"));
    (origin.is_none() || origin != host).then_some("Origin")
}

fn foreign(header: &str) -> Problem {
    let mut problem = Problem::bad_request(format!(
        "The header {header} says that this form was sent by another site. If a proxy stands before this server, it must \
         pass on the header Host as it came."
    ));
    problem.status = StatusCode::FORBIDDEN;
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(headers: &[(&'static str, &'static str)]) -> Option<&'static str> {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        refused(&Method::POST, &Uri::from_static("/ui/sign-in"), &headers.collect())
    }

    #[test]
    fn forms_of_this_page_and_of_programs_are_taken() {
        for headers in [
            &[][..],
            &[("sec-fetch-site", "same-origin"), ("origin", "https://behind.a.proxy"), ("host", "inner:8080")],
            &[("sec-fetch-site", "none")],
            &[("origin", "http://box:8080"), ("host", "box:8080")],
            &[("origin", "https://box"), ("host", "box")],
        ] {
            assert_eq!(form(headers), None, "{headers:?}");
        }
        let over_http2 = Uri::from_static("http://box:8080/ui/sign-in");
        let headers = [(header::ORIGIN, HeaderValue::from_static("http://box:8080"))].into_iter().collect();
        assert_eq!(refused(&Method::POST, &over_http2, &headers), None);
    }

    #[test]
    fn forms_of_other_sites_are_refused() {
        for headers in [
            &[("sec-fetch-site", "cross-site"), ("host", "box")][..],
            &[("sec-fetch-site", "same-site"), ("host", "box")],
            &[("origin", "http://other"), ("host", "box")],
            &[("origin", "http://box:8081"), ("host", "box:8080")],
            &[("origin", "null"), ("host", "box")],
            &[("origin", "http://box")],
        ] {
            assert!(form(headers).is_some(), "{headers:?}");
        }
    }

    #[test]
    fn reading_is_open_to_links_of_other_sites() {
        let headers = [(HeaderName::from_static("sec-fetch-site"), HeaderValue::from_static("cross-site"))];
        assert_eq!(refused(&Method::GET, &Uri::from_static("/ui"), &headers.into_iter().collect()), None);
    }
}
