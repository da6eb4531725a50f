//! The native engine: the [`Backend`] over our own decoder. `app` starts one per base model, `api` hands it requests;
//! one thread per engine ([`runner`](super::runner)) owns the schedule and the cache and computes all steps.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use super::admission::Admission;
use super::inbox::{Arrival, Asked, Inbox};
use super::kv::BlockAllocator;
use super::priority::Priority;
use super::rows::{self, Replies, check_tokens};
use super::runner::Runner;
use super::scheduler::Scheduler;
use super::step_model::{BaseStepModel, StepModel};
use super::{Backend, EmbedOutput, EmbedRequest, Event, GenerateRequest, Vectors};
use crate::limits::EngineLimits;
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::rope::RopeTable;

/// A running engine. Dropping it ends its thread; requests in flight then fail with [`Error::Unavailable`].
#[derive(Debug)]
pub struct NativeEngine {
    /// The model's id.
    id: String,
    admission: Admission,
    vocabulary_size: usize,
    /// Tokens up to which a sequence is rotated by the table of short ones; `None` if the model has one table.
    short_context: Option<usize>,
    allocator: BlockAllocator,
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl NativeEngine {
    /// Allocates the cache for `model` and starts its thread. While requests run, `priority` is busy.
    pub fn start(model: Arc<BaseModel>, limits: &EngineLimits, priority: Arc<Priority>) -> Result<Arc<Self>> {
        Self::start_with(BaseStepModel::new(model, limits)?, limits, priority)
    }

    /// Starts an engine over any model that can compute a step.
    pub fn start_with<M: StepModel>(model: M, limits: &EngineLimits, priority: Arc<Priority>) -> Result<Arc<Self>> {
        let allocator = BlockAllocator::new(model.blocks());
        let admission = Admission::new(model.context(), model.blocks(), limits.max_waiting);
        let (vocabulary_size, short_context) = (model.vocabulary_size(), model.short_context());
        let (id, scheduler) = (model.id().to_owned(), Scheduler::new(limits, allocator.clone()));
        let inbox = Arc::new(Inbox::default());
        let limits = limits.clone();
        let stopping = StopOnDrop(inbox.clone());
        let thread = std::thread::Builder::new()
            .name(format!("engine-{}", model.id()))
            .spawn(move || Runner::new(model, scheduler, limits).run(&stopping.0, &priority))
            .map_err(|source| Error::Io { context: "start the engine thread", source: Arc::new(source) })?;
        Ok(Arc::new(Self { id, admission, vocabulary_size, short_context, allocator, inbox, thread: Some(thread) }))
    }

    /// Returns the blocks of the engine's cache, to watch their balance.
    pub fn blocks(&self) -> &BlockAllocator {
        &self.allocator
    }

    /// Returns the table of a sequence of `prompt` tokens whose answer may have `completion`: its rows are all of these
    /// but the last token drawn, which is never fed back.
    fn rope_table(&self, prompt: usize, completion: usize) -> RopeTable {
        RopeTable::of(prompt + completion.saturating_sub(1), self.short_context)
    }

    fn put(&self, arrivals: Vec<Arrival>) -> Result<()> {
        if self.inbox.put(arrivals) { Ok(()) } else { Err(Error::stopped()) }
    }

    fn submit_inputs(&self, request: EmbedRequest) -> Result<Replies> {
        if request.output == EmbedOutput::Labels {
            return Err(Error::NoClassifier(self.id.clone()));
        }
        for input in &request.inputs {
            self.admission.check_prompt(input.tokens.len())?;
            check_tokens(&input.tokens, self.vocabulary_size)?;
        }
        // One place for the whole request: the number of its inputs has a limit of its own.
        let ticket = self.admission.of(request.background).enter(&request.organization)?;
        let submitted = Instant::now();
        let mut arrivals = Vec::with_capacity(request.inputs.len());
        let mut replies = Vec::with_capacity(request.inputs.len());
        for input in request.inputs {
            let (reply, vector) = oneshot::channel();
            let rope = self.rope_table(input.tokens.len(), 0);
            arrivals.push(Arrival {
                organization: request.organization.clone(),
                prompt: input.tokens.into(),
                max_tokens: 0,
                adapter: request.adapter.clone(),
                rope,
                submitted,
                ticket: ticket.clone(),
                background: request.background,
                owner: Asked::Vector { prompt: input.unpooled, output: request.output, reply },
            });
            replies.push(vector);
        }
        self.put(arrivals)?;
        Ok(replies)
    }
}

impl Backend for NativeEngine {
    fn generate(&self, request: GenerateRequest) -> Result<UnboundedReceiver<Event>> {
        self.generate_all(vec![request]).map(|mut receivers| receivers.remove(0))
    }

    fn generate_all(&self, requests: Vec<GenerateRequest>) -> Result<Vec<UnboundedReceiver<Event>>> {
        let mut receivers = Vec::with_capacity(requests.len());
        let mut admitted = Vec::with_capacity(requests.len());
        for mut request in requests {
            request.max_tokens = self.admission.answer_tokens(request.prompt.len(), request.max_tokens)?;
            check_tokens(&request.prompt, self.vocabulary_size)?;
            admitted.push(request);
        }
        // All belong to one client.
        let Some(first) = admitted.first() else {
            return Ok(receivers);
        };
        let admission = self.admission.of(first.background);
        let (tickets, submitted) = (admission.enter_many(&first.organization, admitted.len())?, Instant::now());
        let arrivals = admitted.into_iter().zip(tickets).map(|(mut request, ticket)| {
            let (events, receiver) = unbounded_channel();
            receivers.push(receiver);
            Arrival {
                organization: request.organization.clone(),
                prompt: request.prompt.clone(),
                max_tokens: request.max_tokens,
                adapter: request.adapter.take(),
                rope: self.rope_table(request.prompt.len(), request.max_tokens),
                submitted,
                ticket,
                background: request.background,
                owner: Asked::Answer { request: Box::new(request), events },
            }
        });
        self.put(arrivals.collect())?;
        Ok(receivers)
    }

    fn embed(&self, request: EmbedRequest) -> Vectors<'_> {
        rows::arriving(self.submit_inputs(request))
    }

    fn stop(&self) {
        self.inbox.stop();
    }
}

impl Drop for NativeEngine {
    fn drop(&mut self) {
        self.inbox.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine thread had panicked");
        }
    }
}

/// Closes the inbox when the thread ends, however it ends: requests are then refused instead of queued for nobody.
struct StopOnDrop(Arc<Inbox>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}
