//! Documents that a random model writes under schemas of every kind.

use super::*;

/// Returns true if `text` is a whole document of the grammar.
fn takes(schema: &Value, text: &str) -> bool {
    let mut state = compile(schema.clone()).unwrap_or_else(|error| panic!("{schema}: {error}")).begin();
    let allows = |state: &mut GrammarState, token: u32| {
        let mut logits = vec![0.0; DEMO.size];
        !state.is_complete() && state.mask(&mut logits).is_ok() && logits[token as usize] == 0.0
    };
    for token in DEMO.tokenizer.encode(text, false).unwrap() {
        if !allows(&mut state, token) {
            return false;
        }
        state.accept(token).unwrap();
    }
    state.is_complete() || allows(&mut state, DEMO.end)
}

fn check(cases: &[(Value, &str, bool)]) {
    for (schema, text, fine) in cases {
        assert_eq!(takes(schema, text), *fine, "{schema}: {text}");
    }
}

fn drawn(schema: &Value) -> Vec<String> {
    let grammar = compile(schema.clone()).unwrap_or_else(|error| panic!("{schema}: {error}"));
    (0..12).map(|seed| draw(&grammar, seed, seeded(seed))).collect()
}

fn refusal(schema: &Value) -> String {
    compile(schema.clone()).err().unwrap_or_else(|| panic!("{schema} was compiled"))
}

#[test]
fn whole_numbers_beyond_floats_keep_their_digits() {
    let id = 1_234_567_890_123_456_789_i64;
    let text = id.to_string();
    let near = "1234567890123456768";
    let object = json!({"properties": {"id": {"const": id}}, "required": ["id"], "type": "object"});
    check(&[
        (json!({"const": id}), &text, true),
        (json!({"const": id}), near, false),
        (json!({"enum": [id, 9_007_199_254_740_993_i64]}), "9007199254740993", true),
        (json!({"type": "integer", "minimum": id, "maximum": id}), &text, true),
        (json!({"type": "integer", "minimum": id, "maximum": id}), near, false),
        (json!({"type": "number", "exclusiveMinimum": id - 1, "exclusiveMaximum": id + 1}), &text, true),
        (json!({"type": "number", "exclusiveMinimum": id - 1, "exclusiveMaximum": id + 1}), near, false),
        (json!({"const": [u64::MAX]}), "[18446744073709551615]", true),
        (object.clone(), &format!("{{\"id\": {text}}}"), true),
        (json!({"anyOf": [{"type": "null"}, object]}), &format!("{{\"id\": {near}}}"), false),
    ]);
    assert!(refusal(&json!({"const": 1e22})).contains("64 bits"));
    assert!(refusal(&json!({"items": {"enum": [1e22]}, "minItems": 1})).contains("64 bits"));
}

#[test]
fn one_of_takes_alternatives_that_visibly_exclude_each_other() {
    let kind = |name: &str| json!({"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]});
    let defs = json!({"A": kind("a"), "B": kind("b"), "S": {"type": "string", "maxLength": 2}});
    let with = |mut schema: Value| {
        schema["$defs"] = defs.clone();
        schema
    };
    let listed = |name: &str| json!({"type": "object", "properties": {name: {"type": "null"}}, "required": [name]});
    check(&[
        (with(json!({"oneOf": [{"$ref": "#/$defs/S"}, {"type": "null"}]})), "null", true),
        (with(json!({"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]})), "{\"kind\": \"b\"}", true),
        (
            with(json!({"oneOf": [{"$ref": "#/$defs/A", "type": "object"}, {"$ref": "#/$defs/B"}]})),
            "{\"kind\":\"a\"}",
            true,
        ),
        (json!({"oneOf": [{"const": 1}, {"const": 2}]}), "2", true),
        (json!({"oneOf": [{"type": "integer", "maximum": 1}, {"type": "number", "exclusiveMinimum": 1}]}), "1", true),
        (
            json!({"oneOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "uuid"}]}),
            "\"2024-02-29\"",
            true,
        ),
        (json!({"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}]}), "\"bc\"", true),
        (json!({"type": "string", "oneOf": [{"maxLength": 1}, {"minLength": 3}]}), "\"ab\"", false),
        (json!({"oneOf": [listed("x"), listed("y")]}), "{\"y\": null}", true),
        (
            json!({"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"],
            "oneOf": [{"properties": {"kind": {"const": "a"}}}, {"properties": {"kind": {"const": "b"}}}]}),
            "{\"kind\": \"b\"}",
            true,
        ),
    ]);
    for overlapping in [
        json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
        json!({"oneOf": [{"type": "string"}, {"enum": ["a"]}]}),
        with(json!({"oneOf": [{"$ref": "#/$defs/S"}, {"type": "string"}]})),
    ] {
        let reason = refusal(&overlapping);
        assert!(reason.contains("'oneOf'") && reason.contains("anyOf") && !reason.contains("coerce"), "{reason}");
    }
}

#[test]
fn no_object_leads_to_a_place_without_a_way_on() {
    let boolean = json!({"type": "boolean"});
    let closed = json!({"type": "object", "properties": {"a": boolean}, "additionalProperties": false,
        "patternProperties": {"^a$": boolean}});
    for required in [json!([]), json!(["a"])] {
        let mut schema = closed.clone();
        schema["required"] = required;
        drawn(&schema);
    }
    let few = json!({"type": "object", "patternProperties": {"^(a|b)$": boolean, "^c[12]$": {"type": "null"}},
        "additionalProperties": false});
    for text in drawn(&few) {
        let count = text.matches('"').count() / 2;
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.as_object().unwrap().len(), count, "a key comes twice: {text}");
    }
    let names = |least, most| {
        json!({"type": "object", "properties": {"a": {}, "b": boolean, "c": boolean}, "additionalProperties": false,
            "minProperties": least, "maxProperties": most})
    };
    check(&[
        (names(2, 2), "{\"b\": true, \"c\": false}", true),
        (names(2, 2), "{\"b\": true}", false),
        (names(0, 1), "{}", true),
        (names(3, 3), "{\"a\": 1, \"b\": true, \"c\": true}", true),
        (
            json!({"type": "object", "patternProperties": {"^x-": boolean}, "additionalProperties": {"type": "null"}}),
            "{\"x-a\": true, \"b\": null}",
            true,
        ),
        (
            json!({"type": "object", "patternProperties": {"^x-": boolean}, "additionalProperties": {"type": "null"}}),
            "{\"x-a\": null}",
            false,
        ),
        (json!({"type": "object", "patternProperties": {"^.*$": boolean}}), "{\"x\": true}", true),
        (
            json!({"type": "object", "propertyNames": {"enum": ["p", "q"]}, "additionalProperties": boolean}),
            "{\"q\": true}",
            true,
        ),
        (
            json!({"type": "object", "propertyNames": {"enum": ["p", "q"]}, "additionalProperties": boolean}),
            "{\"r\": true}",
            false,
        ),
    ]);
}

#[test]
fn what_says_nothing_is_no_reason_to_refuse() {
    check(&[
        (json!({"type": "string", "format": "starts_with", "pattern": "^ab.*"}), "\"abc\"", true),
        (json!({"format": "float"}), "1", true),
        (json!({"$schema": "https://json-schema.org/draft-07/schema#", "$id": "a b", "type": "boolean"}), "true", true),
        (json!({"type": "array", "uniqueItems": false, "items": {"type": "null"}}), "[null]", true),
        (
            json!({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "null"}}),
            "{\"a\": null}",
            true,
        ),
        (json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {"not": {}}}), "{\"b\": 1}", false),
        (json!({"type": "string", "enum": null, "maxLength": 5.0, "minLength": null}), "\"abcde\"", true),
        (json!({"type": "string", "maxLength": 5.0}), "\"abcdef\"", false),
        (json!({"type": "integer", "minimum": 5, "exclusiveMinimum": true}), "5", false),
        (json!({"type": "array", "items": [{"type": "null"}], "additionalItems": false}), "[null]", true),
        (json!({"not": false, "if": {}, "dependentRequired": {}, "type": "null"}), "null", true),
    ]);
    for (schema, keyword) in [
        (json!({"type": "array", "uniqueItems": true}), "'uniqueItems'"),
        (json!({"not": {"type": "string"}}), "'not'"),
        (json!({"if": {"type": "string"}, "then": {"minLength": 1}}), "'if'"),
        (json!({"properties": {"a": {"contains": {"const": 1}}}}), "'contains'"),
    ] {
        assert!(refusal(&schema).contains(keyword), "{schema}");
    }
}

#[test]
fn a_longest_form_leaves_every_pattern_its_texts() {
    let mail = r"^\w+([\.-]?\w+)*@\w+([\.-]?\w+)*(\.\w{2,})+$";
    check(&[
        (json!({"type": "string", "pattern": mail}), "\"a@b.com\"", true),
        (json!({"type": "string", "pattern": "^a+$"}), "\"aaa\"", true),
        (json!({"anyOf": [{"type": "string", "pattern": "^a{3}$", "maxLength": 2}, {"type": "null"}]}), "null", true),
    ]);
}

#[test]
fn dates_exist() {
    let date = json!({"type": "string", "format": "date"});
    let time = json!({"type": "string", "format": "time"});
    let moment = json!({"type": "string", "format": "date-time"});
    for (schema, text, fine) in [
        (&date, "2024-02-29", true),
        (&date, "2000-02-29", true),
        (&date, "2023-02-29", false),
        (&date, "1900-02-29", false),
        (&date, "0000-01-01", false),
        (&date, "2024-04-31", false),
        (&date, "0004-02-29", true),
        (&time, "23:59:59Z", true),
        (&time, "23:59:60Z", false),
        (&moment, "2024-12-31T00:00:00.5+01:00", true),
        (&moment, "2023-02-29T00:00:00Z", false),
        (&moment, "2016-12-31T23:59:60Z", false),
    ] {
        assert_eq!(takes(schema, &format!("\"{text}\"")), fine, "{text}");
    }
}

#[test]
fn objects_are_closed_whatever_their_properties_are_called_and_stand_beside() {
    let boolean = json!({"type": "boolean"});
    let named =
        json!({"type": "object", "properties": {"allOf": boolean, "$ref": boolean}, "required": ["allOf", "$ref"]});
    let beside = json!({"type": "object", "properties": {"a": {"allOf": [{"$ref": "#/$defs/e"}]}, "b": named},
        "required": ["a", "b"], "$defs": {"e": {"enum": ["x"]}}});
    let both = json!({"allOf": [{"type": "object", "properties": {"a": boolean}}, {"properties": {"b": boolean}, "required": ["b"]}]});
    check(&[
        (named, "{\"allOf\": true, \"$ref\": true}", true),
        (beside.clone(), "{\"a\": \"x\", \"b\": {\"allOf\": true, \"$ref\": true}}", true),
        (both.clone(), "{\"a\": true, \"b\": true}", true),
        (both, "{\"b\": true, \"c\": true}", false),
    ]);
    for text in drawn(&beside) {
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((value.as_object().unwrap().len(), value["b"].as_object().unwrap().len()), (2, 2), "{text}");
    }
}

#[test]
fn all_of_and_references_make_one_schema() {
    let tree = |name: &str| json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": name}, {"type": "null"}]}}, "required": ["next"]});
    check(&[
        (json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}]}), "4", true),
        (json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 4}]}), "5", false),
        (json!({"allOf": [{"pattern": "^a"}, {"pattern": "b$"}], "type": "string", "maxLength": 3}), "\"acb\"", true),
        (json!({"allOf": [{"pattern": "^a"}, {"pattern": "b$"}], "type": "string", "maxLength": 3}), "\"ac\"", false),
        (json!({"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "null"}}}), "null", true),
        (json!({"$ref": "#n", "$defs": {"x": {"$anchor": "n", "type": "null"}}}), "null", true),
        (
            json!({"allOf": [{"$ref": "#/$defs/t"}, {"$ref": "#/$defs/u"}],
            "$defs": {"t": tree("#/$defs/t"), "u": tree("#/$defs/u")}}),
            "{\"next\": {\"next\": null}}",
            true,
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            "{\"b\": null}",
            true,
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            "{}",
            false,
        ),
        (json!({"type": ["string", "integer"], "enum": ["a", 1, null]}), "null", false),
        (
            json!({"multipleOf": 3, "allOf": [{"multipleOf": 2}], "type": "integer", "minimum": 1, "maximum": 11}),
            "6",
            true,
        ),
        (
            json!({"multipleOf": 3, "allOf": [{"multipleOf": 2}], "type": "integer", "minimum": 1, "maximum": 11}),
            "9",
            false,
        ),
    ]);
    assert!(
        refusal(&json!({"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]})).contains("fine")
    );
    assert!(refusal(&json!({"type": "number", "multipleOf": 0.001_234_567})).contains("fine"));
}

#[test]
fn a_model_that_runs_on_comes_to_an_end() {
    let digits: Vec<(u32, f32)> = (0..DEMO.tokenizer.vocabulary_size() as u32)
        .filter(|id| {
            DEMO.tokenizer
                .decode(&[*id], false)
                .is_ok_and(|text| text.bytes().all(|byte| b"0123456789.".contains(&byte)))
        })
        .map(|id| (id, 100.0))
        .collect();
    for schema in [
        json!({"type": "integer"}),
        json!({"type": "number"}),
        json!({"type": "number", "exclusiveMinimum": 0}),
        json!({"type": "number", "minimum": 0, "maximum": 1}),
        json!({"type": "number", "multipleOf": 0.25}),
        json!({"type": "string", "format": "email"}),
        json!({"type": "string", "format": "hostname"}),
        json!({"type": "string", "format": "date-time"}),
        json!({"type": "string", "format": "duration"}),
        json!({"type": "string", "format": "uri"}),
        json!({"type": "string", "pattern": "^[0-9]+$"}),
        json!({"type": "string", "pattern": "^[a-z0-9]+-?$"}),
        json!({"type": "array", "items": {"type": "number"}, "maxItems": 2}),
    ] {
        let sampling = Sampling { logit_bias: digits.clone().into(), ..seeded(1) };
        let text = draw(&compile(schema.clone()).unwrap(), 1, sampling);
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{schema}: {text}");
    }
}

#[test]
fn what_cannot_be_followed_is_dropped_by_name_if_the_schema_is_loosened() {
    let schema = json!({"type": "object", "properties": {
        "tags": {"type": "array", "items": {"type": "null"}, "uniqueItems": true},
        "name": {"type": "string", "pattern": "(?=x)y", "maxLength": 3}},
        "required": ["tags", "name"], "dependentRequired": {"a": ["b"]}});
    let mut source = GrammarSource::json(schema);
    source.schemas[0].loosen = true;
    let grammar =
        Grammar::compile(&DEMO.vocabulary, "tools", source, &CompileBudget::new(Duration::from_mins(1))).unwrap();
    let expected = ["dependentRequired", "uniqueItems", "pattern"].map(str::to_owned).to_vec();
    assert_eq!(grammar.dropped(), [("document".to_owned(), expected)]);
    let value: Value = serde_json::from_str(&draw(&grammar, 1, seeded(1))).unwrap();
    assert!(value["name"].as_str().unwrap().chars().count() <= 3);
}
