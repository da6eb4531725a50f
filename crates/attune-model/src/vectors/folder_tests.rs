//! Folders of sentence-transformers in the spellings that its versions wrote, and what is refused of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{Device, Tensor};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::vectors::{Pooling, copy};

const POSITIONS: usize = 64;

fn config() -> ModelConfig {
    let config = json!({"model_type": "llama", "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1,
        "max_position_embeddings": POSITIONS});
    ModelConfig::parse(&config.to_string()).unwrap()
}

/// A folder on its way to what a test needs.
struct Folder(TempDir);

impl Folder {
    /// Makes a folder with these modules by name, in the library's older spelling.
    fn of(modules: &[&str]) -> Self {
        let module = |(index, name): (usize, &&str)| {
            let path = if index == 0 { String::new() } else { format!("{index}_{name}") };
            json!({"idx": index, "name": index.to_string(), "path": path, "type": format!("sentence_transformers.models.{name}")})
        };
        let list: Vec<Value> = modules.iter().enumerate().map(module).collect();
        Self(tempfile::tempdir().unwrap())
            .with("modules.json", &list.into())
            .with("1_Pooling/config.json", &json!({"word_embedding_dimension": 4, "pooling_mode_mean_tokens": true}))
    }

    fn with(self, name: &str, value: &Value) -> Self {
        let file = self.0.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, value.to_string()).unwrap();
        self
    }

    /// Adds the weights of the Dense in `folder`.
    fn with_dense(self, folder: &str, weight: &[[f32; 4]], bias: Option<&[f32]>) -> Self {
        let mut tensors =
            vec![("linear.weight", Tensor::new(weight.concat(), &Device::Cpu).unwrap().reshape(((), 4)).unwrap())];
        tensors.extend(bias.map(|bias| ("linear.bias", Tensor::new(bias, &Device::Cpu).unwrap())));
        let file = self.0.path().join(folder).join("model.safetensors");
        candle_core::safetensors::save(&tensors.into_iter().collect(), file).unwrap();
        self
    }

    fn read(&self) -> VectorForm {
        read(self.0.path(), &config()).unwrap()
    }

    /// Returns the message of the refusal.
    fn refused(&self) -> String {
        read(self.0.path(), &config()).unwrap_err().to_string()
    }
}

fn plain() -> Folder {
    Folder::of(&["Transformer", "Pooling"])
}

#[test]
fn without_modules_a_model_takes_the_mean_of_length_1_and_with_them_what_they_say() {
    let form = read(tempfile::tempdir().unwrap().path(), &config()).unwrap();
    assert!(form.is_normalized && form.poolings == [Pooling::Mean] && form.max_tokens == POSITIONS);
    let form = plain().read();
    assert!(!form.is_normalized && form.poolings == [Pooling::Mean] && form.pools_prompt && form.width() == 4);
    // The folder of a Normalize is often missing.
    assert!(Folder::of(&["Transformer", "Pooling", "Dropout", "Normalize"]).read().is_normalized);
}

#[test]
fn poolings_are_read_in_both_spellings_and_joined_in_the_order_of_the_library() {
    let all = [Pooling::First, Pooling::Max, Pooling::Mean, Pooling::MeanOfRoot, Pooling::WeightedMean, Pooling::Last];
    let flags = json!({"word_embedding_dimension": 4, "pooling_mode_lasttoken": true, "pooling_mode_weightedmean_tokens": true,
        "pooling_mode_mean_sqrt_len_tokens": true, "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true,
        "pooling_mode_cls_token": true});
    for (file, expected) in [
        (flags, &all[..]),
        (json!({"word_embedding_dimension": 4}), &[Pooling::Mean]),
        (
            json!({"word_embedding_dimension": 4, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}),
            &[Pooling::First],
        ),
        (json!({"embedding_dimension": 4, "pooling_mode": "lasttoken"}), &[Pooling::Last]),
        (json!({"embedding_dimension": 4, "pooling_mode": ["mean", "cls"]}), &[Pooling::Mean, Pooling::First]),
        // The newer field counts.
        (json!({"embedding_dimension": 4, "pooling_mode": "max", "pooling_mode_cls_token": true}), &[Pooling::Max]),
    ] {
        let form = plain().with("1_Pooling/config.json", &file).read();
        assert_eq!(form.poolings, expected, "{file}");
        assert_eq!(form.width(), 4 * expected.len());
    }
    let kept = json!({"embedding_dimension": 4, "pooling_mode": "mean", "include_prompt": false});
    assert!(!plain().with("1_Pooling/config.json", &kept).read().pools_prompt);
}

#[test]
fn dense_layers_follow_each_other_with_their_activations() {
    let square = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];
    let folder = Folder::of(&["Transformer", "Pooling", "Dense", "Dense", "Normalize"])
        .with("2_Dense/config.json", &json!({"in_features": 4, "out_features": 4}))
        .with_dense("2_Dense", &square, Some(&[0.1, 0.2, 0.3, 0.4]))
        .with(
            "3_Dense/config.json",
            &json!({"in_features": 4, "out_features": 2, "bias": false, "module_input_name": "sentence_embedding",
                "activation_function": "torch.nn.modules.linear.Identity"}),
        )
        .with_dense("3_Dense", &[[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 4.0]], None);
    let form = folder.read();
    assert_eq!(form.width(), 2);
    // Without a name the activation is tanh.
    let pair = [3.0 * 1.1_f64.tanh(), 4.0 * 0.4_f64.tanh()];
    let length = pair[0].hypot(pair[1]);
    let vector = form.vector(vec![1.0, 0.0, 0.0, 0.0]).unwrap();
    assert!(
        vector.iter().zip(pair).all(|(value, wanted)| (f64::from(*value) - wanted / length).abs() < 1e-6),
        "{vector:?}"
    );

    let dense = |config: &Value| Folder::of(&["Transformer", "Pooling", "Dense"]).with("2_Dense/config.json", config);
    let two = [[0.0; 4]; 2];
    let plain = json!({"in_features": 4, "out_features": 2, "bias": false});
    for (field, value, says) in [
        ("activation_function", json!("torch.nn.modules.activation.Hardtanh"), "Hardtanh"),
        ("activation_function", json!("custom.Tanh"), "custom.Tanh"),
        ("use_residual", json!(true), "use_residual"),
        ("module_input_name", json!("token_embeddings"), "token_embeddings"),
        ("in_features", json!(5), "it takes 5 values, and gets 4"),
        ("bias", json!(true), "`linear.bias` is missing"),
        ("out_features", json!(3), "expected numbers [3, 4]"),
        ("rank", json!(1), "unknown field `rank`"),
    ] {
        let mut config = plain.clone();
        config[field] = value;
        let message = dense(&config).with_dense("2_Dense", &two, None).refused();
        assert!(message.contains(says), "{message}");
    }
    let more = dense(&plain).with_dense("2_Dense", &two, Some(&[0.0, 0.0])).refused();
    assert!(more.contains("`linear.bias` is not known"), "{more}");
    let pickle = dense(&plain).with("2_Dense/pytorch_model.bin", &json!(0)).refused();
    assert!(pickle.contains("pytorch_model.bin is not read"), "{pickle}");
}

#[test]
fn the_limit_of_a_text_is_that_of_the_settings_then_that_of_the_tokenizer_and_the_model_has_to_bear_it() {
    let cut = json!({"truncation": {"max_length": 8}});
    for (settings, tokenizer, expected) in [
        (json!({"max_seq_length": 16, "do_lower_case": false}), json!({"model_max_length": 32}), 16),
        (json!({"max_seq_length": null}), json!({"model_max_length": 32}), 32),
        (json!({"tokenizer_args": {"model_max_length": 24}, "max_seq_length": 16}), json!({}), 24),
        (json!({}), json!({"model_max_length": 1e30}), POSITIONS),
        (json!({}), json!({}), POSITIONS),
        (json!({"max_seq_length": 512}), json!({}), POSITIONS),
    ] {
        let folder = plain()
            .with("sentence_bert_config.json", &settings)
            .with("tokenizer_config.json", &tokenizer)
            .with("tokenizer.json", &cut);
        assert_eq!(folder.read().max_tokens, expected, "{settings} {tokenizer}");
    }
    let older = plain()
        .with("sentence_bert_config.json", &json!({}))
        .with("sentence_roberta_config.json", &json!({"max_seq_length": 7, "do_lower_case": true}));
    let form = older.read();
    assert!(form.max_tokens == 7 && form.is_lower_cased);
}

#[test]
fn prompts_and_shorter_vectors_are_those_that_the_files_name() {
    let form = plain()
        .with(
            "config_sentence_transformers.json",
            &json!({"__version__": {"pytorch": "2"}, "prompts": {"query": "query: ", "document": null},
                "default_prompt_name": "query", "similarity_fn_name": "dot", "truncate_dim": null}),
        )
        .with("config.json", &json!({"matryoshka_dimensions": [4, 2, 1]}))
        .read();
    assert_eq!(
        form.prompts.into_iter().collect::<Vec<_>>(),
        [("document".into(), String::new()), ("query".into(), "query: ".into())]
    );
    assert_eq!(form.default_prompt.as_deref(), Some("query"));
    assert_eq!(form.shorter_widths, [1, 2]);
}

#[test]
fn what_would_change_vectors_and_is_not_applied_is_refused_by_name() {
    let list = |class: &str, path: &str| json!([{"path": path, "type": class}]);
    let first = |class: &str, path: &str| plain().with("modules.json", &list(class, path));
    let pooling = |field: &str, value: Value| {
        let mut config = json!({"embedding_dimension": 4});
        config[field] = value;
        plain().with("1_Pooling/config.json", &config)
    };
    let settings = |value: Value| plain().with("sentence_bert_config.json", &value);
    let whole = |value: Value| plain().with("config_sentence_transformers.json", &value);
    for (folder, says) in [
        (Folder::of(&["Transformer", "Pooling", "LayerNorm"]), "sentence_transformers.models.LayerNorm"),
        (Folder::of(&["Transformer", "WeightedLayerPooling"]), "WeightedLayerPooling"),
        (Folder::of(&["Router"]), "Router"),
        (first("custom_st.Transformer", ""), "custom_st.Transformer"),
        (first("sentence_transformers.models.Transformer", "../other"), "../other"),
        (first("sentence_transformers.models.Transformer", "/etc"), "/etc"),
        (Folder::of(&["Transformer"]), "the order of the modules"),
        (Folder::of(&["Transformer", "Pooling", "Normalize", "Dense"]), "the order of the modules"),
        (
            plain().with(
                "modules.json",
                &json!([{"path": "", "type": "sentence_transformers.models.Transformer", "kwargs": ["task"]}]),
            ),
            "kwargs",
        ),
        (pooling("embedding_dimension", json!(5)), "it pools 5 values, the model's hidden states have 4"),
        (pooling("pooling_mode", json!("attention")), "`attention`"),
        (pooling("pooling_mode_attention", json!(true)), "pooling_mode_attention"),
        (pooling("pooling_mode", json!([])), "names no pooling"),
        (settings(json!({"max_seq_length": 0})), "nonzero"),
        (settings(json!({"transformer_task": "fill-mask"})), "transformer_task"),
        (
            settings(json!({"modality_config": {"text": {"method": "get_text_features", "method_output_name": "x"}}})),
            "modality_config",
        ),
        (settings(json!({"config_args": {"num_hidden_layers": 2}})), "num_hidden_layers"),
        (settings(json!({"query_expansion": {}})), "query_expansion"),
        (settings(json!({"max_length": 9})), "max_length"),
        (whole(json!({"truncate_dim": 2})), "truncate_dim"),
        (whole(json!({"model_type": "SparseEncoder"})), "SparseEncoder"),
        (whole(json!({"default_prompt_name": "query"})), "`query`"),
        (whole(json!({"query_prefix": "[Q] "})), "query_prefix"),
        (plain().with("config.json", &json!({"matryoshka_dimensions": [8]})), "between 1 and 4"),
        (plain().with("adapter_config.json", &json!({})), "adapter"),
        (
            Folder::of(&["Transformer", "Pooling", "Normalize"])
                .with("2_Normalize/config.json", &json!({"module_input_name": "token_embeddings"})),
            "token_embeddings",
        ),
    ] {
        let message = folder.refused();
        assert!(message.contains(says), "{says}: {message}");
    }
}

#[test]
fn a_copy_makes_the_same_vectors_with_the_model_in_its_first_folder() {
    let list = json!([{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]);
    let folder = plain()
        .with("modules.json", &list)
        .with("1_Pooling/config.json", &json!({"embedding_dimension": 4, "pooling_mode": "lasttoken"}))
        .with("0_Transformer/sentence_bert_config.json", &json!({"max_seq_length": 9}))
        .with("config_sentence_transformers.json", &json!({"prompts": {"query": "q"}}));
    assert_eq!(of_model(folder.0.path()).unwrap(), folder.0.path().join("0_Transformer"));
    let to = tempfile::tempdir().unwrap();
    copy::copy(folder.0.path(), to.path()).unwrap();
    assert_eq!(of_model(to.path()).unwrap(), to.path());
    let (form, copied) = (folder.read(), read(to.path(), &config()).unwrap());
    assert_eq!(format!("{form:?}"), format!("{copied:?}"));
    assert!(copied.max_tokens == 9 && copied.is_normalized && copied.poolings == [Pooling::Last]);
    // Without modules there is nothing to copy.
    let (none, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy::copy(none.path(), to.path()).unwrap();
    assert!(std::fs::read_dir(to.path()).unwrap().next().is_none());
}
