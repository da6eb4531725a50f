//! What HTTP is to every resource; knows no other room. [`extract`] reads JSON bodies and paths, [`query`] queries,
//! [`values`] single values as clients write them; [`faults`] words what is wrong with them. [`upload`] spools the file
//! of a form to disk; [`form`] reads the form's parts, at the [`pace`] that a client must keep, and [`disposition`] the
//! names in them. [`error`] is the failure of a request, with the one table from the errors of each layer to status and
//! error object. [`list`] pages lists, [`sse`] streams events. [`transport`] puts request ids, the log, metrics and
//! CORS around all routes, [`lingering`] sees to bodies that no handler read, [`write_progress`] and [`unread`] to
//! answers that no client reads. [`serving`] accepts connections and serves them, [`connections`] bounds their number,
//! [`accepting`] tells when none can be accepted. [`headers`] names the headers that several rooms know, [`docs`]
//! serves the `OpenAPI` document.
//!
//! A [`share`] is what a request may use of the [`memory`] of requests and of the threads for slow work, for which
//! organisations take [`turns`]; [`parsed_size`] tells what a body will take.
//!
//! Handlers of every room call it; [`router`](super::router) calls [`transport`] and [`docs`], `app` calls [`serving`].

mod accepting;
pub(super) mod connections;
mod disposition;
pub(super) mod docs;
pub(super) mod error;
pub(super) mod extract;
pub(crate) mod faults;
pub(super) mod form;
pub(super) mod headers;
pub(crate) mod holding_body;
mod lingering;
pub(super) mod list;
mod memory;
pub(super) mod pace;
pub(super) mod parsed_size;
pub(super) mod query;
pub(super) mod serving;
pub(super) mod share;
pub(super) mod sse;
pub(super) mod transport;
pub(super) mod turns;
pub(super) mod unread;
pub(super) mod upload;
pub(super) mod values;
pub(super) mod write_progress;
