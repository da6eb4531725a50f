//! The engine of models that another program runs: the [`Backend`] over a process of its own, for families that Attune's
//! decoder does not have. `app` starts one per such model, `api` hands it requests.
//!
//! The process gets token ids and gives token ids with their log probabilities ([`protocol`]). Everything else is done here,
//! as for Attune's own engine: queue, limits, grammars, stop texts, text. [`process`] starts the program, watches it and
//! starts it again, and [`standing`] tells how it stands; [`answers`] are those in flight, [`waiting`] those that have no
//! place yet.

mod answers;
mod process;
pub mod protocol;
pub mod standing;
mod waiting;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use self::answers::{Answers, Request};
use self::process::Supervisor;
pub use self::process::{PROGRAM, find_program};
use self::standing::Standing;
use super::admission::Admission;
use super::metrics::EngineMetrics;
use super::priority::Priority;
use super::request::Answer;
use super::rows::check_tokens;
use super::{Backend, EmbedRequest, Event, GenerateRequest, Vectors};
use crate::limits::EngineLimits;
use crate::{Error, Result};
use attune_model::BaseModel;

/// Sequences that run at the same time on a GPU where the operator does not say.
const SEQUENCES: usize = 16;
/// Bytes of the logits of a prompt whose tokens' log probabilities are asked for: mistralrs holds all rows at once.
const MOST_LOGITS: usize = 2 << 30;

/// How the program is started and what it loads.
#[derive(Debug, Clone)]
pub struct ChildSettings {
    /// The program `attune-mistralrs`.
    pub program: PathBuf,
    /// Type of the weights in memory, by its name; `None` for the device's usual one.
    pub dtype: Option<String>,
    /// Block format to quantize to at load.
    pub quantize: Option<String>,
    /// Folder of a PEFT adapter that is added to the weights at load.
    pub adapter: Option<PathBuf>,
    /// Index of the GPU that computes; `None` for the CPU.
    pub gpu: Option<usize>,
    /// Bytes of the weights' files.
    pub weights_bytes: u64,
}

/// The engine of one model in another process. Dropping it ends the process; requests in flight then fail with
/// [`Error::Unavailable`].
#[derive(Debug)]
pub struct ChildEngine {
    /// The model's id.
    id: String,
    admission: Admission,
    vocabulary_size: usize,
    /// Most tokens of a prompt whose log probabilities are told.
    scored_tokens: usize,
    /// Tokens that no prompt may have.
    media_tokens: Vec<u32>,
    answers: Arc<Answers>,
    supervisor: Supervisor,
}

impl ChildEngine {
    /// Starts the program for `model` and waits until it has loaded the model. Slow: call it off the async threads.
    ///
    /// Fails with [`Error::Setup`] if the program cannot be started or cannot load the model.
    pub fn start(
        model: Arc<BaseModel>,
        settings: ChildSettings,
        limits: &EngineLimits,
        priority: Arc<Priority>,
    ) -> Result<Self> {
        let (id, vocabulary_size) = (model.id.clone(), model.config.vocab_size);
        let scored_tokens = (MOST_LOGITS / size_of::<f32>() / vocabulary_size.max(1)).max(1);
        let media_tokens = model.media_tokens.clone();
        let (context, metrics) = (model.config.max_position_embeddings, EngineMetrics::new(&id));
        let load = load(model.path.clone(), &settings, limits);
        let sequences = load.max_sequences;
        let answers = Arc::new(Answers::new(model, sequences, limits, priority, metrics));
        let supervisor = Supervisor::start(settings, load, answers.clone())?;
        // On a GPU it may have less room for keys and values than the model's context takes.
        let context = context.min(supervisor.context);
        // The cache is the other process's: it holds one whole context at least.
        let blocks = context.div_ceil(attune_model::kv_cache::BLOCK_TOKENS);
        let admission = Admission::new(context, blocks, limits.max_waiting);
        Ok(Self { id, admission, vocabulary_size, scored_tokens, media_tokens, answers, supervisor })
    }

    fn check(&self, request: &mut GenerateRequest) -> Result<()> {
        let unfit = |what| Err(Error::NotOnThisEngine { model: self.id.clone(), what });
        if request.adapter.is_some() {
            return unfit("adapters");
        }
        if request.prompt_logprobs.is_some() && request.prompt.len() > self.scored_tokens {
            return Err(Error::PromptTooLongToScore { model: self.id.clone(), most: self.scored_tokens });
        }
        if let Some(token) = request.prompt.iter().find(|token| self.media_tokens.contains(token)) {
            return Err(Error::MediaToken { model: self.id.clone(), token: *token });
        }
        request.max_tokens = self.admission.answer_tokens(request.prompt.len(), request.max_tokens)?;
        check_tokens(&request.prompt, self.vocabulary_size)
    }
}

/// Returns what the program is told to load, and how.
fn load(path: PathBuf, settings: &ChildSettings, limits: &EngineLimits) -> protocol::Load {
    let on_cpu = settings.gpu.is_none();
    protocol::Load {
        version: protocol::VERSION,
        path,
        dtype: settings.dtype.clone(),
        quantize: settings.quantize.clone(),
        adapter: settings.adapter.clone(),
        on_cpu,
        // On a CPU, mistralrs 0.8.1 mixes up what it keeps of sequences that join and leave a step: answers change.
        max_sequences: if on_cpu { 1 } else { limits.max_sequences.unwrap_or(SEQUENCES) },
        cache_mib: limits.kv_cache_mib.filter(|_| !on_cpu),
    }
}

impl Backend for ChildEngine {
    fn generate(&self, request: GenerateRequest) -> Result<UnboundedReceiver<Event>> {
        self.generate_all(vec![request]).map(|mut receivers| receivers.remove(0))
    }

    fn generate_all(&self, mut requests: Vec<GenerateRequest>) -> Result<Vec<UnboundedReceiver<Event>>> {
        requests.iter_mut().try_for_each(|request| self.check(request))?;
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let admission = self.admission.of(first.background);
        let tickets = admission.enter_many(&first.organization, requests.len())?;
        let submitted = Instant::now();
        let mut receivers = Vec::with_capacity(requests.len());
        let mut admitted = Vec::with_capacity(requests.len());
        for (request, ticket) in requests.into_iter().zip(tickets) {
            let (events, receiver) = unbounded_channel();
            receivers.push(receiver);
            let (organization, background) = (request.organization.clone(), request.background);
            let (prompt, max_tokens, ends) = (request.prompt.clone(), request.max_tokens, request.stop_tokens.clone());
            let (logprobs, prompt_logprobs) = (request.logprobs, request.prompt_logprobs);
            let draw = protocol::Draw::of(&request.sampling);
            let answer = Answer::new(self.answers.tokenizer(), request, events, submitted)?;
            admitted.push(Request {
                organization,
                background,
                prompt,
                max_tokens,
                logprobs,
                prompt_logprobs,
                ends,
                draw,
                answer,
                ticket,
                submitted,
            });
        }
        self.answers.submit(admitted)?;
        Ok(receivers)
    }

    fn embed(&self, _: EmbedRequest) -> Vectors<'_> {
        let error = Error::NotOnThisEngine { model: self.id.clone(), what: "vectors of texts" };
        Box::pin(async move { Err(error) })
    }

    fn standing(&self) -> Option<Standing> {
        Some(self.supervisor.standing())
    }

    fn stop(&self) {
        self.answers.stop();
    }
}

impl Drop for ChildEngine {
    fn drop(&mut self) {
        self.answers.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paged_attention_and_many_sequences_are_for_a_gpu() {
        let settings = ChildSettings {
            program: "attune-mistralrs".into(),
            dtype: Some("bf16".into()),
            quantize: Some("q4_k".into()),
            adapter: None,
            gpu: Some(1),
            weights_bytes: 0,
        };
        let limits = EngineLimits { kv_cache_mib: Some(512), max_sequences: None, ..EngineLimits::default() };
        let on_gpu = load("model".into(), &settings, &limits);
        assert_eq!((on_gpu.on_cpu, on_gpu.max_sequences, on_gpu.cache_mib), (false, SEQUENCES, Some(512)));
        assert_eq!((on_gpu.dtype.as_deref(), on_gpu.quantize.as_deref()), (Some("bf16"), Some("q4_k")));
        let chosen = EngineLimits { max_sequences: Some(3), ..limits.clone() };
        assert_eq!(load("model".into(), &settings, &chosen).max_sequences, 3);
        let on_cpu = load("model".into(), &ChildSettings { gpu: None, ..settings }, &chosen);
        assert_eq!((on_cpu.on_cpu, on_cpu.max_sequences, on_cpu.cache_mib), (true, 1, None));
    }
}
