//! Fine-tuned models: a name, its base and the adapter generation it points to; a job's checkpoints are some, too. The
//! job queue publishes them, or `api` brings them from elsewhere; `api` and the adapter registry read and delete them.

use bytes::Bytes;
use sqlx::{FromRow as _, Row as _};

use crate::store::files::cut_page;
use crate::store::{Error, Result};
use crate::store::{MAX_PAGE, Store};

/// A fine-tuned model. Its adapter lies in the blobs `adapters/{adapter}/…`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct FineTunedModel {
    /// `ft:{base}:{org}:{suffix}:{id}` or `{base}:ft-{org}:{suffix}-{time}-{id}`, of a checkpoint with
    /// `:ckpt-step-{step}` behind it, or a name that the caller chose for an adapter from elsewhere.
    pub name: String,
    /// The owner.
    pub organization: String,
    /// Id of the base model.
    pub base: String,
    /// SHA-256 of the adapter generation.
    pub adapter: String,
    /// Public id of the job that made it; `None` for an adapter from elsewhere.
    pub job: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
}

/// A model whose adapter comes from elsewhere.
#[derive(Debug, Clone)]
pub struct NewModel {
    /// The owner.
    pub organization: String,
    /// The name; unlike those that jobs give.
    pub name: String,
    /// Id of the base model.
    pub base: String,
    /// SHA-256 of the adapter generation.
    pub adapter: String,
}

/// Attempts to name blobs that a deletion keeps taking away at the same time.
const ATTEMPTS: usize = 3;

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
    /// Reads the organisation's model, or [`Error::ModelNotFound`].
    pub async fn fine_tuned_model(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        sqlx::query_as(model_query!("select", "from fine_tuned_models where organization = $1 and name = $2"))
            .bind(organization)
            .bind(name)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| Error::ModelNotFound(name.into()))
    }

    /// Lists a page of the models that the organisation may use, oldest first, and tells whether there are more: its
    /// own, their checkpoints among them, and those of others that it has permission for and has asked for by name. A
    /// name stands there once, for the model that [`Store::usable_model`] finds by it; `hidden` names are left out. The
    /// page begins after the model
    /// `after`, and is empty if there is no such model.
    pub async fn usable_models(
        &self,
        organization: &str,
        hidden: &[&str],
        after: Option<&str>,
        limit: i64,
    ) -> Result<(Vec<FineTunedModel>, bool)> {
        let limit = limit.clamp(0, MAX_PAGE);
        let models = sqlx::query_as(model_query!(
            "with shared as (
                 select m.* from model_permissions p
                   join fine_tuned_models m on m.organization = p.organization and m.name = p.model
                  where p.project_id = $1 and p.accepted_at is not null
             ), start as (
                 (select created_at, name from (
                      select * from fine_tuned_models where organization = $1 and name = $3
                      union all select * from shared where name = $3) named
                   order by organization <> $1, created_at, organization limit 1)
                 union all select '-infinity', '' where $3::text is null
             ), own_page as (
                 select * from fine_tuned_models
                  where organization = $1 and (created_at, name) > (select created_at, name from start)
                    and name <> all($2)
                  order by created_at, name limit $4
             ), shared_page as (
                 select * from (
                     select distinct on (name) * from shared order by name, created_at, organization) one
                  where (created_at, name) > (select created_at, name from start) and name <> all($2)
                    and not exists (
                        select from fine_tuned_models own where own.organization = $1 and own.name = one.name)
                  order by created_at, name limit $4
             )
             select",
            "from (select * from own_page union all select * from shared_page) listed
              order by listed.created_at, name limit $4"
        ));
        let models = models.bind(organization).bind(hidden).bind(after).bind(limit + 1);
        Ok(cut_page(models.fetch_all(&self.pool).await?, limit))
    }

    /// Returns those of the names that the organisation may use as models, as [`Store::usable_model`] finds them.
    pub async fn usable_models_named(&self, organization: &str, names: &[&str]) -> Result<Vec<FineTunedModel>> {
        let models = sqlx::query_as(model_query!(
            "select distinct on (name)",
            "from fine_tuned_models m
              where name = any($2) and (organization = $1 or exists (
                  select from model_permissions p
                   where p.project_id = $1 and p.model = m.name and p.organization = m.organization))
              order by name, organization <> $1, m.created_at, organization"
        ));
        Ok(models.bind(organization).bind(names).fetch_all(&self.pool).await?)
    }

    /// Returns those of the names that are fine-tuned models of any organisation.
    pub async fn taken_model_names(&self, names: &[&str]) -> Result<Vec<String>> {
        let taken =
            sqlx::query_scalar("select distinct name from fine_tuned_models where name = any($1) order by name");
        Ok(taken.bind(names).fetch_all(&self.pool).await?)
    }

    /// Stores the adapter's blobs (key and content) and its name. If the organisation has the name already, it is
    /// re-pointed if `replace`, else refused with [`Error::NameTaken`]; a job's model is never replaced
    /// ([`Error::NameOfJob`]). A refused adapter leaves no blobs.
    pub async fn add_model(&self, new: NewModel, blobs: Vec<(String, Bytes)>, replace: bool) -> Result<FineTunedModel> {
        let store = self.clone();
        Self::to_the_end(async move {
            let added = store.store_model(&new, &blobs, replace).await;
            if added.is_err()
                && let Err(error) = store.remove_unused_adapter(&new.adapter).await
            {
                // The sweep finds them.
                tracing::warn!(adapter = new.adapter, "cannot remove the blobs of a refused adapter: {error}");
            }
            added
        })
        .await
    }

    async fn store_model(&self, new: &NewModel, blobs: &[(String, Bytes)], replace: bool) -> Result<FineTunedModel> {
        // Most refusals need no blobs to be written; `name_model` asks again where it counts.
        if let Ok(before) = self.fine_tuned_model(&new.organization, &new.name).await {
            check_replaceable(&before, replace)?;
        }
        for _ in 0..ATTEMPTS {
            for (key, content) in blobs {
                self.blobs.put_with_rests(key, content.clone()).await?;
            }
            if let Some((model, before)) = self.name_model(new, blobs, replace).await? {
                if let Some(before) = before.filter(|before| *before != model.adapter) {
                    self.remove_unused_adapter(&before).await?;
                }
                return Ok(model);
            }
        }
        Err(Error::Unavailable("The same adapter is being deleted at the same time.".into()))
    }

    /// Writes the row, and returns which adapter the name had before. `None`: a deletion took the blobs in the
    /// meantime.
    async fn name_model(
        &self,
        new: &NewModel,
        blobs: &[(String, Bytes)],
        replace: bool,
    ) -> Result<Option<(FineTunedModel, Option<String>)>> {
        let mut transaction = self.lock_adapters().await?;
        for (key, _) in blobs {
            if !self.blobs.exists(key).await? {
                return Ok(None);
            }
        }
        let before: Option<FineTunedModel> =
            sqlx::query_as(model_query!("select", "from fine_tuned_models where organization = $1 and name = $2"))
                .bind(&new.organization)
                .bind(&new.name)
                .fetch_optional(&mut *transaction)
                .await?;
        if let Some(before) = &before {
            check_replaceable(before, replace)?;
        }
        let model = sqlx::query_as(model_query!(
            "insert into fine_tuned_models (organization, name, base, adapter) values ($1, $2, $3, $4)
             on conflict (organization, name)
             do update set base = excluded.base, adapter = excluded.adapter, created_at = now()
             returning",
            ""
        ))
        .bind(&new.organization)
        .bind(&new.name)
        .bind(&new.base)
        .bind(&new.adapter)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Some((model, before.map(|before| before.adapter))))
    }

    /// Removes the name, and the adapter's blobs unless another name points to it; [`Error::ModelInUse`] while a job is
    /// to continue the model, [`Error::ModelHasAlias`] while an alias of its owner stands for it.
    pub async fn delete_fine_tuned_model(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        let (store, organization, name) = (self.clone(), organization.to_owned(), name.to_owned());
        Self::to_the_end(async move {
            // Locked first and asked for its job then, which reads anew: a job that was being added is seen.
            let row = sqlx::query(model_query!(
                "with held as materialized (
                     select * from fine_tuned_models where organization = $1 and name = $2 for update
                 ), used as materialized (
                     select *, job_from_model(organization, name) as user_of, alias_of_model(organization, name) as alias_of
                       from held
                 ), gone as (
                     delete from fine_tuned_models old using used
                      where old.organization = used.organization and old.name = used.name
                        and user_of is null and alias_of is null
                 )
                 select user_of, alias_of,",
                "from used"
            ))
            .bind(organization)
            .bind(&name)
            .fetch_optional(&store.pool)
            .await?
            .ok_or_else(|| Error::ModelNotFound(name.clone()))?;
            if let Some(job) = row.try_get("user_of")? {
                return Err(Error::ModelInUse { model: name, job });
            }
            if let Some(alias) = row.try_get("alias_of")? {
                return Err(Error::ModelHasAlias { model: name, alias });
            }
            let deleted = FineTunedModel::from_row(&row)?;
            store.remove_unused_adapter(&deleted.adapter).await?;
            Ok(deleted)
        })
        .await
    }
}

fn check_replaceable(before: &FineTunedModel, replace: bool) -> Result<()> {
    match (&before.job, replace) {
        (Some(_), _) => Err(Error::NameOfJob(before.name.clone())),
        (None, false) => Err(Error::NameTaken(before.name.clone())),
        (None, true) => Ok(()),
    }
}
