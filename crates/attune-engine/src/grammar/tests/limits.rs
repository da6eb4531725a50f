//! Limits of compiling, and what the answers of a request hold together.

use super::*;

/// Compiles within `budget`, of which `schema` is not to need much.
fn compile_within(schema: Value, budget: &CompileBudget) -> Result<Grammar, String> {
    Grammar::compile(&DEMO.vocabulary, "response_format", GrammarSource::json(schema), budget)
}

fn every(words: &[String]) -> Value {
    let pattern = |word: &String| json!({"type": "string", "pattern": format!("^.*{word}.*$")});
    json!({"allOf": words.iter().map(pattern).collect::<Vec<_>>()})
}

#[test]
fn schemas_with_too_much_work_are_refused_by_the_limit() {
    let words = |count: usize, first: &str| -> Vec<String> { (0..count).map(|at| format!("{first}{at:03}")).collect() };
    let patterns: serde_json::Map<String, Value> =
        words(600, "w").into_iter().map(|w| (format!("^{w}"), json!({}))).collect();
    let nested = format!("^{}a{}$", "(".repeat(6), "{64})".repeat(6));
    for (schema, said) in [
        (every(&words(220, "")), "at most 32"),
        (every(&words(30, "a")), "ways"),
        (json!({"type": "object", "patternProperties": patterns}), "at most 30"),
        (json!({"type": "string", "pattern": "\\p{L}?".repeat(1300)}), "parts"),
        (json!({"type": "string", "pattern": "a".repeat(9000)}), "bytes"),
        (json!({"enum": ["a".repeat(9000), "b"]}), "at most 8192"),
        (json!({"type": "object", "patternProperties": {nested: {}}}), ""),
        (
            json!({"oneOf": (0..200).map(|at| json!({"pattern": format!("^{at}x"), "type": "string"})).collect::<Vec<_>>()}),
            "",
        ),
    ] {
        let budget = CompileBudget::new(Duration::from_mins(1));
        match compile_within(schema, &budget) {
            Ok(_) => assert_eq!(said, "", "compiled"),
            Err(reason) => assert!(reason.contains(said), "{said}: {reason}"),
        }
        assert_eq!(budget.early_end(), None, "the limits alone are enough");
    }
}

#[test]
fn a_compile_ends_when_its_time_is_over_or_nobody_waits() {
    let late = CompileBudget::new(Duration::ZERO);
    let reason = compile_within(json!({"type": "object"}), &late).err().unwrap();
    assert!(reason.contains("longer"), "{reason}");
    assert_eq!(late.early_end(), Some(EarlyEnd::OutOfTime));
    let left = CompileBudget::new(Duration::from_mins(1));
    drop(left.abandon_on_drop());
    assert!(compile_within(json!({"type": "object"}), &left).is_err());
    assert_eq!(left.early_end(), Some(EarlyEnd::Abandoned));
}

#[test]
fn the_answers_of_a_request_share_what_is_large_and_give_it_back() {
    let memory = GrammarMemory::new(2 << 30);
    let grammar = compile(json!({"type": "integer", "multipleOf": 5_987})).unwrap();
    let request = grammar.for_request(128, &memory, "a".into()).unwrap();
    let one = grammar.for_request(1, &memory, "b".into()).unwrap();
    let mut states: Vec<_> = (0..128).map(|_| request.begin()).collect();
    for state in &mut states {
        state.mask(&mut vec![0.0; DEMO.size]).unwrap();
    }
    assert!(memory.held() < 128 << 20, "{} MiB", memory.held() >> 20);
    drop((request, states));
    assert!(memory.held() > 0, "the other request runs");
    drop(one);
    assert_eq!(memory.held(), 0);
}

#[test]
fn answers_that_share_a_lexer_are_those_that_they_are_alone() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "string", "pattern": "^[a-f]+-[0-9]{2,4}$"}, "b": {"type": "integer", "multipleOf": 7},
    }, "required": ["a", "b"]});
    let alone: Vec<String> = (0..8).map(|seed| draw(&compile(schema.clone()).unwrap(), seed, seeded(seed))).collect();
    let memory = GrammarMemory::new(2 << 30);
    let shared = compile(schema).unwrap().for_request(8, &memory, "a".into()).unwrap();
    let together: Vec<String> = std::thread::scope(|scope| {
        let draws: Vec<_> = (0..8)
            .map(|seed| {
                scope.spawn({
                    let shared = &shared;
                    move || draw(shared, seed, seeded(seed))
                })
            })
            .collect();
        draws.into_iter().map(|draw| draw.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn who_asks_for_too_much_memory_is_told_what_to_change_and_who_comes_later_to_wait() {
    let grammar = compile(json!({"type": "integer", "multipleOf": 997})).unwrap();
    let field = |error| match error {
        Error::Grammar { message, field } if message.contains("MiB") => Some(field),
        _ => None,
    };
    let small = GrammarMemory::new(16 << 20);
    assert_eq!(field(grammar.for_request(128, &small, "a".into()).unwrap_err()).as_deref(), Some("response_format"));
    let memory = GrammarMemory::new(256 << 20);
    let held: Vec<_> = (0..).map_while(|_| grammar.for_request(64, &memory, "a".into()).ok()).collect();
    assert!(!held.is_empty());
    let refused = grammar.for_request(64, &memory, "a".into()).unwrap_err();
    assert!(matches!(refused, Error::Overloaded { .. }), "{refused}");
    assert!(grammar.for_request(64, &memory, "b".into()).is_ok(), "others have their own part");
    drop(held);
    assert!(grammar.for_request(64, &memory, "a".into()).is_ok());
}
