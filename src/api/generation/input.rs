//! The texts of completions, embeddings and ranking, most of them as text or as token ids. Used by all of these, by
//! `target`, which turns them into tokens, and by `foreign_tokens`.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::http::error::{Problem, Result};
use crate::api::http::values::as_whole;

/// What a client may send.
const FORMS: &str = "expected a string, an array of strings, an array of token ids, or an array of arrays of token ids";

/// One or many texts, as text or as token ids.
// Read by hand: serde would keep every value of an untagged form in a form of its own first, which takes many times the
// memory of the ids. `Serialize` names the form for the document.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Input {
    /// One text.
    Text(String),
    /// Many texts.
    Texts(Vec<String>),
    /// One text as token ids.
    Tokens(Vec<u32>),
    /// Many texts as token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// One text, or many.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(crate) enum Texts {
    /// One text.
    One(String),
    /// Many texts.
    Many(Vec<String>),
}

/// One text of an [`Input`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    /// As text.
    Text(String),
    /// As token ids.
    Tokens(Vec<u32>),
}

/// Where a text stands in a request, as errors about it say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The field.
    pub param: &'static str,
    /// Its place in the field's list, from 0; `None` if it is the only one.
    pub index: Option<usize>,
}

impl Place {
    /// Returns the place of the text number `index` of `count` in the field `param`.
    pub(crate) fn of(param: &'static str, index: usize, count: usize) -> Self {
        Self { param, index: (count > 1).then_some(index) }
    }

    /// Returns the same failure; one of what the client sent names this place.
    pub(crate) fn blame(self, mut problem: Problem) -> Problem {
        if problem.is_bad_request() {
            problem.error.message = format!("'{self}': {}", problem.error.message);
        }
        problem.blamed_on(self.param)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(formatter, "{}[{index}]", self.param),
            None => formatter.write_str(self.param),
        }
    }
}

impl Texts {
    /// Returns the single texts, in order. If there are none or more than `limit`, the error names the field `param`.
    pub(crate) fn into_texts(self, param: &str, limit: usize) -> Result<Vec<String>> {
        let texts = match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        };
        check_count(param, texts.len(), limit)?;
        Ok(texts)
    }
}

/// Refuses a list of `count` items in the field `param` if it is empty or has more than `limit`.
pub(crate) fn check_count(param: &str, count: usize, limit: usize) -> Result<()> {
    if count == 0 {
        return Err(Problem::invalid(param, format!("'{param}' must not be an empty array.")));
    }
    if count > limit {
        let message = format!("'{param}' has {count} items; at most {limit} fit into one request.");
        return Err(Problem::invalid_code(param, "array_above_max_length", message));
    }
    Ok(())
}

impl Input {
    /// Returns the single texts, in order. If there are none or more than `limit`, the error names the field `param`.
    pub(crate) fn into_items(self, param: &str, limit: usize) -> Result<Vec<Item>> {
        let count = match &self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        };
        check_count(param, count, limit)?;
        Ok(match self {
            Self::Text(text) => vec![Item::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Item::Text).collect(),
            Self::Tokens(tokens) => vec![Item::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(Item::Tokens).collect(),
        })
    }
}

impl Item {
    /// Returns the bytes of a text that is to be tokenized; none if it is given as token ids.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        }
    }
}

/// A value in the place of an [`Input`] or inside it.
enum Part {
    Text(String),
    Token(u32),
    /// A list.
    Input(Input),
    /// Nothing that an input has.
    Other,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Part::deserialize(deserializer)? {
            Part::Text(text) => Ok(Self::Text(text)),
            Part::Input(input) => Ok(input),
            Part::Token(_) | Part::Other => Err(D::Error::custom(FORMS)),
        }
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartVisitor)
    }
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = Part;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(FORMS.trim_start_matches("expected "))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Part, E> {
        Ok(Part::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Part, E> {
        Ok(Part::Text(text))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Part, E> {
        Ok(u32::try_from(number).map_or(Part::Other, Part::Token))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Part, E> {
        Ok(u32::try_from(number).map_or(Part::Other, Part::Token))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Part, E> {
        let whole = as_whole(number).and_then(|whole| u32::try_from(whole).ok());
        Ok(whole.map_or(Part::Other, Part::Token))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Part, E> {
        Ok(Part::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Part, E> {
        Ok(Part::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Part, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Part::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Part, A::Error> {
        // An empty list is one of texts; whoever reads it refuses it.
        let mut input = match parts.next_element()? {
            None => return Ok(Part::Input(Input::Texts(Vec::new()))),
            Some(Part::Text(text)) => Input::Texts(vec![text]),
            Some(Part::Token(token)) => Input::Tokens(vec![token]),
            Some(Part::Input(list)) => match token_list(list) {
                Some(list) => Input::TokenLists(vec![list]),
                None => return rest(parts),
            },
            Some(Part::Other) => return rest(parts),
        };
        while let Some(part) = parts.next_element()? {
            match (&mut input, part) {
                (Input::Texts(texts), Part::Text(text)) => texts.push(text),
                (Input::Tokens(tokens), Part::Token(token)) => tokens.push(token),
                (Input::TokenLists(lists), Part::Input(list)) => match token_list(list) {
                    Some(list) => lists.push(list),
                    None => return rest(parts),
                },
                _ => return rest(parts),
            }
        }
        Ok(Part::Input(input))
    }
}

/// Returns a list inside of a list, if it is one of token ids.
fn token_list(list: Input) -> Option<Vec<u32>> {
    match list {
        Input::Tokens(tokens) => Some(tokens),
        Input::Texts(texts) if texts.is_empty() => Some(Vec::new()),
        _ => None,
    }
}

/// Reads the rest of a list that is no input: the error is one of the whole field.
fn rest<'de, A: SeqAccess<'de>>(mut parts: A) -> Result<Part, A::Error> {
    while parts.next_element::<IgnoredAny>()?.is_some() {}
    Ok(Part::Other)
}

/// Refuses ids outside the vocabulary by the field's name and before anything is charged; the engine refuses them
/// again, for its own sake.
pub(crate) fn check_ids(param: &str, tokens: &[u32], vocabulary: usize) -> Result<()> {
    if tokens.is_empty() {
        return Err(Problem::invalid(param, format!("'{param}' must not hold an empty array of token ids.")));
    }
    match tokens.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => {
            let message = format!(
                "'{param}' holds the token id {id}; this model has the ids 0 to {}.",
                vocabulary.saturating_sub(1)
            );
            Err(Problem::invalid(param, message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(json: &str) -> Result<Vec<Item>> {
        let input: Input = serde_json::from_str(json).map_err(|error| Problem::invalid("input", error.to_string()))?;
        input.into_items("input", 3)
    }

    #[test]
    fn all_four_forms_are_read() {
        assert_eq!(items(r#""a""#).expect("a text"), [Item::Text("a".into())]);
        assert_eq!(items(r#"["a","b"]"#).expect("texts"), [Item::Text("a".into()), Item::Text("b".into())]);
        assert_eq!(items("[1,2.0]").expect("one text as ids"), [Item::Tokens(vec![1, 2])]);
        assert_eq!(items("[[1],[]]").expect("lists"), [Item::Tokens(vec![1]), Item::Tokens(Vec::new())]);
        assert_eq!(items("[[1],[2]]").expect("texts as ids"), [Item::Tokens(vec![1]), Item::Tokens(vec![2])]);
    }

    #[test]
    fn anything_else_is_refused_with_what_to_send() {
        for json in [
            r#"["a",1]"#,
            "[-1]",
            "[1.5]",
            "3",
            "{}",
            "[[1],\"a\"]",
            "[[\"a\"]]",
            "[[[1]]]",
            "[4294967296]",
            "[1,null]",
            r#"[{"a":[1]},2]"#,
            "true",
        ] {
            let message = items(json).expect_err("not an input").to_string();
            assert!(message.contains("array of token ids"), "{json}: {message}");
        }
        assert!(items("[]").is_err(), "an empty array");
        assert!(items(r#"["a","b","c","d"]"#).is_err(), "too many");
    }

    #[test]
    fn token_ids_beyond_the_vocabulary_are_refused() {
        assert!(check_ids("prompt", &[0, 9], 10).is_ok());
        assert!(check_ids("prompt", &[10], 10).is_err());
        assert!(check_ids("prompt", &[], 10).is_err());
    }
}
