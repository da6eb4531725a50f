//! Writes an estimate as lines for people, from the JSON that a server or this process made. Called by
//! `attune estimate`.

use std::path::Path;

use serde::Deserialize as _;
use serde_json::Value;

use crate::format;
use crate::train::Recomputation;

/// Returns the estimate as lines of name and value.
pub(super) fn lines(file: &Path, estimate: &Value) -> Vec<(&'static str, String)> {
    let mut lines = training_lines(file, estimate);
    lines.push(("memory", memory_line(estimate)));
    let cost = &estimate["cost"];
    let currency = cost["currency"].as_str().unwrap_or_default();
    let money = |name: &str| cost[name].as_f64().map(|amount| format::money(amount, currency));
    if let Some(amount) = money("machine") {
        let bounds = money("machine_low").zip(money("machine_high"));
        let bounds = bounds.map_or_else(String::new, |(low, high)| format!(" ({low} to {high})"));
        lines.push(("cost", format!("{amount} for machine time{bounds}")));
    }
    if let Some(amount) = money("tokens") {
        lines.push(("cost", format!("{amount} for tokens")));
    }
    for warning in estimate["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        lines.push(("warning", warning.to_owned()));
    }
    lines
}

/// Returns the lines about what is trained, how, and for how long.
fn training_lines(file: &Path, estimate: &Value) -> Vec<(&'static str, String)> {
    let number = |name: &str| estimate[name].as_f64().unwrap_or_default();
    let count = |name: &str| format::count(number(name));
    let settings = &estimate["hyperparameters"];
    let setting = |name: &str| settings[name].as_f64().unwrap_or_default();
    let rate = setting("learning_rate") * settings["learning_rate_multiplier"].as_f64().unwrap_or(1.0);
    vec![
        ("model", estimate["model"].as_str().unwrap_or_default().to_owned()),
        ("file", format!("{}: {} examples", file.display(), count("examples"))),
        (
            "tokens",
            format!("{} an epoch, {} of them learned", count("tokens_per_epoch"), count("target_tokens_per_epoch")),
        ),
        (
            "training",
            format!(
                "{} epochs, {} tokens, {} steps of {} examples",
                count("epochs"),
                count("trained_tokens"),
                count("steps"),
                setting("batch_size")
            ),
        ),
        ("settings", format!("learning rate {rate:.2e}, rank {}, alpha {}", setting("rank"), setting("alpha"))),
        (
            "duration",
            format!(
                "{} at {} tokens per second with nothing else to do{}",
                format::duration(number("duration_seconds")),
                count("tokens_per_second"),
                bounds(estimate)
            ),
        ),
    ]
}

/// Describes the bounds of the duration and why they lie apart; nothing for a server that does not tell them yet.
fn bounds(estimate: &Value) -> String {
    let bounds = estimate["duration_low_seconds"].as_f64().zip(estimate["duration_high_seconds"].as_f64());
    let Some((low, high)) = bounds else { return String::new() };
    let reason = estimate["uncertainty"].as_str().unwrap_or_default();
    format!("; expect {}: {reason}", format::duration_range(low, high))
}

/// Describes the memory at the peak of training, and what is computed again to need less.
fn memory_line(estimate: &Value) -> String {
    let memory = |name: &str| format::bytes(estimate["memory_bytes"][name].as_u64().unwrap_or_default());
    // A server that does not know the word yet computes nothing again.
    let recomputation = Recomputation::deserialize(&estimate["recomputation"]).unwrap_or_default();
    format!(
        "{} at the peak: {} of the process, {} of the adapter, {} of activations, {} of the loss, \
         {} of the allocator; {}",
        memory("peak"),
        memory("process"),
        memory("adapter"),
        memory("activations"),
        memory("loss"),
        memory("allocator"),
        recomputation.in_words()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_duration_is_shown_with_its_bounds_and_their_reason() {
        let mut estimate = json!({"duration_seconds": 785.0, "duration_low_seconds": 780.0,
            "duration_high_seconds": 3432.0, "uncertainty": "the machine is busy", "tokens_per_second": 39.0,
            "cost": {"currency": "EUR", "machine": 1.0, "machine_low": 0.9, "machine_high": 4.0, "tokens": null}});
        let line = |estimate: &Value, name: &str| {
            let found = lines(Path::new("train.jsonl"), estimate).into_iter().find(|(line, _)| *line == name);
            found.expect("the line").1
        };
        let begin = "13 min 5 s at 39 tokens per second with nothing else to do";
        assert_eq!(line(&estimate, "duration"), format!("{begin}; expect 13 to 57 min: the machine is busy"));
        assert_eq!(line(&estimate, "cost"), "1.00 EUR for machine time (0.90 EUR to 4.00 EUR)");
        estimate["duration_low_seconds"] = Value::Null;
        assert_eq!(line(&estimate, "duration"), begin, "an older server tells no bounds");
    }
}
