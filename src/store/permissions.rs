//! Which other organisations may use a fine-tuned model. `api` grants, lists and revokes for the owner;
//! [`Store::usable_model`] is the question that the adapter registry asks for every request.

use std::collections::BTreeSet;

use crate::store::files::{Page, cut_page};
use crate::store::models::{FineTunedModel, model_query};
use crate::store::{Error, Result};
use crate::store::{Store, new_id};

/// One organisation's leave to use one model of another.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Permission {
    /// `cp_…`
    pub id: String,
    /// The organisation that may use the model.
    pub project_id: String,
    /// Unix seconds.
    pub created_at: i64,
}

/// A model that an organisation may use.
#[derive(sqlx::FromRow)]
struct Usable {
    #[sqlx(flatten)]
    model: FineTunedModel,
    /// True if the organisation was given leave for it and has not asked for it yet.
    is_new: bool,
}

/// A query's text around the columns of [`Permission`].
macro_rules! permission_query {
    ($before:literal, $after:literal) => {
        concat!($before, " id, project_id, extract(epoch from created_at)::bigint as created_at ", $after)
    };
}

impl Store {
    /// Finds the model that `organization` means by `name`: its own, else one that it has permission for, which it
    /// accepts by asking; [`Error::ModelNotFound`] otherwise.
    pub async fn usable_model(&self, organization: &str, name: &str) -> Result<FineTunedModel> {
        let found: Option<Usable> = sqlx::query_as(model_query!(
            "select coalesce((select p.accepted_at is null from model_permissions p
                               where p.project_id = $1 and p.model = m.name and p.organization = m.organization),
                             false) as is_new,",
            "from fine_tuned_models m
              where name = $2 and (organization = $1 or exists (
                  select from model_permissions p
                   where p.project_id = $1 and p.model = m.name and p.organization = m.organization))
              order by organization <> $1, m.created_at, organization limit 1"
        ))
        .bind(organization)
        .bind(name)
        .fetch_optional(&self.pool)
        .await?;
        let Usable { model, is_new } = found.ok_or_else(|| Error::ModelNotFound(name.into()))?;
        if is_new && model.organization != organization {
            self.accept(organization, &model).await?;
        }
        Ok(model)
    }

    /// Notes that the organisation knows of its permission for another's model: from now on it lists the model.
    async fn accept(&self, organization: &str, model: &FineTunedModel) -> Result<()> {
        sqlx::query(
            "update model_permissions set accepted_at = now()
              where organization = $1 and model = $2 and project_id = $3 and accepted_at is null",
        )
        .bind(&model.organization)
        .bind(&model.name)
        .bind(organization)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Lets organisations use the owner's model `name`; returns the permissions in the order of `project_ids`, of which
    /// those that were there before are unchanged. [`Error::ModelNotFound`] if the owner has no such model.
    pub async fn grant(&self, owner: &str, name: &str, project_ids: &[String]) -> Result<Vec<Permission>> {
        // In one order for all, so that two grants never wait for each other; and each once, as `on conflict` demands.
        let projects: Vec<&String> = project_ids.iter().collect::<BTreeSet<_>>().into_iter().collect();
        let ids: Vec<String> = projects.iter().map(|_| new_id("cp_")).collect();
        let mut granted: Vec<Permission> = sqlx::query_as(permission_query!(
            "with model as (
                 select organization, name from fine_tuned_models where organization = $1 and name = $2 for key share
             )
             insert into model_permissions (id, organization, model, project_id)
             select new_id, organization, name, project from model, unnest($3::text[], $4::text[]) asked (new_id, project)
             on conflict (organization, model, project_id) do update set project_id = excluded.project_id
             returning",
            ""
        ))
        .bind(owner)
        .bind(name)
        .bind(&ids)
        .bind(&projects)
        .fetch_all(&self.pool)
        .await?;
        if granted.is_empty() && !projects.is_empty() {
            return Err(Error::ModelNotFound(name.into()));
        }
        granted.sort_by_key(|permission| project_ids.iter().position(|project| *project == permission.project_id));
        Ok(granted)
    }

    /// Lists a page of the permissions for the owner's model, newest first unless asked otherwise, and whether there
    /// are more.
    pub async fn permissions(
        &self,
        owner: &str,
        name: &str,
        project_id: Option<&str>,
        page: Page,
    ) -> Result<(Vec<Permission>, bool)> {
        self.fine_tuned_model(owner, name).await?;
        let query = if page.ascending {
            permission_query!(
                "select",
                "from model_permissions
                  where organization = $1 and model = $2 and ($3::text is null or project_id = $3)
                    and (created_at, id) > (
                        select created_at, id from model_permissions where organization = $1 and model = $2 and id = $4
                        union all select '-infinity', '' where $4::text is null)
                  order by model_permissions.created_at, id limit $5"
            )
        } else {
            permission_query!(
                "select",
                "from model_permissions
                  where organization = $1 and model = $2 and ($3::text is null or project_id = $3)
                    and (created_at, id) < (
                        select created_at, id from model_permissions where organization = $1 and model = $2 and id = $4
                        union all select 'infinity', '' where $4::text is null)
                  order by model_permissions.created_at desc, id desc limit $5"
            )
        };
        let limit = page.bounded_limit();
        let permissions = sqlx::query_as(query)
            .bind(owner)
            .bind(name)
            .bind(project_id)
            .bind(page.after)
            .bind(limit + 1)
            .fetch_all(&self.pool)
            .await?;
        Ok(cut_page(permissions, limit))
    }

    /// Takes a permission for the owner's model back: the next request of the other organisation finds no such model.
    pub async fn revoke(&self, owner: &str, name: &str, id: &str) -> Result<()> {
        self.fine_tuned_model(owner, name).await?;
        let gone = sqlx::query("delete from model_permissions where organization = $1 and model = $2 and id = $3")
            .bind(owner)
            .bind(name)
            .bind(id)
            .execute(&self.pool)
            .await?;
        match gone.rows_affected() {
            0 => Err(Error::NotFound { kind: "checkpoint.permission", id: id.into() }),
            _ => Ok(()),
        }
    }
}
