//! Runs graders on answers. Comparisons of texts are computed here, away from the threads that serve requests; models are
//! asked by [`Asker`], and code is run by [`Session`].

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::api::ApiState;
use crate::api::graders::ask::Asker;
use crate::api::graders::check::embedding_model;
use crate::api::graders::outcome::{Call, Failure, Judged};
use crate::api::graders::python::Session;
use crate::graders::expression::Expression;
use crate::graders::metrics::Metric;
use crate::graders::spec::{Grader, Kind, Message, ModelGrader};
use crate::graders::template::{Sample, Template};
use crate::off_thread::{Lost, off_thread};

/// Steps of reasoning of a model before its score, and characters of a part of one.
const MAX_STEPS: usize = 4;
const MAX_STEP_CHARACTERS: usize = 240;

/// Comparisons at a time: those of long texts take a core for seconds.
static COMPARISONS: Semaphore = Semaphore::const_new(2);

/// Runs graders for one caller.
pub(crate) struct Judge {
    asker: Asker,
    /// The model for embeddings where a grader names none.
    embeddings: Option<String>,
    /// Runs graders of the type `python`.
    code: Session,
}

impl Judge {
    /// Makes one for the answers of one request, run or job, which asks models by `asker`.
    pub(crate) fn new(state: &ApiState, asker: Asker) -> Self {
        let code = state.python_graders.session(asker.organization());
        Self { asker, embeddings: embedding_model(state).map(str::to_owned), code }
    }

    /// Returns the score of `sample`, an answer to `item`. A grader that fails has the score 0 and says why.
    pub(crate) async fn judge(&self, grader: &Grader, item: &Value, sample: &Sample) -> Judged {
        match &grader.kind {
            Kind::Multi { graders, formula } => self.combined(graders, formula, item, sample).await,
            kind => self.single(kind, item, sample).await,
        }
    }

    async fn combined(
        &self,
        graders: &[(String, Grader)],
        formula: &Expression,
        item: &Value,
        sample: &Sample,
    ) -> Judged {
        let mut all = Judged::default();
        for (name, grader) in graders {
            let judged = self.single(&grader.kind, item, sample).await;
            all.parts.insert(name.clone(), judged.score.into());
            all.failures.extend(judged.failures);
            all.calls.extend(judged.calls);
        }
        match formula.evaluate(&|name| all.parts.get(name).and_then(Value::as_f64)) {
            Some(score) => all.score = score,
            None => all.failures.push(Failure::Other("The formula's value is not a number.".into())),
        }
        all
    }

    async fn single(&self, kind: &Kind, item: &Value, sample: &Sample) -> Judged {
        let mut calls = Vec::new();
        let score = match kind {
            Kind::StringCheck { input, reference, operation } => filled([input, reference], item, sample)
                .map(|[input, reference]| f64::from(u8::from(operation.holds(&input, &reference)))),
            Kind::TextSimilarity { input, reference, metric, model } => {
                match filled([input, reference], item, sample) {
                    Ok(texts) => self.similarity(*metric, model.as_deref(), texts, &mut calls).await,
                    Err(failure) => Err(failure),
                }
            }
            Kind::ScoreModel { model, range } => {
                let schema = with_steps("result", &json!({"type": "number"}));
                let (low, high) = *range;
                let wanted = format!("'result' is a number from {low} to {high}.");
                let answer = self.ask(model, &schema, &wanted, item, sample, &mut calls).await;
                answer.and_then(|answer| {
                    let number = answer["result"].as_f64().ok_or_else(|| no_result(&answer))?;
                    Ok(number.clamp(low, high))
                })
            }
            Kind::LabelModel { model, labels, passing } => {
                let schema = object(&json!({"result": {"type": "string", "enum": labels}}), &["result"]);
                let wanted = format!("'result' is one of {}.", Value::from(labels.clone()));
                let answer = self.ask(model, &schema, &wanted, item, sample, &mut calls).await;
                answer.and_then(|answer| {
                    let label = answer["result"].as_str().ok_or_else(|| no_result(&answer))?;
                    Ok(f64::from(u8::from(passing.iter().any(|passing| passing == label))))
                })
            }
            Kind::Python { source } => self.code.grade(source, item, sample).await,
            Kind::Multi { .. } => Err(Failure::Other("A 'multi' grader cannot be a part of another one.".into())),
        };
        match score {
            Ok(score) => Judged { calls, ..Judged::of(score) },
            Err(failure) => Judged { calls, failures: vec![failure], ..Judged::default() },
        }
    }

    async fn similarity(
        &self,
        metric: Metric,
        model: Option<&str>,
        texts: [String; 2],
        calls: &mut Vec<Call>,
    ) -> Result<f64, Failure> {
        let shared = Arc::new(texts);
        let compared = Arc::clone(&shared);
        let compare = move || -> Result<Option<f64>, Failure> {
            let [text, reference] = &*compared;
            metric.compare(text, reference).map_err(|error| Failure::Other(error.to_string()))
        };
        let place = COMPARISONS.acquire().await;
        let compared = off_thread("compare texts", compare).await?;
        drop(place);
        if let Some(score) = compared {
            return Ok(score);
        }
        let model = model.or(self.embeddings.as_deref());
        let model = model.ok_or_else(|| Failure::Other("There is no model for embeddings.".into()))?;
        let [text, reference] = &*shared;
        let (cosine, tokens) = self.asker.cosine(model, [text, reference]).await.map_err(Failure::ModelUnavailable)?;
        calls.push(Call { model: model.to_owned(), tokens, sample: Value::Null });
        // Opposite meanings are as unlike as unrelated ones: a score is not below 0.
        Ok(cosine.clamp(0.0, 1.0))
    }

    /// Asks the model and returns the JSON that it answers.
    async fn ask(
        &self,
        model: &ModelGrader,
        schema: &Value,
        wanted: &str,
        item: &Value,
        sample: &Sample,
        calls: &mut Vec<Call>,
    ) -> Result<Value, Failure> {
        let mut messages = fill_all(&model.messages, item, sample)?;
        let told = format!("Answer with a JSON object that follows this schema: {schema}. {wanted}");
        match messages.last_mut().filter(|last| last["role"] == "user") {
            Some(last) => {
                let text = format!("{}\n\n{told}", last["content"].as_str().unwrap_or_default());
                last["content"] = text.into();
            }
            None => messages.push(json!({"role": "user", "content": told})),
        }
        let mut body = model.sampling.0.clone();
        body.insert("model".into(), model.model.as_str().into());
        body.insert("messages".into(), messages.clone().into());
        body.insert(
            "response_format".into(),
            json!({"type": "json_schema", "json_schema": {"name": "grade", "schema": schema, "strict": true}}),
        );
        let answer = self.asker.chat(&body.into()).await.map_err(Failure::ModelUnavailable)?;
        let parsed = serde_json::from_str(&answer.text).map_err(|_| {
            Failure::ModelAnswer(format!(
                "The model's answer is not whole JSON (it ended by '{}').",
                answer.finish_reason
            ))
        });
        let output = json!([{"role": "assistant", "content": answer.text}]);
        calls.push(Call {
            model: answer.model,
            tokens: answer.tokens,
            sample: json!({"input": messages, "output": output, "finish_reason": answer.finish_reason}),
        });
        parsed
    }
}

/// Fills in a conversation.
pub(crate) fn fill_all(messages: &[Message], item: &Value, sample: &Sample) -> Result<Vec<Value>, Failure> {
    Ok(messages.iter().map(|message| message.fill(item, sample)).collect::<Result<_, _>>()?)
}

fn filled(templates: [&Template; 2], item: &Value, sample: &Sample) -> Result<[String; 2], Failure> {
    let [input, reference] = templates;
    Ok([input.fill(item, sample)?, reference.fill(item, sample)?])
}

fn no_result(answer: &Value) -> Failure {
    Failure::ModelAnswer(format!("The model's answer has no 'result' of the right type: {answer}"))
}

/// Returns the schema of an object that has `fields` and no others.
fn object(fields: &Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": fields, "required": required, "additionalProperties": false})
}

/// Returns the schema of an object with a few steps of reasoning before the field `name`.
fn with_steps(name: &str, schema: &Value) -> Value {
    let text = json!({"type": "string", "maxLength": MAX_STEP_CHARACTERS});
    let step = object(&json!({"description": text, "conclusion": text}), &["description", "conclusion"]);
    let mut fields = Map::new();
    fields.insert("steps".into(), json!({"type": "array", "items": step, "maxItems": MAX_STEPS}));
    fields.insert(name.into(), schema.clone());
    object(&fields.into(), &["steps", name])
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        tracing::error!("{lost}");
        Self::Other("The comparison failed.".into())
    }
}
