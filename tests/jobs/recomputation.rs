//! Recomputed activations equal kept ones to the bit; and how the kind of recomputation of a job is chosen.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::fixtures::{FAMILIES, device, floats, load_as};
use crate::training::{Fixture, ORG, spec, tickets};
use attune::jobs::Error;
use attune::jobs::worker::estimate::Estimator;
use attune::jobs::{JobApi, JobSpec, JobStatus};
use attune::model::ModelConfig;
use attune::model::linear::Storage;
use attune::model::lora::{Adapter, LoraLayer, LoraPair, Site};
use attune::train::Recomputation;
use attune::train::YieldPolicy;
use attune::train::backward::{self, Objective, PackedBatch, PassOptions, Target};
use attune::train::dropout::Dropout;
use attune::train::hyperparameters::Hyperparameters;
use attune::train::memory_bounds::MemoryBounds;
use attune::train::preference::Preferences;
use candle_core::Tensor;
use tokio_util::sync::CancellationToken;

/// Returns an adapter with numbers in every A and B, the same each time.
fn adapter(config: &ModelConfig) -> Adapter {
    let tensor = |rows: usize, columns: usize, seed: usize| {
        let value = |i: usize| ((i * 7919 + seed * 104_729 + 1) as f32 * 0.618).sin() * 0.05;
        Tensor::from_vec((0..rows * columns).map(value).collect::<Vec<_>>(), (rows, columns), &device()).unwrap()
    };
    let layers = (0..config.num_hidden_layers).map(|index| {
        let mut layer = LoraLayer::default();
        for (number, site) in config.sites_of(index).enumerate() {
            let (output, input) = site.shape(config);
            let (a, b) = (tensor(4, input, 10 * index + number), tensor(output, 4, 100 + 10 * index + number));
            layer.set(site, LoraPair { a, b, scale: 2.0 });
        }
        layer
    });
    Adapter::new(String::new(), layers.collect())
}

/// Returns four sequences of unequal lengths, two of them longer than the sliding windows of the fixtures.
fn batch() -> PackedBatch {
    let mut batch = PackedBatch::default();
    for length in [37, 5, 29, 11] {
        let start = batch.tokens.len();
        batch.sequences.push(start..start + length);
        batch.tokens.extend((0..length).map(|i| ((start + i) * 31 % 97) as u32));
        batch.targets.extend((start + 2..start + length).map(|row| Target {
            row,
            token: (row * 17 % 97) as u32,
            weight: if row % 5 == 0 { 0.1 } else { 1.0 },
        }));
    }
    batch
}

fn bits(gradients: &backward::Gradients) -> Vec<u32> {
    let pairs = gradients.iter().flat_map(|layer| Site::ALL.into_iter().filter_map(|site| layer.get(site)));
    pairs.flat_map(|pair| [floats(&pair.a), floats(&pair.b)].concat()).map(f32::to_bits).collect()
}

#[test]
fn losses_and_gradients_have_the_same_bits_for_every_family_and_storage() {
    let batch = batch();
    let q8 = Storage { quantize: Some("q8_0".into()), ..Storage::default() };
    for (family, storage) in FAMILIES.iter().map(|family| (*family, Storage::default())).chain([("qwen3", q8)]) {
        let (config, decoder) = load_as(family, &device(), &storage);
        let adapter = adapter(&config);
        let reference = backward::log_likelihoods(&decoder, None, &batch, YieldPolicy::default()).unwrap();
        let dropout = Dropout { probability: 0.3, seed: 5, step: 2, batch: 1 };
        let preferences = Objective::Preferences(Preferences { beta: 0.5, reference: &reference });
        for (objective, dropout) in
            [(Objective::Targets, None), (Objective::Targets, Some(&dropout)), (preferences, None)]
        {
            let run = |way| {
                let manner = PassOptions { dropout, ..PassOptions::recomputing(way) };
                let (report, gradients) =
                    backward::objective_and_gradients(&decoder, &adapter, &batch, objective, 3.0, manner).unwrap();
                (report.loss_sum.to_bits(), bits(&gradients))
            };
            let plain = run(Recomputation::None);
            assert!(plain.1.iter().filter(|bits| **bits != 0).count() > plain.1.len() / 2, "{family}: gradients");
            for way in [Recomputation::Selective, Recomputation::Full] {
                assert!(run(way) == plain, "{family}, {way:?}, {objective:?}: other bits");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_all_ways_end_in_the_same_adapter_and_say_how_they_went() {
    let mut fixture = Fixture::new().await;
    let file = fixture.upload(&tickets(12)).await;
    let mut generations = Vec::new();
    for way in Recomputation::ALL {
        fixture.memory = MemoryBounds { recomputation: Some(way), ..MemoryBounds::default() };
        let job = fixture.enqueue(JobApi::FineTuningJobs, spec(file.clone())).await;
        let worker = fixture.worker();
        let done = fixture.wait_for(&job, JobStatus::Succeeded).await;
        worker.stop().await;
        generations.push(fixture.generation(&done).await);
        let events = fixture.queue.events_after(&job, 0, 1000).await.unwrap();
        let expected = events.iter().find(|event| event.message.starts_with("Expected: ")).unwrap();
        assert!(expected.message.contains(way.in_words()), "{}", expected.message);
        let estimate = &expected.data.as_ref().unwrap()["estimate"];
        assert_eq!(estimate["recomputation"], way.name());
        assert!(estimate["memory_bytes"]["available"].as_u64() > Some(0), "{estimate}");
    }
    assert!(generations.iter().all(|generation| *generation == generations[0]), "{generations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_fit_is_refused_before_its_first_step_as_its_estimate_is() {
    let mut fixture = Fixture::new().await;
    fixture.memory = MemoryBounds { limit: Some(1 << 20), ..MemoryBounds::default() };
    let file = fixture.upload(&tickets(12)).await;
    let asked = JobSpec { hyperparameters: Hyperparameters::default(), ..spec(file) };
    let estimated = Estimator::new(fixture.parts()).estimate(ORG, &asked, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(&estimated, Error::Train(attune_train::Error::InsufficientMemory(_))), "{estimated}");
    let job = fixture.enqueue(JobApi::FineTuningJobs, asked).await;
    let worker = fixture.worker();
    let failed = fixture.wait_for(&job, JobStatus::Failed).await;
    worker.stop().await;
    let fault = failed.error.unwrap();
    assert_eq!((fault.code.as_str(), fault.param.as_deref()), ("insufficient_memory", Some("max_seq_length")));
    for part in ["only 0 B are left", "max_seq_length", "rank", "quantize"] {
        assert!(fault.message.contains(part), "{part}: {}", fault.message);
    }
    assert!(failed.checkpoint.is_none() && failed.fine_tuned_model.is_none());
    assert!(!fixture.messages(&job).await.iter().any(|message| message.starts_with("Training on")));
}
