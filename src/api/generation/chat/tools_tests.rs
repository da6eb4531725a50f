//! The grammars of tools against answers that they must take or refuse.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use super::*;
use crate::engine::grammar::{CompileBudget, Grammar};
use crate::model::vocabulary::Vocabulary;

static DEMO: LazyLock<(Tokenizer, Vocabulary)> = LazyLock::new(|| {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"));
    let tokenizer = Tokenizer::read(folder).unwrap();
    let ends = [tokenizer.end_token().unwrap()];
    let vocabulary = Vocabulary::new("demo", &tokenizer, tokenizer.vocabulary_size(), &ends).unwrap();
    (tokenizer, vocabulary)
});

fn budget() -> CompileBudget {
    CompileBudget::new(Duration::from_mins(1))
}

fn request(mut fields: Value) -> ChatRequest {
    fields["model"] = "m".into();
    fields["messages"] = json!([]);
    serde_json::from_value(fields).unwrap()
}

fn tools(fields: Value) -> Option<Tools> {
    Tools::of(&request(fields)).unwrap()
}

fn two_tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "Looks.", "parameters": city}},
        {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
    ])
}

/// Returns true if `text` is a whole answer of the grammar for the demo model.
fn takes(tools: &Tools, syntax: ToolSyntax, response: Option<Value>, text: &str) -> bool {
    takes_with(&DEMO, tools, syntax, response, text)
}

fn takes_with(
    (tokenizer, vocabulary): &(Tokenizer, Vocabulary),
    tools: &Tools,
    syntax: ToolSyntax,
    response: Option<Value>,
    text: &str,
) -> bool {
    let source = tools.grammar(syntax, tokenizer, response);
    let mut state = Grammar::compile(vocabulary, "tools", source, &budget()).unwrap().begin();
    for id in tokenizer.encode(text, false).unwrap() {
        let mut logits = vec![0.0; tokenizer.vocabulary_size()];
        if state.is_complete() || state.mask(&mut logits).is_err() || logits[id as usize] < 0.0 {
            return false;
        }
        state.accept(id).unwrap();
    }
    if state.is_complete() {
        return true;
    }
    let mut logits = vec![0.0; tokenizer.vocabulary_size()];
    state.mask(&mut logits).is_ok() && logits[tokenizer.end_token().unwrap() as usize] == 0.0
}

const ROME: &str = "{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}";
const TIME: &str = "{\"name\": \"time\", \"arguments\": {}}";

fn hermes(calls: &[&str]) -> String {
    let calls: Vec<String> = calls.iter().map(|call| format!("<tool_call>\n{call}\n</tool_call>")).collect();
    calls.join("\n")
}

#[test]
fn auto_takes_any_text_and_after_the_trigger_calls_alone() {
    let tools = tools(json!({"tools": two_tools()})).unwrap();
    for (text, fine) in [
        (String::new(), true),
        ("Hello {\"name\": 1} <tool_cal".into(), true),
        (hermes(&[ROME]), true),
        (format!("Wait.\n{}", hermes(&[ROME, TIME])), true),
        (format!("{} and more", hermes(&[ROME])), false),
        (hermes(&["{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}"]), false),
        (hermes(&["{\"name\": \"other\", \"arguments\": {}}"]), false),
        ("<tool_call>".into(), false),
    ] {
        assert_eq!(takes(&tools, ToolSyntax::HERMES, None, &text), fine, "{text}");
    }
}

#[test]
fn required_takes_calls_alone_and_one_where_they_are_not_parallel() {
    let required = tools(json!({"tools": two_tools(), "tool_choice": "required"})).unwrap();
    assert!(takes(&required, ToolSyntax::HERMES, None, &hermes(&[ROME, TIME, ROME])));
    assert!(!takes(&required, ToolSyntax::HERMES, None, "Hello"));
    assert!(!takes(&required, ToolSyntax::HERMES, None, ""));
    let single = tools(json!({"tools": two_tools(), "tool_choice": "required", "parallel_tool_calls": false})).unwrap();
    assert!(takes(&single, ToolSyntax::HERMES, None, &hermes(&[TIME])));
    assert!(!takes(&single, ToolSyntax::HERMES, None, &hermes(&[TIME, TIME])));
    let choice = json!({"type": "function", "function": {"name": "time"}});
    let named = tools(json!({"tools": two_tools(), "tool_choice": choice})).unwrap();
    assert!(takes(&named, ToolSyntax::HERMES, None, &hermes(&[TIME])));
    assert!(!takes(&named, ToolSyntax::HERMES, None, &hermes(&[ROME])));
}

#[test]
fn marks_that_are_one_token_are_found_special_or_not() {
    for special in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"));
        let mut json: Value =
            serde_json::from_str(&std::fs::read_to_string(demo.join("tokenizer.json")).unwrap()).unwrap();
        for (mark, id) in ToolSyntax::MARKS.iter().zip(2048..) {
            let mut token = json["added_tokens"][0].clone();
            (token["id"], token["content"], token["special"]) = (id.into(), (*mark).into(), special.into());
            json["added_tokens"].as_array_mut().unwrap().push(token);
        }
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        std::fs::copy(demo.join("tokenizer_config.json"), folder.path().join("tokenizer_config.json")).unwrap();
        let tokenizer = Tokenizer::read(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("<tool_call></tool_call>[TOOL_CALLS]", false).unwrap(), [2048, 2049, 2050]);
        let ends = [tokenizer.end_token().unwrap()];
        let vocabulary = Vocabulary::new("demo", &tokenizer, 2060, &ends).unwrap();
        let model = (tokenizer, vocabulary);
        let auto = tools(json!({"tools": two_tools()})).unwrap();
        let required = tools(json!({"tools": two_tools(), "tool_choice": "required"})).unwrap();
        for (tools, syntax, text, fine) in [
            (&auto, ToolSyntax::HERMES, hermes(&[ROME, TIME]), true),
            (&auto, ToolSyntax::HERMES, format!("So {}", hermes(&[ROME])), true),
            (&auto, ToolSyntax::HERMES, "<tool_call>So".into(), false),
            (&auto, ToolSyntax::HERMES, "So".into(), true),
            (&required, ToolSyntax::HERMES, hermes(&[TIME]), true),
            (&required, ToolSyntax::HERMES, "So".into(), false),
            (&auto, ToolSyntax::MISTRAL, format!("[TOOL_CALLS][{ROME}, {TIME}]"), true),
            (&auto, ToolSyntax::MISTRAL, format!("So: [TOOL_CALLS][{ROME}]"), true),
            (&auto, ToolSyntax::MISTRAL, "[TOOL_CALLS]So".into(), false),
        ] {
            assert_eq!(takes_with(&model, tools, syntax, None, &text), fine, "{special}: {text}");
            let source = tools.grammar(syntax, &model.0, None);
            assert_eq!(!source.shown_tokens.is_empty(), special, "what is special must be shown");
        }
    }
}

#[test]
fn every_syntax_has_its_markup() {
    let auto = tools(json!({"tools": two_tools()})).unwrap();
    let rome = ROME.replace("arguments", "parameters");
    let time = TIME.replace("arguments", "parameters");
    for (syntax, text, fine) in [
        (ToolSyntax::LLAMA, rome.clone(), true),
        (ToolSyntax::LLAMA, format!("{rome}; {time}"), true),
        (ToolSyntax::LLAMA, "Hello {".into(), true),
        (ToolSyntax::LLAMA, "{\"a\": 1}".into(), false),
        (ToolSyntax::MISTRAL, format!("[TOOL_CALLS][{ROME}, {TIME}]"), true),
        (ToolSyntax::MISTRAL, format!("So: [TOOL_CALLS][{ROME}]"), true),
        (ToolSyntax::MISTRAL, "[TOOL_CALLS][]".into(), false),
    ] {
        assert_eq!(takes(&auto, syntax, None, &text), fine, "{text}");
    }
}

#[test]
fn an_answer_beside_tools_can_have_a_schema_of_its_own() {
    let auto = tools(json!({"tools": two_tools()})).unwrap();
    let schema = json!({"enum": [{"name": "x"}, "<tool_call>"]});
    for (syntax, text, fine) in [
        (ToolSyntax::HERMES, "{\"name\":\"x\"}".to_owned(), true),
        (ToolSyntax::HERMES, "\"<tool_call>\"".into(), true),
        (ToolSyntax::HERMES, hermes(&[ROME]), true),
        (ToolSyntax::HERMES, "Hello".into(), false),
        (ToolSyntax::LLAMA, "{\"name\": \"x\"}".into(), true),
        (ToolSyntax::LLAMA, ROME.replace("arguments", "parameters"), true),
    ] {
        assert_eq!(takes(&auto, syntax, Some(schema.clone()), &text), fine, "{text}");
    }
}

#[test]
fn none_and_no_tools_leave_the_answer_free() {
    assert!(tools(json!({})).is_none());
    assert!(tools(json!({"tools": []})).is_none());
    assert!(tools(json!({"tools": two_tools(), "tool_choice": "none"})).is_none());
    assert!(tools(json!({"tool_choice": "auto"})).is_none());
}

#[test]
fn the_older_form_means_the_same_with_one_call() {
    let functions = json!([{"name": "time"}]);
    let legacy = tools(json!({"functions": functions, "function_call": {"name": "time"}})).unwrap();
    assert!(legacy.legacy && legacy.required && !legacy.parallel);
    let auto = tools(json!({"functions": functions})).unwrap();
    assert!(auto.legacy && !auto.required);
}

fn named(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

fn allowed(mode: &str, tools: &Value) -> Value {
    json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
}

#[test]
fn allowed_tools_restrict_what_is_called_and_not_what_is_shown() {
    let three = json!([named("f"), named("g"), named("h")]);
    for (mode, required) in [("auto", false), ("required", true)] {
        let choice = allowed(mode, &json!([named("h"), named("f")]));
        let tools = tools(json!({"tools": three, "tool_choice": choice})).unwrap();
        assert_eq!((tools.names(), tools.required), (vec!["f".to_owned(), "h".to_owned()], required), "{mode}");
        assert_eq!(tools.shown().len(), 3);
        assert!(tools.parallel);
    }
}

#[test]
fn a_custom_tool_is_called_as_a_function_of_one_text() {
    let custom = |format: Value| json!({"type": "custom", "custom": {"name": "note", "format": format}});
    let call = |input: &str| hermes(&[&format!("{{\"name\": \"note\", \"arguments\": {{\"input\": {input}}}}}")]);
    let any = tools(json!({"tools": [two_tools()[0], custom(json!({"type": "text"}))]})).unwrap();
    assert_eq!((any.names(), any.custom()), (vec!["weather".into(), "note".into()], vec!["note".into()]));
    let hours = json!({"type": "grammar", "grammar": {"syntax": "regex", "definition": "[0-9]{2}:[0-9]{2}|\"now\""}});
    let hours = tools(json!({"tools": [custom(hours)]})).unwrap();
    for (input, of_any, of_hours) in [
        ("\"a\\n\\\"b\\\"\"", true, false),
        ("\"\"", true, false),
        ("\"12:30\"", true, true),
        ("\"12:30 \"", true, false),
        ("\"\\\"now\\\"\"", true, true),
        ("3", false, false),
    ] {
        assert_eq!(takes(&any, ToolSyntax::HERMES, None, &call(input)), of_any, "{input}");
        assert_eq!(takes(&hours, ToolSyntax::HERMES, None, &call(input)), of_hours, "{input}");
    }
    // One of them by its type and name.
    let choice = json!({"type": "custom", "custom": {"name": "note"}});
    let both = json!([two_tools()[0], custom(Value::Null)]);
    let named = tools(json!({"tools": both, "tool_choice": choice})).unwrap();
    assert_eq!((named.names(), named.required), (vec!["note".to_owned()], true));
    let some = tools(json!({"tools": both, "tool_choice": allowed("auto", &json!([choice]))})).unwrap();
    assert_eq!((some.names(), some.required), (vec!["note".to_owned()], false));
}

#[test]
fn a_custom_tool_with_lark_rules_works_in_every_syntax_and_beside_others() {
    let custom = |name: &str, rules: &str| {
        let grammar = json!({"syntax": "lark", "definition": rules});
        json!({"type": "custom", "custom": {"name": name, "format": {"type": "grammar", "grammar": grammar}}})
    };
    let lines = custom("lines", "start: (/[^\\n]+/ \"\\n\")+");
    let sums = custom("sums", "start: sum\nsum: N (\"+\" sum)?\nN: /[0-9]+/ | \"(\" /[0-9]/ \")\"");
    let any = json!({"type": "custom", "custom": {"name": "any"}});
    let nested = json!({"type": "function", "function": {"name": "nested", "parameters": {"type": "object"}}});
    let all = json!([lines, sums, any, nested, two_tools()[0]]);
    let call = |name: &str, input: &str| {
        format!("{{\"name\": \"{name}\", \"arguments\": {{\"input\": {}}}}}", Value::from(input))
    };
    let inside = format!("{{\"name\": \"nested\", \"arguments\": {{\"a\": {}}}}}", call("sums", "x"));
    for (calls, fine) in [
        (vec![call("lines", "a \"b\"\n\\\n")], true),
        (vec![call("lines", "a")], false),
        (vec![call("sums", "1+(2)+3")], true),
        (vec![call("sums", "1+")], false),
        (vec![call("sums", "12"), call("lines", "x\n"), call("sums", "3"), ROME.into()], true),
        (vec![call("sums", "12"), call("lines", "x\n"), call("sums", "+")], false),
        (vec![call("any", "1+\n\""), call("sums", "1")], true),
        (vec![inside.clone(), call("sums", "1")], true),
        (vec![inside, call("sums", "x")], false),
    ] {
        for (syntax, choice) in [
            (ToolSyntax::HERMES, "auto"),
            (ToolSyntax::HERMES, "required"),
            (ToolSyntax::LLAMA, "auto"),
            (ToolSyntax::LLAMA, "required"),
            (ToolSyntax::MISTRAL, "auto"),
            (ToolSyntax::MISTRAL, "required"),
        ] {
            let tools = tools(json!({"tools": all, "tool_choice": choice})).unwrap();
            let calls: Vec<String> = calls.iter().map(|call| call.replace("arguments", syntax.arguments_key)).collect();
            let list = calls.join(syntax.separator);
            let answer = format!("{}{}{list}{}", syntax.trigger, syntax.open, syntax.close);
            assert_eq!(takes(&tools, syntax, None, &answer), fine, "{choice}: {answer}");
            let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
            assert_eq!(takes(&tools, syntax, Some(schema), &answer), fine, "{choice} beside a schema: {answer}");
            if choice == "auto" && !syntax.trigger.is_empty() {
                assert_eq!(takes(&tools, syntax, None, &format!("So {}: {answer}", calls[0])), fine, "{answer}");
            }
        }
    }
    // What is not called is not enforced, and one that is named is called once.
    let choice = json!({"type": "custom", "custom": {"name": "sums"}});
    let named = tools(json!({"tools": all, "tool_choice": choice})).unwrap();
    assert!(takes(&named, ToolSyntax::HERMES, None, &hermes(&[&call("sums", "1")])));
    assert!(!takes(&named, ToolSyntax::HERMES, None, &hermes(&[&call("sums", "a")])));
    assert!(!takes(&named, ToolSyntax::HERMES, None, &hermes(&[&call("sums", "1"), &call("sums", "1")])));
    assert_eq!(named.grammar(ToolSyntax::HERMES, &DEMO.0, None).texts.grammars.len(), 1);
}

#[test]
fn a_grammar_of_a_custom_tool_that_cannot_be_followed_is_refused_and_never_opened() {
    for (syntax, definition) in [("regex", "(?=a)b"), ("lark", "start: A")] {
        let format = json!({"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}});
        let tool = json!({"type": "custom", "custom": {"name": "c", "format": format}});
        let mut tools = tools(json!({"tools": [tool]})).unwrap();
        let source = tools.grammar(ToolSyntax::HERMES, &DEMO.0, None);
        assert!(Grammar::compile(&DEMO.1, "tools", source, &budget()).is_err());
        let (index, alone) = tools.single_grammars().next().unwrap();
        assert!(index == 0 && Grammar::compile(&DEMO.1, "tools", alone, &budget()).is_err());
        assert!(!tools.open(0));
        assert_eq!(tools.parameters_param(0), "tools[0].custom.format");
    }
}

#[test]
fn what_is_wrong_is_refused_by_its_field() {
    let tool = |name: &str, parameters: Value| json!([{"type": "function", "function": {"name": name, "parameters": parameters}}]);
    let many: Vec<Value> = (0..129).map(|index| tool(&format!("f{index}"), Value::Null)[0].clone()).collect();
    let (first, second) = (tool("f", Value::Null), tool("f", Value::Null));
    for (fields, field) in [
        (json!({"tools": tool("a b", Value::Null)}), "tools[0].function.name"),
        (json!({"tools": [{"type": "custom", "function": {"name": "f"}}]}), "tools[0].custom"),
        (json!({"tools": [{"type": "function", "custom": {"name": "f"}}]}), "tools[0].function"),
        (json!({"tools": [{"type": "custom", "custom": {"name": "a b"}}]}), "tools[0].custom.name"),
        (json!({"tools": [{"type": "mcp"}]}), "tools[0].type"),
        (json!({"tools": [first[0], second[0]]}), "tools[1].function.name"),
        (json!({"tools": tool("f", json!([]))}), "tools[0].function.parameters"),
        (json!({"tools": tool("f", json!({"type": "string"}))}), "tools[0].function.parameters"),
        (json!({"tools": many}), "tools"),
        (json!({"functions": [{"name": ""}]}), "functions[0].name"),
        (json!({"tools": first, "functions": [{"name": "f"}]}), "functions"),
        (json!({"tools": first, "tool_choice": "maybe"}), "tool_choice"),
        (json!({"tools": first, "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
        (json!({"tools": first, "tool_choice": {"type": "custom", "function": {"name": "f"}}}), "tool_choice.custom"),
        (json!({"tools": first, "tool_choice": {"type": "custom", "custom": {"name": "f"}}}), "tool_choice"),
        (json!({"tools": first, "tool_choice": {"type": "mcp"}}), "tool_choice.type"),
        (json!({"tools": first, "tool_choice": {"type": "allowed_tools"}}), "tool_choice.allowed_tools"),
        (json!({"tools": first, "tool_choice": allowed("auto", &json!([named("g")]))}), "tool_choice"),
        (
            json!({"tools": first, "tool_choice": allowed("none", &json!([named("f")]))}),
            "tool_choice.allowed_tools.mode",
        ),
        (json!({"tools": first, "tool_choice": allowed("auto", &json!([]))}), "tool_choice.allowed_tools.tools"),
        (
            json!({"tools": first, "tool_choice": allowed("auto", &json!([{"type": "mcp", "function": {"name": "f"}}]))}),
            "tool_choice.allowed_tools.tools[0].type",
        ),
        (json!({"tool_choice": allowed("auto", &json!([named("f")]))}), "tool_choice"),
        (
            json!({"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": "grammar"}}}]}),
            "tools[0].custom.format",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"functions": [{"name": "f"}], "function_call": {"name": "g"}}), "function_call"),
        (json!({"function_call": {"name": "g"}}), "function_call"),
    ] {
        let Err(problem) = Tools::of(&request(fields)) else { panic!("{field} was not refused") };
        assert_eq!(problem.error.param.as_deref(), Some(field));
    }
}

#[test]
fn a_tool_that_cannot_be_followed_is_opened_unless_it_is_strict() {
    let odd = |strict: bool| {
        let parameters = json!({"type": "object", "properties": {"a": {"uniqueItems": true}}});
        json!([two_tools()[0], {"type": "function", "function": {"name": "odd", "strict": strict, "parameters": parameters}}])
    };
    let compile = |tools: &Tools| {
        let source = tools.grammar(ToolSyntax::HERMES, &DEMO.0, None);
        Grammar::compile(&DEMO.1, "tools", source, &budget())
    };
    let mut loose = tools(json!({"tools": odd(false)})).unwrap();
    let header = loose.loosened(&compile(&loose).unwrap()).unwrap();
    assert_eq!(header, "tools[1].function.parameters: uniqueItems");
    assert!(loose.open(1) && !loose.open(1));
    assert_eq!(loose.loosened(&compile(&loose).unwrap()).unwrap(), "tools[1].function.parameters: all");
    let mut strict = tools(json!({"tools": odd(true)})).unwrap();
    assert!(compile(&strict).is_err_and(|reason| reason.contains("uniqueItems")));
    assert!(!strict.open(1));
    let plain = tools(json!({"tools": two_tools()})).unwrap();
    assert!(plain.loosened(&compile(&plain).unwrap()).is_none());
}
