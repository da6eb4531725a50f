//! Keys and values of a GGUF file. Read by the translations to a configuration, a tokenizer and a chat template; made by
//! the reader and by whoever writes a file.

use std::collections::BTreeMap;

use bytes::Bytes;

pub use super::types::Number;
use super::types::NumberType;
use crate::{Error, Result};

/// The keys of a file with their values.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    /// The file, for messages.
    origin: String,
    values: BTreeMap<String, Value>,
}

/// The value of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number or a flag.
    Number(Number),
    /// A text.
    Text(String),
    /// A list of numbers or flags of one type.
    Numbers(Numbers),
    /// A list of texts.
    Texts(Vec<String>),
}

/// A list of numbers of one type, as the file stores them.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    pub(super) kind: NumberType,
    /// Little-endian, one number after the other; mostly a part of a mapped file.
    pub(super) bytes: Bytes,
}

impl Metadata {
    /// Makes the metadata of `origin`, a file's name for messages, from keys and values.
    pub fn new(origin: impl Into<String>, values: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self { origin: origin.into(), values: values.into_iter().collect() }
    }

    /// Returns the name of the file, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns all keys with their values, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns the value of `key`; `None` if the file has no such key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Returns true if the file has `key`.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Returns a text; `None` if there is no such key.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, "a text", |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    /// Returns a number, whole or not; `None` if there is no such key.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a finite number", |value| value.as_number()?.as_f64().filter(|number| number.is_finite()))
    }

    /// Returns a whole number of at least 0; `None` if there is no such key.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a whole number of at least 0", |value| value.as_number()?.as_size())
    }

    /// Returns a whole number of at least 0, which may be a list of equal ones, one for each block; `None` if there is no
    /// such key.
    pub fn size_of_blocks(&self, key: &str) -> Result<Option<usize>> {
        let Some(Value::Numbers(_)) = self.get(key) else { return self.size(key) };
        let sizes = self.sizes(key)?.unwrap_or_default();
        match sizes.as_slice() {
            [] => Ok(None),
            [first, others @ ..] if others.iter().all(|size| size == first) => Ok(Some(*first)),
            _ => Err(self.fault(&format!("the key `{key}` differs between blocks, which is not supported"))),
        }
    }

    /// Returns a size that the blocks with attention share; in a list for all blocks the others have 0. `None` if there is no
    /// such key, or if all are 0.
    pub fn size_of_attention(&self, key: &str) -> Result<Option<usize>> {
        let Some(Value::Numbers(_)) = self.get(key) else { return self.size(key) };
        let mut sizes = self.sizes(key)?.unwrap_or_default().into_iter().filter(|size| *size > 0);
        let Some(first) = sizes.next() else { return Ok(None) };
        if sizes.all(|size| size == first) {
            return Ok(Some(first));
        }
        Err(self.fault(&format!("the key `{key}` differs between blocks with attention, which is not supported")))
    }

    /// Returns the id of a token; `None` if there is no such key.
    pub fn token(&self, key: &str) -> Result<Option<u32>> {
        self.read(key, "a token's id", |value| u32::try_from(value.as_number()?.as_size()?).ok())
    }

    /// Returns a flag; `None` if there is no such key.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", |value| value.as_number()?.as_bool())
    }

    /// Returns a list of texts; `None` if there is no such key.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.read(key, "a list of texts", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            Value::Numbers(none) if none.is_empty() => Some(&[][..]),
            _ => None,
        })
    }

    /// Returns a list of numbers, whole or not; `None` if there is no such key.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.read(key, "a list of numbers", |value| value.as_numbers()?.iter().map(Number::as_f64).collect())
    }

    /// Returns a list of whole numbers of at least 0; `None` if there is no such key.
    pub fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.read(key, "a list of whole numbers", |value| value.as_numbers()?.iter().map(Number::as_size).collect())
    }

    /// Returns a list of flags; `None` if there is no such key.
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.read(key, "a list of flags", |value| value.as_numbers()?.iter().map(Number::as_bool).collect())
    }

    /// Returns `value`, or an error that names the `key` that the file lacks.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.fault(&format!("the key `{key}` is missing")))
    }

    /// Returns an error about the file, which it names.
    pub fn fault(&self, message: &str) -> Error {
        Error::Setup(format!("{}: {message}", self.origin))
    }

    fn read<'a, T>(&'a self, key: &str, kind: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.fault(&format!("the key `{key}` must be {kind}")))
    }
}

impl Value {
    fn as_number(&self) -> Option<Number> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    fn as_numbers(&self) -> Option<&Numbers> {
        if let Self::Numbers(numbers) = self { Some(numbers) } else { None }
    }
}

impl Numbers {
    /// Makes a list of `numbers`, which are all of one type; `None` if they are not, or if there are none.
    pub fn of(numbers: &[Number]) -> Option<Self> {
        let kind = NumberType::of(*numbers.first()?);
        let alike = numbers.iter().all(|number| NumberType::of(*number) == kind);
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.bytes()).collect();
        alike.then(|| Self { kind, bytes: bytes.into() })
    }

    /// Returns the numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Number> {
        self.bytes.chunks_exact(self.kind.size()).map(|bytes| self.kind.read(bytes))
    }

    /// Returns how many numbers there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.size()
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Makes values of the types that writers and tests need.
macro_rules! value_of {
    ($($type:ty => $variant:ident),*) => {
        $(
            impl From<$type> for Value {
                fn from(number: $type) -> Self {
                    Self::Number(Number::$variant(number))
                }
            }

            impl From<Vec<$type>> for Value {
                fn from(numbers: Vec<$type>) -> Self {
                    let numbers: Vec<_> = numbers.into_iter().map(Number::$variant).collect();
                    let none = Numbers { kind: NumberType::$variant, bytes: Bytes::new() };
                    Self::Numbers(Numbers::of(&numbers).unwrap_or(none))
                }
            }
        )*
    };
}

value_of!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool, u64 => U64,
    i64 => I64, f64 => F64);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Self {
        Self::Texts(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_another_type_is_refused_by_name() {
        let values = [("a.size", Value::from(-3_i32)), ("a.text", 7_u8.into()), ("a.flags", vec![true, false].into())];
        let metadata = Metadata::new("m.gguf", values.map(|(key, value)| (key.to_owned(), value)));
        let said = metadata.size("a.size").expect_err("negative").to_string();
        assert_eq!(said, "m.gguf: the key `a.size` must be a whole number of at least 0");
        assert!(metadata.text("a.text").is_err() && metadata.flag("a.text").is_err());
        assert_eq!(metadata.number("a.size").ok().flatten(), Some(-3.0));
        assert_eq!(metadata.token("a.text").ok().flatten(), Some(7));
        assert_eq!(metadata.flags("a.flags").ok().flatten(), Some(vec![true, false]));
        assert!(metadata.numbers("a.flags").is_err());
        assert_eq!(metadata.texts("none").ok().flatten(), None);
    }
}
