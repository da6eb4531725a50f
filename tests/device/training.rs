//! The trainer on a GPU, or in the emulator: the adapter and the optimizer's moments stay on the device between steps.

use attune::datasets::{ExampleStore, TokenizedExample};
use attune::model::lora::Site;
use attune::model::lora::modules::PLAIN;
use attune::train::backward::{self, Objective, PassOptions};
use attune::train::optimizer::AdamSettings;
use attune::train::schedule::Schedule;
use attune::train::{TrainSettings, Trainer, TrainingMethod, YieldPolicy};
use attune_train::Error;

use crate::fixtures::{Reference, device, floats, relative_difference, tensor_name, whole_model_on};
use crate::kernels;

/// Returns the settings of PEFT's run of twenty steps in `curve.safetensors`.
fn settings() -> TrainSettings {
    TrainSettings {
        rank: 4,
        alpha: 8.0,
        epochs: 20,
        batch_size: 4,
        learning_rate: 5e-3,
        seed: 7,
        warmup: Some(0.2),
        schedule: Schedule::Linear,
        adam: AdamSettings { weight_decay: 0.01, ..AdamSettings::default() },
        clip: 1.0,
        sites: Site::USUAL.to_vec(),
        experts: false,
        dropout: 0.0,
        patience: 0,
        keep_best: false,
        method: TrainingMethod::Answers,
        batch_rows: 512,
    }
}

fn trainer() -> Trainer {
    let model = whole_model_on("llama", &kernels());
    let batch = Reference::read("llama", "peft/reference.safetensors").batch();
    let example = |rows: &std::ops::Range<usize>| {
        let mut weights = vec![0.0; rows.len()];
        // A target is at the row before it.
        for target in batch.targets.iter().filter(|target| rows.contains(&target.row)) {
            weights[target.row - rows.start + 1] = target.weight;
        }
        TokenizedExample { tokens: batch.tokens[rows.clone()].to_vec(), weights }
    };
    let examples = ExampleStore::of(batch.sequences.iter().map(example)).unwrap();
    let initial = Reference::read("llama", "peft/curve.safetensors").adapter("init.", &model.config, 2.0, &device());
    Trainer::new(model, settings(), examples, Some(&initial)).unwrap()
}

#[test]
fn twenty_steps_on_the_device_are_those_of_peft_and_can_be_taken_in_two_parts() {
    let curve = Reference::read("llama", "peft/curve.safetensors");
    let mut whole = trainer();
    let mut middle = None;
    for (loss, norm) in curve.floats("losses").into_iter().zip(curve.floats("grad_norms")) {
        let report = whole.step(&mut || Ok(())).unwrap().unwrap();
        let (loss, norm) = (f64::from(loss), f64::from(norm));
        assert!((report.loss - loss).abs() < 1e-4 * loss, "{report:?}: loss {loss}");
        assert!((report.gradient_norm - norm).abs() < 1e-4 * norm, "{report:?}: norm {norm}");
        if report.step == 12 {
            middle = Some((whole.save().unwrap(), whole.adapter().unwrap()));
        }
    }
    assert!(whole.step(&mut || Ok(())).unwrap().is_none());
    let last = whole.adapter().unwrap();
    let (checkpoint, at_twelve) = middle.unwrap();
    let mut rest = trainer();
    rest.restore(&checkpoint).unwrap();
    while rest.step(&mut || Ok(())).unwrap().is_some() {}
    assert_eq!(rest.save().unwrap(), whole.save().unwrap());
    for (index, layer) in last.layers.iter().enumerate() {
        for site in Site::USUAL {
            let pair = layer.get(site).unwrap();
            for (ours, half) in [(&pair.a, "A"), (&pair.b, "B")] {
                let wanted =
                    curve.floats(&format!("final.{}.lora_{half}.weight", tensor_name(index, &PLAIN[site as usize])));
                let difference = relative_difference(&floats(ours), &wanted);
                assert!(difference < 1e-3, "{index} {site:?} {half}: {difference:e}");
            }
            // An adapter that the trainer returned does not change afterwards.
            assert_ne!(floats(&at_twelve.layers[index].get(site).unwrap().b), floats(&pair.b));
        }
    }
}

/// Requests need not wait for a whole batch: training yields before each block, and stops if told to.
#[test]
fn a_batch_is_done_in_pieces() {
    let model = whole_model_on("qwen3", &kernels());
    let decoder = model.training_decoder();
    let adapter =
        Reference::read("qwen3", "peft/adapter_model.safetensors").adapter("", &model.config, 2.0, decoder.device());
    let batch = Reference::read("qwen3", "peft/reference.safetensors").batch();
    let run = |before: &mut dyn FnMut() -> attune_train::Result<()>| {
        let manner = PassOptions { pace: YieldPolicy::asking(before), ..PassOptions::default() };
        backward::objective_and_gradients(decoder, &adapter, &batch, Objective::Targets, 1.0, manner)
    };
    let mut asked = 0;
    run(&mut || {
        asked += 1;
        Ok(())
    })
    .unwrap();
    let layers = model.config.num_hidden_layers;
    assert_eq!(asked, layers + layers - 1);
    let stopped = run(&mut || {
        asked -= 1;
        if asked == 1 { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(asked, 1);
}
