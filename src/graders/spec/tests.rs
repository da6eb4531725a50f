//! Tests of what graders are taken and refused.

use serde_json::json;

use super::*;

fn reward(value: &Value) -> Result<Grader, Fault> {
    Grader::parse(value, Purpose::Reward)
}

fn check(name: &str) -> Value {
    json!({"type": "string_check", "name": name, "input": "{{sample.output_text}}", "reference": "x", "operation": "eq"})
}

#[test]
fn every_type_is_read() {
    let messages = json!([{"role": "user", "content": [{"type": "input_text", "text": "{{item.x}}"}, "more"]}]);
    for grader in [
        check("a"),
        json!({"type": "text_similarity", "name": "a", "input": "x", "reference": "y", "evaluation_metric": "rouge_l"}),
        json!({"type": "text_similarity", "name": "a", "input": "x", "reference": "y", "evaluation_metric": "cosine",
               "model": "m"}),
        json!({"type": "score_model", "name": "a", "model": "m", "input": messages, "range": [1, 5],
               "sampling_params": {"temperature": 0, "seed": 3, "max_completions_tokens": 9, "top_p": null}}),
        json!({"type": "label_model", "name": "a", "model": "m", "input": messages, "labels": ["x", "y"],
               "passing_labels": ["x"]}),
        json!({"type": "multi", "name": "a", "graders": {"one": check("z")}, "calculate_output": "one * 2"}),
        json!({"type": "multi", "name": "a", "graders": [check("one")], "calculate_output": "one"}),
        json!({"type": "multi", "name": "a", "graders": check("one"), "calculate_output": "one"}),
    ] {
        let read = reward(&grader).expect("a grader");
        assert_eq!(read.type_name(), grader["type"], "{grader}");
    }
}

#[test]
fn a_fault_names_its_field() {
    let with = |field: &str, value: Value| {
        let mut grader = check("a");
        grader[field] = value;
        grader
    };
    let multi = |graders: Value, formula: &str| json!({"type": "multi", "name": "m", "graders": graders, "calculate_output": formula});
    for (grader, param, part) in [
        (json!("x"), "", "must be an object"),
        (json!({"name": "a"}), "type", "Missing required"),
        (with("type", "other".into()), "type", "'other'"),
        (with("name", Value::Null), "name", "Missing required"),
        (with("operation", "equals".into()), "operation", "use eq"),
        (with("input", 3.into()), "input", "must be a text"),
        (with("reference", "{{nothing}}".into()), "reference", "names no value"),
        (with("pass_treshold", 1.into()), "pass_treshold", "not a field"),
        (with("pass_threshold", 1.into()), "pass_threshold", "passes or not"),
        (with("model", "m".into()), "model", "not a field"),
        (multi(json!({"a": check("a")}), "b"), "calculate_output", "'b', which is no grader"),
        (multi(json!({"a": check("a")}), "a +"), "calculate_output", "its end"),
        (multi(json!({"a-b": check("a")}), "a"), "graders", "cannot stand in a formula"),
        (multi(json!([check("a"), check("a")]), "a"), "graders", "Two graders"),
        (multi(json!({}), "1"), "graders", "1 to 32"),
        (multi(json!({"a": multi(json!({"b": check("b")}), "b")}), "a"), "graders.a.type", "part of another"),
        (multi(json!({"a": with("operation", "x".into())}), "a"), "graders.a.operation", "use eq"),
    ] {
        let fault = reward(&grader).expect_err("a fault");
        assert_eq!(fault.param, param, "{grader}: {fault}");
        assert!(fault.message.contains(part), "{grader}: {fault}");
    }
}

#[test]
fn graders_that_ask_models_are_checked_as_well() {
    let grader = |field: &str, value: Value| {
        let mut grader = json!({"type": "label_model", "name": "a", "model": "m", "labels": ["x", "y"],
                                "passing_labels": ["x"], "input": [{"role": "user", "content": "hi"}]});
        grader[field] = value;
        reward(&grader).expect_err("a fault")
    };
    for (field, value, param) in [
        ("passing_labels", json!(["z"]), "passing_labels"),
        ("labels", json!([]), "labels"),
        ("input", json!([]), "input"),
        ("input", json!([{"role": "tool", "content": "x"}]), "input[0].role"),
        ("input", json!([{"role": "user"}]), "input[0].content"),
        ("input", json!([{"role": "user", "content": {"type": "input_image"}}]), "input[0].content"),
        ("sampling_params", json!({"temperature": 3}), "sampling_params.temperature"),
        ("sampling_params", json!({"reasoning_effort": "highest"}), "sampling_params.reasoning_effort"),
        ("sampling_params", json!({"n": 2}), "sampling_params.n"),
        ("base_url", json!("http://elsewhere"), "base_url"),
    ] {
        let fault = grader(field, value.clone());
        assert_eq!(fault.param, param, "{value}: {fault}");
    }
}

#[test]
fn a_criterion_that_scores_needs_a_threshold() {
    let mut grader =
        json!({"type": "text_similarity", "name": "a", "input": "x", "reference": "y", "evaluation_metric": "bleu"});
    assert_eq!(Grader::parse(&grader, Purpose::Criterion).expect_err("no threshold").param, "pass_threshold");
    grader["pass_threshold"] = json!(0.5);
    let read = Grader::parse(&grader, Purpose::Criterion).expect("a criterion");
    assert!(read.passes(0.5) && !read.passes(0.499));
    let yes_or_no = Grader::parse(&check("a"), Purpose::Criterion).expect("a criterion");
    assert!(yes_or_no.passes(1.0) && !yes_or_no.passes(0.0));
}

#[test]
fn string_checks_compare_as_their_names_say() {
    for (operation, input, reference, expected) in [
        (Operation::Equal, "Ab", "Ab", true),
        (Operation::Equal, "Ab", "ab", false),
        (Operation::NotEqual, "Ab", "ab", true),
        (Operation::Like, "x Ab y", "Ab", true),
        (Operation::Like, "x Ab y", "ab", false),
        (Operation::LikeAnyCase, "x ÄB y", "äb", true),
        (Operation::Like, "anything", "", true),
    ] {
        assert_eq!(operation.holds(input, reference), expected, "{operation:?} {input} {reference}");
    }
}

#[test]
fn the_other_name_of_ne_is_given_back_as_ne() {
    let mut other = check("a");
    other["operation"] = "neq".into();
    assert_eq!(normalized(&other)["operation"], "ne");
    let multi = json!({"type": "multi", "graders": {"a": other}});
    assert_eq!(normalized(&multi)["graders"]["a"]["operation"], "ne");
}

#[test]
fn code_is_read_and_found_wherever_it_stands() {
    let code = json!({"type": "python", "name": "p", "source": "def grade(s, i): ...", "image_tag": "2025-05-08"});
    let read = Grader::parse(&code, Purpose::Criterion).expect("a grader");
    assert_eq!(read.sources(), [("source".to_owned(), "def grade(s, i): ...")]);
    assert!(read.passes(1.0) && !read.passes(0.99), "1 is the threshold if there is none");
    assert_eq!(python_field(&code).as_deref(), Some("type"));
    let multi = |graders: Value| json!({"type": "multi", "name": "m", "graders": graders, "calculate_output": "p"});
    for graders in [json!({"a": check("a"), "p": code}), json!([check("a"), code]), code.clone()] {
        let multi = multi(graders);
        assert_eq!(python_field(&multi).as_deref(), Some("graders.p.type"), "{multi}");
        assert_eq!(reward(&multi).expect("a grader").sources()[0].0, "graders.p.source", "{multi}");
    }
    assert_eq!(python_field(&multi(json!({"p": check("p")}))), None);
    for (field, value, part) in [
        ("source", Value::Null, "Missing required"),
        ("source", "x\0".into(), "code 0"),
        ("source", "x".repeat((256 << 10) + 1).into(), "262144 bytes"),
        ("image_tag", 3.into(), "must be a text"),
        ("input", "x".into(), "not a field"),
    ] {
        let mut wrong = code.clone();
        wrong[field] = value;
        let fault = reward(&wrong).expect_err(field);
        assert_eq!(fault.param, field);
        assert!(fault.message.contains(part), "{fault}");
    }
}
