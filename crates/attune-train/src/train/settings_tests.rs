//! Tests of automatic settings and of the serialized form of settings.

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
    let asked = Hyperparameters { target_modules: Some(vec![Site::Query]), ..Hyperparameters::default() };
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

#[test]
fn adapters_of_mixtures_of_experts_change_attention_alone() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let config = |family: &str| ModelConfig::read(&fixtures.join(family)).unwrap();
    let sites = |family: &str, asked: Option<&[Site]>| {
        let asked = Hyperparameters { target_modules: asked.map(<[_]>::to_vec), ..Hyperparameters::default() };
        target_modules(&asked, &config(family))
    };
    let attention = [Site::Query, Site::Key, Site::Value, Site::Output];
    for family in ["qwen3_moe", "mixtral", "olmoe", "gpt_oss"] {
        assert_eq!(sites(family, None).unwrap(), attention);
        assert_eq!(sites(family, Some(&Site::ALL)).unwrap(), attention, "all that there are");
        assert_eq!(sites(family, Some(&[Site::Value])).unwrap(), [Site::Value]);
        let refused = sites(family, Some(&[Site::Query, Site::Up])).unwrap_err().to_string();
        assert!(refused.contains("up_proj") && refused.contains("experts"), "{refused}");
    }
    assert_eq!(sites("llama", None).unwrap(), Site::ALL);
    assert_eq!(sites("llama", Some(&[Site::Up])).unwrap(), [Site::Up]);
}
