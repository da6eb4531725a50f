//! Configurations, against what transformers reads in them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[test]
fn an_unknown_family_is_refused_with_the_list_of_known_ones() {
    let error = ModelConfig::parse(
        r#"{"model_type":"gpt2","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":1,"intermediate_size":8,
            "vocab_size":8,"max_position_embeddings":8,"rms_norm_eps":1e-5}"#,
    )
    .unwrap_err();
    assert!(error.contains("gpt2") && error.contains("qwen3"), "{error}");
}

#[test]
fn smollm3_rotates_three_of_four_blocks_by_default() {
    let config = ModelConfig::parse(
        r#"{"model_type":"smollm3","hidden_size":8,"num_hidden_layers":5,"num_attention_heads":2,"num_key_value_heads":2,
            "intermediate_size":8,"vocab_size":8,"max_position_embeddings":8,"rms_norm_eps":1e-5}"#,
    )
    .unwrap();
    assert_eq!(config.rotary, [Some(0), Some(0), Some(0), None, Some(0)]);
}

#[test]
fn both_spellings_of_a_configuration_mean_the_same() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    for family in [
        "llama",
        "llama3_rope",
        "llama_linear_rope",
        "llama_yarn",
        "mistral",
        "qwen2",
        "qwen3",
        "smollm3",
        "phi3",
        "phi3_longrope",
        "ministral3",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_linear_rope",
        "granite",
        "granite_hybrid",
        "granite_hybrid_nope",
        "olmo2",
        "olmo3",
        "lfm2",
        "lfm2_bias",
    ] {
        let new = ModelConfig::read_file(&fixtures.join(family).join("config.json")).unwrap();
        let old = ModelConfig::read_file(&fixtures.join(family).join("config_old_style.json")).unwrap();
        assert_eq!(format!("{new:?}"), format!("{old:?}"), "{family}");
    }
}

const SHAPE: &str =
    r#""hidden_size":64,"num_hidden_layers":4,"num_attention_heads":8,"intermediate_size":8,"vocab_size":8"#;

fn parse(family: &str, more: &str) -> Result<ModelConfig, String> {
    ModelConfig::parse(&format!(r#"{{"model_type":"{family}",{SHAPE}{more}}}"#))
}

#[test]
fn the_family_is_looked_at_before_anything_else() {
    for text in [r#"{"model_type":"bart"}"#, r#"{"model_type":"bart","hidden_size":"x","quantization_config":{}}"#] {
        assert!(ModelConfig::parse(text).unwrap_err().contains("model_type `bart` is not supported"), "{text}");
    }
    assert!(ModelConfig::parse("{}").unwrap_err().contains("`model_type` is missing"));
    assert!(ModelConfig::parse("[1]").unwrap_err().contains("JSON object"));
}

#[test]
fn missing_fields_have_the_defaults_of_their_family() {
    // key-value heads, head_dim, context, tied, window of the first block, theta
    for (family, expected) in [
        ("llama", (8, 8, 2048, false, None, 1e4)),
        ("mistral", (8, 8, 131_072, false, Some(4096), 1e4)),
        ("qwen2", (32, 8, 32_768, false, None, 1e4)),
        ("qwen3", (32, 128, 32_768, false, None, 1e4)),
        ("smollm3", (4, 8, 32_768, true, None, 2e6)),
        ("gemma", (16, 256, 8192, true, None, 1e4)),
        ("gemma2", (4, 256, 8192, true, Some(4096), 1e4)),
        ("gemma3_text", (4, 256, 131_072, true, Some(4096), 1e6)),
        ("granite", (8, 8, 2048, false, None, 1e4)),
        ("olmo2", (8, 8, 2048, false, None, 1e4)),
        ("olmo3", (8, 8, 2048, false, Some(4096), 5e5)),
    ] {
        // The default of Qwen and of Gemma 1 fits more heads only.
        let more = match family {
            "qwen2" | "qwen3" => r#","num_attention_heads":32,"hidden_size":256"#,
            "gemma" => r#","num_attention_heads":16"#,
            _ => "",
        };
        let config = parse(family, more).unwrap();
        assert_eq!(
            (
                config.num_key_value_heads,
                config.head_dim,
                config.max_position_embeddings,
                config.tie_word_embeddings,
                config.sliding_windows[0],
                config.ropes[0].theta
            ),
            expected,
            "{family}"
        );
        let eps = if family.starts_with("olmo") { 1e-5_f32 } else { 1e-6 };
        assert_eq!(config.rms_norm_eps.to_bits(), eps.to_bits(), "{family}");
        let more = format!(r#"{more},"num_key_value_heads":null,"sliding_window":null"#);
        let null = parse(family, &more).unwrap();
        assert_eq!((null.num_key_value_heads, null.sliding_windows[0]), (null.num_attention_heads, None), "{family}");
    }
}

#[test]
fn windows_stand_where_layer_types_says() {
    let types = r#","layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"],
        "sliding_window":16"#;
    let windows = vec![Some(16), None, Some(16), None];
    assert_eq!(parse("mistral", types).unwrap().sliding_windows, windows);
    for family in ["qwen3", "smollm3"] {
        let heads = format!(r#"{types},"num_key_value_heads":4"#);
        assert_eq!(parse(family, &heads).unwrap().sliding_windows, vec![None; 4], "{family}: switched off");
        let on = format!(r#"{heads},"use_sliding_window":true"#);
        assert_eq!(parse(family, &on).unwrap().sliding_windows, windows, "{family}");
    }
    assert_eq!(parse("llama", types).unwrap().sliding_windows, vec![None; 4]);
    // SmolLM 3 looks back less where it does not rotate.
    let on = r#","use_sliding_window":true,"sliding_window":16,"no_rope_layer_interval":2"#;
    assert_eq!(parse("smollm3", on).unwrap().sliding_windows, [None, Some(16), None, Some(16)]);
    let unknown = r#","layer_types":["chunked_attention","full_attention","full_attention","full_attention"]"#;
    assert!(parse("mistral", unknown).unwrap_err().contains("chunked_attention"));
    assert!(parse("mistral", r#","layer_types":["full_attention"]"#).unwrap_err().contains("4 entries"));
}

#[test]
fn rope_scaling_wins_over_rope_parameters_with_its_own_theta() {
    let both = r#","num_key_value_heads":8,"max_position_embeddings":256,
        "rope_parameters":{"rope_type":"default","rope_theta":1000000.0},
        "rope_scaling":{"type":"yarn","factor":null,"original_max_position_embeddings":64}"#;
    let config = parse("qwen2", both).unwrap();
    let RopeScaling::Yarn { factor, original_context, .. } = config.ropes[0].scaling else { panic!("not scaled") };
    assert_eq!((factor, original_context, config.ropes[0].theta), (4.0, 64.0, 10_000.0));
    let with_theta = format!(r#"{both},"rope_theta":5000.0"#);
    assert_eq!(parse("qwen2", &with_theta).unwrap().ropes[0].theta.to_bits(), 5000_f64.to_bits());
    let empty = r#","rope_scaling":{},"rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":7.0}"#;
    let config = parse("llama", empty).unwrap();
    assert_eq!(config.ropes, [RopeParameters::whole(7.0, RopeScaling::Linear { factor: 2.0 })]);
    let nested = r#","rope_parameters":{"full_attention":{"rope_type":"default"}}"#;
    assert!(parse("llama", nested).unwrap_err().contains("differ between layers"));
    assert!(parse("llama", r#","rope_scaling":{"type":"yarn"}"#).unwrap_err().contains("needs `factor`"));
}

#[test]
fn biases_are_those_of_the_configuration() {
    let biases = |family: &str, more: &str| {
        let biases = parse(family, &format!(r#","num_key_value_heads":8{more}"#)).unwrap().biases;
        [biases.query_key_value, biases.output, biases.mlp]
    };
    let both = r#","attention_bias":true,"mlp_bias":true"#;
    assert_eq!(biases("llama", ""), [false, false, false]);
    assert_eq!(biases("llama", both), [true, true, true]);
    assert_eq!(biases("smollm3", both), [true, true, true]);
    assert_eq!(biases("qwen3", both), [true, true, false]);
    assert_eq!(biases("qwen2", both), [true, false, false]);
    assert_eq!(biases("mistral", both), [false, false, false]);
}

#[test]
fn swish_is_silu_and_other_activations_are_refused() {
    assert!(parse("llama", r#","hidden_act":"swish""#).is_ok());
    assert!(parse("llama", r#","hidden_act":"gelu""#).unwrap_err().contains("gelu"));
}

#[test]
fn phi3_has_its_own_defaults_and_fused_layers() {
    let config = parse("phi3", "").unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim, config.max_position_embeddings), (8, 8, 4096));
    assert_eq!((config.rms_norm_eps, &config.sliding_windows), (1e-5, &vec![None; 4]));
    assert_eq!(config.modules.len(), 4);
    assert_eq!(config.ropes, [RopeParameters::whole(10_000.0, RopeScaling::None)]);
    assert_eq!(parse("phi3", r#","sliding_window":5"#).unwrap().sliding_windows, [Some(5); 4]);
}

#[test]
fn granite_4_has_attention_alone_and_one_mlp() {
    const ATTENTION: &str = r#","layer_types":["attention","attention","full_attention","attention"]"#;
    let hybrid = |more: &str| parse("granitemoehybrid", &format!("{ATTENTION},\"num_local_experts\":0{more}"));
    let config = hybrid("").unwrap();
    assert_eq!((config.intermediate_size, config.modules.len()), (1024, 6));
    assert_eq!(config.rotary, [None; 4], "missing means no rotation");
    assert_eq!(hybrid(r#","position_embedding_type":"nope""#).unwrap().rotary, [None; 4]);
    let config = hybrid(r#","position_embedding_type":"rope","shared_intermediate_size":24,"mlp_bias":true"#).unwrap();
    assert_eq!((config.intermediate_size, config.rotary[3], config.biases.mlp), (24, Some(0), false));
    for (fields, blamed) in [
        (r#""num_local_experts":0"#, "without `layer_types` the model has Mamba layers"),
        (r#""num_local_experts":0,"layers_block_type":["attention","attention","mamba","attention"]"#, "`mamba`"),
        (r#""num_local_experts":0,"layer_types":["attention","linear_attention","x","x"]"#, "`linear_attention`"),
        (r#""num_local_experts":0,"layer_types":["attention"]"#, "4 entries"),
        (&ATTENTION[1..], "without `num_local_experts` the model has experts"),
        (&format!("{},\"num_local_experts\":32", &ATTENTION[1..]), "`num_local_experts` 32"),
        (
            &format!("{},\"num_local_experts\":0,\"position_embedding_type\":\"alibi\"", &ATTENTION[1..]),
            "position_embedding_type `alibi`",
        ),
    ] {
        let error = parse("granitemoehybrid", &format!(",{fields}")).unwrap_err();
        assert!(error.contains(blamed), "{fields}: {error}");
    }
}

#[test]
fn lfm2_has_convolutions_where_its_types_or_its_list_say() {
    let config = parse("lfm2", r#","layer_types":["conv","full_attention","conv","conv"],"conv_L_cache":4"#).unwrap();
    let convolution = config.convolution.as_ref().unwrap();
    assert_eq!((convolution.taps, convolution.bias), (4, false));
    assert_eq!(convolution.blocks, [true, false, true, true]);
    let names = |block| crate::sites::names(config.modules_of(block));
    assert_eq!(names(0), ["in_proj", "out_proj", "w1", "w3", "w2"]);
    assert_eq!(names(1), ["q_proj", "k_proj", "v_proj", "out_proj", "w1", "w3", "w2"]);
    assert_eq!((config.tie_word_embeddings, config.rms_norm_eps, config.ropes[0].theta), (true, 1e-5, 1e6));
    let listed = parse("lfm2", r#","full_attn_idxs":[2],"tie_embedding":false,"norm_eps":0.001"#).unwrap();
    assert_eq!(listed.convolution.unwrap().blocks, [true, true, false, true]);
    assert_eq!((listed.tie_word_embeddings, listed.rms_norm_eps), (false, 0.001));
    assert_eq!(parse("lfm2", "").unwrap().convolution.unwrap().blocks, [false; 4], "attention alone by default");
    for (fields, blamed) in [
        (r#","layer_types":["conv"]"#, "4 entries"),
        (r#","layer_types":["conv","mamba","conv","conv"]"#, "`mamba`"),
        (r#","conv_L_cache":17"#, "`conv_L_cache` 17"),
    ] {
        assert!(parse("lfm2", fields).unwrap_err().contains(blamed), "{fields}");
    }
}

#[test]
fn the_mlp_of_lfm2_is_as_wide_as_its_rule_says() {
    let width = |more: &str| parse("lfm2", more).unwrap().intermediate_size;
    assert_eq!(width(r#","intermediate_size":12288"#), 8192);
    assert_eq!(width(r#","block_ff_dim":6656,"intermediate_size":7"#), 4608);
    assert_eq!(width(r#","block_ff_dim":100,"block_auto_adjust_ff_dim":false"#), 100);
    assert_eq!(width(r#","block_ff_dim":100,"block_ffn_dim_multiplier":null"#), 66);
    assert_eq!(width(r#","block_ff_dim":100,"block_ffn_dim_multiplier":1.5,"block_multiple_of":10"#), 100);
}

#[test]
fn phi3_reads_its_two_tables_under_the_names_of_all_releases() {
    let lists = r#""short_factor":[1,1,1],"long_factor":[2,2,2]"#;
    let old = format!(
        r#","rope_scaling":{{"type":"su",{lists}}},"partial_rotary_factor":0.75,"max_position_embeddings":131072"#
    );
    let new = format!(
        r#","rope_parameters":{{"rope_type":"longrope",{lists},"partial_rotary_factor":0.75,
            "original_max_position_embeddings":7}},"original_max_position_embeddings":4096,"max_position_embeddings":131072"#
    );
    for fields in [old, new] {
        let config = parse("phi3", &fields).unwrap();
        assert_eq!(config.ropes[0].rotated(config.head_dim), 6);
        let RopeScaling::LongRope { original_context, attention_factor, .. } = &config.ropes[0].scaling else {
            panic!("one table");
        };
        // The family's own context of 4096 wins over that of the rotary settings.
        assert_eq!(*original_context, 4096);
        assert!((attention_factor - 1.190_238).abs() < 1e-6);
    }
}

#[test]
fn what_phi3_and_others_do_not_apply_is_refused_by_name() {
    let lists = r#""short_factor":[1,1],"long_factor":[2,2]"#;
    for (model_type, fields, blamed) in [
        ("phi3", r#","rope_scaling":{"type":"linear","factor":2}"#.to_owned(), "default or longrope"),
        ("phi3", format!(r#","rope_scaling":{{"type":"longrope",{lists}}}"#), "short_factor"),
        ("phi3", r#","rope_scaling":{"type":"longrope"}"#.to_owned(), "short_factor"),
        ("phi3", r#","partial_rotary_factor":0.7"#.to_owned(), "partial_rotary_factor"),
        ("phi3", r#","partial_rotary_factor":0"#.to_owned(), "partial_rotary_factor"),
        ("llama", r#","partial_rotary_factor":0.5"#.to_owned(), "partial_rotary_factor"),
        ("llama", r#","rope_parameters":{"partial_rotary_factor":0.5}"#.to_owned(), "partial_rotary_factor"),
        ("phi3small", String::new(), "phi3small"),
        ("phimoe", String::new(), "phimoe"),
        ("ministral3", r#","rope_parameters":{"rope_type":"default"}"#.to_owned(), "llama_4_scaling_beta"),
    ] {
        let error = parse(model_type, &fields).unwrap_err();
        assert!(error.contains(blamed), "{model_type}{fields}: {error}");
    }
}

#[test]
fn ministral3_is_read_inside_mistral3_and_another_text_model_is_not() {
    let text = |inner: &str| {
        ModelConfig::parse(&format!(
            r#"{{"model_type":"mistral3","text_config":{{"model_type":"{inner}",{SHAPE}}},"vision_config":{{}}}}"#
        ))
    };
    let config = text("ministral3").unwrap();
    assert_eq!((config.hidden_size, config.tie_word_embeddings, config.rotary.len()), (64, true, 4));
    assert!(config.ropes[0].query_scaling.is_some());
    assert!(text("mistral").unwrap_err().contains("model_type \"mistral\" is not supported"));
}

#[test]
fn ministral3_grows_its_queries_as_its_rotary_settings_say() {
    let config = parse("ministral3", "").unwrap();
    assert_eq!((config.head_dim, config.num_key_value_heads, config.sliding_windows[0]), (128, 8, None));
    let growth = |config: &ModelConfig| config.ropes[0].query_scaling.unwrap();
    assert_eq!(growth(&config), QueryScaling { beta: 0.1, original_context: 16_384.0 });
    let RopeScaling::Yarn { factor, attention_factor, .. } = config.ropes[0].scaling else { panic!("not scaled") };
    let eps = config.rms_norm_eps;
    assert_eq!((factor, attention_factor, config.ropes[0].theta, eps), (16.0, 1.0, 1_000_000.0, 1e-5));
    let own = r#","rope_parameters":{"rope_type":"yarn","rope_theta":7.0,"factor":2.0,"llama_4_scaling_beta":0.5,
        "original_max_position_embeddings":32}"#;
    let config = parse("ministral3", own).unwrap();
    let scaling = QueryScaling { beta: 0.5, original_context: 32.0 };
    assert_eq!((growth(&config), config.ropes[0].theta), (scaling, 7.0));
}

#[test]
fn gemma_multiplies_embeddings_by_the_root_of_their_width_in_the_type_of_the_checkpoint() {
    let multiplier = |more: &str| {
        parse("gemma", &format!(r#","num_key_value_heads":1{more}"#)).map(|config| config.embedding_multiplier)
    };
    assert_eq!(multiplier(r#","hidden_size":640,"dtype":"bfloat16""#), Ok(25.25));
    assert_eq!(multiplier(r#","hidden_size":640,"torch_dtype":"bfloat16""#), Ok(25.25));
    assert_eq!(multiplier(r#","hidden_size":640,"dtype":"float32""#), Ok(640_f32.sqrt()));
    assert_eq!(multiplier(r#","hidden_size":640"#), Ok(640_f32.sqrt()));
}

#[test]
fn old_files_of_gemma_call_the_approximation_of_gelu_by_its_name() {
    assert_eq!(
        parse("gemma", r#","num_key_value_heads":1,"hidden_act":"gelu""#).unwrap().activation,
        Activation::GeluTanh
    );
    assert!(parse("gemma3_text", r#","hidden_activation":"gelu""#).unwrap_err().contains("hidden_activation `gelu`"));
    // transformers reads the other field alone.
    assert!(parse("gemma3_text", r#","hidden_act":"gelu""#).is_ok());
}

#[test]
fn the_text_model_inside_gemma_3_is_read() {
    let text = |inside: &str, outside: &str| {
        ModelConfig::parse(&format!(
            r#"{{"model_type":"gemma3","text_config":{{"model_type":"gemma3_text",{SHAPE}{inside}}}{outside}}}"#
        ))
    };
    let config = text(
        r#","sliding_window":512,"sliding_window_pattern":2,"rope_scaling":{"rope_type":"linear","factor":8.0}"#,
        "",
    )
    .unwrap();
    assert_eq!((config.hidden_size, config.num_key_value_heads, config.head_dim), (64, 4, 256));
    assert_eq!(config.sliding_windows, [Some(512), None, Some(512), None]);
    assert_eq!(config.rotary, [Some(1), Some(0), Some(1), Some(0)]);
    let linear = RopeParameters::whole(1e6, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(config.ropes, [linear, RopeParameters::whole(1e4, RopeScaling::None)]);
    // Of the whole file: it is bf16, and quantized.
    let bf16 = text("", r#","dtype":"bfloat16","image_token_index":9"#).unwrap();
    assert_eq!(bf16.embedding_multiplier.to_bits(), 8_f32.to_bits());
    assert!(text("", r#","quantization_config":{"quant_method":"hqq"}"#).unwrap_err().contains("hqq"));
    assert!(text(r#","final_logit_softcapping":30.0"#, "").unwrap_err().contains("final_logit_softcapping"));
    assert!(ModelConfig::parse(r#"{"model_type":"gemma3"}"#).unwrap_err().contains("`text_config` must be an object"));
    let other = r#"{"model_type":"gemma3","text_config":{"model_type":"llama"}}"#;
    assert!(ModelConfig::parse(other).unwrap_err().contains("llama"));
}

#[test]
fn a_file_may_hold_what_python_writes_and_json_does_not_have() {
    let granite = r#","layer_types":["attention","attention","attention","attention"],"num_local_experts":0"#;
    let mamba = |limit: &str| format!(r#"{granite},"time_step_limit":[0.0,{limit}]"#);
    assert!(parse("granitemoehybrid", &mamba("Infinity")).is_ok());
    assert!(parse("granitemoehybrid", &mamba(r#"{"__float__":"Infinity"}"#)).is_ok());
    let error = parse("llama", r#","rms_norm_eps":NaN"#).unwrap_err();
    assert!(error.contains("rms_norm_eps"), "{error}");
    assert!(ModelConfig::parse(&format!("\u{feff}{{\"model_type\":\"llama\",{SHAPE}}}")).is_ok());
}

#[test]
fn fields_that_would_not_be_applied_are_refused_by_name() {
    for (family, field, name) in [
        ("gemma2", r#""use_bidirectional_attention":true"#, "use_bidirectional_attention"),
        ("llama", r#""is_causal":false"#, "is_causal"),
        ("gemma3_text", r#""attn_logit_softcapping":50.0"#, "attn_logit_softcapping"),
        ("gemma2", r#""final_logit_softcapping":0.0"#, "final_logit_softcapping"),
        ("gemma2", r#""query_pre_attn_scalar":0"#, "query_pre_attn_scalar"),
        ("gemma3_text", r#""rope_parameters":{"rope_theta":5.0}"#, "full_attention"),
        ("granite", r#""logits_scaling":0"#, "logits_scaling"),
        ("gpt_oss", r#""rope_scaling":{}"#, "rope_scaling"),
        ("lfm2", r#""hidden_act":"gelu_pytorch_tanh""#, "hidden_act"),
        ("olmo3", r#""rope_parameters":{"full_attention":{"rope_type":"yarn","truncate":false}}"#, "truncate"),
        (
            "olmo3",
            r#""layer_types":["linear_attention","full_attention","full_attention","full_attention"]"#,
            "linear_attention",
        ),
        ("olmo3", r#""rope_parameters":{"full_attention":{"rope_type":"longrope"}}"#, "longrope"),
    ] {
        let error = parse(family, &format!(",{field}")).unwrap_err();
        assert!(error.contains(name), "{family}: {error}");
    }
}

#[test]
fn caps_that_are_null_are_none_and_missing_ones_are_those_of_gemma_2() {
    let caps = |more: &str| parse("gemma2", more).map(|config| (config.attention_cap, config.logit_form.cap));
    assert_eq!(caps(""), Ok((Some(50.0), Some(30.0))));
    assert_eq!(caps(r#","attn_logit_softcapping":null,"final_logit_softcapping":null"#), Ok((None, None)));
    assert_eq!(parse("gemma3_text", r#","attn_logit_softcapping":null"#).unwrap().attention_cap, None);
}

#[test]
fn only_full_attention_is_stretched_in_olmo_3() {
    let old = r#","rope_theta":500000,"rope_scaling":{"rope_type":"linear","factor":2.0}"#;
    let new = r#","rope_parameters":{"full_attention":{"rope_type":"linear","factor":2.0,"rope_theta":500000},"sliding_attention":{"rope_type":"default","rope_theta":500000}}"#;
    for text in [old, new] {
        let config = parse("olmo3", text).unwrap();
        let scaling = [RopeScaling::Linear { factor: 2.0 }, RopeScaling::None];
        assert_eq!(config.ropes, scaling.map(|scaling| RopeParameters::whole(500_000.0, scaling)));
        assert_eq!(config.rotary, [Some(1), Some(1), Some(1), Some(0)]);
    }
}
