//! Rotary settings, against what transformers computes of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::json;

use super::*;

fn long_rope_of(changes: &Value) -> Result<RopeScaling, String> {
    let mut parameters = json!({"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 8.0]});
    for (name, value) in changes.as_object().unwrap() {
        parameters[name] = value.clone();
    }
    RopeScaling::parse(Some(&parameters), 131_072, Some(4096.0))
}

#[test]
fn longrope_has_two_tables_and_an_attention_factor_by_the_ratio_of_the_contexts() {
    let RopeScaling::LongRope { short, long, original_context, attention_factor } = long_rope_of(&json!({})).unwrap()
    else {
        panic!("not longrope");
    };
    assert_eq!((short, long, original_context), (vec![1.0, 1.5], vec![2.0, 8.0], 4096));
    // √(1 + ln 32 / ln 4096), as Phi-3-mini-128k has it.
    assert!((attention_factor - 1.190_238).abs() < 1e-6, "{attention_factor}");
    for (changes, expected) in [
        (json!({"factor": 1.0}), 1.0),
        (json!({"factor": 16.0}), 1.154_700_538),
        (json!({"factor": 16.0, "attention_factor": 1.25}), 1.25),
    ] {
        let RopeScaling::LongRope { attention_factor, .. } = long_rope_of(&changes).unwrap() else { panic!() };
        assert!((attention_factor - expected).abs() < 1e-8, "{changes}: {attention_factor}");
    }
}

#[test]
fn lists_of_factors_must_be_there_be_numbers_and_fit_the_frequencies() {
    for (changes, blamed) in [
        (json!({"short_factor": null}), "short_factor"),
        (json!({"long_factor": 3}), "long_factor"),
        (json!({"long_factor": [1.0, "2"]}), "long_factor"),
        (json!({"short_factor": [0.0, 1.0]}), "short_factor"),
    ] {
        let error = long_rope_of(&changes).unwrap_err();
        assert!(error.contains(blamed), "{error}");
    }
    let scaling = long_rope_of(&json!({})).unwrap();
    assert!(scaling.check(4).is_ok() && scaling.check(5).is_ok());
    assert!(scaling.check(6).unwrap_err().contains("short_factor"));
    assert!(RopeScaling::None.check(6).is_ok());
}

#[test]
fn yarn_takes_the_attention_factor_that_is_given_or_computes_it() {
    for (changes, expected) in [
        (json!({}), 0.1 * 16f64.ln() + 1.0),
        (json!({"mscale": 1.0, "mscale_all_dim": 1.0}), 1.0),
        (json!({"mscale": 1.0}), 0.1 * 16f64.ln() + 1.0),
        (json!({"mscale": 2.0, "mscale_all_dim": 1.0}), (0.2 * 16f64.ln() + 1.0) / (0.1 * 16f64.ln() + 1.0)),
        (json!({"mscale": 2.0, "mscale_all_dim": 1.0, "attention_factor": 0.5}), 0.5),
    ] {
        let mut parameters = json!({"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64});
        for (name, value) in changes.as_object().unwrap() {
            parameters[name] = value.clone();
        }
        let Ok(RopeScaling::Yarn { attention_factor, .. }) = RopeScaling::parse(Some(&parameters), 1024, None) else {
            panic!("not yarn");
        };
        assert!((attention_factor - expected).abs() < 1e-12, "{changes}: {attention_factor}");
    }
}

#[test]
fn queries_grow_with_every_original_context() {
    let parameters = json!({"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16});
    let scaling = QueryScaling::parse(&parameters, None).unwrap();
    let expected = [(0, 1.0), (15, 1.0), (16, 1.069_314_7), (31, 1.069_314_7), (32, 1.109_861_2)];
    for (position, factor) in expected {
        assert!((scaling.factor(position) - factor).abs() < 1e-6, "{position}");
    }
    assert!(QueryScaling::parse(&json!({"llama_4_scaling_beta": 0.1}), None).is_err());
    assert!(QueryScaling::parse(&json!({"original_max_position_embeddings": 16}), None).is_err());
}
