//! The engine of encoders: the [`Backend`] over models that read whole texts and generate none. `app` starts one per such
//! model, `api` hands it requests; its workers take what waits as soon as they are free.
//!
//! Texts are packed one after the other, so nothing is padded and texts of all lengths go together; a batch is as large as a
//! core, or a GPU, needs to be at its best, not larger.

mod queue;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use attune_support::system::HugePages;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use self::queue::{Queue, WaitingText};
use self::worker::Worker;
use super::admission::Admission;
use super::limits::EngineLimits;
use super::priority::Priority;
use super::rows::{self, Replies, check_tokens};
use super::{Backend, EmbedOutput, EmbedRequest, Event, GenerateRequest, Vectors};
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::kv_cache::BLOCK_TOKENS;

/// A running engine of an encoder. Dropping it ends its threads; requests in flight then fail with [`Error::Unavailable`].
#[derive(Debug)]
pub struct EncoderEngine {
    model: Arc<BaseModel>,
    admission: Admission,
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    /// Batches are large.
    _huge_pages: HugePages,
}

impl EncoderEngine {
    /// Starts the workers of `model`: one for each core, or one for its GPU, whose work stands in one queue, after a batch of
    /// each kind. While they compute, `priority` is busy.
    pub fn start(model: Arc<BaseModel>, limits: &EngineLimits, priority: &Arc<Priority>) -> Result<Arc<Self>> {
        let context = model.config.max_position_embeddings;
        // There is no cache: whatever fits the context fits.
        let admission = Admission::new(context, context.div_ceil(BLOCK_TOKENS), limits.max_waiting);
        let queue = Arc::new(Queue::new(&model.id, Duration::from_secs(limits.max_queue_seconds)));
        model.decoder.warm_up_texts(&model.config)?;
        let workers = if model.decoder.kernels().is_cpu() { rayon::current_num_threads().max(1) } else { 1 };
        let mut engine = Self { model, admission, queue, threads: Vec::new(), _huge_pages: HugePages::ask() };
        for index in 0..workers {
            let worker = Worker::new(engine.model.clone(), engine.queue.clone(), priority.clone())?;
            let thread = std::thread::Builder::new()
                .name(format!("encoder-{index}-{}", engine.model.id))
                .spawn(move || worker.run())
                .map_err(|source| Error::Io { context: "start an encoder's thread", source: Arc::new(source) })?;
            engine.threads.push(thread);
        }
        Ok(Arc::new(engine))
    }

    fn submit(&self, request: EmbedRequest) -> Result<Replies> {
        match (request.output, &self.model.classifier) {
            (EmbedOutput::Labels, None) => return Err(Error::NoClassifier(self.model.id.clone())),
            (EmbedOutput::Vector | EmbedOutput::Unscaled, Some(_)) => {
                return Err(Error::NoVectors(self.model.id.clone()));
            }
            _ => {}
        }
        for input in &request.inputs {
            self.admission.check_prompt(input.tokens.len())?;
            check_tokens(&input.tokens, self.model.config.vocab_size)?;
        }
        // One place for the whole request: the number of its inputs has a limit of its own.
        let ticket = self.admission.of(request.background).enter(&request.organization)?;
        let submitted = Instant::now();
        let mut replies = Vec::with_capacity(request.inputs.len());
        let texts = request.inputs.into_iter().map(|input| {
            let (reply, row) = oneshot::channel();
            replies.push(row);
            WaitingText {
                input,
                adapter: request.adapter.clone(),
                output: request.output,
                submitted,
                ticket: ticket.clone(),
                reply,
            }
        });
        let texts: Vec<_> = texts.collect();
        if self.queue.put(&request.organization, texts, request.background) {
            Ok(replies)
        } else {
            Err(Error::stopped())
        }
    }
}

impl Backend for EncoderEngine {
    fn generate(&self, _: GenerateRequest) -> Result<UnboundedReceiver<Event>> {
        Err(Error::NoText(self.model.id.clone()))
    }

    fn embed(&self, request: EmbedRequest) -> Vectors<'_> {
        rows::arriving(self.submit(request))
    }

    fn stop(&self) {
        self.queue.stop();
    }
}

impl Drop for EncoderEngine {
    fn drop(&mut self) {
        self.queue.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an encoder's thread had panicked");
            }
        }
    }
}
