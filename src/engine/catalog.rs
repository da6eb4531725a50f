//! The base models that this process serves, by id. Built by `app`, read by `api` and the worker.

use std::sync::Arc;

use crate::engine::Backend;
use crate::model::BaseModel;
use crate::{Error, Result};

/// One base model with the engine that runs it.
#[derive(Clone)]
pub struct CatalogEntry {
    /// Weights, tokenizer, template.
    pub model: Arc<BaseModel>,
    /// Runs requests on it.
    pub backend: Arc<dyn Backend>,
}

/// All base models, in the order of the configuration. Cheap to clone.
#[derive(Clone, Default)]
pub struct Catalog {
    entries: Arc<[CatalogEntry]>,
}

impl Catalog {
    /// A catalog of `entries`.
    pub fn new(entries: Vec<CatalogEntry>) -> Self {
        Self { entries: entries.into() }
    }

    /// The base model with this id.
    pub fn get(&self, id: &str) -> Result<&CatalogEntry> {
        self.entries.iter().find(|entry| entry.model.id == id).ok_or_else(|| Error::ModelNotFound(id.into()))
    }

    /// All base models.
    pub fn entries(&self) -> &[CatalogEntry] {
        &self.entries
    }
}
