//! Fine-tuned models: a name, its base and the adapter generation it points to; a job's checkpoints are some, too. The job
//! queue publishes them; `api` and the adapter registry read and delete them.

use crate::store::{MAX_PAGE, Store};
use crate::{Error, Result};

/// A fine-tuned model. Its adapter lies in the blobs `adapters/{adapter}/…`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct FineTunedModel {
    /// `ft:{base}:{org}:{suffix}:{id}`, of a checkpoint with `:ckpt-step-{step}` behind it.
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

/// A model that was just deleted, and whether its adapter's blobs go with it.
#[derive(sqlx::FromRow)]
struct Deleted {
    #[sqlx(flatten)]
    model: FineTunedModel,
    adapter_unused: bool,
}

/// A query's text around the columns of [`FineTunedModel`].
macro_rules! model_query {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " name, organization, base, adapter, job, extract(epoch from created_at)::bigint as created_at ",
            $after
        )
    };
}
pub(super) use model_query;

impl Store {
    /// The organisation's model, or [`crate::Error::ModelNotFound`].
    pub async fn fine_tuned_model(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        sqlx::query_as(model_query!("select", "from fine_tuned_models where organization = $1 and name = $2"))
            .bind(organization)
            .bind(name)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| Error::ModelNotFound(name.into()))
    }

    /// All models that the organisation may use, oldest first: its own, their checkpoints among them, and those of others
    /// that it has permission for.
    pub async fn usable_models(&self, organization: &str) -> Result<Vec<FineTunedModel>> {
        let models = sqlx::query_as(model_query!(
            "select",
            "from fine_tuned_models m
              where organization = $1 or (organization, name) in (
                  select p.organization, p.model from model_permissions p where p.project_id = $1)
              order by m.created_at, name limit $2"
        ));
        Ok(models.bind(organization).bind(MAX_PAGE).fetch_all(&self.pool).await?)
    }

    /// Removes the name, and the adapter's blobs where no other name points to it.
    ///
    /// Blobs are named by content, and a running job may be about to publish the same content; then they stay for the
    /// sweep to judge.
    pub async fn delete_fine_tuned_model(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        let (store, organization, name) = (self.clone(), organization.to_owned(), name.to_owned());
        Self::to_the_end(async move {
            let deleted: Deleted = sqlx::query_as(model_query!(
                "with gone as (
                     delete from fine_tuned_models where organization = $1 and name = $2 returning *
                 ) select",
                ", not exists (
                      select from fine_tuned_models other where other.adapter = gone.adapter
                         and (other.organization, other.name) <> (gone.organization, gone.name)
                  ) and not exists (select from jobs where status = 'running') as adapter_unused
                  from gone"
            ))
            .bind(organization)
            .bind(&name)
            .fetch_optional(&store.pool)
            .await?
            .ok_or(Error::ModelNotFound(name))?;
            if deleted.adapter_unused {
                store.blobs.delete_prefix(&format!("adapters/{}", deleted.model.adapter)).await?;
            }
            Ok(deleted.model)
        })
        .await
    }
}
