//! Keys of one architecture, by their names without the architecture's. Called by the translations beside this file.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::LARGEST;
use crate::gguf::architecture::Architecture;
use crate::gguf::{Gguf, Metadata, Value};
use crate::{Error, Result};

/// Keys that do not change what the model computes: names of what tensors and other keys say already, and how the file
/// came to be.
const HARMLESS: [&str; 4] = ["vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "pooling_type"];

/// The keys of a file's architecture.
pub(super) struct Keys<'a> {
    pub(super) file: &'a Gguf,
    prefix: &'static str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(file: &'a Gguf, architecture: Architecture) -> Self {
        Self { file, prefix: architecture.name(), read: RefCell::default() }
    }

    /// Returns a size of at least 1.
    pub(super) fn size(&self, name: &str) -> Result<usize> {
        let size = self.optional_size(name)?;
        self.metadata().require(&self.key(name), size)
    }

    /// Returns a size of at least 1, which may be a list of equal ones for the blocks; `None` if there is no such key.
    pub(super) fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        let Some(size) = self.optional_count(name)? else { return Ok(None) };
        if size == 0 {
            return Err(self.fault(name, "must be at least 1"));
        }
        Ok(Some(size))
    }

    /// Returns a whole number of at least 0, which may be a list of equal ones for the blocks; `None` if there is no such
    /// key.
    pub(super) fn optional_count(&self, name: &str) -> Result<Option<usize>> {
        let key = self.read(name);
        let count = self.metadata().size_of_blocks(&key)?;
        if count.is_some_and(|count| count > LARGEST) {
            return Err(self.fault(name, "is larger than any model's"));
        }
        Ok(count)
    }

    /// Returns a size that the blocks with attention share, see [`Metadata::size_of_attention`].
    pub(super) fn size_of_attention(&self, name: &str) -> Result<Option<usize>> {
        let size = self.metadata().size_of_attention(&self.read(name))?;
        if size.is_some_and(|size| size > LARGEST) {
            return Err(self.fault(name, "is larger than any model's"));
        }
        Ok(size.filter(|size| *size > 0))
    }

    /// Returns a list of whole numbers; `None` if there is no such key, or a number in its place.
    pub(super) fn sizes(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let key = self.read(name);
        match self.metadata().get(&key) {
            Some(Value::Numbers(_)) => self.metadata().sizes(&key),
            _ => Ok(None),
        }
    }

    /// Returns a number; `None` if there is no such key.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        self.metadata().number(&self.read(name))
    }

    /// Returns a number.
    pub(super) fn required_number(&self, name: &str) -> Result<f64> {
        let number = self.number(name)?;
        self.metadata().require(&self.key(name), number)
    }

    /// Returns a text; `None` if there is no such key.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.metadata().text(&self.read(name))
    }

    /// Returns a flag; `None` if there is no such key.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.metadata().flag(&self.read(name))
    }

    /// Returns a list of flags; `None` if there is no such key, or a number in its place.
    pub(super) fn flags(&self, name: &str) -> Result<Option<Vec<bool>>> {
        let key = self.read(name);
        match self.metadata().get(&key) {
            Some(Value::Numbers(_)) => self.metadata().flags(&key),
            _ => Ok(None),
        }
    }

    /// Refuses a key with another value than `neutral`, with which it changes nothing.
    pub(super) fn only(&self, name: &str, neutral: f64) -> Result<()> {
        match self.number(name)? {
            Some(number) if (number - neutral).abs() > f64::EPSILON => {
                Err(self.fault(name, &format!("is {number}; only {neutral} is supported")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a file with a key of the architecture that nothing has read.
    pub(super) fn check_all_read(&self) -> Result<()> {
        let read = self.read.borrow();
        let of_architecture = |key: &str| Some(key.strip_prefix(self.prefix)?.strip_prefix('.')?.to_owned());
        let mut names = self.metadata().iter().filter_map(|(key, _)| of_architecture(key));
        match names.find(|name| !read.contains(name) && !HARMLESS.contains(&name.as_str())) {
            Some(name) => Err(self.fault(&name, "is not known: what it asks for would not be done")),
            None => Ok(()),
        }
    }

    /// Returns an error about the key `name`.
    pub(super) fn fault(&self, name: &str, message: &str) -> Error {
        self.metadata().fault(&format!("the key `{}` {message}", self.key(name)))
    }

    fn metadata(&self) -> &'a Metadata {
        self.file.metadata()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn read(&self, name: &str) -> String {
        self.read.borrow_mut().insert(name.to_owned());
        self.key(name)
    }
}
