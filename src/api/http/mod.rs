//! What HTTP is to every resource: bodies in, errors and lists out, event streams, uploads, and the page that shows the API.

pub(super) mod docs;
pub(super) mod error;
pub(super) mod extract;
pub(super) mod headers;
pub(super) mod list;
pub(super) mod sse;
pub(super) mod transport;
pub(super) mod upload;
