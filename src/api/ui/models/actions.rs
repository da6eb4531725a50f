//! What the owner of a model can do on its page: delete it, let other organisations use it, take that back. All of it
//! through the API's routes.

use axum::Form;
use axum::body::Body;
use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::{HeaderValue, Method};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::one::find;
use super::{SECTION, place};
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::Path;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::security::see;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::in_path;

/// A form of the page.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub(super) enum Action {
    /// Deletes the model.
    Delete {
        /// `yes` if it is meant.
        sure: Option<String>,
    },
    /// Lets another organisation use it.
    Grant {
        /// Its name.
        organization: String,
    },
    /// Takes a permission back.
    Revoke {
        /// Its id.
        permission: String,
    },
}

/// Does what a form asks for.
pub(super) async fn act(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(name): Path<String>,
    form: Result<Form<Action>, FormRejection>,
) -> Result<Response, Fault> {
    let Form(action) = form.map_err(|fault| Problem::bad_request(fault.body_text()))?;
    if matches!(&action, Action::Delete { sure } if sure.as_deref() != Some("yes")) {
        return Err(
            Problem::bad_request("Nothing was deleted: the box that says that it is meant was not marked.").into()
        );
    }
    // Found first: only names of models become part of a path. A base model goes on, for the API to refuse.
    let is_base = pages.api.catalog.get(&name).is_ok() || pages.api.catalog.is_alias(&name);
    let name = if is_base { name } else { find(&pages, &visitor, &name).await?.name };
    let model = in_path(&name);
    let permissions = format!("/v1/fine_tuning/checkpoints/{model}/permissions");
    let json = HeaderValue::from_static("application/json");
    let (method, path, kind, body) = match &action {
        Action::Delete { .. } => (Method::DELETE, format!("/v1/models/{model}"), None, Body::empty()),
        Action::Grant { organization } => {
            let body = json!({"project_ids": [organization.trim()]}).to_string();
            (Method::POST, permissions, Some(&json), body.into())
        }
        Action::Revoke { permission } => {
            (Method::DELETE, format!("{permissions}/{}", in_path(permission)), None, Body::empty())
        }
    };
    pages.ask(&visitor.caller, method, &path, kind, body).await?;
    let is_gone = matches!(action, Action::Delete { .. });
    Ok(see(&if is_gone { SECTION.path.to_owned() } else { place(&name) }))
}
