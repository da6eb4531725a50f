//! What a training run has resident: no more at its 200th step than at its 20th, and no more than the estimate says. Each run
//! is in a process of its own, since it measures that; it has the program's allocator and settings.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use attune::config::ModelEntry;
use attune::datasets::{self, Purpose, RenderSettings};
use attune::jobs::Hyperparameters;
use attune::machine;
use attune::model::BaseModel;
use attune::train::estimate::TrainingMemory;
use attune::train::{Recomputation, TrainSettings, Trainer};
use candle_core::Device;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WAY: &str = "TRAINING_MEMORY_WAY";

/// What the allocator may gather between the two looks: pages of sizes that come seldom. A leak of one of the smallest
/// gradients, 4 KiB, in each step would be 0.7 MiB in each of 70 places.
const GROWTH: u64 = 4 << 20;

#[test]
fn memory_stays_flat_and_below_the_estimate_in_every_way() {
    let peaks = Recomputation::ALL.map(|way| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_run", "--ignored", "--nocapture"])
            .env(WAY, way.name())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{way:?}: {said}");
        let line = said.lines().find_map(|line| line.strip_prefix("measured ")).expect(&said);
        println!("{}: {line}", way.name());
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let [before, early, late, estimate] = numbers[..] else { panic!("{line}") };
        assert!(late <= early + GROWTH, "{way:?}: from {early} bytes at step 20 to {late} at step 200");
        assert!(late <= estimate, "{way:?}: {late} bytes are more than the estimate's {estimate}");
        assert!(late > before, "{way:?}: training took nothing");
        late - before
    });
    assert!(peaks[1] < peaks[0] && peaks[2] < peaks[1], "what is computed again is not kept: {peaks:?}");
}

#[test]
#[ignore = "a part of the test above"]
fn one_run() {
    let way = std::env::var(WAY).unwrap();
    let way = Recomputation::ALL.into_iter().find(|known| known.name() == way).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let model = Arc::new(BaseModel::load(&ModelEntry::new("demo", &folder), &Device::Cpu).unwrap());
    let text = std::fs::read_to_string(folder.join("tickets/train.jsonl")).unwrap();
    let render = RenderSettings { prompt_loss_weight: 0.0, max_tokens: 1024, scratch: std::env::temp_dir() };
    let data = datasets::read(Cursor::new(text), Purpose::Training, &*model, &render).unwrap();
    let asked = Hyperparameters { n_epochs: Some(3), batch_size: Some(4), ..Hyperparameters::default() };
    let settings = TrainSettings::new(&asked, 3);
    let process = machine::resident_bytes().unwrap();
    reset_peak();
    let mut trainer = Trainer::new(Arc::clone(&model), settings.clone(), data.examples, None).unwrap();
    trainer.recompute(way);
    let parameters = trainer.parameter_count();
    let estimate = TrainingMemory::new(&model, parameters, &settings, &data.report, Some(process), way);
    let mut early = 0;
    while trainer.step_number() < 200 {
        trainer.step(&mut || Ok(())).unwrap().unwrap();
        if trainer.step_number() == 20 {
            early = peak();
        }
    }
    println!("\nmeasured {process} {early} {} {}", peak(), estimate.peak);
}

/// The most that this process had resident since [`reset_peak`], in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Loading a model takes more for a moment than the model does.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}
