//! The frame of the `OpenAPI` document, and the page that shows the document.

use axum::Router;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApiBuilder};
use utoipa_swagger_ui::SwaggerUi;

const KEY: &str = "api_key";

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

/// Serves the page at `/docs` and the document at `/openapi.json`.
pub(crate) fn routes(document: OpenApi) -> Router {
    SwaggerUi::new("/docs").url("/openapi.json", document).into()
}
