//! Resident memory of a training run: no more at its 200th step than at its 20th, and no more than the estimate. Each
//! run is in a process of its own, since it measures the process; it has the program's allocator and settings.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use attune::datasets::{self, Dataset, ExampleStore, Purpose, RenderSettings, TextPrompts, TokenizedExample};
use attune::model::BaseModel;
use attune::model::entry::ModelEntry;
use attune::system;
use attune::train::estimate::TrainingMemory;
use attune::train::hyperparameters::Hyperparameters;
use attune::train::{Recomputation, TrainSettings, Trainer};
use candle_core::Device;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Environment variable that tells a child its measurement: a kind of recomputation, and one of the two sets of
/// examples.
const RUN: &str = "TRAINING_MEMORY_RUN";

/// Most bytes that the peak may grow between steps 20 and 200. Steps of the same shape take the same blocks again; the
/// rest is the allocator's own bookkeeping and the run's record of each step. A leak of the smallest gradient alone, 16
/// KiB for each step and layer, would be 14 MiB.
const GROWTH: u64 = 4 << 20;

/// Resident bytes, in the order in which they were measured.
struct Measured {
    before: u64,
    /// Peak up to the 20th step.
    early: u64,
    /// Peak of the whole run.
    late: u64,
    estimate: u64,
}

fn measure(way: Recomputation, examples: &str) -> Measured {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "one_run", "--ignored", "--nocapture"])
        .env(RUN, format!("{} {examples}", way.name()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{way:?}: {said}");
    let line = said.lines().find_map(|line| line.strip_prefix("measured ")).expect(&said);
    println!("{} {examples}: {line}", way.name());
    let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    let [before, early, late, estimate] = numbers[..] else { panic!("{line}") };
    assert!(late > before, "training took nothing");
    Measured { before, early, late, estimate }
}

#[test]
fn two_hundred_steps_take_no_more_than_twenty() {
    for way in Recomputation::ALL {
        let Measured { early, late, .. } = measure(way, "alike");
        assert!(late <= early + GROWTH, "{way:?}: from {early} bytes at step 20 to {late} at step 200");
    }
}

#[test]
fn a_run_stays_below_its_estimate_and_takes_less_the_more_is_computed_again() {
    let added = Recomputation::ALL.map(|way| {
        let Measured { before, late, estimate, .. } = measure(way, "mixed");
        assert!(late <= estimate, "{way:?}: {late} bytes are more than the estimate's {estimate}");
        late - before
    });
    assert!(added[2] < added[0], "what is computed again is not kept: {added:?}");
}

#[test]
#[ignore = "a part of the tests above"]
fn one_run() {
    let run = std::env::var(RUN).unwrap();
    let (way, examples) = run.split_once(' ').unwrap();
    let way = Recomputation::ALL.into_iter().find(|known| known.name() == way).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let model = Arc::new(BaseModel::load(&ModelEntry::new("demo", &folder), &Device::Cpu).unwrap());
    let text = std::fs::read_to_string(folder.join("tickets/train.jsonl")).unwrap();
    let render = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens: 1024,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let Dataset { examples: mut store, mut report, .. } =
        datasets::read(Cursor::new(text), Purpose::Training, &*model, &render).unwrap();
    let (mut batch_size, mut steps) = (8, 60);
    if examples == "alike" {
        // Each step is one batch of two sequences of 64 rows.
        let all = store.range(0..store.len()).unwrap().into_iter().filter(|example| example.tokens.len() >= 65);
        let cut = |example: TokenizedExample| TokenizedExample {
            tokens: example.tokens[..65].to_vec(),
            weights: (0..65).map(|i| if i > 40 { 1.0 } else { 0.0 }).collect(),
        };
        store = ExampleStore::of(all.map(cut)).unwrap();
        (report.tokens, report.longest) = (65 * store.len(), 64);
        (batch_size, steps) = (2, 200);
    }
    let asked = Hyperparameters { n_epochs: Some(3), batch_size: Some(batch_size), ..Hyperparameters::default() };
    let settings = TrainSettings::new(&asked, 3);
    let process = system::resident_bytes().unwrap();
    reset_peak();
    let mut trainer = Trainer::new(Arc::clone(&model), settings.clone(), store, None).unwrap();
    trainer.recompute(way);
    let estimate = TrainingMemory::new(&model, trainer.parameter_count(), &settings, &report, Some(process), way);
    let mut early = 0;
    while trainer.step_number() < steps {
        trainer.step(&mut || Ok(())).unwrap().unwrap();
        if trainer.step_number() == 20 {
            early = peak();
        }
    }
    println!("\nmeasured {process} {early} {} {}", peak(), estimate.peak);
}

/// Returns the peak resident bytes of this process since [`reset_peak`].
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Resets the peak, since loading a model briefly takes more memory than the model.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}
