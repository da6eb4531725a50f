//! Collections: what a job of distillation does before it trains. `api::distillation` asks a teacher for answers, with
//! the lease and the fence of an attempt, and keeps each here as it comes; at the end they become files and the job
//! goes to the workers. So whoever goes on after a crash knows what is paid for already.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{FromRow as _, Row as _};

use crate::jobs::queue::Queue;
use crate::jobs::rows::JobRow;
use crate::jobs::{Job, Result, sql};
use crate::store::stored_completions::CompletionChoice;
use crate::teachers::money::Money;

/// How the training file of a job is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distillation {
    /// Who answers, `teacher:NAME` or a model of this server; `None` if the answers are there already.
    pub teacher: Option<String>,
    /// What is asked.
    pub prompts: Prompts,
    /// Answers to each prompt.
    pub samples: u32,
    /// Temperature of answers; `None`: the teacher's own.
    pub temperature: Option<f64>,
    /// Tokens of an answer at the most; `None`: the teacher's own.
    pub max_tokens: Option<u32>,
    /// Graders of answers, as the client wrote them.
    pub graders: Vec<Value>,
    /// The score that an answer must have from each grader.
    pub min_score: f64,
    /// The most that teachers may cost; `None` where they cost nothing.
    pub max_teacher_cost: Option<Money>,
    /// Which of a prompt's answers are kept.
    pub keep: Keep,
    /// Id of the file that will tell of the collection.
    pub report_file: String,
}

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompts {
    /// The lines of this file.
    File(String),
    /// Chats that the organisation has stored.
    StoredCompletions(CompletionChoice),
}

/// Which of a prompt's answers are kept, of those that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The one with the highest score; the first of several.
    Best,
    /// All.
    All,
}

impl Keep {
    /// Returns the word in requests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::All => "all",
        }
    }
}

/// Which answer: the digest of its prompt, and its number among the answers to that.
pub type Place = (String, i32);

/// What is known of an answer.
#[derive(Debug, Clone, Default, PartialEq, sqlx::FromRow)]
pub struct TeacherAnswer {
    /// Digest of the prompt.
    pub prompt: String,
    /// Number among its answers, from 0.
    pub sample: i32,
    /// What it did cost, or may have cost at the most, in millionths.
    pub cost: i64,
    /// The text; `None` if it is not there, or never will be.
    pub answer: Option<String>,
    /// How it ended.
    pub finish_reason: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: i64,
    /// Tokens of the answer.
    pub completion_tokens: i64,
    /// [`PASSED`], or why it is not kept; `None` until it is judged.
    pub verdict: Option<String>,
    /// Sum of the graders' scores.
    pub score: Option<f64>,
}

/// The verdict on an answer that may be trained on.
pub const PASSED: &str = "passed";

/// A file whose content is stored and whose row is yet to be written.
#[derive(Debug, Clone)]
pub struct CollectedFile {
    /// `file-…`
    pub id: String,
    /// Its name.
    pub filename: String,
    /// `fine-tune` or `fine-tune-results`.
    pub purpose: &'static str,
    /// Size of the content.
    pub bytes: i64,
}

impl TeacherAnswer {
    /// Returns which answer it is.
    pub fn place(&self) -> Place {
        (self.prompt.clone(), self.sample)
    }
}

impl Queue {
    /// Claims the next job whose answers are to be collected, with the id of the key that asked for it.
    pub async fn claim_collection(&self, owner: &str, lease: Duration) -> Result<Option<(Job, String)>> {
        let claim = sqlx::query(sql::COLLECTION_CLAIM).bind(owner).bind(lease.as_secs_f64());
        let Some(row) = claim.fetch_optional(&self.store.pool).await? else { return Ok(None) };
        let key: Option<String> = row.try_get("api_key")?;
        Ok(Some((JobRow::from_row(&row)?.into(), key.unwrap_or_default())))
    }

    /// Returns what was asked for the job so far.
    pub async fn teacher_answers(&self, job: &Job) -> Result<Vec<TeacherAnswer>> {
        Ok(sqlx::query_as(sql::COLLECTION_ANSWERS).bind(job.key).fetch_all(&self.store.pool).await?)
    }

    /// Returns the data of the last event that told how far the collection is; `None` if none has.
    pub async fn collected(&self, job: &Job) -> Result<Option<Value>> {
        let data = sqlx::query_scalar(sql::COLLECTION_TOLD).bind(job.key);
        Ok(data.fetch_optional(&self.store.pool).await?)
    }

    /// Notes what the requests for an answer may cost, before the next one is sent; false if the lease is lost.
    pub async fn charge_answer(&self, job: &Job, (prompt, sample): &Place, cost: Money) -> Result<bool> {
        let charge = sqlx::query(sql::COLLECTION_CHARGE).bind(job.key).bind(job.attempt).bind(prompt).bind(sample);
        Ok(charge.bind(cost.millionths()).execute(&self.store.pool).await?.rows_affected() > 0)
    }

    /// Keeps an answer; false if the lease is lost.
    pub async fn keep_answer(&self, job: &Job, answer: &TeacherAnswer) -> Result<bool> {
        let kept = sqlx::query(sql::COLLECTION_ANSWER)
            .bind(job.key)
            .bind(job.attempt)
            .bind(&answer.prompt)
            .bind(answer.sample)
            .bind(answer.cost)
            .bind(&answer.answer)
            .bind(&answer.finish_reason)
            .bind(answer.prompt_tokens)
            .bind(answer.completion_tokens)
            .bind(&answer.verdict);
        Ok(kept.execute(&self.store.pool).await?.rows_affected() > 0)
    }

    /// Notes the verdict on an answer; false if the lease is lost.
    pub async fn judge_answer(&self, job: &Job, answer: &TeacherAnswer) -> Result<bool> {
        let judged = sqlx::query(sql::COLLECTION_JUDGE)
            .bind(job.key)
            .bind(job.attempt)
            .bind(&answer.prompt)
            .bind(answer.sample)
            .bind(answer.cost)
            .bind(&answer.verdict)
            .bind(answer.score);
        Ok(judged.execute(&self.store.pool).await?.rows_affected() > 0)
    }

    /// Gives the organisation the files; if `done`, the job goes to the workers. False, and the files are none, if the
    /// lease is lost.
    pub async fn end_collection(&self, job: &Job, files: &[CollectedFile], done: bool) -> Result<bool> {
        let column = |part: fn(&CollectedFile) -> &str| files.iter().map(part).collect::<Vec<_>>();
        let ended: Option<uuid::Uuid> = sqlx::query_scalar(sql::COLLECTION_END)
            .bind(job.key)
            .bind(job.attempt)
            .bind(column(|file| &file.id))
            .bind(column(|file| &file.filename))
            .bind(column(|file| file.purpose))
            .bind(files.iter().map(|file| file.bytes).collect::<Vec<i64>>())
            .bind(done)
            .fetch_optional(&self.store.pool)
            .await?;
        Ok(ended.is_some())
    }
}
