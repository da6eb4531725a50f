//! Single values of bodies, read as clients write them: `5.0` for a whole number, and an empty text for none. Used in
//! `serde(deserialize_with = …)`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Unexpected, Visitor};

/// Smallest size of a float that may have lost its last digits.
const INEXACT: f64 = 9_007_199_254_740_992.0;

/// A type of number in a body.
pub(crate) trait Number: Sized {
    /// What a client may send.
    const RANGE: &'static str;

    /// Returns the number, or `None` if it is out of range.
    fn from_whole(number: i64) -> Option<Self>;

    /// Returns a number that is not whole, or `None` if the type has none.
    fn from_fraction(_: f64) -> Option<Self> {
        None
    }
}

macro_rules! whole_numbers {
    ($($type:ty: $range:literal),*) => {$(
        impl Number for $type {
            const RANGE: &'static str = $range;

            fn from_whole(number: i64) -> Option<Self> {
                Self::try_from(number).ok()
            }
        }
    )*};
}

whole_numbers! {
    u32: "a whole number of at least 0",
    usize: "a whole number of at least 0"
}

impl Number for i64 {
    const RANGE: &'static str = "a whole number";

    fn from_whole(number: i64) -> Option<Self> {
        Some(number)
    }
}

impl Number for f64 {
    const RANGE: &'static str = "a number";

    fn from_whole(number: i64) -> Option<Self> {
        Some(number as Self)
    }

    fn from_fraction(number: f64) -> Option<Self> {
        Some(number)
    }
}

/// Returns a float as the whole number that it stands for; `None` if it stands for no other number of an `i64`.
pub(crate) fn as_whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < INEXACT).then_some(number as i64)
}

/// Reads a number; whole ones may be written with a point.
pub(crate) fn number<'de, D: Deserializer<'de>, T: Number>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(NumberVisitor(PhantomData))
}

/// Reads a number or null, as [`number`] does. The field needs `serde(default)`.
pub(crate) fn optional<'de, D: Deserializer<'de>, T: Number>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.map(|Lenient(number)| number))
}

/// Reads a list of numbers, as [`number`] does.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Number>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Vec::deserialize(deserializer)?.into_iter().map(|Lenient(number)| number).collect())
}

/// Reads a list of numbers or null. The field needs `serde(default)`.
pub(crate) fn optional_list<'de, D: Deserializer<'de>, T: Number>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    let numbers: Option<Vec<Lenient<T>>> = Option::deserialize(deserializer)?;
    Ok(numbers.map(|numbers| numbers.into_iter().map(|Lenient(number)| number).collect()))
}

/// Reads a text or null; an empty text is none. The field needs `serde(default)`.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|text: &String| !text.is_empty()))
}

/// Reads an object or null: serde alone would take an array for the fields in their order, and an empty one for none of
/// them. The field needs `serde(default)`.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.map(|Object(value)| value))
}

/// An object, and no array.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}

/// A number that [`number`] reads.
struct Lenient<T>(T);

impl<'de, T: Number> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number(deserializer).map(Self)
    }
}

struct NumberVisitor<T>(PhantomData<T>);

impl<T: Number> Visitor<'_> for NumberVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(T::RANGE)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        match T::from_whole(number) {
            Some(value) => Ok(value),
            None if number > 0 => Err(E::invalid_value(Unexpected::Signed(number), &"a smaller whole number")),
            None => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            // Only a float has a place for it.
            Err(_) => T::from_fraction(number as f64)
                .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &"a smaller whole number")),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        match as_whole(number) {
            Some(whole) => self.visit_i64(whole),
            None => T::from_fraction(number).ok_or_else(|| E::invalid_type(Unexpected::Float(number), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Wanted {
        #[serde(default, deserialize_with = "optional")]
        count: Option<usize>,
        #[serde(default, deserialize_with = "optional")]
        offset: Option<i64>,
        #[serde(default, deserialize_with = "optional")]
        rate: Option<f64>,
        #[serde(default, deserialize_with = "optional_list")]
        ids: Option<Vec<u32>>,
        #[serde(default, deserialize_with = "text")]
        name: Option<String>,
        #[serde(default, deserialize_with = "object")]
        inner: Option<Inner>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        word: Option<String>,
    }

    #[test]
    fn an_object_is_no_array() {
        assert!(wanted(r#"{"inner":null}"#).expect("nothing").inner.is_none());
        let inner = |json: &str| wanted(json).expect("an object").inner.expect("an object").word;
        assert_eq!((inner(r#"{"inner":{}}"#), inner(r#"{"inner":{"word":"x"}}"#)), (None, Some("x".into())));
        for json in [r#"{"inner":[]}"#, r#"{"inner":["x"]}"#, r#"{"inner":7}"#] {
            assert!(wanted(json).expect_err("a fault").contains("expected an object"), "{json}");
        }
        assert!(wanted(r#"{"inner":{"other":1}}"#).expect_err("a fault").contains("unknown field"));
    }

    fn wanted(json: &str) -> Result<Wanted, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_number_may_have_a_point() {
        let read = wanted(r#"{"count":5.0,"offset":-3.0,"rate":2,"ids":[1,2.0]}"#).expect("fine");
        assert_eq!((read.count, read.offset, read.rate, read.ids), (Some(5), Some(-3), Some(2.0), Some(vec![1, 2])));
        assert_eq!(wanted(r#"{"rate":1.5}"#).expect("fine").rate, Some(1.5));
        let none = wanted(r#"{"count":null,"ids":null,"name":""}"#).expect("nothing");
        assert!(none.count.is_none() && none.offset.is_none() && none.ids.is_none() && none.name.is_none());
        assert_eq!(wanted(r#"{"name":"x"}"#).expect("fine").name.as_deref(), Some("x"));
    }

    #[test]
    fn any_other_number_is_refused_with_what_may_be_sent() {
        for (json, message) in [
            (r#"{"count":-1}"#, "integer `-1`, expected a whole number of at least 0"),
            (r#"{"count":5.5}"#, "floating point `5.5`, expected a whole number of at least 0"),
            (r#"{"count":18446744073709551615}"#, "expected a smaller whole number"),
            (r#"{"ids":[4294967296]}"#, "expected a smaller whole number"),
            (r#"{"offset":1e300}"#, "expected a whole number"),
            (r#"{"count":"5"}"#, "string \"5\", expected a whole number of at least 0"),
        ] {
            let told = wanted(json).expect_err("a fault");
            assert!(told.contains(message), "{json}: {told}");
        }
    }
}
