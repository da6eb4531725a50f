//! Lists: the envelope, and the cursor and limit of a query.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::store::files::Page;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PageOf<T> {
    /// Always `list`.
    pub object: &'static str,
    /// The items.
    pub data: Vec<T>,
    /// True where there are more: ask again with `after` set to the last id.
    pub has_more: bool,
}

/// A page of a list that names its ends.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BoundedPageOf<T> {
    /// Always `list`.
    pub object: &'static str,
    /// The items.
    pub data: Vec<T>,
    /// Id of the first item.
    pub first_id: Option<String>,
    /// Id of the last item.
    pub last_id: Option<String>,
    /// True where there are more: ask again with `after` set to the last id.
    pub has_more: bool,
}

impl<T> PageOf<T> {
    /// Wraps one page.
    pub(crate) fn new(data: Vec<T>, has_more: bool) -> Self {
        Self { object: "list", data, has_more }
    }
}

impl<T> BoundedPageOf<T> {
    /// Wraps one page; `id` returns the id of an item.
    pub(crate) fn new(data: Vec<T>, has_more: bool, id: impl Fn(&T) -> String) -> Self {
        let (first_id, last_id) = (data.first().map(&id), data.last().map(&id));
        Self { object: "list", data, first_id, last_id, has_more }
    }

    /// Turns each item into another one with the same id.
    pub(crate) fn map<U>(self, turn: impl Fn(T) -> U) -> BoundedPageOf<U> {
        let Self { object, data, first_id, last_id, has_more } = self;
        BoundedPageOf { object, data: data.into_iter().map(turn).collect(), first_id, last_id, has_more }
    }
}

/// Which page of a list to send, newest first.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Cursor {
    /// Id of the last item of the page before.
    #[serde(alias = "starting_after")]
    pub after: Option<String>,
    /// Items at the most; a number out of range is moved into it, and `has_more` says that there are more.
    pub limit: Option<i64>,
}

impl Cursor {
    /// Returns the page to ask the store for, with `default` items if the query has no limit, and at most `max`.
    pub(crate) fn page(self, default: i64, max: i64) -> Page {
        // Clients that have no cursor may send an empty one.
        let after = self.after.filter(|after| !after.is_empty());
        Page { after, limit: self.limit.unwrap_or(default).clamp(1, max), ascending: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_moved_into_its_range() {
        for (limit, expected) in [(None, 20), (Some(0), 1), (Some(7), 7), (Some(1_000_000), 100)] {
            assert_eq!(Cursor { after: None, limit }.page(20, 100).limit, expected);
        }
    }

    #[test]
    fn a_cursor_has_two_names_and_may_be_empty() {
        let after = |json: &str| serde_json::from_str::<Cursor>(json).expect("a cursor").page(20, 100).after;
        assert_eq!(after(r#"{"after":"a"}"#).as_deref(), Some("a"));
        assert_eq!(after(r#"{"starting_after":"a"}"#).as_deref(), Some("a"));
        assert_eq!(after(r#"{"after":""}"#), None);
    }
}
