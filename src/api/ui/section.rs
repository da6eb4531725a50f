//! An entry of the navigation with the routes below it. Each page declares its own; `ui::SECTIONS` lists them.

use axum::Router;
use axum::middleware::from_fn;

use crate::api::ui::{Pages, visitor};

/// An entry of the navigation.
pub(crate) struct Section {
    /// The path of its first page, such as `/ui/fine-tunes`.
    pub path: &'static str,
    /// Its word in the navigation.
    pub label: &'static str,
    /// True if only an admin key may see it.
    pub admin: bool,
    /// Returns its routes, with full paths.
    pub routes: fn() -> Router<Pages>,
}

impl Section {
    /// Returns the routes, refused to those who may not see the section.
    pub(crate) fn guarded(&self) -> Router<Pages> {
        let routes = (self.routes)();
        if self.admin { routes.layer(from_fn(visitor::admins_only)) } else { routes }
    }
}
