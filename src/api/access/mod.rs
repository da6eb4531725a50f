//! Who calls, what the caller may use, and what is used. [`auth`] finds the key of a request and hands its `Caller` to
//! the handler. [`limits`] holds a key to its requests and tokens per minute. [`meter`] takes the tokens of a prompt
//! from that limit and records the usage when the answer ends. [`shares`] gives the request its share of memory and
//! threads. [`sessions`] stand for keys in browsers that signed in to the page.
//! [`inside`] calls the API's own routes for a caller who is known already.
//!
//! [`router`](super::router) puts [`auth::authenticate`] and [`shares::share_out`] before every route that needs a key;
//! `generation` charges a [`meter::Account`] for each request.

pub(super) mod auth;
pub(super) mod inside;
pub(super) mod limits;
pub(super) mod meter;
pub(super) mod sessions;
pub(super) mod shares;
