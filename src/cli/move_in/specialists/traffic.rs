//! How much an old model is asked: as the flag says, or as the chats tell that are stored over there.

use super::SpecialistOptions;
use super::answers::Answers;
use super::examples::Question;
use crate::Result;
use crate::cli::move_in::folder::{Folder, OldCompletion};
use crate::costs::DAYS_PER_MONTH;

const SECONDS_PER_DAY: f64 = 86_400.0;
/// Requests that costs are told for where the traffic is not known.
pub(super) const UNIT: f64 = 1000.0;

/// Requests and tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Traffic {
    /// Requests in a month of 30 days; `None` if that is not known.
    pub requests_per_month: Option<f64>,
    /// Tokens of a request; `None` if nothing was ever answered.
    pub prompt_tokens: Option<f64>,
    pub completion_tokens: Option<f64>,
    /// Where the requests and the tokens are known from.
    pub source: String,
}

impl Traffic {
    /// Measures the traffic of `model`, whose `questions` it and `other` answered.
    pub(super) fn of(
        options: &SpecialistOptions,
        folder: &Folder,
        model: &str,
        other: &str,
        questions: &[Question],
        answers: &Answers,
    ) -> Result<Self> {
        let stored: Vec<OldCompletion> =
            folder.completions()?.into_iter().filter(|chat| chat.object["model"] == model).collect();
        let (mut requests_per_month, mut source) = match options.requests_per_month {
            Some(requests) => (Some(requests), "--requests-per-month".to_owned()),
            None => (None, "the number of requests is not known".to_owned()),
        };
        let times = stored.iter().filter_map(|chat| chat.object["created"].as_f64());
        let (first, last) = times.fold((f64::INFINITY, 0.0_f64), |(first, last), at| (first.min(at), last.max(at)));
        let days = (last - first) / SECONDS_PER_DAY;
        // Fewer days say nothing of a month.
        if requests_per_month.is_none() && days >= 1.0 {
            requests_per_month = Some(stored.len() as f64 / days * DAYS_PER_MONTH);
            source = format!(
                "{} chats stored within {days:.1} days; those that were not stored are not counted",
                stored.len()
            );
        }
        let usage =
            |name: &str| -> Vec<f64> { stored.iter().filter_map(|chat| chat.object["usage"][name].as_f64()).collect() };
        let asked = |model: &str| -> Vec<(f64, f64)> {
            let found = questions.iter().filter_map(|question| answers.of(model, &question.digest));
            let whole = found.filter(|answer| answer.fault.is_none() && answer.prompt_tokens > 0);
            whole.map(|answer| (answer.prompt_tokens as f64, answer.completion_tokens as f64)).collect()
        };
        let mut pairs: Vec<(f64, f64)> = usage("prompt_tokens").into_iter().zip(usage("completion_tokens")).collect();
        let mut whose = "the stored chats";
        for (model, called) in
            [(model, "the old model's answers"), (other, "the new model's answers, in its own tokens")]
        {
            if pairs.is_empty() {
                (pairs, whose) = (asked(model), called);
            }
        }
        let mean = |pick: fn(&(f64, f64)) -> f64| {
            (!pairs.is_empty()).then(|| pairs.iter().map(pick).sum::<f64>() / pairs.len() as f64)
        };
        if !pairs.is_empty() {
            source = format!("{source}; tokens by {whose}");
        }
        Ok(Self {
            requests_per_month,
            prompt_tokens: mean(|pair| pair.0),
            completion_tokens: mean(|pair| pair.1),
            source,
        })
    }
}
