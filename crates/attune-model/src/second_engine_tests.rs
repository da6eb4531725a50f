//! Tests of models that another engine runs: which they are, and what is read of them.

use serde_json::json;

use super::*;
use crate::checkpoint::Checkpoint;
use crate::entry::ModelEntry;

fn folder(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(folder.path().join("model.safetensors"), "weights").unwrap();
    folder
}

fn starcoder() -> Value {
    json!({"model_type": "starcoder2", "architectures": ["Starcoder2ForCausalLM"], "vocab_size": 64,
        "max_position_embeddings": 128})
}

#[test]
fn a_family_that_only_the_second_engine_has_goes_there_by_itself() {
    let folder = folder(&starcoder());
    let entry = ModelEntry::new("m", folder.path());
    let opened = Checkpoint::of_entry(&entry).unwrap();
    assert!(matches!(opened, Checkpoint::SecondEngine(_)));
    let config = opened.config().unwrap();
    assert_eq!((config.family, config.vocab_size, config.max_position_embeddings), ("starcoder2", 64, 128));
    assert_eq!(config.num_hidden_layers, 0);

    let own = ModelEntry { engine: EngineChoice::Attune, ..entry };
    let refused = Checkpoint::of_entry(&own).unwrap_err().to_string();
    assert!(refused.contains("engine = \"attune\""), "{refused}");
}

#[test]
fn a_shared_family_goes_where_the_configuration_says() {
    let folder = folder(&json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 64,
        "max_position_embeddings": 128}));
    let chosen = ModelEntry { engine: EngineChoice::Mistralrs, ..ModelEntry::new("m", folder.path()) };
    assert!(matches!(Checkpoint::of_entry(&chosen).unwrap(), Checkpoint::SecondEngine(_)));
    assert!(SecondEngineModel::find(folder.path()).unwrap().is_none());
}

#[test]
fn the_context_ends_where_a_window_does() {
    let read = |more: Value| {
        let mut config = starcoder();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Checkpoint::of_entry(&ModelEntry::new("m", folder(&config).path())).unwrap().config().unwrap()
    };
    assert_eq!(read(json!({"sliding_window": 32})).max_position_embeddings, 32);
    assert_eq!(read(json!({"sliding_window": 32, "use_sliding_window": false})).max_position_embeddings, 128);
    assert_eq!(read(json!({"sliding_window": null})).max_position_embeddings, 128);
}

#[test]
fn a_family_that_nobody_compared_is_taken_only_if_it_is_chosen() {
    let folder = folder(&json!({"model_type": "phi", "architectures": ["PhiForCausalLM"], "vocab_size": 64,
        "max_position_embeddings": 128}));
    let auto = ModelEntry::new("m", folder.path());
    assert!(Checkpoint::of_entry(&auto).unwrap_err().to_string().contains("`phi`"));
    let chosen = ModelEntry { engine: EngineChoice::Mistralrs, ..auto };
    let Checkpoint::SecondEngine(model) = Checkpoint::of_entry(&chosen).unwrap() else { panic!("another engine") };
    assert!(model.is_unproven && model.fails_on_cpu.is_some());
}

/// Says what engine would run a hybrid of these layers and experts.
fn of_hybrid(layers: &[&str], experts: u32, longest: usize) -> crate::Result<Checkpoint> {
    let folder = folder(&json!({"model_type": "granitemoehybrid", "architectures": ["GraniteMoeHybridForCausalLM"],
        "vocab_size": 64, "max_position_embeddings": longest, "layer_types": layers, "num_local_experts": experts}));
    SecondEngineModel::find(folder.path())?.map_or_else(
        || Err(crate::Error::Setup("the own engine".into())),
        |model| model.check().map(|()| Checkpoint::SecondEngine(model)),
    )
}

#[test]
fn a_hybrid_goes_there_if_it_has_more_than_attention() {
    let mamba = of_hybrid(&["mamba", "attention"], 0, 1024);
    assert!(mamba.is_ok());
    assert!(of_hybrid(&["attention"], 4, 1024).is_ok());
    assert!(of_hybrid(&["attention"], 0, 1024).unwrap_err().to_string().contains("own engine"));
    assert!(of_hybrid(&["mamba"], 0, 512).unwrap_err().to_string().contains("must be above 512"));
}

#[test]
fn what_the_second_engine_does_not_have_is_refused_by_name() {
    let cases = [
        (json!({"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}), "olmo2"),
        (
            json!({"model_type": "starcoder2", "architectures": ["Starcoder2ForTokenClassification"]}),
            "TokenClassification",
        ),
        (json!({"model_type": "starcoder2"}), "missing"),
        (json!({"model_type": "starcoder2", "architectures": ["Starcoder2ForCausalLM"]}), "max_position_embeddings"),
        (json!({"model_type": "phimoe", "architectures": ["PhiMoEForCausalLM"]}), "other answers"),
        (json!({"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"]}), "other answers"),
        (
            json!({"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"],
                "topk_method": "group_limited_greedy"}),
            "as if it were \"greedy\"",
        ),
        (
            json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            "`yarn`",
        ),
        (
            json!({"model_type": "glm4", "architectures": ["Glm4ForCausalLM"],
                "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0}}),
            "`linear`",
        ),
        (
            json!({"model_type": "starcoder2", "architectures": ["Starcoder2ForCausalLM"], "tie_word_embeddings": false}),
            "tie_word_embeddings",
        ),
    ];
    for (config, part) in cases {
        let folder = folder(&config);
        let entry = ModelEntry { engine: EngineChoice::Mistralrs, ..ModelEntry::new("m", folder.path()) };
        let refused = Checkpoint::of_entry(&entry).unwrap_err().to_string();
        assert!(refused.contains(part), "{refused}");
    }
    let without = folder(&starcoder());
    std::fs::remove_file(without.path().join("tokenizer.json")).unwrap();
    let refused = Checkpoint::of_entry(&ModelEntry::new("m", without.path())).unwrap_err().to_string();
    assert!(refused.contains("tokenizer.json"), "{refused}");
}
