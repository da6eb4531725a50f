//! Loss and gradients of a packed batch: the explicit forward and backward pass of the decoder with an adapter.
//!
//! The backward pass of a block stands in [`block`].

mod block;
mod experts;
mod low_rank;

use candle_core::Tensor;

use self::block::BlockBackward;

pub use crate::train::batch::{LossReport, PackedBatch, Target};
use crate::train::dropout::Dropout;
use crate::train::loss::{self, vocabulary_loss, vocabulary_predictions};
use crate::train::preference::Preferences;
use crate::train::recomputation::{Recomputation, SavedActivations};
use crate::train::yielding::YieldPolicy;
use crate::{Error, Result};
use attune_model::decoder::{Attention, Context, Convolution, Decoder, Group, LowRank, RowPlace};
use attune_model::kernels::{Kernels, PackedRows};
use attune_model::lora::modules::first_site;
use attune_model::lora::{Adapter, LoraLayer, LoraPair, Site};
use attune_model::rope::Angles;

/// The loss to minimise.
#[derive(Debug, Clone, Copy)]
pub enum Objective<'a> {
    /// Cross entropy of the targets.
    Targets,
    /// Loss of pairs of answers.
    Preferences(Preferences<'a>),
}

/// Options of one forward and backward pass.
#[derive(Default)]
pub struct PassOptions<'a> {
    /// Dropout on the adapter's inputs; `None` keeps all of them.
    pub dropout: Option<&'a Dropout>,
    /// Activations that the backward pass computes again; changes no bit of the result.
    pub recomputation: Recomputation,
    /// Called between the blocks.
    pub pace: YieldPolicy<'a>,
}

impl PassOptions<'_> {
    /// Returns options without dropout, for a pass that yields to nobody.
    pub fn recomputing(recomputation: Recomputation) -> Self {
        Self { recomputation, ..Self::default() }
    }
}

/// Gradients of A and B, shaped like the adapter's layers (`scale` copies the adapter's).
pub type Gradients = Vec<LoraLayer>;

/// Computes the loss of `batch` and the gradients of `loss_sum / normalizer` with respect to every A and B.
///
/// `normalizer` is the weight sum of the whole optimizer step, so that micro-batches add up exactly.
pub fn loss_and_gradients(
    decoder: &Decoder,
    adapter: &Adapter,
    batch: &PackedBatch,
    normalizer: f64,
) -> Result<(LossReport, Gradients)> {
    objective_and_gradients(decoder, adapter, batch, Objective::Targets, normalizer, PassOptions::default())
}

/// Does the same as [`loss_and_gradients`] for any objective and options.
pub fn objective_and_gradients(
    decoder: &Decoder,
    adapter: &Adapter,
    batch: &PackedBatch,
    objective: Objective<'_>,
    normalizer: f64,
    manner: PassOptions<'_>,
) -> Result<(LossReport, Gradients)> {
    // The gradient of a target whose token was not expected is then about 1.
    let scale = decoder.gradient_scale(normalizer);
    gradients_from_hidden(decoder, adapter, batch, manner, scale, |hidden| {
        let (scores, gradient) = vocabulary_loss(decoder, hidden, batch, Some(normalizer / scale))?; // [targets, hidden]
        let (report, gradient) = match objective {
            Objective::Targets => (loss::report(batch, &scores), gradient),
            Objective::Preferences(preferences) => {
                let (report, slopes) = preferences.judge(batch, &scores);
                let slopes: Vec<f32> = slopes.into_iter().map(|slope| slope as f32).collect();
                let slopes = Tensor::from_vec(slopes, (batch.targets.len(), 1), hidden.device())?;
                (
                    report,
                    gradient.map(|gradient| gradient.broadcast_mul(&slopes.to_dtype(gradient.dtype())?)).transpose()?,
                )
            }
        };
        Ok((report, loss::spread(hidden, batch, gradient)?))
    })
}

/// Computes the gradients of a function `head` of the hidden states after the final norm, `[rows, hidden]`. `head`
/// returns its value with the gradient of the hidden states times `scale`.
pub(super) fn gradients_from_hidden<T>(
    decoder: &Decoder,
    adapter: &Adapter,
    batch: &PackedBatch,
    manner: PassOptions<'_>,
    scale: f64,
    head: impl FnOnce(&Tensor) -> Result<(T, Tensor)>,
) -> Result<(T, Gradients)> {
    let PassOptions { dropout, recomputation, mut pace } = manner;
    let context = TrainContext { dropout, ..TrainContext::new(decoder, Some(adapter), batch)? };
    let mut x = decoder.embed(&batch.tokens, &context.places)?; // [rows, hidden]
    let mut tape = Vec::with_capacity(decoder.blocks.len());
    for block in &decoder.blocks {
        let (y, activations) = block.forward(x, &context)?;
        tape.push(SavedActivations::of(activations, recomputation));
        x = y;
        pace.next(decoder.kernels())?;
    }
    let hidden = decoder.hidden(x.clone())?;
    let (result, dhidden) = head(&hidden)?;
    let dhidden = dhidden.to_dtype(hidden.dtype())?;

    let mut dx = match &decoder.final_norm {
        Some(norm) => norm.backward(&x, &dhidden)?,
        None => dhidden,
    };
    let mut gradients: Gradients = vec![LoraLayer::default(); decoder.blocks.len()];
    for (block, kept) in decoder.blocks.iter().zip(tape).rev() {
        let activations = kept.activations(block, &context)?;
        let mut backward = BlockBackward { context: &context, gradients: &mut gradients[block.index] };
        dx = match backward.run(block, &activations, dx)? {
            Some(dx) => dx,
            None => break, // The first block's input is the frozen embedding.
        };
        pace.next(decoder.kernels())?;
    }
    if scale > 1.0 {
        gradients = gradients.iter().map(|layer| layer.times(1.0 / scale)).collect::<attune_model::Result<_>>()?;
    }
    Ok((result, gradients))
}

/// Computes the loss of `batch` alone, for evaluation.
pub fn loss(decoder: &Decoder, adapter: Option<&Adapter>, batch: &PackedBatch) -> Result<LossReport> {
    objective(decoder, adapter, batch, Objective::Targets, YieldPolicy::default())
}

/// Does the same as [`loss`] for any objective.
pub fn objective(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    batch: &PackedBatch,
    objective: Objective<'_>,
    pace: YieldPolicy<'_>,
) -> Result<LossReport> {
    let hidden = hidden_states_with(decoder, adapter, batch, None, pace)?;
    let (scores, _) = vocabulary_loss(decoder, &hidden, batch, None)?;
    Ok(match objective {
        Objective::Targets => loss::report(batch, &scores),
        Objective::Preferences(preferences) => preferences.judge(batch, &scores).0,
    })
}

/// Computes the loss of `batch` and the most probable token at each of its targets.
pub fn predictions(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    batch: &PackedBatch,
    pace: YieldPolicy<'_>,
) -> Result<(LossReport, Vec<u32>)> {
    let hidden = hidden_states_with(decoder, adapter, batch, None, pace)?;
    let (scores, best) = vocabulary_predictions(decoder, &hidden, batch)?;
    Ok((loss::report(batch, &scores), best))
}

/// Computes the summed log probability of each sequence's targets, in nats.
pub fn log_likelihoods(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    batch: &PackedBatch,
    pace: YieldPolicy<'_>,
) -> Result<Vec<f64>> {
    let hidden = hidden_states_with(decoder, adapter, batch, None, pace)?;
    Ok(loss::log_likelihoods(batch, &vocabulary_loss(decoder, &hidden, batch, None)?.0))
}

/// Computes the hidden states after the final norm as in training, `[rows, hidden]`.
pub fn hidden_states(decoder: &Decoder, adapter: Option<&Adapter>, batch: &PackedBatch) -> Result<Tensor> {
    hidden_states_with(decoder, adapter, batch, None, YieldPolicy::default())
}

/// Does the same as [`hidden_states`], with `dropout` on the adapter's inputs and `pace` between the blocks.
pub(super) fn hidden_states_with(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    batch: &PackedBatch,
    dropout: Option<&Dropout>,
    mut pace: YieldPolicy<'_>,
) -> Result<Tensor> {
    let context = TrainContext { dropout, ..TrainContext::new(decoder, adapter, batch)? };
    let mut x = decoder.embed(&batch.tokens, &context.places)?; // [rows, hidden]
    for block in &decoder.blocks {
        (x, _) = block.forward(x, &context)?;
        pace.next(decoder.kernels())?;
    }
    Ok(decoder.hidden(x)?)
}

/// Context of training: attention inside each packed sequence, one adapter for all rows.
struct TrainContext<'a> {
    kernels: &'a Kernels,
    adapter: Option<&'a Adapter>,
    dropout: Option<&'a Dropout>,
    sequences: PackedRows<'a>,
    /// Of each row.
    places: Vec<RowPlace>,
    /// By kind of rotation.
    angles: Vec<Angles>,
}

impl<'a> TrainContext<'a> {
    fn new(decoder: &'a Decoder, adapter: Option<&'a Adapter>, batch: &'a PackedBatch) -> Result<Self> {
        let rows = batch.tokens.len();
        let covered = batch.sequences.iter().try_fold(0, |end, rows| (rows.start == end).then_some(rows.end));
        if rows == 0 || covered != Some(rows) || batch.targets.iter().any(|target| target.row >= rows) {
            return Err(Error::Internal("a packed batch must be covered by its sequences in order".into()));
        }
        let places = places(decoder, batch);
        let angles = decoder.angles(&places)?;
        let sequences = PackedRows::new(&batch.sequences, decoder.kernels())?;
        Ok(Self { kernels: decoder.kernels(), adapter, dropout: None, sequences, places, angles })
    }

    fn pair(&self, layer: usize, site: Site) -> Option<&'a LoraPair> {
        self.adapter.and_then(|adapter| adapter.layers[layer].get(site))
    }

    /// Applies dropout to `x`, the input of a layer's adapter; the gradient takes the same mask, and so do sites that
    /// share a layer of the checkpoint.
    fn drop_out(&self, layer: usize, site: Site, x: &Tensor) -> attune_model::Result<Tensor> {
        let site = self.adapter.map_or(site, |adapter| first_site(adapter.names.modules, site));
        self.dropout.map_or_else(|| Ok(x.clone()), |dropout| dropout.apply(layer, site, x))
    }
}

/// Returns the place of each row of `batch`.
fn places(decoder: &Decoder, batch: &PackedBatch) -> Vec<RowPlace> {
    let mut places = Vec::with_capacity(batch.tokens.len());
    let mut seconds = batch.seconds.iter().copied().peekable();
    for rows in &batch.sequences {
        let second = seconds.next_if(|second| rows.contains(second)).map(|second| second - rows.start);
        places.extend(RowPlace::of_text(rows.len(), second, decoder.rope_table(rows.len())));
    }
    places
}

impl LowRank for TrainContext<'_> {
    fn add_lora(&self, layer: usize, sites: &[Site], x: &Tensor, outputs: &mut [Tensor]) -> attune_model::Result<()> {
        for (site, output) in sites.iter().zip(outputs) {
            if let Some(pair) = self.pair(layer, *site) {
                *output = self.kernels.add_lora(output.clone(), &self.drop_out(layer, *site, x)?, pair)?;
            }
        }
        Ok(())
    }

    fn add_expert_lora(
        &self,
        layer: usize,
        group: &Group,
        sites: &[Site],
        x: &Tensor,
        outputs: &mut [Tensor],
    ) -> attune_model::Result<()> {
        let Some(updates) = self.adapter.map(|adapter| &adapter.layers[layer]) else { return Ok(()) };
        for (site, output) in sites.iter().zip(outputs) {
            if let Some(pair) = updates.expert(group.expert, *site) {
                *output = self.kernels.add_lora(output.clone(), x, pair)?;
            }
        }
        Ok(())
    }
}

impl Context for TrainContext<'_> {
    fn attend(
        &self,
        attention: &Attention,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> attune_model::Result<(Tensor, Tensor)> {
        self.kernels.packed_attention(q, k, v, &self.sequences, attention.form, attention.distance_bias.as_ref())
    }

    fn convolve(&self, convolution: &Convolution, projected: &Tensor) -> attune_model::Result<Tensor> {
        self.kernels.packed_convolution(projected, &convolution.filters, &self.sequences)
    }

    fn angles(&self, rope: usize) -> &Angles {
        &self.angles[rope]
    }
}
