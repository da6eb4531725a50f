//! The page for people at `/ui`: what models learn, how they answer, what they cost. Made on the server, readable
//! without JavaScript; `api::router` serves it unless the configuration says `ui = false`.
//!
//! - [`layout`]: the frame of every page. [`fault`]: errors as pages. [`assets`]: styles and scripts, in the program.
//! - [`security`]: headers, and forms of other sites. [`visitor`]: who looks, by the session. [`sign_in`]: its form.
//! - [`words`]: times, states and figures as every page shows them.
//! - [`Inside`]: a page that does something calls the route of the API that does it, as the visitor.
//! - One file per page, in the order of [`SECTIONS`].
//!
//! How to add a page: write `NAME.rs` (or a folder) with `pub(super) const SECTION: Section`: its path, its word in the
//! navigation, `admin: true` if only admin keys may see it, and `routes`, which returns all routes below the path. Give
//! it a `mod` line here and its place in [`SECTIONS`]; navigation, sign-in, headers, the check of forms and the
//! refusal of keys without the right come with it. A handler takes `State<Pages>` and a [`visitor::Visitor`], reads
//! what it shows from `store`, `jobs` or `engine` for `visitor.caller.organization`, and returns
//! `Result<Markup, Fault>` of [`layout::page`]. What it writes, it writes by [`Inside::call`], so that page and
//! API cannot differ in what they allow. A form is `method="post"` to its own route, which answers with
//! [`security::see`] (303). Texts of users go into the page as values of maud, which escapes them; never `PreEscaped`,
//! never `style=`, `onclick=` or a script in the page, which the policy of [`security`] forbids: scripts and styles are
//! files of `assets/ui`, named in [`layout::Frame::scripts`]. `docs/page.md` gets its row.

mod assets;
mod fault;
mod fine_tunes;
mod layout;
mod models;
mod operations;
mod playground;
mod section;
mod security;
mod sign_in;
mod usage;
mod visitor;
mod words;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{any, get, post};

use self::fault::Fault;
use self::fine_tunes::feed::Feeds;
use self::section::Section;
use crate::api::ApiState;
use crate::api::access::auth::{Caller, Gate};
use crate::api::access::inside::Inside;
use crate::api::access::limits::Limiters;
use crate::api::access::sessions::Sessions;
use crate::api::access::shares::share_out;

/// Largest form in bytes; a route that takes more has a limit of its own.
const FORM_BYTES: usize = 64 << 10;
/// Longest error object of the API that is read.
const MAX_FAULT: usize = 64 << 10;

/// The pages, in the order of the navigation.
const SECTIONS: &[Section] =
    &[fine_tunes::SECTION, playground::SECTION, models::SECTION, usage::SECTION, operations::SECTION];

/// The state of all pages. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pages {
    /// What the handlers of the API have.
    pub api: ApiState,
    /// The keys, for servers that need none.
    pub gate: Gate,
    /// Who is signed in.
    pub sessions: Sessions,
    /// How often a key asks for pages.
    limiters: Limiters,
    /// The routes of the API.
    pub inside: Inside,
    /// What happens to jobs that somebody looks at.
    feeds: Feeds,
}

impl Pages {
    /// Does as [`Inside::call`], for pages that only go on if it worked: an error object becomes a [`Fault`].
    pub(crate) async fn ask(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        kind: Option<&HeaderValue>,
        body: impl Into<Body>,
    ) -> Result<Response, Fault> {
        let response = self.inside.call(caller, method, path, kind, body).await?;
        let status = response.status();
        if !status.is_client_error() && !status.is_server_error() {
            return Ok(response);
        }
        let bytes = to_bytes(response.into_body(), MAX_FAULT).await.unwrap_or_default();
        let object: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Err(Fault::told(status, object["error"]["message"].as_str().unwrap_or("The server gave no reason.")))
    }
}

/// Returns all pages; `inside` calls the API's own routes.
pub(crate) fn routes(api: ApiState, gate: Gate, inside: Inside) -> Router {
    let sessions = Sessions::new(gate.clone(), api.store.clone());
    let pages = Pages { api, gate, sessions, limiters: Limiters::default(), inside, feeds: Feeds::default() };
    let shares = from_fn_with_state(pages.api.resources.clone(), share_out);
    let guarded = SECTIONS.iter().fold(Router::new(), |routes, section| routes.merge(section.guarded()));
    let guarded = guarded
        .route("/ui", get(home))
        .route("/ui/", get(home))
        .route("/ui/{*rest}", any(unknown))
        .layer(shares)
        .layer(from_fn_with_state(pages.clone(), visitor::admit));
    let open = Router::new()
        .route("/ui/sign-in", get(sign_in::show).post(sign_in::begin))
        .route("/ui/sign-out", post(sign_in::end))
        .route("/ui/assets/{version}/{name}", get(assets::serve));
    guarded
        .merge(open)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(FORM_BYTES))
        .layer(from_fn(security::guard))
        .with_state(pages)
}

async fn home() -> Response {
    security::see(SECTIONS.first().map_or("/ui/sign-in", |section| section.path))
}

async fn unknown(uri: Uri) -> Fault {
    Fault::no_page(uri.path())
}

async fn wrong_method(uri: Uri) -> Fault {
    Fault::wrong_method(uri.path())
}
