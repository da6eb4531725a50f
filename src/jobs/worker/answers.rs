//! Asks the base and the fine-tuned model the first prompts of the validation file and writes their answers into an
//! event at the end of a job: the quickest look at what was learned. Called by [`super::job_run`] before the model is
//! published.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use super::Worker;
use super::lease::Control;
use crate::datasets::parse::shorten;
use crate::engine::stops::StopTexts;
use crate::engine::{Backend, Event, FinishReason, GenerateRequest, Sampling};
use crate::jobs::Job;
use crate::jobs::{Error, Result};
use crate::model::BaseModel;
use crate::model::lora::{Adapter, AdapterLease};
use crate::train::Question;

/// Most tokens of an answer.
const ANSWER_TOKENS: usize = 64;
/// Longest time that a job waits for the answers; on a busy server it ends without them.
const LIMIT: Duration = Duration::from_mins(1);
/// Time between checks of a waiting job for a request to stop.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Most characters of a text in the event's data: of prompts the last ones, which hold the question, else the first.
const SHOWN: usize = 500;
/// Sign in place of what is cut off.
const CUT: &str = "…";

impl Worker {
    /// Asks both models and writes an event with their answers. Leaves out questions that fail: the job does not depend
    /// on them.
    pub(super) async fn tell_answers(
        &self,
        job: &Job,
        base: &str,
        adapter: &Arc<Adapter>,
        questions: &[Question],
        control: &Control,
    ) {
        let Ok(entry) = self.catalog.get(base) else { return };
        let (model, backend) = (&entry.model, entry.backend.as_ref());
        let ask = |question: &Question, adapter: Option<&AdapterLease>| {
            answer(backend, model, &job.organization, question.prompt.clone(), adapter.cloned())
        };
        let both = questions
            .iter()
            .map(|question| futures::future::try_join(ask(question, None), ask(question, Some(adapter))));
        let interrupted = async {
            while control.raised().is_none() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let answers = tokio::select! {
            biased;
            () = interrupted => return,
            () = tokio::time::sleep(LIMIT) => {
                return tracing::debug!(job = job.id, "the answers to validation prompts took too long");
            }
            answers = join_all(both) => answers,
        };
        let mut message = String::new();
        let mut data = Vec::new();
        for (question, answers) in questions.iter().zip(answers) {
            let (own, tuned) = match answers {
                Ok(answers) => answers,
                Err(error) => {
                    tracing::debug!(job = job.id, "a validation prompt cannot be asked: {error}");
                    continue;
                }
            };
            let text = |tokens: &[u32]| model.tokenizer.decode(tokens, true).map(|text| printable(&text));
            let (Ok(prompt), Ok(expected)) = (text(&question.prompt), text(&question.answer)) else { continue };
            let (own, tuned) = (printable(&own), printable(&tuned));
            let _ = write!(
                message,
                " ({}) base: {:?}, fine-tuned: {:?}, expected: {:?}.",
                data.len() + 1,
                shorten(&own),
                shorten(&tuned),
                shorten(expected.trim())
            );
            data.push(json!({
                "prompt": last_characters(&prompt),
                "expected": first_characters(&expected),
                "base": first_characters(&own),
                "fine_tuned": first_characters(&tuned),
            }));
        }
        if !data.is_empty() {
            let message = format!("Answers to {} validation prompts:{message}", data.len());
            self.say(job, "info", &message, Some(json!({"answers": data}))).await;
        }
    }
}

/// Generates the most probable answer.
async fn answer(
    backend: &dyn Backend,
    model: &BaseModel,
    organization: &str,
    prompt: Vec<u32>,
    adapter: Option<AdapterLease>,
) -> Result<String> {
    let mut events = backend.generate(GenerateRequest {
        organization: organization.into(),
        prompt: prompt.into(),
        adapter,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: ANSWER_TOKENS,
        stop: StopTexts::default(),
        stop_tokens: model.end_tokens.clone(),
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        background: false,
    })?;
    let mut answer = String::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Prompt { .. } => {}
            Event::Token { text, .. } => answer += &text,
            Event::Finished { text, reason, .. } => {
                let cut = if reason == FinishReason::Length { CUT } else { "" };
                return Ok(answer + &text + cut);
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    Err(Error::Unavailable("the engine stopped in the middle of an answer"))
}

/// Replaces NUL, which the database cannot store.
pub(super) fn printable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn first_characters(text: &str) -> String {
    let cut = if text.chars().nth(SHOWN).is_some() { CUT } else { "" };
    text.chars().take(SHOWN).chain(cut.chars()).collect()
}

fn last_characters(text: &str) -> String {
    let skipped = text.chars().count().saturating_sub(SHOWN);
    let cut = if skipped > 0 { CUT } else { "" };
    cut.chars().chain(text.chars().skip(skipped)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_where_they_matter_least() {
        let text = format!("{}é", "a".repeat(SHOWN));
        assert_eq!(first_characters(&text), format!("{}…", "a".repeat(SHOWN)));
        let last = last_characters(&text);
        assert!(last.starts_with("…a") && last.ends_with("aé") && last.chars().count() == SHOWN + 1, "{last}");
        assert_eq!((first_characters("é"), last_characters("é")), ("é".into(), "é".into()));
        assert_eq!(printable("a\0b"), "a\u{fffd}b");
    }
}
