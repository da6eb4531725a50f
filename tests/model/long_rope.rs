//! Two tables of rotary frequencies: a sequence has one of them from its first token to its last, by the length that it
//! may reach.

use crate::fixtures::{Reference, device, floats, load, max_difference, one_sequence};
use attune::model::decoder::{Decoder, SequenceRows};
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::rope::RopeTable;
use attune::train::backward::{self, hidden_states};
use candle_core::{DType, Tensor};

const FAMILY: &str = "phi3_longrope";
/// The context that the fixture was first trained on.
const ORIGINAL: usize = 20;
/// As for all logits of transformers.
const TOLERANCE: f32 = 1e-4;

/// Serves `tokens` in steps of `counts` rows, all rotated by `rope`.
fn served(decoder: &Decoder, tokens: &[u32], counts: &[usize], rope: RopeTable) -> Vec<f32> {
    let config = load(FAMILY, &device()).0;
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
    let cache = KvCache::new(&config, blocks.len(), DType::F32, decoder.device()).unwrap();
    let mut hidden = Vec::new();
    let mut start = 0;
    for &count in counts {
        let rows = SequenceRows { rows: 0..count, start, blocks: &blocks, adapter: None, rope };
        hidden.push(decoder.step(&tokens[start..start + count], &[rows], &cache).unwrap());
        start += count;
    }
    assert_eq!(start, tokens.len());
    floats(&decoder.logits(&Tensor::cat(&hidden, 0).unwrap()).unwrap())
}

#[test]
fn up_to_the_original_context_a_sequence_has_the_short_table_and_beyond_it_the_long_one() {
    let decoder = load(FAMILY, &device()).1;
    let tokens = Reference::read(FAMILY, "reference.safetensors").ids("input_ids");
    let lengths = Reference::read(FAMILY, "lengths.safetensors");
    assert_eq!(decoder.short_context(), Some(ORIGINAL));
    for (length, rope) in
        [(ORIGINAL - 1, RopeTable::Short), (ORIGINAL, RopeTable::Short), (ORIGINAL + 1, RopeTable::Long)]
    {
        let tokens = &tokens[..length];
        let expected = lengths.floats(&length.to_string());
        let hidden = hidden_states(&decoder, None, &one_sequence(tokens)).unwrap();
        let trained = floats(&decoder.logits(&hidden).unwrap());
        assert!(max_difference(&trained, &expected) <= TOLERANCE, "training, {length} tokens");
        assert_eq!(decoder.rope_table(length), rope);
        let served = served(&decoder, tokens, &[5, 1, length - 6], rope);
        assert!(max_difference(&served, &expected) <= TOLERANCE, "serving, {length} tokens");
    }
}

#[test]
fn an_answer_that_grows_beyond_the_original_context_has_the_long_table_from_its_first_token() {
    let decoder = load(FAMILY, &device()).1;
    let reference = Reference::read(FAMILY, "reference.safetensors");
    let (tokens, expected) = (reference.ids("input_ids"), reference.floats("logits"));
    // The prompt is shorter than the original context; each further token is a step of its own.
    let counts = [vec![12], vec![1; tokens.len() - 12]].concat();
    let decided = decoder.rope_table(tokens.len());
    assert_eq!(decided, RopeTable::Long);
    let logits = served(&decoder, &tokens, &counts, decided);
    assert!(max_difference(&logits, &expected) <= TOLERANCE);
    let switched = served(&decoder, &tokens, &counts, RopeTable::Short);
    assert!(max_difference(&switched, &expected) > 0.1, "the fixture tells the tables apart");
}

#[test]
fn packed_sequences_have_the_tables_of_their_own_lengths() {
    let (config, decoder) = load(FAMILY, &device());
    let adapter = Reference::read(FAMILY, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
    let batch = Reference::read(FAMILY, "peft/reference.safetensors").batch();
    let lengths: Vec<usize> = batch.sequences.iter().map(ExactSizeIterator::len).collect();
    assert!(lengths.iter().any(|length| *length > ORIGINAL) && lengths.iter().any(|length| *length <= ORIGINAL));
    let packed = floats(&hidden_states(&decoder, Some(&adapter), &batch).unwrap());
    for rows in &batch.sequences {
        let alone = one_sequence(&batch.tokens[rows.clone()]);
        let alone = floats(&backward::hidden_states(&decoder, Some(&adapter), &alone).unwrap());
        let ours = &packed[rows.start * config.hidden_size..rows.end * config.hidden_size];
        assert!(max_difference(ours, &alone) < 1e-5, "{rows:?}");
    }
}
