//! Fields of a request that completions and chat share, and their ranges: sampling and the number of answers.

use serde::Deserialize;
use utoipa::ToSchema;

use super::bias::LogitBias;
use crate::api::http::error::{Problem, Result};
use crate::api::operations::checks::within;
use crate::engine::Sampling;
use crate::model::generation::GenerationDefaults;
use crate::model::sampling_settings::kept_tokens;

/// The fields of a request that say how tokens are drawn.
#[derive(Debug, Default)]
pub(crate) struct SamplingFields<'a> {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub seed: Option<i64>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub logit_bias: Option<&'a LogitBias>,
}

impl SamplingFields<'_> {
    /// Returns the sampling settings, checked for a model with `vocabulary` tokens; what the request leaves out is as
    /// `defaults` say.
    pub(crate) fn check(&self, vocabulary: usize, defaults: &GenerationDefaults) -> Result<Sampling> {
        Ok(Sampling {
            temperature: within("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(defaults.temperature),
            top_p: within("top_p", self.top_p, 0.0, 1.0)?.unwrap_or(defaults.top_p),
            top_k: self.top_k()?.unwrap_or(defaults.top_k),
            min_p: within("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(defaults.min_p),
            seed: self.seed.map(|seed| seed as u64),
            presence_penalty: penalty("presence_penalty", self.presence_penalty, defaults.presence_penalty)?,
            frequency_penalty: penalty("frequency_penalty", self.frequency_penalty, defaults.frequency_penalty)?,
            repetition_penalty: self.repetition_penalty()?.unwrap_or(defaults.repetition_penalty),
            logit_bias: self.logit_bias.map(|bias| bias.check(vocabulary)).transpose()?.unwrap_or_default(),
        })
    }

    /// Returns the number of tokens to draw among; 0 for all tokens, which clients also write as -1.
    fn top_k(&self) -> Result<Option<usize>> {
        let kept = |count: i64| {
            kept_tokens(count).ok_or_else(|| {
                let message = format!("Invalid 'top_k': {count} is no number of tokens; 0 and -1 keep all.");
                Problem::invalid_code("top_k", "invalid_value", message)
            })
        };
        self.top_k.map(kept).transpose()
    }

    fn repetition_penalty(&self) -> Result<Option<f32>> {
        match self.repetition_penalty {
            Some(penalty) if !(penalty > 0.0 && penalty.is_finite()) => {
                let message = format!("Invalid 'repetition_penalty': {penalty} is not above 0; 1 changes nothing.");
                Err(Problem::invalid_code("repetition_penalty", "invalid_value", message))
            }
            penalty => Ok(penalty),
        }
    }
}

fn penalty(param: &str, value: Option<f32>, default: f32) -> Result<f32> {
    Ok(within(param, value, -2.0, 2.0)?.unwrap_or(default))
}

/// Returns how many tokens an answer may have: `asked` by the field `param`, else `usual` or the longest answer of the
/// model, whichever is less. Refuses to be asked for more than that longest answer, which is never cut in silence.
pub(crate) fn check_max_tokens(
    param: &str,
    asked: Option<usize>,
    usual: usize,
    defaults: &GenerationDefaults,
) -> Result<usize> {
    match (asked, defaults.max_answer_tokens) {
        (Some(asked), Some(longest)) if asked > longest => {
            let message = format!(
                "Invalid '{param}': {asked} is too large, because this model's answers have at most {longest} tokens \
                 on this server."
            );
            Err(Problem::invalid_code(param, "invalid_value", message))
        }
        (Some(asked), _) => Ok(asked),
        (None, _) => Ok(usual.min(defaults.max_tokens)),
    }
}

/// Returns the number of answers to each prompt; a request has at most `waiting` sequences.
pub(crate) fn check_n(n: Option<usize>, prompts: usize, waiting: usize) -> Result<usize> {
    let n = within("n", n, 1, 128)?.unwrap_or(1);
    if n * prompts > waiting {
        let message =
            format!("{prompts} prompts with {n} answers each are more than the {waiting} sequences of one request.");
        return Err(Problem::invalid("n", message));
    }
    Ok(n)
}

/// Options of a streamed answer.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct StreamOptions {
    /// Send the usage in a last chunk without choices.
    pub include_usage: Option<bool>,
}

impl StreamOptions {
    /// Returns true if the client asked for the usage chunk.
    pub(crate) fn wants_usage(options: Option<&Self>) -> bool {
        options.and_then(|options| options.include_usage).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::ModelEntry;

    /// Defaults of a model that has none of its own.
    fn defaults() -> GenerationDefaults {
        let entry = ModelEntry { generation_config: false, ..ModelEntry::new("m", "nowhere") };
        GenerationDefaults::read(&entry, 8192).expect("nothing is read")
    }

    #[test]
    fn what_a_request_leaves_out_is_as_the_model_has_it_and_its_own_values_win() {
        let defaults = GenerationDefaults { temperature: 0.3, top_k: 7, repetition_penalty: 1.2, ..defaults() };
        let sampling = SamplingFields::default().check(10, &defaults).expect("in range");
        assert_eq!((sampling.temperature, sampling.top_k, sampling.repetition_penalty), (0.3, 7, 1.2));
        let own = SamplingFields { top_k: Some(0), temperature: Some(1.0), ..SamplingFields::default() };
        let own = own.check(10, &defaults).expect("in range");
        assert_eq!((own.temperature, own.top_k, own.repetition_penalty), (1.0, 0, 1.2));
    }

    #[test]
    fn an_answer_is_never_longer_than_the_operator_says_and_a_larger_number_is_refused() {
        let asked = |asked, defaults: &GenerationDefaults| check_max_tokens("max_tokens", asked, 16, defaults).ok();
        let (free, suggested) = (defaults(), GenerationDefaults { max_tokens: 5, ..defaults() });
        let bounded = GenerationDefaults { max_answer_tokens: Some(5), ..suggested.clone() };
        for (number, of_free, of_suggested, of_bounded) in [
            (None, Some(16), Some(5), Some(5)),
            (Some(0), Some(0), Some(0), Some(0)),
            (Some(5), Some(5), Some(5), Some(5)),
            (Some(6), Some(6), Some(6), None),
        ] {
            let found = [&free, &suggested, &bounded].map(|defaults| asked(number, defaults));
            assert_eq!(found, [of_free, of_suggested, of_bounded], "{number:?}");
        }
    }

    #[test]
    fn sampling_fields_have_the_ranges_of_the_contract() {
        let fields =
            SamplingFields { temperature: Some(0.0), top_p: Some(1.0), seed: Some(-1), ..SamplingFields::default() };
        let sampling = fields.check(10, &defaults()).expect("in range");
        assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (0.0, 1.0, Some(u64::MAX)));
        for fields in [
            SamplingFields { temperature: Some(2.1), ..SamplingFields::default() },
            SamplingFields { temperature: Some(f32::INFINITY), ..SamplingFields::default() },
            SamplingFields { top_p: Some(-0.1), ..SamplingFields::default() },
            SamplingFields { presence_penalty: Some(-2.5), ..SamplingFields::default() },
            SamplingFields { frequency_penalty: Some(3.0), ..SamplingFields::default() },
            SamplingFields { top_k: Some(-2), ..SamplingFields::default() },
            SamplingFields { min_p: Some(1.5), ..SamplingFields::default() },
            SamplingFields { repetition_penalty: Some(0.0), ..SamplingFields::default() },
            SamplingFields { repetition_penalty: Some(f32::INFINITY), ..SamplingFields::default() },
        ] {
            assert!(fields.check(10, &defaults()).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn all_tokens_are_kept_by_zero_minus_one_and_silence() {
        for (top_k, kept) in [(None, 0), (Some(0), 0), (Some(-1), 0), (Some(40), 40)] {
            let fields = SamplingFields { top_k, ..SamplingFields::default() };
            assert_eq!(fields.check(10, &defaults()).expect("in range").top_k, kept);
        }
    }

    #[test]
    fn a_request_has_a_bounded_number_of_sequences() {
        assert_eq!(check_n(None, 3, 8).expect("default"), 1);
        assert_eq!(check_n(Some(4), 2, 8).expect("fits"), 4);
        assert!(
            check_n(Some(5), 2, 8).is_err() && check_n(Some(0), 1, 8).is_err() && check_n(Some(129), 1, 999).is_err()
        );
    }
}
