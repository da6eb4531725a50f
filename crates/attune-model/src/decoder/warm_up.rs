//! Compiles a GPU's kernels before the first request, since each is compiled at its first use. Called by `engine`.

use candle_core::DType;

use super::{Decoder, TextRows};
use crate::kernels::cuda::{lora, product};
use crate::kernels::{Draw, SequenceRows};
use crate::kv_cache::{BLOCK_TOKENS, KvCache};
use crate::lora::Adapter;
use crate::rope::RopeTable;
use crate::{ModelConfig, Result};

/// Distinct adapters in a step from which the kernels for many tasks run: one more than the kernels for few tasks take
/// at query, key and value together.
const MANY_ADAPTERS: usize = lora::FEW_TASKS / 3 + 1;

impl Decoder {
    /// Computes steps of every kind on a GPU: answers, few of them and up to `sequences`, after short and long texts,
    /// and prompts, without and with adapters. Overwrites the first block of `cache`, which must be empty. Does nothing
    /// on the CPU.
    pub fn warm_up(&self, config: &ModelConfig, cache: &KvCache, sequences: usize) -> Result<()> {
        let Some(gpu) = self.kernels.gpu() else { return Ok(()) };
        let context = config.max_position_embeddings;
        let blocks = vec![0; context.div_ceil(BLOCK_TOKENS)];
        let zero = self.served(&Adapter::zero(config)?)?;
        // Distinct adapters: `Routes` merges neighbouring rows that share one.
        let adapter = |index: usize| Adapter::new(index.to_string(), zero.layers.clone());
        let adapters: Vec<Adapter> = (0..sequences.min(MANY_ADAPTERS)).map(adapter).collect();
        let step = |counts: &[usize], start: usize, adapters: &[Adapter]| {
            let mut end = 0;
            let sequence = |(index, count): (usize, &usize)| {
                end += count;
                SequenceRows {
                    rows: end - count..end,
                    start,
                    blocks: &blocks,
                    adapter: adapters.get(index),
                    rope: RopeTable::Short,
                }
            };
            let sequences: Vec<_> = counts.iter().enumerate().map(sequence).collect();
            let hidden = self.step(&vec![0; end], &sequences, cache)?;
            gpu.draw(&self.logits(&hidden)?, &vec![Draw::GREEDY; end])?;
            Ok(())
        };
        let prompt = [BLOCK_TOKENS.min(context)];
        for answers in (1..=sequences.min(product::FEW_ROWS)).chain([sequences.min(MANY_ADAPTERS)]) {
            step(&vec![1; answers], 0, &[])?;
        }
        step(&[1], context - 1, &[])?;
        step(&prompt, 0, &[])?;
        step(&prompt, 0, &adapters)?;
        step(&[1], 0, &adapters)?;
        step(&vec![1; adapters.len()], 0, &adapters)
    }

    /// Encodes texts of every kind on a GPU: of a few tokens, and so many that matrix units take them, without and with
    /// adapters, few of them and many. Does nothing on the CPU.
    pub fn warm_up_texts(&self, config: &ModelConfig) -> Result<()> {
        if self.kernels.is_cpu() {
            return Ok(());
        }
        let zero = self.served(&Adapter::zero(config)?)?;
        let adapter = |index: usize| Adapter::new(index.to_string(), zero.layers.clone());
        let adapters: Vec<Adapter> = (0..MANY_ADAPTERS).map(adapter).collect();
        let encode = |lengths: &[usize], adapters: &[Adapter]| {
            let mut end = 0;
            let text = |(index, length): (usize, &usize)| {
                end += length;
                TextRows { rows: end - length..end, second: None, adapter: adapters.get(index) }
            };
            let texts: Vec<_> = lengths.iter().enumerate().map(text).collect();
            // Faults of a kernel show when its results are read.
            self.encode(&vec![0; end], &texts)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(())
        };
        let long = BLOCK_TOKENS.min(config.max_position_embeddings);
        for length in 1..=product::FEW_ROWS.min(long) {
            encode(&[length], &[])?;
        }
        encode(&[1, long], &[])?;
        encode(&[1, long], &adapters[..2])?;
        encode(&vec![1; adapters.len()], &adapters)
    }
}
