//! The engine of models that another program runs: the [`Backend`] over a process of its own, for families that Attune's
//! decoder does not have. `app` starts one per such model, `api` hands it requests.
//!
//! The process gets token ids and gives token ids with their log probabilities ([`protocol`]). Everything else is done here,
//! as for Attune's own engine: queue, limits, grammars, stop texts, text. [`process`] starts the program, watches it and
//! starts it again; [`answers`] are those in flight, [`waiting`] those that have no place yet.

mod answers;
mod process;
pub mod protocol;
mod waiting;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use self::answers::{Answers, Request};
use self::process::Supervisor;
pub use self::process::{PROGRAM, find_program};
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
    /// Compute on the CPU although there is a GPU.
    pub on_cpu: bool,
}

/// The engine of one model in another process. Dropping it ends the process; requests in flight then fail with
/// [`Error::Unavailable`].
#[derive(Debug)]
pub struct ChildEngine {
    /// The model's id.
    id: String,
    admission: Admission,
    vocabulary_size: usize,
    answers: Arc<Answers>,
    _supervisor: Supervisor,
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
        // On a CPU, mistralrs 0.8.1 mixes up what it keeps of sequences that join and leave a step: answers change.
        let sequences = if settings.on_cpu { 1 } else { limits.max_sequences.unwrap_or(SEQUENCES) };
        let context = model.config.max_position_embeddings;
        // The cache is the other process's: it may hold one whole context at least.
        let blocks = context.div_ceil(attune_model::kv_cache::BLOCK_TOKENS);
        let admission = Admission::new(context, blocks, limits.max_waiting);
        let metrics = EngineMetrics::new(&id);
        let load = protocol::Load {
            version: protocol::VERSION,
            path: model.path.clone(),
            dtype: settings.dtype,
            quantize: settings.quantize,
            adapter: settings.adapter,
            on_cpu: settings.on_cpu,
            max_sequences: sequences,
            cache_mib: limits.kv_cache_mib.filter(|_| !settings.on_cpu),
        };
        let answers = Arc::new(Answers::new(model, sequences, limits, priority, metrics));
        let supervisor = Supervisor::start(settings.program, load, answers.clone())?;
        Ok(Self { id, admission, vocabulary_size, answers, _supervisor: supervisor })
    }

    fn check(&self, request: &mut GenerateRequest) -> Result<()> {
        let unfit = |what| Err(Error::NotOnThisEngine { model: self.id.clone(), what });
        if request.adapter.is_some() {
            return unfit("adapters");
        }
        if request.prompt_logprobs.is_some() {
            return unfit("log probabilities of the prompt");
        }
        request.max_tokens = self.admission.answer_tokens(request.prompt.len(), request.max_tokens)?;
        check_tokens(&request.prompt, self.vocabulary_size)
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
            let (prompt, max_tokens, logprobs) = (request.prompt.clone(), request.max_tokens, request.logprobs);
            let draw = protocol::Draw::of(&request.sampling);
            let answer = Answer::new(self.answers.tokenizer(), request, events, submitted)?;
            admitted.push(Request {
                organization,
                background,
                prompt,
                max_tokens,
                logprobs,
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

    fn stop(&self) {
        self.answers.stop();
    }
}

impl Drop for ChildEngine {
    fn drop(&mut self) {
        self.answers.stop();
    }
}
