//! Texts of calls that follow Lark grammars.

use super::*;

const OPENING: &str = "{\"input\": \"";

fn compile_lark(lark: &str) -> Result<Grammar, String> {
    let text = TextGrammar { openings: vec![OPENING.into()], lark: lark.into() };
    let source = GrammarSource {
        rules: "start: \"{\\\"input\\\": \" @text \"}\"".into(),
        schemas: vec![DocumentSchema { name: "text".into(), schema: json!({"type": "string"}), loosen: false }],
        shown_tokens: Vec::new(),
        texts: Texts { grammars: vec![text], ..Texts::default() },
    };
    Grammar::compile(&DEMO.vocabulary, "tools", source, &CompileBudget::new(Duration::from_secs(5)))
}

/// Returns true if `text` is a whole text of the grammar, be it cut into the tokenizer's tokens or into single bytes.
fn takes(grammar: &Grammar, text: &str) -> bool {
    let answer = json!({"input": text}).to_string().replacen("{\"input\":", "{\"input\": ", 1);
    let answer = answer.replace('\u{7f}', "\\u007f");
    let whole = DEMO.tokenizer.encode(&answer, false).unwrap();
    // What the grammar forces before the text comes in the tokenizer's tokens alone.
    let mut before = 0;
    let ends_before = |id: &&u32| {
        before += DEMO.vocabulary.token_bytes(**id).len();
        before < OPENING.len()
    };
    let mut cut: Vec<u32> = whole.iter().take_while(ends_before).copied().collect();
    let start: usize = cut.iter().map(|id| DEMO.vocabulary.token_bytes(*id).len()).sum();
    cut.extend(answer.bytes().skip(start).map(|byte| {
        let is = |id: &u32| DEMO.vocabulary.token_bytes(*id) == [byte];
        (0..DEMO.size as u32).find(is).unwrap()
    }));
    let taken = [whole, cut].map(|ids| {
        let mut state = grammar.begin();
        let fits = ids.iter().all(|id| {
            let mut logits = vec![0.0; DEMO.size];
            !state.is_complete()
                && state.mask(&mut logits).is_ok()
                && logits[*id as usize] == 0.0
                && state.accept(*id).is_ok()
        });
        fits && state.is_complete()
    });
    assert_eq!(taken[0], taken[1], "{text:?} cut in two ways");
    taken[0]
}

#[test]
fn a_text_follows_its_grammar_from_its_first_to_its_last_character() {
    let sums = "start: sum\nsum: product ((\"+\" | \"-\") product)*\nproduct: atom ((\"*\" | \"/\") atom)*\n\
                atom: INT | \"(\" sum \")\"\n%import common.INT\n%import common.WS\n%ignore WS";
    let lines = "start: line+\nline: /[^\\n]+/ LF\n%import common.LF";
    let quoted = "start: (STRING | OTHER)*\nSTRING: /\"([^\"\\\\\\n]|\\\\.)*\"/\nOTHER: /[^\"\\n]+/ | \"\\n\"";
    let nested = "start: \"(\" start? \")\" | \"[\" start \"]\"";
    let letters = "start: WORD (\", \" WORD)*\nWORD: /[a-zäöüß]{2,5}/i";
    for (lark, fine, wrong) in [
        (sums, &["1", "(1 +\n 2)*3", "12/\t(3-4)  "][..], &["", "1+", "(1", " 1", "1 2", "a"][..]),
        (lines, &["a\n", "a \"b\" \\n\\ \t\nc\u{7f}\u{1}ä🙂\n"], &["", "a", "\n", "a\n\nb\n", "a\nb"]),
        (quoted, &["", "a = \"b\\\"\\n\"\n", "\"\"\"\\\\\""], &["\"", "\"\n\"", "\"\\\"", "a\"b"]),
        (nested, &["()", "(())", "[([()])]"], &["", "[]", "(()", "())"]),
        (letters, &["ab", "straß, ÄÖ"], &["a", "ab,cd", "abcdef", "ab, "]),
        ("start: \"a\"~2..3 B?\nB.: \"b\"", &[], &[]),
        ("start: \"\\u00e4\\n\\\\\\\"\"", &["ä\n\\\""], &["ä", "ä\n\\"]),
        (
            "start: A\nA: \"\\u0000\" | \"\\u001f\" | \"\\b\" | \"\\f\" | \"\\r\" | \"\\t\"",
            &["\0", "\u{1f}", "\u{8}", "\t"],
            &["\u{1}"],
        ),
        ("start:", &[""], &["a", "\n"]),
        ("start: start \"a\" | \"b\"", &["b", "baa"], &["ab", ""]),
        ("start: IF | NAME\nIF: \"if\"\nNAME: /[a-z]+/", &["if", "iffy"], &["if x"]),
        ("start: line \"b\"\nline[lazy]: /.*;/", &["a;b", ";b"], &["a;c;b", "ab"]),
        ("start: /./s+", &["a\n\"\\ä\u{2028}"], &[""]),
    ] {
        let grammar = match compile_lark(lark) {
            Err(reason) if fine.is_empty() => {
                assert!(reason.starts_with("line "), "{lark}: {reason}");
                continue;
            }
            compiled => compiled.unwrap_or_else(|reason| panic!("{lark}: {reason}")),
        };
        for text in fine {
            assert!(takes(&grammar, text), "{lark} must take {text:?}");
        }
        for text in wrong {
            assert!(!takes(&grammar, text), "{lark} must not take {text:?}");
        }
    }
}

#[test]
fn random_logits_make_texts_of_the_grammar() {
    let rows = "start: row{1,4}\nrow: CELL (\";\" CELL){0,3} \"\\n\"\nCELL: /[^;\\n]{0,6}/";
    let grammar = compile_lark(rows).unwrap();
    let (mut escapes, mut lines) = (0, 0);
    let escaped = (0..DEMO.size as u32).filter(|id| DEMO.vocabulary.token_bytes(*id).starts_with(b"\\"));
    let logit_bias: Vec<(u32, f32)> = escaped.map(|id| (id, 4.0)).collect();
    for seed in 0..60 {
        let text = draw(&grammar, seed, Sampling { logit_bias: logit_bias.clone().into(), ..seeded(seed) });
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let input = value["input"].as_str().unwrap();
        let rows: Vec<&str> = input.strip_suffix('\n').unwrap_or_else(|| panic!("{text}")).split('\n').collect();
        assert!((1..=4).contains(&rows.len()), "{text}");
        for row in &rows {
            let cells: Vec<&str> = row.split(';').collect();
            assert!(cells.len() <= 4 && cells.iter().all(|cell| cell.chars().count() <= 6), "{text}");
        }
        lines += rows.len();
        escapes += usize::from(input.contains(['"', '\\', '\u{1}', '\t']));
    }
    assert!(escapes > 0 && lines > 60, "{escapes} with escapes, {lines} lines");
}

#[test]
fn what_cannot_be_followed_is_refused_by_its_place() {
    for (lark, place, word) in [
        ("", "", "no start rule"),
        ("begin: \"a\"", "", "no start rule"),
        ("start: A", "line 1, column 8", "A"),
        ("start: other", "line 1, column 8", "other"),
        ("start: A\nA: B\nB: A", "line", "circular"),
        ("start: \"a\"\nstart: \"b\"", "line 2", "duplicate"),
        ("start: A\n%import common.NOPE -> A", "line 2", "NOPE"),
        ("start: A.2\nA.2: \"a\"", "line", ""),
        ("start: A\nA.2: \"a\"", "line 2", "priority"),
        ("start: pair{A}\npair{x}: x x\nA: \"a\"", "line", ""),
        ("start: (\"a\"", "line", ""),
        ("start: \"a\" )", "line 1", ""),
        ("start \"a\"", "line 1, column 7", ""),
        ("start: \"b\"..\"a\"", "line 1", "range"),
        ("start: start", "", "no text"),
        ("start: /[^\\s\\S]/", "", "no text"),
        ("start: /a*?/", "line 1, column 8", "lazy"),
        ("start: <|im_end|>", "line 1, column 8", "special"),
    ] {
        let reason = compile_lark(lark).err().unwrap_or_else(|| panic!("{lark:?} was compiled"));
        assert!(reason.starts_with(place) && reason.contains(word), "{lark:?}: {reason}");
        assert!(!reason.contains('\n') && reason.chars().count() <= REASON_CHARACTERS + 1, "{reason}");
    }
}

#[test]
fn no_grammar_takes_long_to_compile_or_to_refuse() {
    let chain = |count: usize, rule: &dyn Fn(usize) -> String| (0..count).map(rule).collect::<Vec<_>>().concat();
    let doubled = chain(30, &|index| format!("A{}: A{index} A{index}\n", index + 1));
    let rules = chain(30, &|index| format!("a{}: a{index} a{index}\n", index + 1));
    let choice = chain(30, &|index| format!("A{}: A{index} | \"x\" A{index}?\n", index + 1));
    let words = (0..3000).map(|index| format!("\"w{index}\"")).collect::<Vec<_>>().join(" | ");
    for (name, lark) in [
        ("terminals", format!("start: A30\nA0: \"a\"\n{doubled}")),
        ("rules", format!("start: a30\na0: \"a\"\n{rules}")),
        ("choices", format!("start: A30\nA0: \"a\"\n{choice}")),
        ("words", format!("start: ({words})+")),
        ("repeated", "start: a{1000}\na: b{1000}\nb: c{1000}\nc: \"x\"{1000}".into()),
        ("repeated terminal", "start: A\nA: B{1000}\nB: C{1000}\nC: D{1000}\nD: \"x\"{1000}".into()),
        ("repeated choices", "start: A\nA: (/[a-z]{0,500}/ | /[0-9a-f]{0,500}/){0,900} \"x\"".into()),
        ("expressions", "start: /((a|b)*c(a|b){200}){200}/".into()),
        ("overlap", "start: /(.*a){40}/".into()),
        ("ambiguous", "start: s\ns: s s | \"a\" | ".into()),
        ("deep", format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000))),
        ("long", format!("start: r0\n{}r3000: \"a\"", chain(3000, &|index| format!("r{index}: r{}\n", index + 1)))),
        (
            "nullable",
            format!(
                "start: r0\n{}r12: \"a\"?",
                chain(12, &|index| format!("r{index}: r{0}? r{0}? r{0}?\n", index + 1))
            ),
        ),
        ("unicode", format!("start: /({})*/", "\\w\\W".repeat(10))),
    ] {
        let started = std::time::Instant::now();
        let result = compile_lark(&lark);
        let took = started.elapsed();
        assert!(took < Duration::from_secs(20), "{name} took {took:?}");
        if let Ok(grammar) = result {
            let mut state = grammar.begin();
            let started = std::time::Instant::now();
            for _ in 0..40 {
                let mut logits = vec![0.0; DEMO.size];
                if state.is_complete() || state.mask(&mut logits).is_err() {
                    break;
                }
                let id = logits.iter().rposition(|logit| *logit == 0.0).unwrap() as u32;
                if id == DEMO.end || state.accept(id).is_err() {
                    break;
                }
            }
            assert!(started.elapsed() < Duration::from_mins(1), "{name}");
        }
    }
}
