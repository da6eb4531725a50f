//! Fine-tuned models: a name, its base and the adapter generation it points to.

use crate::Result;
use crate::store::Store;

/// A fine-tuned model. Its adapter lies in the blobs `adapters/{adapter}/…`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct FineTunedModel {
    /// `ft:{base}:{org}:{suffix}:{id}`
    pub name: String,
    /// The owner.
    pub organization: String,
    /// Id of the base model.
    pub base: String,
    /// SHA-256 of the adapter generation.
    pub adapter: String,
    /// Public id of the job that made it.
    pub job: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
}

impl Store {
    /// The organisation's model, or [`crate::Error::ModelNotFound`].
    pub async fn fine_tuned_model(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        let _ = (organization, name);
        todo!()
    }

    /// All models of the organisation, oldest first.
    pub async fn fine_tuned_models(&self, organization: &str) -> Result<Vec<FineTunedModel>> {
        let _ = organization;
        todo!()
    }

    /// Removes the name, and the adapter's blobs where no other name points to it.
    pub async fn delete_fine_tuned_model(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        let _ = (organization, name);
        todo!()
    }
}
