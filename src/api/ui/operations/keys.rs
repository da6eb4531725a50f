//! API keys for admins: a list, a form that makes one, and what can be done with each. The store does what `attune
//! keys` does, since no route of the API manages keys. A key's text is shown once, in the answer to the form.

use axum::Form;
use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::response::Response;
use jiff::Timestamp;
use maud::{Markup, html};
use serde::Deserialize;

use super::SECTION;
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::list::Cursor;
use crate::api::http::query::Query;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::page;
use crate::api::ui::security::see;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::{in_path, moment};
use crate::config::Limits;
use crate::store::keys::{ApiKey, NewKey, expiry};

const PATH: &str = "/ui/operations/keys";
/// Keys of a page, at first and at the most.
const DEFAULT_PAGE: i64 = 50;
const MAX_PAGE: i64 = 500;

/// The form that makes a key. An empty field is as if absent.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct NewKeyForm {
    organization: String,
    #[serde(default)]
    name: String,
    admin: Option<String>,
    #[serde(default)]
    requests_per_minute: String,
    #[serde(default)]
    tokens_per_minute: String,
    #[serde(default)]
    expires: String,
}

/// The forms of a key.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub(crate) enum Change {
    /// Sets its limits; an empty one takes the configuration's.
    Limit {
        #[serde(default)]
        requests_per_minute: String,
        #[serde(default)]
        tokens_per_minute: String,
    },
    /// Ends it for good.
    Revoke {
        /// `yes` if it is meant.
        sure: Option<String>,
    },
}

/// Shows a page of the keys, oldest first.
pub(super) async fn list(
    State(pages): State<Pages>,
    visitor: Visitor,
    Query(cursor): Query<Cursor>,
) -> Result<Markup, Fault> {
    let asked = cursor.page(DEFAULT_PAGE, MAX_PAGE);
    let (keys, more) = pages.api.store.some_keys(None, asked.after.as_deref(), asked.limit).await?;
    let is_first = asked.after.is_none();
    let limits = &pages.api.config.limits;
    let body = html! {
        p.hint { a href=(SECTION.path) { "Operations" } }
        h1 { "API keys" }
        (new_key(&pages, visitor.token.is_none()))
        @if keys.is_empty() { p { "No key in the database" @if !is_first { " after this one" } "." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Keys" {
                table.stack {
                    caption.hidden { "Keys, oldest first" }
                    thead {
                        tr {
                            th scope="col" { "Key" } th scope="col" { "Organisation" } th scope="col" { "State" }
                            th scope="col" { "A minute" } th scope="col" { "Created" } th scope="col" { "Last used" }
                            th scope="col" { span.hidden { "Change" } }
                        }
                    }
                    tbody { @for key in &keys { (row(key, limits, &visitor.caller.key)) } }
                }
            }
        }
        div.row {
            @if !is_first { a href=(PATH) { "First keys" } }
            @if more {
                @if let Some(last) = keys.last() {
                    a href={ (PATH) "?limit=" (asked.limit) "&after=" (last.id) } { "Newer keys" }
                }
            }
        }
        p.hint { "Keys of the configuration stand there alone, and are not listed here." }
    };
    Ok(page(&visitor.frame("API keys", SECTION.path), body))
}

fn new_key(pages: &Pages, is_open: bool) -> Markup {
    let limits = &pages.api.config.limits;
    html! {
        section.card aria-labelledby="new-title" {
            h2 id="new-title" { "A new key" }
            @if is_open {
                p {
                    "This server needs no key now. With the first one it asks everybody for one, this page included: \
                     make it an admin key, and keep it."
                }
            }
            form method="post" action=(PATH) {
                div.grid {
                    div { label for="organization" { "Organisation" }
                        input type="text" id="organization" name="organization" required maxlength="64"
                            autocomplete="off" spellcheck="false" aria-describedby="organization-hint";
                        p.hint id="organization-hint" { "Owns what is made with the key: letters, digits, - and _." } }
                    div { label for="name" { "Name, for people" }
                        input type="text" id="name" name="name" maxlength="200" autocomplete="off"; }
                    div { label for="rpm" { "Requests a minute" }
                        input type="text" id="rpm" name="requests_per_minute" inputmode="numeric" autocomplete="off"
                            placeholder=(limits.requests_per_minute); }
                    div { label for="tpm" { "Tokens a minute" }
                        input type="text" id="tpm" name="tokens_per_minute" inputmode="numeric" autocomplete="off"
                            placeholder=(limits.tokens_per_minute); }
                    div { label for="expires" { "Ends" }
                        input type="text" id="expires" name="expires" autocomplete="off"
                            aria-describedby="expires-hint";
                        p.hint id="expires-hint" { "After 30d, 12h or 45m, or on a day, 2027-01-31; empty: never." } }
                    div {
                        input type="checkbox" id="admin" name="admin" value="yes"; " "
                        label for="admin" { "Admin: may manage the whole server" }
                    }
                }
                p { button type="submit" { "Make the key" } }
            }
        }
    }
}

fn row(key: &ApiKey, limits: &Limits, own: &str) -> Markup {
    let now = Timestamp::now().as_second();
    let path = format!("{PATH}/{}", in_path(&key.id));
    let is_live = key.revoked_at.is_none() && !key.has_expired(now);
    let text = |limit: Option<i64>| limit.map(|limit| limit.to_string()).unwrap_or_default();
    let title = key.name.as_deref().unwrap_or(&key.id);
    html! {
        tr {
            th scope="row" {
                @if let Some(name) = &key.name { bdi { (name) } " " }
                span.mono { (key.masked) }
                div.hint.mono { (key.id) }
            }
            td data-label="Organisation" { bdi { (key.organization) } @if key.admin { " (admin)" } }
            td data-label="State" {
                @if let Some(revoked) = key.revoked_at { "revoked " (moment(revoked)) }
                @else if let Some(end) = key.expires_at { @if is_live { "ends " } @else { "ended " } (moment(end)) }
                @else { "in use" }
                @if *key.id == *own { " (yours)" }
            }
            td data-label="A minute" {
                (limit(key.requests_per_minute, limits.requests_per_minute)) " requests, "
                (limit(key.tokens_per_minute, limits.tokens_per_minute)) " tokens"
            }
            td data-label="Created" { (moment(key.created_at)) }
            td data-label="Last used" { (key.last_used_on.as_deref().unwrap_or("never")) }
            td {
                @if is_live {
                    details {
                        summary aria-label={ "Change " (title) } { "Change" }
                        form method="post" action=(path) {
                            input type="hidden" name="action" value="limit";
                            input name="requests_per_minute" value=(text(key.requests_per_minute)) inputmode="numeric"
                                size="10" autocomplete="off" aria-label="Requests a minute"
                                placeholder=(limits.requests_per_minute);
                            " "
                            input name="tokens_per_minute" value=(text(key.tokens_per_minute)) inputmode="numeric"
                                size="10" autocomplete="off" aria-label="Tokens a minute"
                                placeholder=(limits.tokens_per_minute);
                            " "
                            button.quiet type="submit" { "Limit" }
                        }
                        form method="post" action=(path) {
                            input type="hidden" name="action" value="revoke";
                            label { input type="checkbox" name="sure" value="yes" required; " for good" } " "
                            button.danger type="submit" { "Revoke" }
                        }
                    }
                }
            }
        }
    }
}

fn limit(own: Option<i64>, default: u64) -> String {
    let number = |limit: f64| crate::format::count(limit);
    own.map_or_else(|| format!("{} (default)", number(default as f64)), |own| number(own as f64))
}

/// Makes a key and shows its text.
pub(super) async fn create(
    State(pages): State<Pages>,
    visitor: Visitor,
    form: Result<Form<NewKeyForm>, FormRejection>,
) -> Result<Markup, Fault> {
    let Form(form) = form.map_err(|fault| Problem::bad_request(fault.body_text()))?;
    let (key, text) = pages.api.store.create_key(form.read(Timestamp::now())?).await?;
    tracing::info!(
        key = key.id,
        organization = key.organization,
        by = &*visitor.caller.key,
        "API key made on the page"
    );
    let body = html! {
        p.hint { a href=(PATH) { "All keys" } }
        h1 { "A new key" }
        section.card aria-label="The key" {
            p { label for="text" { "Keep it now: it is not shown again." } }
            input.mono type="text" id="text" value=(text) readonly autocomplete="off" spellcheck="false";
            p.hint {
                @if let Some(name) = &key.name { bdi { (name) } ", " }
                span.mono { (key.id) } ", of " bdi { (key.organization) } @if key.admin { ", admin" }
                @if let Some(end) = key.expires_at { ", ends " (moment(end)) }
            }
        }
    };
    Ok(page(&visitor.frame("A new key", SECTION.path), body))
}

/// Limits or revokes a key.
pub(super) async fn change(
    State(pages): State<Pages>,
    visitor: Visitor,
    Path(id): Path<String>,
    form: Result<Form<Change>, FormRejection>,
) -> Result<Response, Fault> {
    let Form(change) = form.map_err(|fault| Problem::bad_request(fault.body_text()))?;
    let store = &pages.api.store;
    let by = &*visitor.caller.key;
    match change {
        Change::Limit { requests_per_minute, tokens_per_minute } => {
            let requests = whole("requests_per_minute", &requests_per_minute)?;
            let tokens = whole("tokens_per_minute", &tokens_per_minute)?;
            let key = store.limit_key(&id, requests, tokens).await?;
            tracing::info!(key = key.id, by, "API key limited on the page");
        }
        Change::Revoke { sure } if sure.as_deref() == Some("yes") => {
            let key = store.revoke_key(&id).await?;
            tracing::info!(key = key.id, by, "API key revoked on the page");
        }
        Change::Revoke { .. } => {
            let message = "Nothing was revoked: the box that says that it is meant was not marked.";
            return Err(Problem::bad_request(message).into());
        }
    }
    Ok(see(PATH))
}

impl NewKeyForm {
    fn read(self, now: Timestamp) -> Result<NewKey> {
        let given = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        Ok(NewKey {
            organization: self.organization,
            name: given(self.name),
            admin: self.admin.as_deref() == Some("yes"),
            requests_per_minute: whole("requests_per_minute", &self.requests_per_minute)?,
            tokens_per_minute: whole("tokens_per_minute", &self.tokens_per_minute)?,
            expires_at: given(self.expires).map(|text| expiry(&text, now)).transpose()?,
        })
    }
}

/// Reads a limit; an empty one is none.
fn whole(param: &'static str, text: &str) -> Result<Option<u64>> {
    let text = text.trim().replace(',', "");
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().ok().filter(|number| *number > 0).map(Some);
    number.ok_or_else(|| Problem::invalid(param, format!("'{param}' must be a whole number of at least 1, or empty.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_fields_are_absent_and_wrong_ones_are_named() {
        let form = |rpm: &str, expires: &str| NewKeyForm {
            organization: "acme".into(),
            name: " ".into(),
            requests_per_minute: rpm.into(),
            expires: expires.into(),
            ..NewKeyForm::default()
        };
        let now = "2026-11-23T12:00:00Z".parse().expect("a time");
        let key = form("1,200", "1d").read(now).expect("fine");
        assert_eq!(
            (key.name, key.admin, key.requests_per_minute, key.tokens_per_minute),
            (None, false, Some(1200), None)
        );
        assert_eq!(key.expires_at, Some(Timestamp::as_second(now) + 86_400));
        assert_eq!(form("", "").read(now).expect("fine").expires_at, None);
        for (rpm, expires) in [("0", ""), ("-1", ""), ("x", ""), ("", "soon"), ("", "2020-01-01")] {
            assert!(form(rpm, expires).read(now).is_err(), "{rpm} {expires}");
        }
    }

    #[test]
    fn names_of_keys_stay_texts() {
        let key = ApiKey {
            id: "key_1".into(),
            organization: "acme".into(),
            name: Some("<script>alert(1)</script>\"".into()),
            masked: "sk-attune-…abcd".into(),
            admin: false,
            requests_per_minute: None,
            tokens_per_minute: Some(7),
            created_at: 0,
            expires_at: None,
            revoked_at: None,
            last_used_on: None,
        };
        let text = row(&key, &Limits::default(), "key_2").into_string();
        assert!(!text.contains("<script>") && text.contains("&lt;script&gt;"), "{text}");
        let revoked = ApiKey { revoked_at: Some(1), ..key };
        assert!(!row(&revoked, &Limits::default(), "key_2").into_string().contains("<form"));
    }
}
