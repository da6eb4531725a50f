//! Work that no connection waits for. Each part asks the API's own routes on behalf of the caller whose work it is, and
//! ends soon after the server is told to stop. `app` runs it beside the server of HTTP.

use crate::api::ApiState;
use crate::api::access::inside::Inside;
use crate::api::generation::responses;
use crate::api::{batches, evals, webhooks};

/// Runs every part until all have ended.
pub(super) async fn run(state: ApiState, inside: Inside) {
    tokio::join!(
        webhooks::run(state.clone()),
        responses::background::run(state.clone(), inside.clone()),
        batches::run(state.clone(), inside.clone()),
        evals::runner::run(state, inside)
    );
}
