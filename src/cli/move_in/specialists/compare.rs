//! Asks the old model, the local base and the new model the prompts of a job. Each answer is kept as it comes, so that
//! a run that was killed asks for what is left; what the old model's answers cost is told before they are asked for.

use futures::stream::{self, StreamExt as _};
use serde_json::{Value, json};
use tiktoken_rs::{CoreBPE, cl100k_base_singleton, o200k_base_singleton};

use super::answers::{Answer, Answers, text_of};
use super::examples::{Examples, Question};
use super::prices::Prices;
use super::retrain::{self, name};
use super::{method_of, place, specialists};
use crate::cli::client::Failure;
use crate::cli::move_in::Move;
use crate::cli::move_in::account::Refusal;
use crate::cli::move_in::folder::OldJob;
use crate::cli::output::note;
use crate::cli::progress::Progress;
use crate::{Result, format};

/// Requests to the local server that wait for their answers at a time.
const IN_FLIGHT: usize = 4;
/// Tokens of an answer beside those that the longest answer of the file may have, and at the most.
const SPARE_TOKENS: usize = 32;
const MAX_TOKENS: usize = 4096;
/// Tokens of a request around its texts.
const REQUEST_TOKENS: usize = 8;
/// The name of the note why an old model does not answer.
const SILENT: &str = ".silent";

/// A job with what its models are asked.
pub(super) struct Comparison {
    pub job: OldJob,
    /// The local base that was trained, and the model that came of it.
    pub base: String,
    pub new_model: String,
    pub questions: Vec<Question>,
    pub answers: Answers,
}

impl Comparison {
    /// Reads what there is to compare for each job whose model is here.
    pub(super) fn all(work: &Move<'_>) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for job in specialists(work.folder)? {
            let Some(method) = method_of(&job) else { continue };
            let Some(entry) = work.ledger.carried().specialists.get(&job.id) else { continue };
            let Some(new_model) = entry.new_model.clone() else { continue };
            let questions = match retrain::prompts(work, &job)? {
                Some(path) => Examples::read(&path, method)?.questions(method, work.options.max_prompts),
                None => Vec::new(),
            };
            let answers = Answers::open(place(work.folder, &job, ".answers", "jsonl"))?;
            all.push(Self { base: entry.base.clone(), new_model, questions, answers, job });
        }
        Ok(all)
    }

    /// Returns the prompts that a model has not answered yet, each once.
    fn open(&self, model: &str) -> Vec<Question> {
        let mut seen = std::collections::HashSet::new();
        let is_open = |question: &&Question| {
            self.answers.of(model, &question.digest).is_none() && seen.insert(question.digest.clone())
        };
        self.questions.iter().filter(is_open).cloned().collect()
    }

    /// Returns the bound of an answer: what the longest answer of the file may take, and a little more.
    fn max_tokens(&self) -> usize {
        // A token has two bytes at the least, but for odd texts.
        let longest = self.questions.iter().map(|question| question.expected.len()).max().unwrap_or(0);
        (longest / 2 + SPARE_TOKENS).min(MAX_TOKENS)
    }

    fn request(&self, question: &Question, model: &str) -> Value {
        let mut body = question.body.clone();
        body.insert("model".into(), model.into());
        body.insert("temperature".into(), json!(0));
        let limit = if question.is_chat { "max_completion_tokens" } else { "max_tokens" };
        body.insert(limit.into(), json!(self.max_tokens()));
        body.into()
    }
}

/// Asks all models what they have not answered yet.
pub(in crate::cli::move_in) async fn compare(work: &mut Move<'_>) -> Result<()> {
    let mut all = Comparison::all(work)?;
    for comparison in &mut all {
        if comparison.questions.is_empty() {
            note(format_args!("{}: there are no prompts to compare on", name(&comparison.job)));
            continue;
        }
        for model in [comparison.base.clone(), comparison.new_model.clone()] {
            ask_here(work, comparison, &model).await?;
        }
    }
    tell_costs(work, &all)?;
    for comparison in &mut all {
        ask_there(work, comparison).await?;
    }
    Ok(())
}

/// Asks a model of the local server, several prompts at a time.
async fn ask_here(work: &Move<'_>, comparison: &mut Comparison, model: &str) -> Result<()> {
    let open = comparison.open(model);
    if open.is_empty() {
        return Ok(());
    }
    note(format_args!("{model} is asked {} prompts", open.len()));
    let progress = Progress::new(open.len(), 0);
    let requests: Vec<(Question, Value)> =
        open.into_iter().map(|question| (question.clone(), comparison.request(&question, model))).collect();
    let mut answers = Box::pin(
        stream::iter(requests)
            .map(|(question, body)| async move {
                let path: &[&str] = if question.is_chat { &["chat", "completions"] } else { &["completions"] };
                (question.digest, work.local.ask(path, &body).await)
            })
            .buffer_unordered(IN_FLIGHT),
    );
    let mut done = 0;
    while let Some((digest, answer)) = answers.next().await {
        let answer = match answer {
            Ok(answer) => read(model, digest, &answer),
            Err(Failure::Refused { message, is_at_fault: true, .. }) => fault(model, digest, message),
            Err(failure) => return Err(failure.into()),
        };
        comparison.answers.add(answer)?;
        done += 1;
        progress.reached(done);
    }
    progress.clear();
    Ok(())
}

/// Tells what the old models' answers cost that are not there yet, and what is to be done to get them.
fn tell_costs(work: &Move<'_>, all: &[Comparison]) -> Result<()> {
    let prices = Prices::read(work.options)?;
    let (mut prompts, mut money, mut unknown) = (0, 0.0, Vec::new());
    for comparison in all {
        let old = name(&comparison.job);
        let open = comparison.open(old);
        if open.is_empty() || silence(work, &comparison.job)?.is_some() {
            continue;
        }
        let table = tokenizer(&comparison.job.base);
        let count = |text: &str| table.encode_ordinary(text).len();
        let sent: usize = open.iter().map(|question| count(&question.texts()) + REQUEST_TOKENS).sum();
        let drawn: usize = open.iter().map(|question| count(&question.expected)).sum();
        prompts += open.len();
        let cost = if let Some(price) = prices.of(&comparison.job) {
            let cost = price.price.of_request(sent as u64, 0, drawn as u64);
            money += cost;
            format!("about {}, by {}", format::money(cost, &prices.currency), price.source)
        } else {
            unknown.push(old);
            "at a price that is not known".to_owned()
        };
        note(format_args!(
            "{old}: {} prompts, about {} tokens there and {} back, {cost}",
            open.len(),
            format::count(sent as f64),
            format::count(drawn as f64)
        ));
    }
    if prompts == 0 {
        return Ok(());
    }
    let without = if unknown.is_empty() { "" } else { ", without those whose price is not known" };
    let total = format!("{} in all{without}", format::money(money, &prices.currency));
    note(if !work.options.ask_old {
        format!("the old models are not asked: that would cost {total}; --ask-old asks them")
    } else if work.account.is_none() {
        "the old models are not asked: without the account's key, and with --from, nobody answers".into()
    } else {
        format!("the old models are asked {prompts} prompts: {total}")
    });
    Ok(())
}

/// Asks the old model, one prompt after the other, while it answers.
async fn ask_there(work: &Move<'_>, comparison: &mut Comparison) -> Result<()> {
    let Some(account) = work.account.filter(|_| work.options.ask_old) else { return Ok(()) };
    let old = name(&comparison.job).to_owned();
    let open = comparison.open(&old);
    let has_texts = open.iter().any(|question| !question.is_chat);
    if open.is_empty() || silence(work, &comparison.job)?.is_some() {
        return Ok(());
    }
    if has_texts {
        return silent(work, &comparison.job, "models that continue texts instead of chats are not asked over there");
    }
    let progress = Progress::new(open.len(), 0);
    for (done, question) in open.into_iter().enumerate() {
        let answer = match account.chat(&comparison.request(&question, &old)).await {
            Ok(answer) => read(&old, question.digest, &answer),
            Err(refusal @ Refusal::No { status: 404 | 410, .. }) => {
                progress.clear();
                note(format_args!("{old} no longer answers: the answers of its file stand alone"));
                return silent(
                    work,
                    &comparison.job,
                    &format!("the old model no longer answers: {}", refusal.message()),
                );
            }
            Err(Refusal::No { status: 403, message }) => {
                progress.clear();
                note(format_args!("{old} is not asked: {message}"));
                return Ok(());
            }
            Err(Refusal::No { status: 400 | 413 | 422, message }) => fault(&old, question.digest, message),
            Err(refusal) => return Err(refusal.into()),
        };
        comparison.answers.add(answer)?;
        progress.reached(done + 1);
    }
    progress.clear();
    Ok(())
}

/// Notes why an old model does not answer.
fn silent(work: &Move<'_>, job: &OldJob, reason: &str) -> Result<()> {
    work.folder.write(&place(work.folder, job, SILENT, "json"), &json!({"reason": reason}))
}

/// Returns why an old model does not answer; `None` if it is not known that it does not.
pub(super) fn silence(work: &Move<'_>, job: &OldJob) -> Result<Option<String>> {
    let noted = work.folder.read(&place(work.folder, job, SILENT, "json"))?;
    Ok(noted.and_then(|noted| noted["reason"].as_str().map(str::to_owned)))
}

fn read(model: &str, prompt: String, answer: &Value) -> Answer {
    let choice = &answer["choices"][0];
    let count = |name: &str| answer["usage"][name].as_u64().unwrap_or_default();
    let text = match choice["text"].as_str() {
        Some(text) => text.trim().to_owned(),
        None => text_of(&choice["message"]),
    };
    Answer {
        model: model.to_owned(),
        prompt,
        text,
        finish_reason: choice["finish_reason"].as_str().unwrap_or_default().to_owned(),
        prompt_tokens: count("prompt_tokens"),
        completion_tokens: count("completion_tokens"),
        fault: None,
    }
}

fn fault(model: &str, prompt: String, message: String) -> Answer {
    Answer { model: model.to_owned(), prompt, fault: Some(message), ..Answer::default() }
}

/// Returns the tokenizer of an old base: a newer one since gpt-4o.
fn tokenizer(base: &str) -> &'static CoreBPE {
    let base = base.strip_prefix("ft:").unwrap_or(base);
    let is_older =
        ["gpt-3.5", "gpt-4-", "babbage", "davinci"].iter().any(|name| base.starts_with(name)) || base == "gpt-4";
    if is_older { cl100k_base_singleton() } else { o200k_base_singleton() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_its_tokens() {
        let chat = json!({"choices": [{"message": {"content": " yes"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2}});
        let answer = read("m", "p".into(), &chat);
        assert_eq!((answer.text.as_str(), answer.prompt_tokens, answer.completion_tokens), ("yes", 5, 2));
        let text = read("m", "p".into(), &json!({"choices": [{"text": " no\n", "finish_reason": "length"}]}));
        assert_eq!((text.text.as_str(), text.finish_reason.as_str()), ("no", "length"));
    }

    #[test]
    fn each_base_has_its_tokenizer() {
        let text = "Wo liegt Kessing? 東京";
        let count = |base: &str| tokenizer(base).encode_ordinary(text).len();
        assert_eq!(count("gpt-4o-mini-2024-07-18"), o200k_base_singleton().encode_ordinary(text).len());
        assert_eq!(count("ft:gpt-4.1-mini-2025-04-14:acme::x"), count("gpt-4o-mini-2024-07-18"));
        assert_eq!(count("gpt-3.5-turbo-0125"), cl100k_base_singleton().encode_ordinary(text).len());
        assert_ne!(count("gpt-4-0613"), count("gpt-4o"));
    }
}
