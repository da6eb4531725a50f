//! Evals that are attached to jobs: a run on the new model and another one once the job has succeeded, and what
//! follows from it. A trigger notes each such job in the statement that ends it; the run is made once, and its result
//! is told once, each by one statement, so that any process can do either at any time. `api::evals::attached` does.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;

use crate::jobs::queue::Queue;
use crate::jobs::{Job, JobApi, Result, sql};
use crate::store::new_id;

/// Jobs that are looked at in one go.
const BATCH: i64 = 16;

/// An eval to run at the end of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEval {
    /// `eval_…`
    pub id: String,
    /// Where the items come from and how models are asked, as a run has it, without a model.
    pub data_source: Value,
    /// When an alias moves to the new model; `None` never moves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote_if: Option<Promotion>,
}

/// When an alias moves to the new model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Promotion {
    /// The alias; made if there is none of the name.
    pub alias: String,
    /// Name of the criterion that counts; `None` for all together.
    pub criterion: Option<String>,
    /// What the new model is compared with.
    pub better_than: Reference,
    /// Least share of all items that the new model must pass.
    pub min_pass_rate: Option<f64>,
    /// Least difference between the shares of items that it and the other one pass.
    pub min_gain: f64,
    /// Most that the p-value of the difference may be.
    pub max_p_value: Option<f64>,
}

/// What a new model is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The model that the alias stands for when the run is made, or [`Self::Base`] if there is no such alias.
    #[default]
    Current,
    /// The model that the job began with.
    Base,
}

/// A job that has succeeded and whose eval is to be run.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct WaitingEval {
    /// The owner.
    pub organization: String,
    /// Resource of the job.
    pub api: JobApi,
    /// Its public id.
    pub id: String,
}

/// A job whose eval's run has ended or is gone.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct EndedEval {
    /// The owner.
    pub organization: String,
    /// Resource of the job.
    pub api: JobApi,
    /// Its public id.
    pub id: String,
    /// `evalrun_…`
    pub run: String,
    /// The model that the alias stood for when the run was made; `None` if there was none.
    pub expected: Option<String>,
}

/// The run to make for a job.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// The models, the new one last.
    pub models: Vec<String>,
    /// Ids of stored answers that are the items.
    pub inputs: Option<Vec<String>>,
    /// The model that the alias stands for.
    pub expected: Option<String>,
}

/// What came of an eval.
#[derive(Debug, Clone)]
pub struct Told {
    /// `info` or `warn`.
    pub level: &'static str,
    /// For people.
    pub message: String,
    /// For programs: an object.
    pub data: Value,
    /// The alias that moves to the job's model.
    pub moves: Option<Move>,
}

/// A move of an alias.
#[derive(Debug, Clone)]
pub struct Move {
    /// The alias.
    pub alias: String,
    /// What it must stand for to be moved.
    pub from: Origin,
    /// The text of the event if it does not move.
    pub otherwise: String,
}

/// What an alias must stand for to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Anything, or nothing yet.
    Any,
    /// Still this model; `None`: still nothing.
    Only(Option<String>),
}

impl Queue {
    /// Finds jobs whose eval has no run yet.
    pub async fn waiting_evals(&self) -> Result<Vec<WaitingEval>> {
        Ok(sqlx::query_as(sql::EVAL_WAITING).bind(BATCH).fetch_all(&self.store.pool).await?)
    }

    /// Makes the run of a job's eval, in the background of its key; false if it has one already, or if the eval is
    /// gone.
    pub async fn begin_eval(&self, job: &Job, eval: &JobEval, new: NewRun) -> Result<bool> {
        let begun = sqlx::query(sql::EVAL_BEGIN)
            .bind(job.key)
            .bind(new_id("evalrun_"))
            .bind(&eval.id)
            .bind(&job.id)
            .bind(Json(serde_json::json!({"fine_tuning_job": job.id})))
            .bind(&new.models)
            .bind(Json(&eval.data_source))
            .bind(&new.inputs)
            .bind(&new.expected)
            .execute(&self.store.pool)
            .await?;
        Ok(begun.rows_affected() > 0)
    }

    /// Finds jobs whose eval's run has ended or is gone, and that were not told.
    pub async fn ended_evals(&self) -> Result<Vec<EndedEval>> {
        Ok(sqlx::query_as(sql::EVAL_ENDED).bind(BATCH).fetch_all(&self.store.pool).await?)
    }

    /// Tells what came of a job's eval, and moves the alias if that is to be; `None` if it was told before, else
    /// whether the alias was moved.
    pub async fn tell_eval(&self, job: &Job, told: Told) -> Result<Option<bool>> {
        let moves = told.moves.as_ref();
        let from = match moves.map(|moves| &moves.from) {
            Some(Origin::Only(model)) => Some(model.as_deref()),
            Some(Origin::Any) | None => None,
        };
        let moved = sqlx::query_scalar(sql::EVAL_TELL)
            .bind(job.key)
            .bind(told.level)
            .bind(&told.message)
            .bind(Json(&told.data))
            .bind(moves.map(|moves| &moves.alias))
            .bind(&job.fine_tuned_model)
            .bind(moves.map(|moves| &moves.otherwise))
            .bind(from.is_some())
            .bind(from.flatten())
            .fetch_optional(&self.store.pool)
            .await?;
        Ok(moved)
    }
}
