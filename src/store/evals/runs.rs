//! Runs of evals: rows that are both what clients see and the entries of a queue. A run is claimed with a lease and an
//! attempt number; what holds a lease no longer changes nothing. Only the database's clock decides about leases.

use serde_json::Value;
use sqlx::types::Json;

use crate::store::files::{Page, cut_page};
use crate::store::{Error, Result, Store, new_id};

/// Attempts at a run that ended without a word before it fails: its items may be what ends them.
const MAX_ATTEMPTS: i32 = 20;

/// A run.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct EvalRun {
    /// `evalrun_…`
    pub id: String,
    /// Its eval.
    pub eval: String,
    /// The owner.
    pub organization: String,
    /// Id of the API key that its requests count for.
    pub key: String,
    /// As its owner calls it.
    pub name: String,
    /// The models that answer; none where answers are given.
    pub models: Vec<String>,
    /// Where the items come from.
    pub data_source: Json<Value>,
    /// The client's own notes.
    pub metadata: Json<Value>,
    /// `queued`, `in_progress`, `completed`, `canceled` or `failed`.
    pub status: String,
    /// A stable word for why it failed.
    pub error_code: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Number of the attempt that may write.
    pub attempt: i32,
    /// Unix seconds.
    pub created_at: i64,
}

/// A run to be added.
#[derive(Debug, Clone)]
pub struct NewEvalRun {
    /// Its eval.
    pub eval: String,
    /// The owner.
    pub organization: String,
    /// Id of the API key that its requests count for.
    pub key: String,
    /// As its owner calls it.
    pub name: String,
    /// The models that answer.
    pub models: Vec<String>,
    /// Where the items come from.
    pub data_source: Value,
    /// Ids of the stored answers that are its items; `None` where the items stand in the data source.
    pub inputs: Option<Vec<String>>,
    /// The file that its items stand in.
    pub file: Option<String>,
    /// The client's own notes.
    pub metadata: Value,
}

impl EvalRun {
    /// Returns the number of answers to each item.
    pub fn answers(&self) -> i32 {
        i32::try_from(self.models.len()).unwrap_or(i32::MAX).max(1)
    }
}

impl NewEvalRun {
    /// Returns the columns of the models: the one, or several.
    pub(crate) fn model_columns(&self) -> (Option<&str>, Option<&[String]>) {
        match self.models.as_slice() {
            [] => (None, None),
            [one] => (Some(one), None),
            several => (None, Some(several)),
        }
    }
}

/// A query's text around the columns of [`EvalRun`].
macro_rules! run_query {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, eval, organization, key, name, data_source, metadata, status, error_code, error, attempt,
              coalesce(models, array_remove(array[model], null)) as models,
              extract(epoch from eval_runs.created_at)::bigint as created_at ",
            $after
        )
    };
}

impl Store {
    /// Adds a run to the queue, or [`Error::NotFound`] if its eval or its file is gone. The lock on the file lets a
    /// deletion of it see the run, or the run see that it is gone.
    pub async fn create_eval_run(&self, new: NewEvalRun) -> Result<EvalRun> {
        let (model, models) = new.model_columns();
        let made = sqlx::query_as(run_query!(
            "with file as materialized (
                 select id from files where organization = $2 and id = $11 for key share
             )
             insert into eval_runs (id, eval, organization, key, name, model, models, data_source, inputs, metadata)
             select $1, e.id, e.organization, $4, $5, $6, $7, $8, $9, $10 from evals e
              where e.organization = $2 and e.id = $3 and ($11::text is null or exists (select from file)) for key share
             returning",
            ""
        ))
        .bind(new_id("evalrun_"))
        .bind(&new.organization)
        .bind(&new.eval)
        .bind(&new.key)
        .bind(&new.name)
        .bind(model)
        .bind(models)
        .bind(Json(&new.data_source))
        .bind(&new.inputs)
        .bind(Json(&new.metadata))
        .bind(&new.file)
        .fetch_optional(&self.pool)
        .await?;
        match (made, new.file) {
            (Some(run), _) => Ok(run),
            (None, Some(file)) if self.eval(&new.organization, &new.eval).await.is_ok() => {
                Err(Error::NotFound { kind: "File", id: file })
            }
            (None, _) => Err(Error::NotFound { kind: "eval", id: new.eval }),
        }
    }

    /// Returns the ids of the stored answers that are the items of a run; none where they stand in its data source.
    pub async fn eval_run_inputs(&self, run: &EvalRun) -> Result<Vec<String>> {
        let inputs = sqlx::query_scalar("select coalesce(inputs, '{}') from eval_runs where id = $1").bind(&run.id);
        Ok(inputs.fetch_optional(&self.pool).await?.unwrap_or_default())
    }

    /// Returns the data source of the eval's newest run that asked a model; `None` without one.
    pub async fn newest_asking_source(&self, organization: &str, eval: &str) -> Result<Option<Value>> {
        let source: Option<Json<Value>> = sqlx::query_scalar(
            "select data_source from eval_runs
              where organization = $1 and eval = $2 and (model is not null or models is not null)
              order by created_at desc, id desc limit 1",
        )
        .bind(organization)
        .bind(eval)
        .fetch_optional(&self.pool)
        .await?;
        Ok(source.map(|source| source.0))
    }

    /// Reads a run of the organisation's eval, or [`Error::NotFound`].
    pub async fn eval_run(&self, organization: &str, eval: &str, id: &str) -> Result<EvalRun> {
        sqlx::query_as(run_query!("select", "from eval_runs where organization = $1 and eval = $2 and id = $3"))
            .bind(organization)
            .bind(eval)
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| no_such_run(id))
    }

    /// Lists a page of the eval's runs, and tells whether there are more.
    pub async fn eval_runs(
        &self,
        organization: &str,
        eval: &str,
        status: Option<&str>,
        page: Page,
    ) -> Result<(Vec<EvalRun>, bool)> {
        let query = if page.ascending {
            run_query!(
                "select",
                "from eval_runs where organization = $1 and eval = $2 and ($3::text is null or status = $3)
                    and (eval_runs.created_at, id) > (
                        select r.created_at, r.id from eval_runs r where r.organization = $1 and r.eval = $2 and r.id = $4
                        union all select '-infinity', '' where $4::text is null)
                  order by eval_runs.created_at, id limit $5"
            )
        } else {
            run_query!(
                "select",
                "from eval_runs where organization = $1 and eval = $2 and ($3::text is null or status = $3)
                    and (eval_runs.created_at, id) < (
                        select r.created_at, r.id from eval_runs r where r.organization = $1 and r.eval = $2 and r.id = $4
                        union all select 'infinity', '' where $4::text is null)
                  order by eval_runs.created_at desc, id desc limit $5"
            )
        };
        let limit = page.bounded_limit();
        let runs = sqlx::query_as(query).bind(organization).bind(eval).bind(status).bind(page.after).bind(limit + 1);
        Ok(cut_page(runs.fetch_all(&self.pool).await?, limit))
    }

    /// Cancels a run that has not ended; one that has stays as it is. [`Error::NotFound`] if there is none.
    pub async fn cancel_eval_run(&self, organization: &str, eval: &str, id: &str) -> Result<EvalRun> {
        sqlx::query(
            "update eval_runs set status = 'canceled', leased_until = null, finished_at = now()
              where organization = $1 and eval = $2 and id = $3 and status in ('queued', 'in_progress')",
        )
        .bind(organization)
        .bind(eval)
        .bind(id)
        .execute(&self.pool)
        .await?;
        self.eval_run(organization, eval, id).await
    }

    /// Deletes a run with its items, or [`Error::NotFound`].
    pub async fn delete_eval_run(&self, organization: &str, eval: &str, id: &str) -> Result<()> {
        let gone = sqlx::query("delete from eval_runs where organization = $1 and eval = $2 and id = $3")
            .bind(organization)
            .bind(eval)
            .bind(id)
            .execute(&self.pool);
        match gone.await?.rows_affected() {
            0 => Err(no_such_run(id)),
            _ => Ok(()),
        }
    }

    /// Takes the oldest run that nobody works on, for `lease` seconds; `None` if there is none.
    pub async fn claim_eval_run(&self, lease: f64) -> Result<Option<EvalRun>> {
        Ok(sqlx::query_as(run_query!(
            "update eval_runs
                set status = case when attempt < $2 then 'in_progress' else 'failed' end,
                    error_code = case when attempt < $2 then null else 'server_error' end,
                    error = case when attempt < $2 then null else 'The server ended too often while the run was going on.' end,
                    attempt = attempt + 1, leased_until = now() + make_interval(secs => $1)
              where id = (select r.id from eval_runs r
                           where r.status in ('queued', 'in_progress') and (r.leased_until is null or r.leased_until < now())
                           order by r.created_at, r.id limit 1 for update skip locked)
             returning",
            ""
        ))
        .bind(lease)
        .bind(MAX_ATTEMPTS)
        .fetch_optional(&self.pool)
        .await?)
    }

    /// Keeps the run of this attempt for `lease` seconds from now; false if it was cancelled, deleted or taken over.
    pub async fn renew_eval_run(&self, run: &EvalRun, lease: f64) -> Result<bool> {
        let renewed = sqlx::query(
            "update eval_runs set leased_until = now() + make_interval(secs => $3)
              where id = $1 and attempt = $2 and status = 'in_progress'",
        );
        let renewed = renewed.bind(&run.id).bind(run.attempt).bind(lease).execute(&self.pool).await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Gives the run of this attempt back, for the next one to claim at once.
    pub async fn release_eval_run(&self, run: &EvalRun) -> Result<()> {
        // An orderly end is none that counts against the run.
        sqlx::query(
            "update eval_runs set leased_until = null, attempt = attempt - 1
              where id = $1 and attempt = $2 and status = 'in_progress'",
        )
        .bind(&run.id)
        .bind(run.attempt)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Takes all runs back from those who work on them: for the start of a process that has the database to itself.
    pub async fn release_eval_runs(&self) -> Result<u64> {
        let release =
            "update eval_runs set leased_until = null where status = 'in_progress' and leased_until is not null";
        Ok(sqlx::query(release).execute(&self.pool).await?.rows_affected())
    }

    /// Ends the run of this attempt: completed, or failed with a word and a message.
    pub async fn finish_eval_run(&self, run: &EvalRun, failure: Option<(&str, &str)>) -> Result<()> {
        sqlx::query(
            "update eval_runs
                set status = case when $3::text is null then 'completed' else 'failed' end, error_code = $3, error = $4,
                    leased_until = null, finished_at = now()
              where id = $1 and attempt = $2 and status = 'in_progress'",
        )
        .bind(&run.id)
        .bind(run.attempt)
        .bind(failure.map(|(code, _)| code))
        .bind(failure.map(|(_, message)| message))
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

fn no_such_run(id: &str) -> Error {
    Error::NotFound { kind: "eval.run", id: id.into() }
}
