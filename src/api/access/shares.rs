//! Gives each request its share of what all requests share out. `api::router` puts [`share_out`] behind the check of
//! keys, so that nobody takes a share without one.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::api::access::auth::Caller;
use crate::api::http::error::Problem;
use crate::api::http::holding_body::holding;
use crate::api::http::share::Resources;

/// Passes a request on with its share, which it has until the last byte of its answer has gone.
pub(crate) async fn share_out(
    State(resources): State<Resources>,
    caller: Caller,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let share = resources.share(caller.organization);
    request.extensions_mut().insert(share.clone());
    Ok(next.run(request).await.map(|body| holding(body, share)))
}
