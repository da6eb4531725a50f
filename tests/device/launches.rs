//! Number of launches on a GPU per step: not more for more sequences or more adapters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use attune::model::Result;
use attune::model::decoder::SequenceRows;
use attune::model::kernels::cuda::{DeviceEvent, Kernel, Launcher, Shape};
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::linear::Dtype;
use attune::model::linear::Storage;
use attune::model::lora::Adapter;
use attune::model::rope::RopeTable;
use candle_core::{DType, Device, Tensor};

use crate::emulator::{self, Emulator};
use crate::fixtures::{Reference, load_on};

/// Counts kernels and products.
struct Counter {
    emulator: Emulator,
    launches: AtomicUsize,
}

impl Launcher for Counter {
    fn launch_bytes(&self, kernel: &Kernel, arguments: &[u8], shape: Shape) -> Result<()> {
        self.launches.fetch_add(1, Ordering::SeqCst);
        self.emulator.launch_bytes(kernel, arguments, shape)
    }

    fn product(&self, a: &Tensor, b: &Tensor, dtype: DType) -> Result<Tensor> {
        self.launches.fetch_add(1, Ordering::SeqCst);
        self.emulator.product(a, b, dtype)
    }

    fn add_product(&self, y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
        self.launches.fetch_add(1, Ordering::SeqCst);
        self.emulator.add_product(y, a, b)
    }

    fn mark(&self) -> Result<Box<dyn DeviceEvent>> {
        self.emulator.mark()
    }

    fn has_matrix_units(&self) -> bool {
        self.emulator.has_matrix_units()
    }
}

#[test]
fn a_step_of_many_adapters_starts_as_much_as_a_step_of_one() {
    let counter = Arc::new(Counter { emulator: Emulator { reversed: true }, launches: AtomicUsize::new(0) });
    let kernels = emulator::kernels(counter.clone());
    let (config, decoder) = load_on("llama", &kernels, &Storage { dtype: Some(Dtype::Bf16), quantize: None });
    let adapter = Reference::read("llama", "peft/adapter_model.safetensors").adapter("", &config, 2.0, &Device::Cpu);
    let adapters: Vec<Adapter> = (0..40).map(|_| decoder.served(&adapter).unwrap()).collect();
    // Each sequence has one row, and an adapter of its own if there are adapters.
    let launches = |count: usize, adapters: &[Adapter]| {
        let blocks: Vec<[u32; 1]> = (0..count as u32).map(|block| [block]).collect();
        let cache = KvCache::new(&config, count, DType::BF16, &Device::Cpu).unwrap();
        let sequences: Vec<SequenceRows<'_>> = (0..count)
            .map(|one| SequenceRows {
                rows: one..one + 1,
                start: BLOCK_TOKENS / 2,
                blocks: &blocks[one],
                adapter: adapters.get(one),
                rope: RopeTable::Short,
            })
            .collect();
        let before = counter.launches.load(Ordering::SeqCst);
        decoder.step(&vec![3; count], &sequences, &cache).unwrap();
        counter.launches.load(Ordering::SeqCst) - before
    };
    let layers = config.num_hidden_layers;
    // Query, key and value with the norm before them; attention with everything that precedes it; its output; gate and
    // up with norm and activation; down. Then the norm at the end.
    assert_eq!(launches(1, &[]), 5 * layers + 1);
    assert_eq!(launches(4, &[]), launches(1, &[]));
    // With more rows each of the seven products is one launch, including the addition; two norms and the activation are
    // launches of their own.
    assert_eq!(launches(20, &[]), 11 * layers + 1);
    // Two for each of four groups of layers. The adapters' parts run behind norms and before the activation.
    assert_eq!(launches(1, &adapters), 8 * layers + 1 + 8 * layers);
    for count in [20, 40] {
        assert_eq!(launches(count, &adapters), launches(count, &[]) + 8 * layers);
    }
}
