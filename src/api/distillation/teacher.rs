//! Who answers, and what it costs: a teacher of the configuration, or a model of this server, whose price is the
//! operator's or nothing.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::api::ApiState;
use crate::api::graders::ask::{self, Asker};
use crate::api::graders::judge::fill_all;
use crate::api::models::names::real_name;
use crate::graders::spec::{Grader, Kind, ModelGrader};
use crate::graders::template::Sample;
use crate::teachers::money::{Money, Price};
use crate::teachers::{self, Asked, Teacher};

/// Tokens of an answer at the most, of a model of this server that a request does not bound.
const MAX_TOKENS: u32 = 1024;
/// What the template of a model of this server adds to a prompt at the most, and what a message has beside its text.
const OVERHEAD: u64 = 256;
const OVERHEAD_OF_A_MESSAGE: u64 = 16;
/// Bytes of what a grader's model is told beside its messages: the form of its answer, twice.
const FORM: usize = 4096;

/// Answers prompts.
#[derive(Clone)]
pub(super) enum Who {
    /// A model of another server.
    Teacher(Teacher),
    /// A model of this server.
    Model { asker: Asker, name: String },
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub text: String,
    pub finish_reason: String,
    /// It says itself that it refuses.
    pub refuses: bool,
    /// Tokens of prompt and answer; `None` if nobody says.
    pub tokens: Option<(u64, u64)>,
}

/// What became of a question.
#[derive(Debug)]
pub(super) enum Outcome {
    Reply(Reply),
    Not(Asked),
}

impl Who {
    /// True for one whose bill comes from elsewhere: what was sent may have to be paid for.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Teacher(_))
    }

    /// Returns the most tokens that an answer may have.
    pub(super) fn max_tokens(&self, asked: Option<u32>) -> u32 {
        asked.unwrap_or(match self {
            Self::Teacher(teacher) => teacher.max_tokens(),
            Self::Model { .. } => MAX_TOKENS,
        })
    }

    /// Returns the most tokens that the prompt can have.
    pub(super) fn prompt_tokens_at_most(&self, messages: &[Value]) -> u64 {
        match self {
            Self::Teacher(teacher) => teacher.prompt_tokens_at_most(messages, 0),
            Self::Model { .. } => tokens_at_most(messages, 0),
        }
    }

    /// Waits until it is the turn of a question.
    pub(super) async fn turn(&self) {
        if let Self::Teacher(teacher) = self {
            teacher.turn().await;
        }
    }

    /// Asks once, when it is its turn. `seed` is for models of this server; `id` names the question for teachers that
    /// look at it.
    pub(super) async fn ask(&self, mut fields: Map<String, Value>, seed: u64, id: &str) -> Outcome {
        match self {
            Self::Teacher(teacher) => match teacher.chat(fields, Some(id)).await {
                Asked::Answered(answer) => {
                    let read = ask::Answer::read(&answer.body);
                    let refuses = answer.body["choices"][0]["message"]["refusal"].is_string();
                    let (text, finish_reason) = (read.text, read.finish_reason);
                    Outcome::Reply(Reply { text, finish_reason, refuses, tokens: answer.tokens })
                }
                other => Outcome::Not(other),
            },
            Self::Model { asker, name } => {
                fields.insert("model".into(), name.as_str().into());
                fields.insert("seed".into(), (seed >> 33).into());
                match asker.chat(&fields.into()).await {
                    Ok(answer) => {
                        let tokens = Some((answer.tokens.prompt, answer.tokens.completion));
                        let (text, finish_reason) = (answer.text, answer.finish_reason);
                        Outcome::Reply(Reply { text, finish_reason, refuses: false, tokens })
                    }
                    Err(why) => Outcome::Not(Asked::Refused(why)),
                }
            }
        }
    }
}

/// The prices of a job's models, by the names by which they are asked.
#[derive(Debug, Default)]
pub(super) struct Prices(HashMap<String, Price>);

impl Prices {
    /// Finds the prices of `models`, as the organisation may use them.
    pub(super) async fn of(state: &ApiState, organization: &str, models: &[&str]) -> Self {
        let mut prices = HashMap::new();
        for model in models {
            prices.insert((*model).to_owned(), price(state, organization, model).await);
        }
        Self(prices)
    }

    /// Returns the price of a model; nothing for one without a price.
    pub(super) fn get(&self, model: &str) -> Price {
        self.0.get(model).copied().unwrap_or_default()
    }
}

/// Returns what the tokens of `model` cost: a teacher's price, or that which the operator set for a model of this
/// server.
pub(crate) async fn price(state: &ApiState, organization: &str, model: &str) -> Price {
    if let Some(name) = teachers::named(model) {
        return state.teachers.get(name).map(Teacher::price).unwrap_or_default();
    }
    let real = real_name(state, organization, model).await.unwrap_or_else(|_| model.to_owned());
    let base = match state.catalog.get(&real) {
        Ok(_) => Some(real),
        Err(_) => state.store.usable_model(organization, &real).await.ok().map(|model| model.base),
    };
    let set = base.and_then(|base| state.config.prices.get(&base).copied());
    set.map(|set| Price::per_million(set.prompt, set.completion)).unwrap_or_default()
}

/// Returns the most that the graders can cost for an answer.
pub(super) fn grading_at_most(
    state: &ApiState,
    graders: &[Grader],
    item: &Value,
    sample: &Sample,
    prices: &Prices,
) -> Money {
    let parts = graders.iter().flat_map(|grader| match &grader.kind {
        Kind::Multi { graders, .. } => graders.iter().map(|(_, part)| part).collect::<Vec<_>>(),
        _ => vec![grader],
    });
    let of = |grader: &Grader| match &grader.kind {
        Kind::ScoreModel { model, .. } => asking(state, model, FORM, item, sample, prices),
        Kind::LabelModel { model, labels, .. } => {
            asking(state, model, FORM + 4 * json!(labels).to_string().len(), item, sample, prices)
        }
        _ => Money::NONE,
    };
    parts.map(of).sum()
}

fn asking(
    state: &ApiState,
    grader: &ModelGrader,
    form: usize,
    item: &Value,
    sample: &Sample,
    prices: &Prices,
) -> Money {
    let price = prices.get(&grader.model);
    // A template that cannot be filled in is not asked.
    let Ok(messages) = fill_all(&grader.messages, item, sample) else { return Money::NONE };
    let teacher = teachers::named(&grader.model).and_then(|name| state.teachers.get(name).ok());
    let asked = grader.sampling.0.get("max_completion_tokens").and_then(Value::as_u64);
    let (prompt, most) = match teacher {
        Some(teacher) => (teacher.prompt_tokens_at_most(&messages, form), teacher.max_tokens()),
        None => (tokens_at_most(&messages, form), MAX_TOKENS * 4),
    };
    price.of(prompt, asked.unwrap_or_else(|| most.into()))
}

/// Returns the most tokens that a model of this server can count in the messages and in `beside` bytes more.
fn tokens_at_most(messages: &[Value], beside: usize) -> u64 {
    let bytes: usize = messages.iter().map(|message| message.to_string().len()).sum();
    (bytes + beside) as u64 + messages.len() as u64 * OVERHEAD_OF_A_MESSAGE + OVERHEAD
}
