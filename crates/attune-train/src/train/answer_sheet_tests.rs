#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use attune_model::entry::ModelEntry;

fn model() -> BaseModel {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    BaseModel::load(&ModelEntry::new("demo", folder), &candle_core::Device::Cpu).unwrap()
}

fn tokens(model: &BaseModel, text: &str) -> Vec<u32> {
    model.tokenizer.encode(text, false).unwrap()
}

/// Returns the tokens of `text` with the end token behind them.
fn target(model: &BaseModel, text: &str) -> Vec<u32> {
    [tokens(model, text), vec![model.end_tokens[0]]].concat()
}

/// Judges a model that draws `drawn` where `expected` is expected.
fn judged(model: &BaseModel, expected: &str, drawn: &[u32]) -> Verdict {
    let target = target(model, expected);
    Expected::of(&target, model).unwrap().judge(Vec::new(), &target, drawn, model).unwrap()
}

#[test]
fn an_answer_is_right_if_every_token_is_drawn_and_it_then_ends() {
    let model = model();
    let whole = target(&model, "a broken lamp");
    assert_eq!(judged(&model, "a broken lamp", &whole), Verdict::Right);
    let mut endless = whole.clone();
    *endless.last_mut().unwrap() = tokens(&model, "x")[0];
    assert_eq!(judged(&model, "a broken lamp", &endless), Verdict::Wrong, "it goes on");
    let mut other = whole.clone();
    other[0] = tokens(&model, "z")[0];
    assert_eq!(judged(&model, "a broken lamp", &other), Verdict::Wrong);
    let mut short = whole;
    short[1] = model.end_tokens[0];
    assert_eq!(judged(&model, "a broken lamp", &short), Verdict::Wrong, "it ends too early");
    assert_eq!(judged(&model, "a broken lamp", &[]), Verdict::Wrong, "nothing is known");
}

#[test]
fn blanks_at_the_ends_do_not_count() {
    let model = model();
    let drawn = |text: &str, length: usize| {
        let mut drawn = target(&model, text);
        drawn.resize(drawn.len().max(length), 0);
        drawn
    };
    let length = target(&model, "lamp\n").len();
    assert_eq!(judged(&model, "lamp\n", &drawn("lamp", length)), Verdict::Right, "the line feed is missing");
    // A blank more at the beginning: the rest must be read again.
    let blank = tokens(&model, "\n")[0];
    let mut begun = target(&model, "lamp");
    begun[0] = blank;
    let rest = "lamp".to_owned();
    assert_eq!(judged(&model, "lamp", &begun), Verdict::Open { written: vec![blank], rest });
}

#[test]
fn an_answer_in_other_tokens_is_read_again_from_where_they_part() {
    let model = model();
    let first = |text: &str| tokens(&model, text)[0];
    let words = ["order", "radio", "damaged", "wooden", "replacement", "the lamp"];
    let word = words.into_iter().find(|word| first(word) != first(&word[..1])).unwrap();
    let (usual, letter, rest) = (target(&model, word), first(&word[..1]), &word[1..]);
    let mut drawn = usual.clone();
    drawn[0] = letter;
    assert_eq!(judged(&model, word, &drawn), Verdict::Open { written: vec![letter], rest: rest.into() });
    let (expected, rest) = (Expected::of(&usual, &model).unwrap(), target(&model, rest));
    assert_eq!(expected.judge(vec![letter], &rest, &rest, &model).unwrap(), Verdict::Right);
}

fn store(model: &BaseModel, answers: &[&str]) -> ExampleStore {
    let example = |answer: &&str| {
        let (prompt, answer) = (tokens(model, "What is it? "), target(model, answer));
        let weights = [vec![0.0; prompt.len()], vec![1.0; answer.len()]].concat();
        TokenizedExample { tokens: [prompt, answer].concat(), weights }
    };
    ExampleStore::of(answers.iter().map(example)).unwrap()
}

#[test]
fn few_short_answers_that_repeat_are_classes() {
    let model = model();
    let sheet = |answers: &[&str]| AnswerSheet::new(&store(&model, answers), 1_000_000, &model).unwrap();
    let few = sheet(&["yes", "no", "yes ", "yes"]);
    assert_eq!((few.classes(), few.class_sizes()), (["yes".to_owned(), "no".to_owned()].as_slice(), vec![3, 1]));
    let sum = few.sum(&[true, false, true, false]);
    assert_eq!((sum.right, sum.of, sum.by_class), (2, 4, vec![2, 0]));
    assert!(sheet(&["a", "b", "c"]).classes().is_empty(), "none repeats");
    let long = "one and two and three and four and five and six and seven and eight and nine and ten";
    assert!(sheet(&[long, long, "no", "no"]).classes().is_empty(), "a text is no class");
}

#[test]
fn a_bounded_number_of_answers_is_counted_and_cut_ones_are_left_out() {
    let model = model();
    let answers = vec!["yes"; 300];
    let store = store(&model, &answers);
    let sheet = |trained| AnswerSheet::new(&store, trained, &model).unwrap();
    let tokens = store.tokens(0);
    assert_eq!((sheet(0).len(), sheet(0).tokens()), (MIN_SEQUENCES, MIN_SEQUENCES * tokens));
    assert_eq!(sheet(TRAINED_PER_COUNTED * 120 * tokens).examples(), 120);
    assert_eq!(sheet(usize::MAX).len(), 300);

    let cut = TokenizedExample { tokens: vec![5, 6, 7], weights: vec![0.0, 1.0, 1.0] };
    let sheet = AnswerSheet::new(&ExampleStore::of([cut]).unwrap(), 1000, &model).unwrap();
    assert!(sheet.is_empty() && sheet.cut() == 1);
}
