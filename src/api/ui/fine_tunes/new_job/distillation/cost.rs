//! What the answers of a teacher may cost: the answer of the API's estimate, in words.

use maud::{Markup, html};
use serde_json::Value;

use super::super::deposit::Refusal;
use super::super::expectation::ID;
use crate::format;
use crate::teachers::money::Money;

/// Shows the section; `None` if nobody has asked yet, which the script does if the page `can_tell`.
pub(super) fn section(estimate: Option<&Result<Value, Refusal>>, can_tell: bool) -> Markup {
    html! {
        section id=(ID) data-part data-missing[estimate.is_none() && can_tell] aria-labelledby="estimate-title" {
            h2 id="estimate-title" { "What the answers may cost" }
            div role="status" {
                @match estimate {
                    None => p { "\"Estimate\" tells how many prompts there are, and the most that the answers can cost." },
                    Some(Err(refusal)) => p.fault data-param=[refusal.param.as_deref()] { bdi { (refusal.message) } },
                    Some(Ok(estimate)) => (facts(estimate)),
                }
            }
        }
    }
}

fn facts(estimate: &Value) -> Markup {
    let count = |name: &str| estimate[name].as_f64().map(format::count).unwrap_or_default();
    let number = |name: &str| estimate[name].as_u64().unwrap_or_default();
    let currency = estimate["currency"].as_str().unwrap_or_default();
    let budget = money(&estimate["max_teacher_cost"], currency);
    html! {
        dl.facts {
            dt { "Prompts" }
            dd {
                (count("prompts"))
                @if number("duplicate_prompts") > 0 { "; " (count("duplicate_prompts")) " more stand there again, and are asked once" }
            }
            @if number("requests") > 0 {
                dt { "Questions to the teacher" } dd { (count("requests")) }
                dt { "Tokens at the most" } dd { (count("prompt_tokens_at_most")) " read, " (count("completion_tokens_at_most")) " written" }
            } @else {
                dt { "Questions to the teacher" } dd { "none: the stored answers are judged" }
            }
            dt { "Cost at the most" } dd { (money(&estimate["cost_at_most"], currency).unwrap_or_default()) }
            @if let Some(budget) = &budget { dt { "Budget" } dd { (budget) ": the job never spends more" } }
        }
        @if estimate["fits"] == false {
            p.event-warning {
                "If all answers are as long as they may be, the budget ends before the prompts do. What was answered until then is trained on."
            }
        }
        p.hint { "How long training takes is known once the answers are there." }
    }
}

/// Returns an amount, as JSON has it, as exactly as it is; `None` if it is none.
fn money(amount: &Value, currency: &str) -> Option<String> {
    let amount = amount.as_f64()?;
    Some(match Money::of_units(amount) {
        Some(money) => format!("{money} {currency}"),
        None => format::money(amount, currency),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_estimate_is_told_in_words() {
        let estimate = json!({
            "prompts": 200, "duplicate_prompts": 1, "requests": 400, "prompt_tokens_at_most": 12000,
            "completion_tokens_at_most": 400_000, "cost_at_most": 12.345_678, "max_teacher_cost": 2.5, "fits": false,
            "currency": "EUR",
        });
        let page = section(Some(&Ok(estimate)), true).into_string();
        for words in [
            "200; 1 more",
            "400<",
            "12,000 read, 400,000 written",
            "12.345678 EUR",
            "2.50 EUR: the job never",
            "ends before",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
    }
}
