//! The query of a request, read as clients write it: booleans in any usual spelling, and an empty value as no value.

use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;
use serde::de::value::{Error, MapDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use crate::api::http::error::{Problem, Result};
use crate::api::http::faults::fault;
use crate::api::http::values::as_whole;

/// The query. A fault names its parameter.
#[derive(Debug)]
pub(crate) struct Query<T>(pub T);

/// The query's names and values in their order, as they were sent.
#[derive(Debug)]
pub(crate) struct QueryPairs(pub Vec<(String, String)>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        read(pairs(&parts.uri)?).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for QueryPairs {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        pairs(&parts.uri).map(Self)
    }
}

fn pairs(uri: &Uri) -> Result<Vec<(String, String)>> {
    let pairs = axum::extract::Query::try_from_uri(uri);
    let unreadable = |_| Problem::bad_request("The query of the request is not of the form name=value&name=value.");
    Ok(pairs.map_err(unreadable)?.0)
}

fn read<T: DeserializeOwned>(pairs: Vec<(String, String)>) -> Result<T> {
    // A client that has nothing to say may send the name alone.
    let given = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    let entries = MapDeserializer::<_, Error>::new(given.map(|(name, value)| (name, Value(value))));
    serde_path_to_error::deserialize(entries).map_err(|error| {
        let path = error.path().to_string();
        fault(&path, &error.into_inner().to_string())
    })
}

/// A value of the query.
struct Value(String);

impl Value {
    fn number<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Error> {
        let text = self.0.trim();
        if let Ok(number) = text.parse::<i64>() {
            return visitor.visit_i64(number);
        }
        let number: f64 = text.parse().map_err(|_| Error::invalid_type(Unexpected::Str(text), &visitor))?;
        match as_whole(number) {
            Some(number) => visitor.visit_i64(number),
            None => visitor.visit_f64(number),
        }
    }
}

impl IntoDeserializer<'_> for Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.number(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Value {
    type Error = Error;

    numbers! { deserialize_i32 deserialize_i64 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    /// Reads a boolean in the spellings that clients have: Python's `requests` writes `True`, others `1`.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => visitor.visit_bool(true),
            "false" | "0" | "no" | "off" => visitor.visit_bool(false),
            _ => Err(Error::invalid_type(Unexpected::Str(&self.0), &visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    forward_to_deserialize_any! {
        i8 i16 u8 u16 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    struct Wanted {
        stream: Option<bool>,
        limit: Option<i64>,
        after: Option<String>,
        order: Option<Order>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Order {
        Asc,
        Desc,
    }

    fn wanted(query: &str) -> Result<Wanted> {
        read(pairs(&format!("/x?{query}").parse().expect("a path"))?)
    }

    #[test]
    fn booleans_are_read_in_every_usual_spelling() {
        for (text, expected) in [
            ("true", Some(true)),
            ("True", Some(true)),
            ("TRUE", Some(true)),
            ("1", Some(true)),
            ("false", Some(false)),
            ("False", Some(false)),
            ("0", Some(false)),
            ("", None),
        ] {
            assert_eq!(wanted(&format!("stream={text}")).expect("a boolean").stream, expected, "{text}");
        }
        assert_eq!(wanted("stream").expect("a name alone").stream, None);
        let error = wanted("stream=maybe").expect_err("no boolean").error;
        assert_eq!(error.message, "Invalid type for 'stream': expected true or false, got \"maybe\".");
    }

    #[test]
    fn an_empty_value_is_as_if_absent() {
        let empty = wanted("stream=&limit=&after=&order=&unknown=&limit=").expect("nothing is asked for");
        assert_eq!(empty, Wanted::default());
    }

    #[test]
    fn a_fault_names_its_parameter_in_plain_words() {
        let full = wanted("limit=5.0&after=a%20b&order=desc&unknown=x").expect("fine");
        assert_eq!((full.limit, full.after.as_deref(), full.order), (Some(5), Some("a b"), Some(Order::Desc)));
        for (query, param, message) in [
            ("limit=many", "limit", "Invalid type for 'limit': expected a whole number, got \"many\"."),
            ("limit=1.5", "limit", "Invalid type for 'limit': expected a whole number, got 1.5."),
            ("order=up", "order", "Invalid 'order': expected 'asc' or 'desc', got 'up'."),
            ("limit=1&limit=2", "limit", "'limit' is given more than once: send it once."),
        ] {
            let error = wanted(query).expect_err("a fault").error;
            assert_eq!((error.param.as_deref(), error.message.as_str()), (Some(param), message));
        }
        assert_eq!(wanted("order=asc").expect("fine").order, Some(Order::Asc));
    }
}
