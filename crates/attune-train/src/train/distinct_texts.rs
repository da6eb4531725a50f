//! Vectors of many texts, each different text computed once. Called by [`super::methods`] to put texts in order, and by
//! [`super::mining`].

use std::collections::HashMap;

use crate::Result;
use crate::train::contrastive::embed;
use crate::train::packing::{Packed, pack_texts};
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};
use attune_model::decoder::Decoder;
use attune_model::lora::Adapter;
use attune_model::vectors::VectorForm;

/// Texts that are packed at one time.
const ROUND: usize = 256;

/// Different texts by number.
#[derive(Debug, Default)]
pub(super) struct DistinctTexts {
    numbers: HashMap<Vec<u32>, usize>,
    texts: Vec<Vec<u32>>,
}

/// Model that makes the vectors.
#[derive(Clone, Copy)]
pub(super) struct VectorMaker<'a> {
    pub decoder: &'a Decoder,
    pub form: &'a VectorForm,
    /// `None` for the base model.
    pub adapter: Option<&'a Adapter>,
    /// Most rows of a pack.
    pub budget: usize,
}

impl DistinctTexts {
    /// Returns the number of a text, a new one if need be.
    pub(super) fn number(&mut self, text: Vec<u32>) -> usize {
        let next = self.texts.len();
        *self.numbers.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            next
        })
    }

    /// Returns the number of a text that is one of them.
    pub(super) fn find(&self, text: &[u32]) -> Option<usize> {
        self.numbers.get(text).copied()
    }

    /// Returns the texts by number.
    pub(super) fn texts(&self) -> &[Vec<u32>] {
        &self.texts
    }

    /// Computes the vectors of all texts, of length 1, by number; of each the first `unpooled` tokens are not pooled.
    pub(super) fn vectors(
        &self,
        maker: VectorMaker<'_>,
        unpooled: usize,
        before: BeforeMicroStep<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let VectorMaker { decoder, form, adapter, budget } = maker;
        let mut vectors = vec![Vec::new(); self.texts.len()];
        for (round, texts) in self.texts.chunks(ROUND).enumerate() {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            for Packed { mut batch, units } in pack_texts(&texts, budget) {
                before()?;
                batch.unpooled = vec![unpooled; units.len()];
                let found = embed(decoder, form, adapter, &batch, None, YieldPolicy::asking(before))?;
                for (unit, vector) in units.into_iter().zip(found) {
                    vectors[round * ROUND + unit] = vector.into_iter().map(|value| value as f32).collect();
                }
            }
        }
        Ok(vectors)
    }
}
