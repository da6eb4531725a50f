//! Names that an organisation gives models and moves from one to another. `api::models::aliases` lists, moves and
//! deletes them, `api::models::names` asks what a name stands for, and `jobs::evals` moves one to a model that was
//! found better.

use crate::store::{Error, Result, Store};

/// Aliases of an organisation.
pub const MAX_ALIASES: i64 = 1_000;

/// A name for a model.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Alias {
    /// The name.
    pub name: String,
    /// The model that it stands for.
    pub model: String,
    /// The model that it stood for before it was last moved.
    pub previous: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds: the last move.
    pub updated_at: i64,
}

/// A query's text around the columns of [`Alias`].
macro_rules! alias_query {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " name, model, previous, extract(epoch from model_aliases.created_at)::bigint as created_at,
              extract(epoch from updated_at)::bigint as updated_at ",
            $after
        )
    };
}

impl Store {
    /// Lets the name stand for `model` from now on. `owned` says that the model is a fine-tuned one of the
    /// organisation, whose deletion then sees the alias: [`Error::ModelNotFound`] if it is gone.
    /// [`Error::TooManyAliases`] if the name is one too many.
    pub async fn set_alias(&self, organization: &str, name: &str, model: &str, owned: bool) -> Result<Alias> {
        let set: Option<Alias> = sqlx::query_as(alias_query!(
            "with held as materialized (
                 select name from fine_tuned_models where organization = $1 and name = $3 for key share
             ), others as materialized (
                 select count(*) as number from model_aliases where organization = $1 and name <> $2
             )
             insert into model_aliases (organization, name, model)
             select $1, $2, $3 from others where number < $5 and (not $4 or exists (select from held))
             on conflict (organization, name) do update
                set model = excluded.model, updated_at = now(),
                    previous = case when model_aliases.model = excluded.model then model_aliases.previous
                                    else model_aliases.model end
             returning",
            ""
        ))
        .bind(organization)
        .bind(name)
        .bind(model)
        .bind(owned)
        .bind(MAX_ALIASES)
        .fetch_optional(&self.pool)
        .await?;
        match set {
            Some(alias) => Ok(alias),
            None if owned && self.fine_tuned_model(organization, model).await.is_err() => {
                Err(Error::ModelNotFound(model.into()))
            }
            None => Err(Error::TooManyAliases),
        }
    }

    /// Returns the model that the name stands for; `None` if it is no alias, or if a fine-tuned model that the
    /// organisation uses has the name.
    pub async fn alias_target(&self, organization: &str, name: &str) -> Result<Option<String>> {
        let target = sqlx::query_scalar(
            "select model from model_aliases where organization = $1 and name = $2
                and not exists (select from fine_tuned_models m where m.organization = $1 and m.name = $2)
                and not exists (select from model_permissions p
                                 where p.project_id = $1 and p.model = $2 and p.accepted_at is not null)",
        );
        Ok(target.bind(organization).bind(name).fetch_optional(&self.pool).await?)
    }

    /// True if a fine-tuned model that the organisation uses has the name: its own, or another's that it has asked for.
    pub async fn has_model(&self, organization: &str, name: &str) -> Result<bool> {
        let has = sqlx::query_scalar(
            "select exists (select from fine_tuned_models where organization = $1 and name = $2)
                 or exists (select from model_permissions
                             where project_id = $1 and model = $2 and accepted_at is not null)",
        );
        Ok(has.bind(organization).bind(name).fetch_one(&self.pool).await?)
    }

    /// Returns the aliases of all organisations whose names have the form of those that jobs give: the organisation and
    /// the name.
    pub async fn job_named_aliases(&self) -> Result<Vec<(String, String)>> {
        let query = "select organization, name from model_aliases where name like 'ft:%' or name like '%:ft-%'
                      order by organization, name";
        Ok(sqlx::query_as(query).fetch_all(&self.pool).await?)
    }

    /// Reads the organisation's alias, or [`Error::NotFound`].
    pub async fn alias(&self, organization: &str, name: &str) -> Result<Alias> {
        sqlx::query_as(alias_query!("select", "from model_aliases where organization = $1 and name = $2"))
            .bind(organization)
            .bind(name)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| no_such_alias(name))
    }

    /// Lists the organisation's aliases by their names.
    pub async fn aliases(&self, organization: &str) -> Result<Vec<Alias>> {
        let aliases =
            sqlx::query_as(alias_query!("select", "from model_aliases where organization = $1 order by name"));
        Ok(aliases.bind(organization).fetch_all(&self.pool).await?)
    }

    /// Deletes the organisation's alias and returns it, or [`Error::NotFound`].
    pub async fn delete_alias(&self, organization: &str, name: &str) -> Result<Alias> {
        sqlx::query_as(alias_query!("delete from model_aliases where organization = $1 and name = $2 returning", ""))
            .bind(organization)
            .bind(name)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| no_such_alias(name))
    }
}

fn no_such_alias(name: &str) -> Error {
    Error::NotFound { kind: "alias", id: name.into() }
}
