//! A worker of an encoder: takes a batch, computes it, and answers its clients. With as many workers as cores, each core has
//! a batch of its own and forks nothing; a batch that is alone is spread over all cores. A GPU has one worker, and batches
//! that are large enough for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use candle_core::DType;
use metrics::{Counter, Histogram, counter, histogram};
use rayon::prelude::*;

use super::queue::{Queue, WaitingText};
use crate::pool;
use crate::priority::Priority;
use crate::{EmbedOutput, Error, Result};
use attune_model::BaseModel;
use attune_model::decoder::TextRows;
use attune_model::vectors::Pooler;

/// Most rows of a batch, unless a text has more: a core's products gain nothing beyond.
const BATCH_ROWS: usize = 512;
/// The same on a GPU, whose products are efficient from thousands of rows on.
const GPU_BATCH_ROWS: usize = 4096;

/// One worker.
pub(super) struct Worker {
    model: Arc<BaseModel>,
    queue: Arc<Queue>,
    priority: Arc<Priority>,
    /// One thread, which computes batches that are not alone; `None` if a GPU computes.
    own: Option<rayon::ThreadPool>,
    steps: Counter,
    failed_steps: Counter,
    step_rows: Histogram,
}

impl Worker {
    pub(super) fn new(model: Arc<BaseModel>, queue: Arc<Queue>, priority: Arc<Priority>) -> Result<Self> {
        let own = rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "encoder".into());
        let own = model.decoder.kernels().is_cpu().then(|| own.build()).transpose();
        let own = own.map_err(|error| Error::Internal(format!("start an encoder's thread: {error}")))?;
        let name = || model.id.clone();
        Ok(Self {
            steps: counter!("attune_engine_steps_total", "model" => name()),
            failed_steps: counter!("attune_engine_failed_steps_total", "model" => name()),
            step_rows: histogram!("attune_step_rows", "model" => name()),
            model,
            queue,
            priority,
            own,
        })
    }

    /// Computes batches until the engine stops.
    pub(super) fn run(self) {
        let rows = if self.own.is_some() { BATCH_ROWS } else { GPU_BATCH_ROWS };
        while let Some(mut batch) = self.queue.take(rows) {
            let _busy = self.priority.busy();
            // Rows of one adapter stand next to each other.
            batch.texts.sort_by_key(|text| text.adapter.as_ref().map(Arc::as_ptr));
            let mut pieces = vec![batch.texts];
            while let Some(texts) = pieces.pop() {
                pieces.extend(self.answer(texts, batch.is_alone));
            }
            self.queue.done(batch.in_background);
        }
    }

    /// Computes `texts` and answers their clients. If that fails, each half is to be tried again, so that only a text that
    /// cannot be computed alone fails.
    fn answer(&self, mut texts: Vec<WaitingText>, is_alone: bool) -> Vec<Vec<WaitingText>> {
        texts.retain(|text| !text.reply.is_closed());
        if texts.is_empty() {
            return Vec::new();
        }
        let compute = || catch_unwind(AssertUnwindSafe(|| self.compute(&texts)));
        let computed = match &self.own {
            None => compute(),
            Some(_) if is_alone => pool::compute(compute),
            Some(own) => own.install(compute),
        };
        let error = match computed {
            Ok(Ok(rows)) => {
                texts.into_iter().zip(rows).for_each(|(text, row)| text.answer(row));
                return Vec::new();
            }
            Ok(Err(error)) => error,
            Err(_) => Error::Internal("a panic while texts were encoded".into()),
        };
        // Without its GPU the process has to be restarted, which the server's health tells.
        let is_lost = !self.model.health.check();
        let error = if is_lost { attune_model::Error::DeviceLost.into() } else { error };
        self.failed_steps.increment(1);
        tracing::error!(model = self.model.id, %error, texts = texts.len(), "a batch of texts failed");
        if texts.len() == 1 || is_lost {
            for text in texts {
                text.answer(Err(error.clone()));
            }
            return Vec::new();
        }
        let behind = texts.split_off(texts.len() / 2);
        vec![behind, texts]
    }

    /// Computes the row of each text.
    fn compute(&self, texts: &[WaitingText]) -> Result<Vec<Result<Vec<f32>>>> {
        let (mut tokens, mut rows) = (Vec::new(), Vec::with_capacity(texts.len()));
        for text in texts {
            let start = tokens.len();
            tokens.extend_from_slice(&text.input.tokens);
            rows.push(TextRows {
                rows: start..tokens.len(),
                second: text.input.second.map(|second| start + second),
                adapter: text.adapter.as_deref(),
            });
        }
        self.steps.increment(1);
        self.step_rows.record(tokens.len() as f64);
        let hidden = self.model.decoder.encode(&tokens, &rows)?; // [rows, hidden]
        let width = hidden.dim(1)?;
        let hidden = hidden.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let rows = texts.par_iter().zip(&rows).map(|(text, place)| {
            let rows = hidden[place.rows.start * width..place.rows.end * width].chunks_exact(width);
            self.row(text.output, text.input.unpooled, rows)
        });
        Ok(rows.collect())
    }

    /// Makes the row of numbers of a text with these hidden states, the first `unpooled` of which are those of a prompt.
    fn row<'a>(
        &self,
        output: EmbedOutput,
        unpooled: usize,
        hidden: impl Iterator<Item = &'a [f32]>,
    ) -> Result<Vec<f32>> {
        let pooled = |mut pooler: Pooler| {
            hidden.for_each(|row| pooler.add(row));
            pooler.finish()
        };
        let (form, classifier) = (&self.model.vectors, self.model.classifier.as_ref());
        match output {
            EmbedOutput::Vector | EmbedOutput::Unscaled => {
                let pooled = pooled(form.pooler().without_prompt(unpooled));
                Ok(form.row(pooled, output == EmbedOutput::Unscaled)?)
            }
            EmbedOutput::Labels => {
                let classifier = classifier.ok_or_else(|| Error::NoClassifier(self.model.id.clone()))?;
                Ok(classifier.logits(pooled(classifier.pooler()))?)
            }
        }
    }
}
