//! Resident memory of serving: a cache takes memory as it is written, not when it is made. One test in a process of its own,
//! since it measures the process; it has the program's allocator.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use attune::engine::limits::EngineLimits;
use attune::engine::step_model::{BaseStepModel, StepModel, WantedRows};
use attune::model::BaseModel;
use attune::model::decoder::SequenceRows;
use attune::model::entry::ModelEntry;
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::rope::RopeTable;
use attune::system;
use candle_core::{DType, Device};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MIB: u64 = 1 << 20;

#[test]
fn a_cache_takes_memory_as_it_is_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let model = Arc::new(BaseModel::load(&ModelEntry::new("demo", &folder), &Device::Cpu).unwrap());
    let config = model.config.clone();
    let resident = || {
        system::give_back_freed_memory();
        system::resident_bytes().unwrap()
    };
    let before = resident();
    // The allocator now has used memory at hand, in pieces as large as the cache's.
    drop((0..16).map(|_| vec![1.0_f32; 8 << 20]).collect::<Vec<_>>());
    let mut serving = BaseStepModel::new(model, &EngineLimits::default()).unwrap();
    let block_bytes = KvCache::block_bytes(&config, DType::F32) as u64;
    let cache = serving.blocks() as u64 * block_bytes;
    assert!(cache >= 300 * MIB, "{} blocks", serving.blocks());
    // Pieces that are partly in use again are not given back.
    let empty = resident();
    assert!(empty < before + cache / 3, "from {before} to {empty} bytes");

    // Half of a context in the last blocks.
    let rows = config.max_position_embeddings / 2;
    let blocks: Vec<u32> = (0..serving.blocks() as u32).rev().take(rows / BLOCK_TOKENS).collect();
    let tokens: Vec<u32> = (0..rows as u32).map(|token| token % 100).collect();
    let sequence = SequenceRows { rows: 0..rows, start: 0, blocks: &blocks, adapter: None, rope: RopeTable::Short };
    serving.step(&tokens, &[sequence], &WantedRows { logits: vec![rows as u32 - 1], ..WantedRows::default() }).unwrap();
    let (written, least) = (resident(), blocks.len() as u64 * block_bytes);
    assert!(written < empty + least + cache / 5, "from {empty} to {written} bytes");
}
