//! The frame of the `OpenAPI` document, and the page that shows the document.

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApiBuilder};
use utoipa_swagger_ui::{Config, SwaggerUi};

const KEY: &str = "api_key";
/// Path of the document.
const DOCUMENT: &str = "/openapi.json";

const DESCRIPTION: &str = "Serves language models and embeddings in the form of OpenAI's API, and fine-tunes them. \
                           The same routes are served without the prefix `/v1`, and `/fine-tunes` is the same resource as \
                           `/fine_tunes`.";

/// Returns the document without its paths.
pub(crate) fn frame() -> OpenApi {
    let license = LicenseBuilder::new().name("MIT OR Apache-2.0").build();
    let info = InfoBuilder::new()
        .title("Attune")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(license))
        .build();
    let mut components = Components::new();
    components.add_security_scheme(KEY, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new(KEY, Vec::<String>::new())]))
        .build()
}

/// Serves the page at `/docs` and the document at `/openapi.json`. The document is kept as a text: in memory its parts take many
/// times as much.
pub(crate) fn routes(document: &OpenApi) -> Router {
    let text = document.to_json().unwrap_or_else(|error| {
        tracing::error!(%error, "the OpenAPI document cannot be written, and /openapi.json is empty");
        String::new()
    });
    let text = Bytes::from(text);
    let answer = move || std::future::ready(([(CONTENT_TYPE, "application/json")], text.clone()));
    let page: Router = SwaggerUi::new("/docs").config(Config::from(DOCUMENT)).into();
    page.route(DOCUMENT, get(answer))
}
