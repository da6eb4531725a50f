//! Catalog of the base models that this process serves, by id, and of the aliases that the operator gave models. Built
//! by `app`, read by `api` and the worker.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Backend;
use crate::{Error, Result};
use attune_model::BaseModel;

/// One base model with the engine that runs it.
#[derive(Clone)]
pub struct CatalogEntry {
    /// Weights, tokenizer and template.
    pub model: Arc<BaseModel>,
    /// Engine that runs requests on it.
    pub backend: Arc<dyn Backend>,
}

/// All base models, in the order of the configuration. Cheap to clone.
#[derive(Clone, Default)]
pub struct Catalog {
    entries: Arc<[CatalogEntry]>,
    aliases: Arc<BTreeMap<String, String>>,
}

impl Catalog {
    /// Creates a catalog of `entries`.
    pub fn new(entries: Vec<CatalogEntry>) -> Self {
        Self { entries: entries.into(), aliases: Arc::default() }
    }

    /// Adds `aliases`: names of base models or fine-tuned models by alias.
    #[must_use]
    pub fn with_aliases(self, aliases: BTreeMap<String, String>) -> Self {
        Self { aliases: Arc::new(aliases), ..self }
    }

    /// Returns the model that `name` is an alias of, else `name` itself.
    pub fn real_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.aliases.get(name).map_or(name, String::as_str)
    }

    /// Returns `true` if `name` is an alias.
    pub fn is_alias(&self, name: &str) -> bool {
        self.aliases.contains_key(name)
    }

    /// Iterates over all aliases with their models.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(alias, name)| (alias.as_str(), name.as_str()))
    }

    /// Returns the base model with this id; an error if there is none.
    pub fn get(&self, id: &str) -> Result<&CatalogEntry> {
        self.entries.iter().find(|entry| entry.model.id == id).ok_or_else(|| Error::UnknownModel(id.into()))
    }

    /// Returns the names of all base models, then the aliases of these.
    pub fn served(&self) -> Vec<&str> {
        let own = self.entries.iter().map(|entry| entry.model.id.as_str());
        own.chain(self.aliases().filter(|(_, name)| self.get(name).is_ok()).map(|(alias, _)| alias)).collect()
    }

    /// Waits until the device of one of the models is found lost.
    pub async fn lost_device(&self) {
        let lost = self.entries.iter().map(|entry| Box::pin(entry.model.health.lost()));
        if lost.len() == 0 {
            return std::future::pending().await;
        }
        futures::future::select_all(lost).await;
    }

    /// Returns all base models.
    pub fn entries(&self) -> &[CatalogEntry] {
        &self.entries
    }
}
