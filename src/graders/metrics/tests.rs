//! Compares the metrics with what the packages that they come from say.

use serde::Deserialize;

use super::Metric;

/// Written by `tests/parity/make_graders.py`.
const REFERENCE: &str = include_str!("../../../tests/fixtures/graders_reference.json");

#[derive(Deserialize)]
struct Pair {
    text: String,
    reference: String,
    scores: serde_json::Map<String, serde_json::Value>,
}

fn metric(name: &str) -> Metric {
    serde_json::from_value(name.into()).expect("the name of a metric")
}

#[test]
fn every_metric_gives_the_numbers_of_its_package() {
    let pairs: Vec<Pair> = serde_json::from_str(REFERENCE).expect("a list of pairs");
    assert!(pairs.len() >= 200, "{}", pairs.len());
    let mut faults = Vec::new();
    for pair in &pairs {
        assert_eq!(pair.scores.len(), 10);
        for (name, expected) in &pair.scores {
            let score = metric(name).compare(&pair.text, &pair.reference).expect("short texts").expect("no model");
            let expected = expected.as_f64().expect("a number");
            if (score - expected).abs() > 1e-9 {
                faults.push(format!("{name} {:?} {:?}: {score}, not {expected}", pair.text, pair.reference));
            }
        }
    }
    assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn texts_that_are_too_long_are_refused() {
    let long = "a".repeat(super::MAX_FUZZY_CHARACTERS + 1);
    assert!(Metric::FuzzyMatch.compare(&long, "a").is_err());
    assert_eq!(Metric::Rouge1.compare(&long, &long), Ok(Some(1.0)));
    assert!(Metric::Bleu.compare("a", &"a".repeat(super::MAX_CHARACTERS + 1)).is_err());
    assert_eq!(Metric::Cosine.compare("a", "a"), Ok(None));
}
