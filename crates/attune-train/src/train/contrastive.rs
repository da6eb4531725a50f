//! Trains embeddings: computes a loss of the vectors of a batch's texts ([`super::pair_loss`]), and its gradient. Called
//! by the trainer and its evaluation.
//!
//! A batch whose texts exceed the rows of one pack is computed as `GradCache` does (Gao et al., 2021): first the
//! vectors of all texts, keeping no activations, then the loss's gradient with respect to each vector, then each pack
//! forward and backward with these. The result is that of computing all at once.

use std::ops::Range;

use crate::train::backward::{self, Gradients, PassOptions};
use crate::train::batch::{LossReport, PackedBatch};
use crate::train::dropout::Dropout;
use crate::train::packing::{Packed, pack_texts};
use crate::train::pair_loss::PairLoss;
use crate::train::parameters::add_gradients;
use crate::train::pooling::Pooled;
use crate::train::recomputation::Recomputation;
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};
use crate::{Error, Result};
use attune_model::decoder::Decoder;
use attune_model::lora::Adapter;
use attune_model::vectors::VectorForm;

/// Scale that brings the slopes of unit vectors, divided by the tokens of their texts, near to 1.
const GRADIENT_SCALE: f64 = 1024.0;

/// A batch of pairs of texts and the options of its loss.
#[derive(Debug, Clone, Copy)]
pub struct Contrast<'a> {
    /// How the model makes vectors of texts.
    pub form: &'a VectorForm,
    /// Tokens of each pair's texts: an anchor, its positive, its negatives.
    pub pairs: &'a [Vec<Vec<u32>>],
    /// Tokens at the begin of each anchor, and of each other text, that their vectors leave out.
    pub unpooled: [usize; 2],
    /// Loss of the vectors.
    pub loss: PairLoss<'a>,
    /// Most rows of a pack.
    pub budget: usize,
    /// Dropout of the first pack; the others have masks of their own.
    pub dropout: Option<Dropout>,
    /// Activations that the backward pass computes again.
    pub recomputation: Recomputation,
}

/// Texts of a batch in packs.
struct Packs {
    packs: Vec<Packed>,
    /// Positions of each pair's texts.
    pairs: Vec<Range<usize>>,
}

impl Contrast<'_> {
    /// Computes the loss alone.
    pub fn loss(
        &self,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        before: BeforeMicroStep<'_>,
    ) -> Result<LossReport> {
        let Packs { packs, pairs } = self.packs();
        let vectors = self.vectors(decoder, adapter, &packs, before)?;
        Ok(self.loss.compare(&vectors, &pairs).0)
    }

    /// Computes the sums over the anchors and the gradients of the mean loss. Calls `before` before each pack.
    pub fn loss_and_gradients(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        before: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Gradients)> {
        let Packs { packs, pairs } = self.packs();
        if let [only] = packs.as_slice() {
            before()?;
            return self.vector_gradients(decoder, adapter, 0, &only.batch, before, |vectors| {
                let (report, slopes) = self.loss.compare(&in_order(&packs, vec![vectors.to_vec()]), &pairs);
                (report, slopes_of(only, &slopes))
            });
        }
        let vectors = self.vectors(decoder, Some(adapter), &packs, before)?;
        let (report, slopes) = self.loss.compare(&vectors, &pairs);
        let mut sum: Option<Gradients> = None;
        for (index, pack) in packs.iter().enumerate() {
            before()?;
            let known = |_: &[Vec<f64>]| ((), slopes_of(pack, &slopes));
            let ((), gradients) = self.vector_gradients(decoder, adapter, index, &pack.batch, before, known)?;
            match &mut sum {
                None => sum = Some(gradients),
                Some(sum) => add_gradients(sum, &gradients)?,
            }
        }
        let gradients = sum.ok_or_else(|| Error::Internal("a batch without texts".into()))?;
        Ok((report, gradients))
    }

    fn packs(&self) -> Packs {
        let (mut texts, mut unpooled) = (Vec::new(), Vec::new());
        let mut pairs = Vec::with_capacity(self.pairs.len());
        let [of_anchor, of_others] = self.unpooled;
        for pair in self.pairs {
            let begin = texts.len();
            texts.extend(pair.iter().map(Vec::as_slice));
            unpooled.push(of_anchor);
            unpooled.resize(texts.len(), of_others);
            pairs.push(begin..texts.len());
        }
        let mut packs = pack_texts(&texts, self.budget);
        for Packed { batch, units } in packs.iter_mut().filter(|_| self.unpooled != [0; 2]) {
            batch.unpooled = units.iter().map(|text| unpooled[*text]).collect();
        }
        Packs { packs, pairs }
    }

    /// Computes the vectors of all texts, in order.
    fn vectors(
        &self,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        packs: &[Packed],
        before: BeforeMicroStep<'_>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut vectors = Vec::with_capacity(packs.len());
        for (index, pack) in packs.iter().enumerate() {
            before()?;
            let pace = YieldPolicy::asking(before);
            vectors.push(embed(decoder, self.form, adapter, &pack.batch, self.dropout(index).as_ref(), pace)?);
        }
        Ok(in_order(packs, vectors))
    }

    /// Computes the adapter's gradients for one pack's `batch`; `slopes` turns the vectors into their gradients.
    fn vector_gradients<T>(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        pack: usize,
        batch: &PackedBatch,
        before: BeforeMicroStep<'_>,
        slopes: impl FnOnce(&[Vec<f64>]) -> (T, Vec<Vec<f64>>),
    ) -> Result<(T, Gradients)> {
        let dropout = self.dropout(pack);
        let pace = YieldPolicy::asking(before);
        let manner = PassOptions { dropout: dropout.as_ref(), recomputation: self.recomputation, pace };
        let scale = decoder.gradient_scale(GRADIENT_SCALE);
        backward::gradients_from_hidden(decoder, adapter, batch, manner, scale, |hidden| {
            let pooled = Pooled::of(hidden, batch, self.form)?;
            let (result, slopes) = slopes(&pooled.vectors);
            Ok((result, (pooled.backward(&slopes, hidden)? * scale)?))
        })
    }

    fn dropout(&self, pack: usize) -> Option<Dropout> {
        self.dropout.map(|dropout| Dropout { batch: dropout.batch + pack, ..dropout })
    }
}

/// Computes the vectors of the sequences of `batch`, equal to the answers of `/embeddings` at length 1.
pub fn embed(
    decoder: &Decoder,
    form: &VectorForm,
    adapter: Option<&Adapter>,
    batch: &PackedBatch,
    dropout: Option<&Dropout>,
    pace: YieldPolicy<'_>,
) -> Result<Vec<Vec<f64>>> {
    let hidden = backward::hidden_states_with(decoder, adapter, batch, dropout, pace)?;
    Ok(Pooled::of(&hidden, batch, form)?.vectors)
}

/// Reorders the vectors of packs into the order of the texts.
fn in_order(packs: &[Packed], vectors: Vec<Vec<Vec<f64>>>) -> Vec<Vec<f64>> {
    let mut ordered = vec![Vec::new(); packs.iter().map(|pack| pack.units.len()).sum()];
    for (text, vector) in packs.iter().flat_map(|pack| &pack.units).zip(vectors.into_iter().flatten()) {
        ordered[*text] = vector;
    }
    ordered
}

/// Returns the slopes of a pack's texts in the order of its sequences.
fn slopes_of(pack: &Packed, slopes: &[Vec<f64>]) -> Vec<Vec<f64>> {
    pack.units.iter().map(|text| slopes[*text].clone()).collect()
}
