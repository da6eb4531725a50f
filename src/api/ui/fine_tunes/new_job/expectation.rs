//! What a new fine-tune would take: the answer of the API's estimate, in words.

use maud::{Markup, html};
use serde::Deserialize as _;
use serde_json::Value;

use super::deposit::Refusal;
use crate::format;
use crate::train::Recomputation;

/// Id of the section, by which the script asks for it.
pub(super) const ID: &str = "estimate";

/// Shows the section; `None` if nobody has asked yet.
pub(super) fn section(estimate: Option<&Result<Value, Refusal>>) -> Markup {
    html! {
        section id=(ID) data-part data-missing[estimate.is_none()] aria-labelledby="estimate-title" {
            h2 id="estimate-title" { "What it would take" }
            div role="status" {
                @match estimate {
                    None => p { "\"Estimate\" tells the time, the memory and the cost. The first estimate of a model measures the machine for some seconds." },
                    Some(Err(refusal)) => (refused(refusal)),
                    Some(Ok(estimate)) => (facts(estimate)),
                }
            }
        }
    }
}

fn refused(refusal: &Refusal) -> Markup {
    // What is wrong with a file stands above, with its lines.
    let is_of_file = refusal.code.as_deref() == Some("invalid_training_file") && refusal.message.contains("fault");
    html! {
        @if is_of_file {
            p.fault { "There are faults in the file, which are listed above." }
        } @else {
            p.fault data-param=[refusal.param.as_deref()] { bdi { (refusal.message) } }
        }
    }
}

fn facts(estimate: &Value) -> Markup {
    let number = |value: &Value| value.as_f64();
    let count = |name: &str| estimate[name].as_f64().map(format::count).unwrap_or_default();
    let settings = &estimate["hyperparameters"];
    let rate = number(&settings["learning_rate"])
        .map(|rate| rate * number(&settings["learning_rate_multiplier"]).unwrap_or(1.0));
    let recomputation = Recomputation::deserialize(&estimate["recomputation"]).unwrap_or_default();
    html! {
        dl.facts {
            dt { "Time" } dd { (time(estimate)) }
            dt { "Memory at the peak" } dd { (memory(estimate)) "; " (recomputation.in_words()) }
            @let costs = costs(&estimate["cost"]);
            @if !costs.is_empty() { dt { "Cost" } dd { (costs.join(", ")) } }
            dt { "Training" } dd {
                (count("epochs")) " epochs, " (count("steps")) " steps of "
                (number(&settings["batch_size"]).map(format::count).unwrap_or_default()) " examples, "
                (count("trained_tokens")) " tokens"
            }
            dt { "Settings" } dd {
                "rank " (settings["rank"]) ", alpha " (settings["alpha"])
                @if let Some(rate) = rate { ", learning rate " (format!("{rate:.2e}")) }
            }
        }
        @for warning in estimate["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            p.event-warning { bdi { (warning) } }
        }
    }
}

fn time(estimate: &Value) -> String {
    let [likely, low, high] =
        ["duration_seconds", "duration_low_seconds", "duration_high_seconds"].map(|name| estimate[name].as_f64());
    match (likely, low.zip(high)) {
        (Some(likely), Some((low, high))) => format!(
            "{}; {} if all goes well ({})",
            format::duration_range(low, high),
            format::duration(likely),
            estimate["uncertainty"].as_str().unwrap_or_default()
        ),
        (Some(likely), None) => format::duration(likely),
        _ => String::new(),
    }
}

fn memory(estimate: &Value) -> String {
    let memory = |name: &str| estimate["memory_bytes"][name].as_u64();
    let mut text = memory("peak").map(format::bytes).unwrap_or_default();
    if let (Some(peak), Some(process)) = (memory("peak"), memory("process")) {
        text += ", ";
        text += &format::bytes(peak.saturating_sub(process));
        text += " more than now";
    }
    if let Some(available) = memory("available") {
        text += " of ";
        text += &format::bytes(available);
        text += " that are free";
    }
    text
}

fn costs(cost: &Value) -> Vec<String> {
    let currency = cost["currency"].as_str().unwrap_or_default();
    let money = |name: &str| cost[name].as_f64().map(|amount| format::money(amount, currency));
    let machine = money("machine").map(|machine| match money("machine_low").zip(money("machine_high")) {
        Some((low, high)) if low != high => format!("{machine} for machine time ({low} to {high})"),
        _ => format!("{machine} for machine time"),
    });
    machine.into_iter().chain(money("tokens").map(|tokens| format!("{tokens} for tokens"))).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_estimate_is_told_in_words() {
        let estimate = json!({
            "duration_seconds": 120.0, "duration_low_seconds": 100.0, "duration_high_seconds": 300.0,
            "uncertainty": "the machine is busy", "epochs": 3, "steps": 30, "trained_tokens": 12345,
            "memory_bytes": {"peak": 3_u64 << 30, "process": 1_u64 << 30, "available": 8_u64 << 30},
            "hyperparameters": {"rank": 8, "alpha": 16.0, "batch_size": 4, "learning_rate": 1e-4, "learning_rate_multiplier": 2.0},
            "cost": {"currency": "EUR", "machine": 0.5, "machine_low": 0.4, "machine_high": 1.0, "tokens": null},
            "recomputation": "none", "warnings": ["<b>one</b>"],
        });
        let page = section(Some(&Ok(estimate))).into_string();
        for words in [
            "1 min 40 s to 5 min 0 s; 2 min 0 s if all goes well (the machine is busy)",
            "3.0 GiB, 2.0 GiB more than now of 8.0 GiB that are free",
            "0.50 EUR for machine time (0.40 EUR to 1.00 EUR)",
            "3 epochs, 30 steps of 4 examples, 12,345 tokens",
            "learning rate 2.00e-4",
            "&lt;b&gt;one",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
    }

    #[test]
    fn a_refusal_names_its_field() {
        let refusal = Refusal {
            status: StatusCode::BAD_REQUEST,
            message: "Invalid 'n_epochs': 99 is not between 1 and 50.".into(),
            param: Some("n_epochs".into()),
            code: Some("invalid_value".into()),
        };
        let page = section(Some(&Err(refusal))).into_string();
        assert!(page.contains("data-param=\"n_epochs\"") && page.contains("99 is not between"), "{page}");
    }
}
