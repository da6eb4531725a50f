//! What completions and chat share: sampling fields and their ranges, running many sequences at once, and turning their
//! events into one body or a stream.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;

use futures::stream::{self, BoxStream, SelectAll, Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;
use utoipa::ToSchema;

use crate::api::error::Problem;
use crate::api::target::{Target, count_tokens};
use crate::engine::{Event, FinishReason, GenerateRequest, Sampling};
use crate::{Error, Result};

/// One text or up to four.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum StopTexts {
    /// One text.
    One(String),
    /// Up to four texts.
    Many(Vec<String>),
}

impl StopTexts {
    /// The texts; at most four, none empty.
    pub fn check(stop: Option<Self>) -> Result<Vec<String>> {
        let texts = match stop {
            None => Vec::new(),
            Some(Self::One(text)) => vec![text],
            Some(Self::Many(texts)) => texts,
        };
        if texts.len() > 4 {
            let message = format!("'stop' has {} texts; at most 4 are allowed.", texts.len());
            return Err(Error::invalid_code("stop", "array_above_max_length", message));
        }
        if texts.iter().any(String::is_empty) {
            return Err(Error::invalid("stop", "'stop' must not hold an empty text."));
        }
        Ok(texts)
    }
}

/// The fields of a request that say how tokens are drawn.
#[derive(Debug, Default)]
pub struct SamplingFields<'a> {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub seed: Option<i64>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<&'a HashMap<String, f32>>,
}

impl SamplingFields<'_> {
    /// Checks the ranges for a model with `vocabulary` tokens.
    pub fn check(&self, vocabulary: usize) -> Result<Sampling> {
        let default = Sampling::default();
        let mut logit_bias = Vec::new();
        for (token, bias) in self.logit_bias.into_iter().flatten() {
            let id = token.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
                Error::invalid(
                    "logit_bias",
                    format!("'logit_bias' has the key '{token}', which is no token id of this model."),
                )
            })?;
            logit_bias.push((id, within("logit_bias", *bias, -100.0..=100.0)?));
        }
        // A map has no order, an engine's sums do.
        logit_bias.sort_unstable_by_key(|(id, _)| *id);
        Ok(Sampling {
            temperature: within("temperature", self.temperature.unwrap_or(default.temperature), 0.0..=2.0)?,
            top_p: within("top_p", self.top_p.unwrap_or(default.top_p), 0.0..=1.0)?,
            seed: self.seed.map(|seed| seed as u64),
            presence_penalty: within("presence_penalty", self.presence_penalty.unwrap_or(0.0), -2.0..=2.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty.unwrap_or(0.0), -2.0..=2.0)?,
            logit_bias,
        })
    }
}

fn within(param: &str, value: f32, range: RangeInclusive<f32>) -> Result<f32> {
    if range.contains(&value) {
        return Ok(value);
    }
    let message = format!("Invalid '{param}': {value} is not between {} and {}.", range.start(), range.end());
    Err(Error::invalid_code(param, "invalid_value", message))
}

/// The number of answers to each prompt.
pub fn check_n(n: Option<usize>, prompts: usize, waiting: usize) -> Result<usize> {
    let n = n.unwrap_or(1);
    if !(1..=128).contains(&n) {
        return Err(Error::invalid_code("n", "invalid_value", format!("Invalid 'n': {n} is not between 1 and 128.")));
    }
    if n * prompts > waiting {
        let message =
            format!("{prompts} prompts with {n} answers each are more than the {waiting} sequences of one request.");
        return Err(Error::invalid("n", message));
    }
    Ok(n)
}

/// A field that this server cannot honour yet: refused rather than ignored, since ignoring it would change the answer.
pub fn not_supported(param: &str) -> Error {
    let message = format!("'{param}' is not supported yet: leave it out.");
    Error::invalid_code(param, "unsupported_parameter", message)
}

/// Options of a streamed answer.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct StreamOptions {
    /// Send the usage in a last chunk without choices.
    pub include_usage: Option<bool>,
}

impl StreamOptions {
    /// True where the client asked for the usage chunk.
    pub fn wants_usage(options: Option<&Self>) -> bool {
        options.and_then(|options| options.include_usage).unwrap_or(false)
    }
}

/// Tokens of a request, prompts counted once.
#[expect(clippy::struct_field_names, reason = "the contract's names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens drawn.
    pub completion_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
}

/// The key `usage` of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum UsageKey {
    /// A stream without usage does not have the key.
    Absent,
    /// A stream with usage has it in every event, null until the last.
    Later,
    /// The numbers.
    Now(Usage),
}

impl UsageKey {
    /// True where the key is left out.
    pub fn is_absent(&self) -> bool {
        *self == Self::Absent
    }

    /// The key in an event before the last.
    pub fn before_the_last(wanted: bool) -> Self {
        if wanted { Self::Later } else { Self::Absent }
    }
}

/// The reason as clients read it.
pub const fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// What every sequence of a request has in common.
pub struct Plan {
    /// The model.
    pub target: Target,
    /// Token ids of each prompt.
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub n: usize,
    /// New tokens at the most.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

/// The finished answer to one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
}

/// A piece of one answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// More text, never empty.
    Text(String),
    /// The end.
    End(FinishReason),
}

/// One event of one sequence; `None` says that its channel closed.
type Tagged = (usize, Option<Event>);

/// All sequences of a request, running. Dropping it cancels them.
pub struct Running {
    /// Id of the base model, for the metrics.
    model: String,
    events: SelectAll<BoxStream<'static, Tagged>>,
    pieces: VecDeque<(usize, Piece)>,
    ended: Vec<bool>,
    prompt_tokens: usize,
    drawn_tokens: usize,
    completion_tokens: usize,
}

impl Plan {
    /// Queues every sequence; choice `prompt · n + j` is answer `j` to its prompt.
    pub fn start(self) -> Result<Running> {
        let Target { base, adapter } = &self.target;
        let prompt_tokens = self.prompts.iter().map(Vec::len).sum();
        let mut running = Running::new(base.model.id.clone(), self.prompts.len() * self.n, prompt_tokens);
        let limit = self.target.context();
        for (place, prompt) in self.prompts.into_iter().enumerate() {
            if prompt.len() + self.max_tokens > limit {
                return Err(Error::ContextLength { limit, prompt: prompt.len(), completion: self.max_tokens });
            }
            for j in 0..self.n {
                let index = place * self.n + j;
                if self.max_tokens == 0 {
                    running.end(index, FinishReason::Length);
                    continue;
                }
                let mut sampling = self.sampling.clone();
                // Answers to one prompt differ, and the same seed gives the same set of them.
                sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(j as u64));
                let receiver = base.backend.generate(GenerateRequest {
                    prompt: prompt.clone(),
                    adapter: adapter.clone(),
                    sampling,
                    max_tokens: self.max_tokens,
                    stop: self.stop.clone(),
                    stop_tokens: base.model.end_tokens.clone(),
                })?;
                running.watch(index, receiver);
            }
        }
        Ok(running)
    }
}

impl Running {
    fn new(model: String, choices: usize, prompt_tokens: usize) -> Self {
        Self {
            model,
            events: SelectAll::new(),
            pieces: VecDeque::new(),
            ended: vec![false; choices],
            prompt_tokens,
            drawn_tokens: 0,
            completion_tokens: 0,
        }
    }

    fn watch(&mut self, index: usize, events: UnboundedReceiver<Event>) {
        let closed = stream::once(std::future::ready((index, None)));
        let events = UnboundedReceiverStream::new(events).map(move |event| (index, Some(event)));
        self.events.push(events.chain(closed).boxed());
    }

    fn end(&mut self, index: usize, reason: FinishReason) {
        self.ended[index] = true;
        self.pieces.push_back((index, Piece::End(reason)));
    }

    /// The next piece of any answer; `None` when all have ended. Nothing of use follows a failure.
    pub async fn next(&mut self) -> Option<Result<(usize, Piece)>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(Ok(piece));
            }
            match self.events.next().await? {
                (index, Some(Event::Token { text, .. })) => {
                    self.drawn_tokens += 1;
                    self.push_text(index, text);
                }
                (index, Some(Event::Finished { text, reason, completion_tokens })) => {
                    self.completion_tokens += completion_tokens;
                    self.push_text(index, text);
                    self.end(index, reason);
                }
                (_, Some(Event::Failed(error))) => return Some(Err(error)),
                (index, None) if !self.ended[index] => {
                    return Some(Err(Error::Unavailable("The engine stopped before the answer was complete.".into())));
                }
                (_, None) => {}
            }
        }
    }

    fn push_text(&mut self, index: usize, text: String) {
        if !text.is_empty() {
            self.pieces.push_back((index, Piece::Text(text)));
        }
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
        }
    }

    /// Waits for all answers, in the order of their index.
    pub async fn collect(mut self) -> Result<(Vec<Answer>, Usage)> {
        let empty = Answer { text: String::new(), reason: FinishReason::Length };
        let mut answers = vec![empty; self.ended.len()];
        while let Some(piece) = self.next().await {
            match piece? {
                (index, Piece::Text(text)) => answers[index].text.push_str(&text),
                (index, Piece::End(reason)) => answers[index].reason = reason,
            }
        }
        Ok((answers, self.usage()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        count_tokens(&self.model, "prompt", self.prompt_tokens);
        count_tokens(&self.model, "completion", self.drawn_tokens.max(self.completion_tokens));
    }
}

/// How one resource writes the chunks of a streamed answer.
pub trait Chunks: Send + 'static {
    /// The chunk's form.
    type Chunk: Serialize;

    /// What comes before any text of choice `index`.
    fn begin(&self, index: usize) -> Option<Self::Chunk>;
    /// More text of choice `index`.
    fn text(&self, index: usize, text: String) -> Self::Chunk;
    /// The end of choice `index`.
    fn end(&self, index: usize, reason: &'static str) -> Self::Chunk;
    /// The last chunk, where the client asked for it.
    fn usage(&self, usage: Usage) -> Option<Self::Chunk>;
}

/// The answers as JSON documents, choices interleaved as their tokens arrive.
pub fn stream_chunks<C: Chunks>(running: Running, chunks: C) -> impl Stream<Item = Result<String, Problem>> + Send {
    let begin: VecDeque<_> =
        (0..running.ended.len()).filter_map(|index| chunks.begin(index)).map(|c| json(&c)).collect();
    stream::unfold(Some((running, chunks, begin)), |state| async move {
        let (mut running, chunks, mut begin) = state?;
        if let Some(document) = begin.pop_front() {
            return Some((document, Some((running, chunks, begin))));
        }
        let document = match running.next().await {
            Some(Ok((index, Piece::Text(text)))) => json(&chunks.text(index, text)),
            Some(Ok((index, Piece::End(reason)))) => json(&chunks.end(index, reason_name(reason))),
            Some(Err(error)) => return Some((Err(error.into()), None)),
            None => return chunks.usage(running.usage()).map(|chunk| (json(&chunk), None)),
        };
        Some((document, Some((running, chunks, begin))))
    })
}

/// A document of the API as text.
pub fn json(document: &impl Serialize) -> Result<String, Problem> {
    serde_json::to_string(document).map_err(|error| Error::Internal(format!("write JSON: {error}")).into())
}

/// Unix seconds.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A new id such as `cmpl-…`.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// Changes when the same seed may give another text.
pub const SYSTEM_FINGERPRINT: &str = concat!("fp_attune_", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_fields_have_the_ranges_of_the_contract() {
        let fields =
            SamplingFields { temperature: Some(0.0), top_p: Some(1.0), seed: Some(-1), ..SamplingFields::default() };
        let sampling = fields.check(10).expect("in range");
        assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (0.0, 1.0, Some(u64::MAX)));
        for fields in [
            SamplingFields { temperature: Some(2.1), ..SamplingFields::default() },
            SamplingFields { temperature: Some(f32::INFINITY), ..SamplingFields::default() },
            SamplingFields { top_p: Some(-0.1), ..SamplingFields::default() },
            SamplingFields { presence_penalty: Some(-2.5), ..SamplingFields::default() },
            SamplingFields { frequency_penalty: Some(3.0), ..SamplingFields::default() },
        ] {
            assert!(fields.check(10).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn logit_bias_takes_token_ids_of_the_model_only() {
        for (key, bias, fine) in [("3", 5.0, true), ("10", 5.0, false), ("foo", 0.0, false), ("3", 101.0, false)] {
            let map = HashMap::from([(key.to_owned(), bias)]);
            let fields = SamplingFields { logit_bias: Some(&map), ..SamplingFields::default() };
            assert_eq!(fields.check(10).is_ok(), fine, "{key} {bias}");
        }
    }

    #[test]
    fn stop_takes_up_to_four_texts() {
        let read = |json: &str| StopTexts::check(serde_json::from_str(json).expect("a stop"));
        assert_eq!(read("null").expect("none"), Vec::<String>::new());
        assert_eq!(read(r#""a""#).expect("one"), ["a"]);
        assert_eq!(read(r#"["a","b","c","d"]"#).expect("four").len(), 4);
        assert!(read(r#"["a","b","c","d","e"]"#).is_err());
        assert!(read(r#"[""]"#).is_err());
    }

    #[test]
    fn a_request_has_a_bounded_number_of_sequences() {
        assert_eq!(check_n(None, 3, 8).expect("default"), 1);
        assert_eq!(check_n(Some(4), 2, 8).expect("fits"), 4);
        assert!(
            check_n(Some(5), 2, 8).is_err() && check_n(Some(0), 1, 8).is_err() && check_n(Some(129), 1, 999).is_err()
        );
    }

    fn token(text: &str) -> Event {
        Event::Token { id: 1, text: text.into() }
    }

    fn finished(text: &str, completion_tokens: usize) -> Event {
        Event::Finished { text: text.into(), reason: FinishReason::Stop, completion_tokens }
    }

    /// Choices whose channels already hold all their events.
    fn running(choices: Vec<Vec<Event>>) -> Running {
        let mut running = Running::new("m".into(), choices.len(), 5);
        for (index, events) in choices.into_iter().enumerate() {
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            for event in events {
                sender.send(event).expect("the receiver lives");
            }
            running.watch(index, receiver);
        }
        running
    }

    #[tokio::test]
    async fn answers_are_gathered_by_index_and_usage_counts_the_prompt_once() {
        let choices = vec![vec![token("a"), token(""), finished("b", 2)], vec![token("c"), finished("", 1)]];
        let (answers, usage) = running(choices).collect().await.expect("answers");
        let texts: Vec<_> = answers.iter().map(|answer| answer.text.as_str()).collect();
        assert_eq!(texts, ["ab", "c"]);
        assert_eq!(usage, Usage { prompt_tokens: 5, completion_tokens: 3, total_tokens: 8 });
    }

    #[tokio::test]
    async fn a_failure_or_a_lost_engine_is_an_error_and_not_a_short_answer() {
        let failed = running(vec![vec![token("a"), Event::Failed(Error::Cancelled)]]).collect().await;
        assert!(matches!(failed, Err(Error::Cancelled)));
        let lost = running(vec![vec![token("a")]]).collect().await;
        assert!(matches!(lost, Err(Error::Unavailable(_))));
    }

    #[tokio::test]
    async fn dropping_the_answers_closes_every_channel() {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let mut running = Running::new("m".into(), 1, 1);
        running.watch(0, receiver);
        drop(running);
        assert!(sender.is_closed());
    }
}
