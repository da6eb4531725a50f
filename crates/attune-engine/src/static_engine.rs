//! The engine of static models: the mean of a text's rows needs no schedule and no cache, so a request is computed at once.
//! Started by `app` for models without blocks, asked by `api`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::{Backend, EmbedInput, EmbedOutput, EmbedRequest, Event, GenerateRequest, Vectors};
use crate::rows::check_tokens;
use crate::{Error, Result};
use attune_model::BaseModel;
use attune_model::decoder::RowPlace;

/// Makes vectors with a static model.
#[derive(Debug)]
pub struct StaticEngine {
    model: Arc<BaseModel>,
    is_stopped: AtomicBool,
}

impl StaticEngine {
    /// Makes the engine of `model`, which has no blocks.
    pub fn new(model: Arc<BaseModel>) -> Self {
        Self { model, is_stopped: AtomicBool::new(false) }
    }

    /// Refuses what the model cannot do.
    fn check(&self, request: &EmbedRequest) -> Result<()> {
        let config = &self.model.config;
        if self.is_stopped.load(Ordering::Relaxed) {
            return Err(Error::stopped());
        }
        if request.output == EmbedOutput::Labels {
            return Err(Error::NoClassifier(self.model.id.clone()));
        }
        if request.adapter.is_some() {
            return Err(Error::Internal("an adapter of a model without layers".into()));
        }
        for input in &request.inputs {
            if input.tokens.len() > config.max_position_embeddings {
                let (limit, prompt) = (config.max_position_embeddings, input.tokens.len());
                return Err(Error::ContextLength { limit, prompt, completion: 0 });
            }
            check_tokens(&input.tokens, config.vocab_size)?;
        }
        Ok(())
    }
}

impl Backend for StaticEngine {
    fn generate(&self, _: GenerateRequest) -> Result<UnboundedReceiver<Event>> {
        Err(Error::NoText(self.model.id.clone()))
    }

    fn embed(&self, request: EmbedRequest) -> Vectors<'_> {
        let checked = self.check(&request);
        Box::pin(async move {
            checked?;
            let (reply, vectors) = oneshot::channel();
            let model = Arc::clone(&self.model);
            // Long texts must not hold up the thread that serves other requests.
            rayon::spawn(move || {
                // The client may have gone.
                let _ = reply.send(request.inputs.iter().map(|input| vector(&model, input, request.output)).collect());
            });
            vectors.await.map_err(|_| Error::Internal("the vectors of a static model were not computed".into()))?
        })
    }

    fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }
}

/// Computes the vector of a text; zeros for one without a token that counts.
fn vector(model: &BaseModel, input: &EmbedInput, output: EmbedOutput) -> Result<Vec<f32>> {
    let form = &model.vectors;
    let tokens = input.tokens.get(input.unpooled..).unwrap_or_default();
    let mut pooler = form.pooler();
    if !tokens.is_empty() {
        let rows = model
            .decoder
            .embed(tokens, &vec![RowPlace::default(); tokens.len()])?
            .to_dtype(candle_core::DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        rows.chunks_exact(form.hidden_size).for_each(|row| pooler.add(row));
    }
    Ok(form.row(pooler.finish(), output == EmbedOutput::Unscaled)?)
}
