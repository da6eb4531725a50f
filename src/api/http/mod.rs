//! What HTTP is to every resource; knows no other room. [`extract`] reads JSON bodies and paths, [`query`] queries,
//! [`values`] single values as clients write them; [`faults`] words what is wrong with them. [`upload`] spools the file
//! of a form to disk, [`disposition`] reads the names in it. [`error`] is the failure of a request, with the one table
//! from the errors of each layer to status and error object. [`list`] pages lists, [`sse`] streams events.
//! [`transport`] puts request ids, the log, metrics and CORS around all routes, [`lingering`] sees to bodies that no
//! handler read, [`headers`] names the headers that several rooms know, [`docs`] serves the `OpenAPI` document.
//!
//! A [`share`] is what a request may use of the [`memory`] of requests and of the threads for slow work, for which
//! organisations take [`turns`]; [`parsed_size`] tells what a body will take.
//!
//! Handlers of every room call it; [`router`](super::router) calls [`transport`] and [`docs`].

mod disposition;
pub(super) mod docs;
pub(super) mod error;
pub(super) mod extract;
pub(crate) mod faults;
pub(super) mod headers;
pub(crate) mod holding_body;
mod lingering;
pub(super) mod list;
mod memory;
pub(super) mod parsed_size;
pub(super) mod query;
pub(super) mod share;
pub(super) mod sse;
pub(super) mod transport;
pub(super) mod turns;
pub(super) mod upload;
pub(super) mod values;
