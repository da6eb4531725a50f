//! What came of the items of a run, and the counts of a run, which are computed from them.

use serde_json::Value;
use sqlx::types::Json;

use crate::store::evals::runs::EvalRun;
use crate::store::files::{Page, cut_page};
use crate::store::{Error, Result, Store, new_id};

/// What came of one item.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct OutputItem {
    /// `outputitem_…`
    pub id: String,
    /// Place among the answers, from 0: those of all models to the first item come first.
    pub number: i32,
    /// `pass`, `fail` or `error`.
    pub status: String,
    /// The item.
    pub item: Json<Value>,
    /// What each criterion says.
    pub results: Json<Value>,
    /// The answer.
    pub sample: Json<Value>,
    /// Unix seconds.
    pub created_at: i64,
}

/// An item to be added.
#[derive(Debug, Clone)]
pub struct NewOutputItem {
    /// Place among the answers, from 0.
    pub number: i32,
    /// `pass`, `fail` or `error`.
    pub status: &'static str,
    /// The item.
    pub item: Value,
    /// What each criterion says, in their order: objects with `passed`, and `error` where there is no result.
    pub results: Value,
    /// The answer.
    pub sample: Value,
    /// One object for each request to a model: `model`, `prompt`, `completion` and `cached`.
    pub usage: Value,
}

/// Items of a run by what came of them with one of its models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Counts {
    /// Place of the model in the run, from 0.
    pub model: i32,
    /// That passed every criterion.
    pub passed: i64,
    /// That did not.
    pub failed: i64,
    /// That could not be answered or graded.
    pub errored: i64,
}

/// Results of one criterion with one of the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct CriterionCounts {
    /// Place of the model in the run, from 0.
    pub model: i32,
    /// Its place in the eval, from 1.
    pub place: i64,
    /// Items that passed.
    pub passed: i64,
    /// Items that did not.
    pub failed: i64,
}

/// Tokens that a run used of one model.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ModelUsage {
    /// Name of the model.
    pub model: String,
    /// Requests.
    pub requests: i64,
    /// Tokens of prompts.
    pub prompt: i64,
    /// Tokens of answers.
    pub completion: i64,
    /// Tokens of prompts that were found in the cache.
    pub cached: i64,
}

/// Items of two runs by what each came to, of those that neither failed to grade.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct PairCounts {
    /// Passed in both.
    pub both: i64,
    /// Passed in the first alone.
    pub only_first: i64,
    /// Passed in the second alone.
    pub only_second: i64,
    /// Passed in neither.
    pub neither: i64,
}

/// Items of a run with one of its models beside those with the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct ModelPairs {
    /// Place of the model in the run, from 1.
    pub model: i32,
    /// Place of the criterion in the eval, from 1; 0 for all criteria together.
    pub place: i64,
    /// The counts; the second is the model's.
    #[sqlx(flatten)]
    pub counts: PairCounts,
}

/// A query's text around the columns of [`OutputItem`].
macro_rules! item_query {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, number, status, item, results, sample,
              extract(epoch from eval_output_items.created_at)::bigint as created_at ",
            $after
        )
    };
}

impl Store {
    /// Adds what came of an item, if the run still belongs to this attempt; false if it does not. An item that is there
    /// already stays as it is.
    pub async fn add_output_item(&self, run: &EvalRun, new: NewOutputItem) -> Result<bool> {
        let held: Option<i32> = sqlx::query_scalar(
            "with held as materialized (
                 select id from eval_runs where id = $1 and attempt = $2 and status = 'in_progress' for key share
             ), added as (
                 insert into eval_output_items (run, number, id, status, item, results, sample, usage)
                 select held.id, $3, $4, $5, $6, $7, $8, $9 from held
                 on conflict (run, number) do nothing
             )
             select 1 from held",
        )
        .bind(&run.id)
        .bind(run.attempt)
        .bind(new.number)
        .bind(new_id("outputitem_"))
        .bind(new.status)
        .bind(Json(storable(new.item)))
        .bind(Json(storable(new.results)))
        .bind(Json(storable(new.sample)))
        .bind(Json(storable(new.usage)))
        .fetch_optional(&self.pool)
        .await?;
        Ok(held.is_some())
    }

    /// Returns the numbers of the answers that are done.
    pub async fn done_items(&self, run: &EvalRun) -> Result<Vec<i32>> {
        let numbers = sqlx::query_scalar("select number from eval_output_items where run = $1");
        Ok(numbers.bind(&run.id).fetch_all(&self.pool).await?)
    }

    /// Lists a page of a run's items in the order of the data source, and tells whether there are more.
    pub async fn output_items(
        &self,
        run: &EvalRun,
        status: Option<&str>,
        page: Page,
    ) -> Result<(Vec<OutputItem>, bool)> {
        let query = if page.ascending {
            item_query!(
                "select",
                "from eval_output_items where run = $1 and ($2::text is null or status = $2)
                    and number > (select i.number from eval_output_items i where i.run = $1 and i.id = $3
                                  union all select -1 where $3::text is null)
                  order by number limit $4"
            )
        } else {
            item_query!(
                "select",
                "from eval_output_items where run = $1 and ($2::text is null or status = $2)
                    and number < (select i.number from eval_output_items i where i.run = $1 and i.id = $3
                                  union all select 2147483647 where $3::text is null)
                  order by number desc limit $4"
            )
        };
        let limit = page.bounded_limit();
        let items = sqlx::query_as(query).bind(&run.id).bind(status).bind(page.after).bind(limit + 1);
        Ok(cut_page(items.fetch_all(&self.pool).await?, limit))
    }

    /// Reads what came of an item, or [`Error::NotFound`].
    pub async fn output_item(&self, run: &EvalRun, id: &str) -> Result<OutputItem> {
        sqlx::query_as(item_query!("select", "from eval_output_items where run = $1 and id = $2"))
            .bind(&run.id)
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| Error::NotFound { kind: "eval.run.output_item", id: id.into() })
    }

    /// Counts the items of a run by its models, those with any.
    pub async fn item_counts(&self, run: &EvalRun) -> Result<Vec<Counts>> {
        Ok(sqlx::query_as(
            "select number % $2 as model, count(*) filter (where status = 'pass') as passed, count(*) filter (where status = 'fail') as failed,
                    count(*) filter (where status = 'error') as errored
               from eval_output_items where run = $1 group by 1 order by 1",
        )
        .bind(&run.id)
        .bind(run.answers())
        .fetch_all(&self.pool)
        .await?)
    }

    /// Counts the results of each criterion by the run's models, without those that could not be computed.
    pub async fn criterion_counts(&self, run: &EvalRun) -> Result<Vec<CriterionCounts>> {
        Ok(sqlx::query_as(
            "select number % $2 as model, place, count(*) filter (where (result->>'passed')::boolean) as passed,
                    count(*) filter (where not (result->>'passed')::boolean) as failed
               from eval_output_items, jsonb_array_elements(results) with ordinality as each (result, place)
              where run = $1 and result->>'error' is null
              group by 1, place order by 1, place",
        )
        .bind(&run.id)
        .bind(run.answers())
        .fetch_all(&self.pool)
        .await?)
    }

    /// Sums the tokens that the run used, by model.
    pub async fn run_usage(&self, run: &EvalRun) -> Result<Vec<ModelUsage>> {
        Ok(sqlx::query_as(
            "select entry->>'model' as model, count(*) as requests, sum((entry->>'prompt')::bigint)::bigint as prompt,
                    sum((entry->>'completion')::bigint)::bigint as completion,
                    sum((entry->>'cached')::bigint)::bigint as cached
               from eval_output_items, jsonb_array_elements(usage) as each (entry)
              where run = $1 group by 1 order by 1",
        )
        .bind(&run.id)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Counts the items of two runs that are the same, by the place and the content, and have a result in both.
    pub async fn paired_counts(&self, first: &EvalRun, second: &EvalRun) -> Result<PairCounts> {
        Ok(sqlx::query_as(
            "select count(*) filter (where a.status = 'pass' and b.status = 'pass') as both,
                    count(*) filter (where a.status = 'pass' and b.status = 'fail') as only_first,
                    count(*) filter (where a.status = 'fail' and b.status = 'pass') as only_second,
                    count(*) filter (where a.status = 'fail' and b.status = 'fail') as neither
               from eval_output_items a join eval_output_items b on b.number = a.number and b.item = a.item
              where a.run = $1 and b.run = $2",
        )
        .bind(&first.id)
        .bind(&second.id)
        .fetch_one(&self.pool)
        .await?)
    }
}

impl Store {
    /// Sets each further model of a run beside its first one: the items that have a result with both, by criterion
    /// and by all criteria together.
    pub async fn model_pairs(&self, run: &EvalRun) -> Result<Vec<ModelPairs>> {
        Ok(sqlx::query_as(
            "with verdicts as materialized (
                 select number / $2 as item, number % $2 as model, 0::bigint as place, status = 'pass' as passed
                   from eval_output_items where run = $1 and status in ('pass', 'fail')
                 union all
                 select number / $2, number % $2, place, (result->>'passed')::boolean
                   from eval_output_items, jsonb_array_elements(results) with ordinality as each (result, place)
                  where run = $1 and result->>'error' is null
             )
             select b.model, b.place, count(*) filter (where a.passed and b.passed) as both,
                    count(*) filter (where a.passed and not b.passed) as only_first,
                    count(*) filter (where b.passed and not a.passed) as only_second,
                    count(*) filter (where not a.passed and not b.passed) as neither
               from verdicts a join verdicts b on b.item = a.item and b.place = a.place
              where a.model = 0 and b.model > 0
              group by b.model, b.place order by b.model, b.place",
        )
        .bind(&run.id)
        .bind(run.answers())
        .fetch_all(&self.pool)
        .await?)
    }
}

/// Replaces the character NUL, which Postgres stores in no JSON and a model may have written.
fn storable(value: Value) -> Value {
    match value {
        Value::String(text) if text.contains('\0') => text.replace('\0', "\u{fffd}").into(),
        Value::Array(values) => values.into_iter().map(storable).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name.replace('\0', "\u{fffd}"), storable(value))).collect()
        }
        value => value,
    }
}
