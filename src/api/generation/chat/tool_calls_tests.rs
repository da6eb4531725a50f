//! Answers with calls, cut at every place.

use super::*;

fn format(syntax: ToolSyntax, required: bool, json_answers: bool) -> CallFormat {
    let names = vec!["get".into(), "get_all".into()];
    CallFormat { syntax, names, custom: Vec::new(), required, json_answers, legacy: false }
}

/// Parses `pieces` and returns their parts, with neighbours joined.
fn parts(format: &CallFormat, pieces: &[&str]) -> (Vec<Part>, bool) {
    let mut parser = CallParser::new(format);
    let mut all: Vec<Part> = Vec::new();
    let mut arrived: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(format, piece)).collect();
    arrived.extend(parser.finish(format));
    for part in arrived {
        match (all.last_mut(), part) {
            (Some(Part::Content(last)), Part::Content(text)) => last.push_str(&text),
            (Some(Part::Arguments { index: a, text: last }), Part::Arguments { index: b, text }) if *a == b => {
                last.push_str(&text);
            }
            (_, part) => all.push(part),
        }
    }
    (all, parser.has_whole_calls())
}

fn content(text: &str) -> Part {
    Part::Content(text.into())
}

fn call(index: usize, name: &str, arguments: &str) -> [Part; 2] {
    [Part::Call { index, name: name.into() }, Part::Arguments { index, text: arguments.into() }]
}

/// Lists answers with the parts that they must be parsed into.
fn answers() -> Vec<(CallFormat, &'static str, Vec<Part>, bool)> {
    let auto = |syntax| format(syntax, false, false);
    let tricky = "{\"a\": \"}\\\"{ </tool_call> \\\\\", \"b\": [{}, 1], \"ü\": \"🙂\"}";
    let first = "So 🙂 <tool_ca\n<tool_call>\n{\"name\": \"get_all\", \"arguments\": {\"a\": \"}\\\"{ </tool_call> \\\\\", \
                 \"b\": [{}, 1], \"ü\": \"🙂\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>";
    let mut first_parts = vec![content("So 🙂 <tool_ca\n")];
    first_parts.extend(call(0, "get_all", tricky));
    first_parts.extend(call(1, "get", "{}"));
    vec![
        (auto(ToolSyntax::HERMES), first, first_parts, true),
        (auto(ToolSyntax::HERMES), "Only a <tool_cal", vec![content("Only a <tool_cal")], false),
        (auto(ToolSyntax::HERMES), "", vec![], false),
        (format(ToolSyntax::HERMES, true, false), "<tool_c", vec![], false),
        (auto(ToolSyntax::HERMES), "x<tool_call>\n{\"name\": \"ge", vec![content("x")], false),
        (
            auto(ToolSyntax::HERMES),
            "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": [1",
            call(0, "get", "{\"a\": [1").to_vec(),
            false,
        ),
        (
            auto(ToolSyntax::LLAMA),
            "{\"name\": \"get\", \"parameters\": {\"a\": 1}}; {\"name\": \"get\", \"parameters\": {}}",
            [call(0, "get", "{\"a\": 1}"), call(1, "get", "{}")].concat(),
            true,
        ),
        (auto(ToolSyntax::LLAMA), "No { call", vec![content("No { call")], false),
        (auto(ToolSyntax::LLAMA), "{\"name\": \"g", vec![], false),
        (format(ToolSyntax::LLAMA, false, true), "{\"name\": \"gil\"}", vec![content("{\"name\": \"gil\"}")], false),
        (format(ToolSyntax::LLAMA, false, true), "{\"na", vec![content("{\"na")], false),
        (
            format(ToolSyntax::HERMES, false, true),
            "{\"a\": \"<tool_call>\"}",
            vec![content("{\"a\": \"<tool_call>\"}")],
            false,
        ),
        (
            format(ToolSyntax::HERMES, false, true),
            "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>",
            call(0, "get", "{}").to_vec(),
            true,
        ),
        (
            auto(ToolSyntax::MISTRAL),
            "Hm [TOOL[TOOL_CALLS][{\"name\": \"get\", \"arguments\": {}}, {\"name\": \"get_all\", \"arguments\": {\"b\": \"]\"}}]",
            [vec![content("Hm [TOOL")], call(0, "get", "{}").to_vec(), call(1, "get_all", "{\"b\": \"]\"}").to_vec()]
                .concat(),
            true,
        ),
    ]
}

#[test]
fn an_answer_is_the_same_however_its_text_is_cut() {
    for (format, text, expected, whole) in answers() {
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(parts(&format, &letters), (expected.clone(), whole), "letter by letter: {text}");
        for (cut, _) in text.char_indices() {
            let (before, after) = text.split_at(cut);
            assert_eq!(parts(&format, &[before, after]), (expected.clone(), whole), "cut at {cut}: {text}");
        }
    }
}

#[test]
fn markup_is_never_shown_however_early_the_answer_ends() {
    for (format, text, ..) in answers().into_iter().filter(|(.., whole)| *whole) {
        for (cut, _) in text.char_indices() {
            let (arrived, _) = parts(&format, &[&text[..cut]]);
            for part in arrived {
                let Part::Content(shown) = part else { continue };
                assert!(text.starts_with(&shown) && !shown.contains("{\"name"), "cut at {cut} shows {shown}");
            }
        }
    }
}

#[test]
fn arguments_arrive_as_they_are_written() {
    let format = format(ToolSyntax::HERMES, true, false);
    let mut parser = CallParser::new(&format);
    parser.push(&format, "<tool_call>\n{\"name\": \"get\", \"arguments\": {");
    assert_eq!(parser.push(&format, "\"a\""), [Part::Arguments { index: 0, text: "\"a\"".into() }]);
    assert_eq!(parser.push(&format, ": 1"), [Part::Arguments { index: 0, text: ": 1".into() }]);
}

#[test]
fn ids_of_calls_are_new_each_time() {
    let (a, b) = (new_call_id(), new_call_id());
    assert!(a != b && a.starts_with("call_") && a.len() == 29, "{a} {b}");
}
