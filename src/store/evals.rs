//! Evals, their runs ([`runs`]) and what came of the items of a run ([`items`]). `api::evals` creates, lists and runs them.

pub mod items;
pub mod runs;

use serde_json::Value;
use sqlx::types::Json;

use crate::store::files::{Page, cut_page};
use crate::store::{Error, Result, Store, new_id};

/// An eval.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Eval {
    /// `eval_…`
    pub id: String,
    /// As its owner calls it.
    pub name: String,
    /// The form of the items, as it is shown.
    pub config: Json<Value>,
    /// Graders with an `id` each.
    pub criteria: Json<Value>,
    /// The client's own notes.
    pub metadata: Json<Value>,
    /// Unix seconds.
    pub created_at: i64,
}

/// What a list of evals is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvalOrder {
    /// The time of creation.
    Created,
    /// The time of the last change.
    Updated,
}

/// The columns of [`Eval`].
macro_rules! columns {
    () => {
        " id, name, config, criteria, metadata, extract(epoch from evals.created_at)::bigint as created_at "
    };
}

/// A query's text around the columns.
macro_rules! eval_query {
    ($before:literal, $after:literal) => {
        concat!($before, columns!(), $after)
    };
}

/// A page of evals by a column, in a direction.
macro_rules! eval_page {
    ($column:literal, $compare:literal, $edge:literal, $direction:literal) => {
        concat!(
            "select",
            columns!(),
            "from evals where organization = $1 and (evals.",
            $column,
            ", id) ",
            $compare,
            " (select e.",
            $column,
            ", e.id from evals e where e.organization = $1 and e.id = $2 union all select '",
            $edge,
            "', '' where $2::text is null) order by evals.",
            $column,
            " ",
            $direction,
            ", id ",
            $direction,
            " limit $3"
        )
    };
}

impl Store {
    /// Adds an eval.
    pub async fn create_eval(
        &self,
        organization: &str,
        name: &str,
        config: &Value,
        criteria: &Value,
        metadata: &Value,
    ) -> Result<Eval> {
        Ok(sqlx::query_as(eval_query!(
            "insert into evals (id, organization, name, config, criteria, metadata) values ($1, $2, $3, $4, $5, $6) returning",
            ""
        ))
        .bind(new_id("eval_"))
        .bind(organization)
        .bind(name)
        .bind(Json(config))
        .bind(Json(criteria))
        .bind(Json(metadata))
        .fetch_one(&self.pool)
        .await?)
    }

    /// Reads the organisation's eval, or [`Error::NotFound`].
    pub async fn eval(&self, organization: &str, id: &str) -> Result<Eval> {
        sqlx::query_as(eval_query!("select", "from evals where organization = $1 and id = $2"))
            .bind(organization)
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| no_such_eval(id))
    }

    /// Lists a page of the organisation's evals, and tells whether there are more.
    pub async fn evals(&self, organization: &str, order: EvalOrder, page: Page) -> Result<(Vec<Eval>, bool)> {
        let query = match (order, page.ascending) {
            (EvalOrder::Created, true) => eval_page!("created_at", ">", "-infinity", "asc"),
            (EvalOrder::Created, false) => eval_page!("created_at", "<", "infinity", "desc"),
            (EvalOrder::Updated, true) => eval_page!("updated_at", ">", "-infinity", "asc"),
            (EvalOrder::Updated, false) => eval_page!("updated_at", "<", "infinity", "desc"),
        };
        let limit = page.bounded_limit();
        let evals = sqlx::query_as(query).bind(organization).bind(page.after).bind(limit + 1).fetch_all(&self.pool);
        Ok(cut_page(evals.await?, limit))
    }

    /// Changes name and notes, each where given, or [`Error::NotFound`].
    pub async fn update_eval(
        &self,
        organization: &str,
        id: &str,
        name: Option<&str>,
        metadata: Option<&Value>,
    ) -> Result<Eval> {
        sqlx::query_as(eval_query!(
            "update evals set name = coalesce($3, name), metadata = coalesce($4, metadata), updated_at = now()
              where organization = $1 and id = $2 returning",
            ""
        ))
        .bind(organization)
        .bind(id)
        .bind(name)
        .bind(metadata.map(Json))
        .fetch_optional(&self.pool)
        .await?
        .ok_or_else(|| no_such_eval(id))
    }

    /// Deletes an eval with its runs and their items, or [`Error::NotFound`].
    pub async fn delete_eval(&self, organization: &str, id: &str) -> Result<()> {
        let gone = sqlx::query("delete from evals where organization = $1 and id = $2").bind(organization).bind(id);
        match gone.execute(&self.pool).await?.rows_affected() {
            0 => Err(no_such_eval(id)),
            _ => Ok(()),
        }
    }
}

fn no_such_eval(id: &str) -> Error {
    Error::NotFound { kind: "eval", id: id.into() }
}
