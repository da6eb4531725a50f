//! Tests of automatic settings and of the serialized form of settings.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[test]
fn automatic_epochs_follow_the_published_formula() {
    for (examples, epochs) in [(10, 10), (4, 25), (33, 3), (34, 3), (500, 3), (8_333, 3), (10_000, 2), (60_000, 1)] {
        assert_eq!(auto_epochs(examples), epochs, "{examples} examples");
    }
}

#[test]
fn automatic_batches_leave_small_files_fifty_steps_and_grow_with_large_ones() {
    for (examples, epochs, size) in [(10, 10, 2), (100, 3, 4), (500, 3, 8), (10_000, 2, 20), (1_000_000, 1, 256)] {
        assert_eq!(auto_batch_size(examples, epochs), size, "{examples} examples");
    }
    assert_eq!(auto_batch_size(1, 1), 1);
}

#[test]
fn automatic_batches_of_pairs_are_large_where_there_are_steps_enough() {
    for (examples, epochs, size) in
        [(10, 10, 8), (100, 3, 8), (200, 3, 16), (300, 3, 32), (16_000, 1, 32), (50_000, 1, 100), (200_000, 1, 256)]
    {
        assert_eq!(auto_pairs(examples, epochs), size, "{examples} examples");
    }
    assert_eq!(auto_pairs(5, 25), 5);
}

#[test]
fn a_share_of_warmup_is_the_number_of_steps_that_it_was_made_of() {
    for total in 1..3000 {
        let warmup = Some(auto_warmup(total) as f64 / total as f64);
        let hyperparameters = Hyperparameters { warmup_ratio: warmup, ..Hyperparameters::default() };
        assert_eq!(TrainSettings::new(&hyperparameters, 0).warmup_steps(total), auto_warmup(total), "{total} steps");
    }
}

#[test]
fn rslora_multiplies_alpha_by_the_root_of_the_rank() {
    let asked =
        Hyperparameters { rank: Some(16), alpha: Some(10.0), use_rslora: Some(true), ..Hyperparameters::default() };
    assert!((TrainSettings::new(&asked, 0).alpha - 40.0).abs() < 1e-12);
}

#[test]
fn the_serialized_form_that_checkpoints_are_recognised_by_stays_as_it_is() {
    let asked = Hyperparameters { target_modules: Some(vec!["q_proj".into()]), ..Hyperparameters::default() };
    let of = |beta, scale, batch_rows| {
        let settings = TrainSettings::new(&Hyperparameters { beta, scale, ..asked.clone() }, 7);
        serde_json::to_string(&TrainSettings { batch_rows, ..settings }).unwrap()
    };
    let common = r#"{"rank":16,"alpha":32.0,"sites":["q_proj"],"epochs":1,"batch_size":1,"learning_rate":0.0002,"seed":7,"warmup":null,"schedule":"linear","adam":{"beta1":0.9,"beta2":0.999,"epsilon":1e-8,"weight_decay":0.0},"clip":1.0,"dropout":0.0,"patience":0,"keep_best":false,"#;
    assert_eq!(of(None, None, BATCH_ROWS), format!(r#"{common}"beta":null}}"#));
    assert_eq!(of(Some(0.1), None, BATCH_ROWS), format!(r#"{common}"beta":0.1}}"#));
    assert_eq!(of(None, Some(20.0), BATCH_ROWS), format!(r#"{common}"beta":null,"scale":20.0}}"#));
    assert_eq!(of(None, None, 4096), format!(r#"{common}"beta":null,"batch_rows":4096}}"#));
}

/// Returns the shape of a fixture.
fn shape(family: &str) -> ModelConfig {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    ModelConfig::read(&fixtures.join(family)).unwrap()
}

#[test]
fn layers_have_the_names_of_the_models_checkpoint() {
    let asked = |names: &[&str]| Hyperparameters {
        target_modules: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        ..Hyperparameters::default()
    };
    let (plain, fused) = (shape("llama"), shape("phi3"));
    let all = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"];
    assert_eq!(target_modules(&Hyperparameters::default(), &fused).unwrap(), all);
    assert_eq!(target_modules(&asked(&["all-linear"]), &fused).unwrap(), all);
    assert_eq!(target_modules(&asked(&["all-linear"]), &plain).unwrap().len(), 7);
    let some = target_modules(&asked(&["v_proj", "q_proj", "v_proj"]), &plain).unwrap();
    assert_eq!(some, ["q_proj", "v_proj"], "in the order of the forward pass, each once");
    for (names, model, other) in [(["q_proj"], &fused, "qkv_proj"), (["qkv_proj"], &plain, "q_proj")] {
        let Err(Error::Setting { name: "target_modules", message }) = target_modules(&asked(&names), model) else {
            panic!("{names:?} is taken");
        };
        assert!(message.contains(names[0]) && message.contains(other), "{message}");
    }
}

#[test]
fn an_adapter_of_a_fused_layer_changes_all_of_its_sites() {
    let of = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        sites(Some(&names))
    };
    assert_eq!(of(&["qkv_proj"]), [Site::Query, Site::Key, Site::Value]);
    assert_eq!(of(&["gate_up_proj", "o_proj"]), [Site::Output, Site::Gate, Site::Up]);
    assert_eq!(of(&["q_proj"]), [Site::Query]);
    assert_eq!((of(&["all-linear"]), sites(None)), (Site::ALL.to_vec(), Site::ALL.to_vec()));
}

#[test]
fn adapters_of_mixtures_of_experts_change_attention_alone_unless_experts_are_named() {
    let asked = |names: &[&str]| Hyperparameters {
        target_modules: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        ..Hyperparameters::default()
    };
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"];
    for family in ["qwen3_moe", "mixtral", "olmoe", "gpt_oss"] {
        let model = shape(family);
        assert_eq!(target_modules(&Hyperparameters::default(), &model).unwrap(), attention);
        assert_eq!(target_modules(&asked(&["all-linear"]), &model).unwrap(), attention, "all that there are");
        assert_eq!(target_modules(&asked(&["v_proj"]), &model).unwrap(), ["v_proj"]);
        let refused = target_modules(&asked(&["q_proj", "up_proj"]), &model).unwrap_err().to_string();
        assert!(refused.contains("'up_proj'") && refused.contains("gate_up_proj, down_proj"), "{refused}");
        let both = target_modules(&asked(&["down_proj", "o_proj", "gate_up_proj"]), &model).unwrap();
        assert_eq!(both, ["o_proj", "gate_up_proj", "down_proj"]);
        let adapts = |names: &[&str]| TrainSettings::new(&asked(names), 0).adapts_experts();
        assert!(
            adapts(&["down_proj"]) && adapts(&["gate_up_proj"]) && !adapts(&["o_proj"]) && !adapts(&["all-linear"])
        );
        let dropped = Hyperparameters { lora_dropout: Some(0.1), ..asked(&["down_proj"]) };
        let refused = check_experts(&dropped, &model).unwrap_err().to_string();
        assert!(refused.contains("lora_dropout") && refused.contains("'down_proj'"), "{refused}");
        for fine in [asked(&["down_proj"]), Hyperparameters { lora_dropout: Some(0.1), ..asked(&["o_proj"]) }] {
            check_experts(&fine, &model).unwrap();
        }
    }
    let dropped = Hyperparameters { lora_dropout: Some(0.1), ..asked(&["down_proj"]) };
    check_experts(&dropped, &shape("llama")).unwrap();
    assert_eq!(target_modules(&asked(&["up_proj"]), &shape("llama")).unwrap(), ["up_proj"]);
}
