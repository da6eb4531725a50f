//! The request that the form of a distillation makes: the fields as the API has them, and graders of the ready-made
//! choices.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::super::draft::{DISTILLATION, Draft, MAX_TEXT, number_or_text};

/// Fields that may hold long texts. One that was cut would mean something else.
const LONG: [&str; 3] = ["filter_text", "judge_rule", "graders"];
/// Characters of such a text at the most.
pub(super) const LONGEST: usize = MAX_TEXT - 96;
/// Field of a line that holds the right answer, if a person names no other.
pub(super) const ANSWER: &str = "answer";

/// A field that the request cannot be made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FieldFault {
    pub field: &'static str,
    pub message: String,
}

/// Returns the body that creates the job, or estimates it. `question` is the place of the prompt in a line, for a model
/// that judges.
pub(super) fn body(draft: &Draft, question: &str) -> Result<Value, FieldFault> {
    if let Some(field) = LONG.into_iter().find(|field| draft.get(field).chars().count() > LONGEST) {
        let message = format!("The text has {LONGEST} characters at the most here; the API takes longer ones.");
        return Err(FieldFault { field, message });
    }
    let mut settings = Map::new();
    let mut set = |name: &str, value: Value| settings.insert(name.to_owned(), value);
    if is_stored(draft) {
        set("stored_completions", stored(draft));
    } else if !draft.get("prompts").is_empty() {
        set("prompts", draft.get("prompts").into());
    }
    for name in ["teacher", "keep"] {
        if !draft.get(name).is_empty() {
            set(name, draft.get(name).into());
        }
    }
    for name in ["max_teacher_cost", "samples", "temperature", "max_tokens", "min_score"] {
        if !draft.get(name).is_empty() {
            set(name, number_or_text(draft.get(name)));
        }
    }
    let graders = graders(draft, question)?;
    if graders.as_array().is_none_or(|graders| !graders.is_empty()) {
        set("graders", graders);
    }
    set("hyperparameters", draft.settings().into());
    Ok(draft.body_of(&json!({"type": DISTILLATION, DISTILLATION: settings})))
}

/// Returns true if the prompts are those of stored chats.
pub(super) fn is_stored(draft: &Draft) -> bool {
    draft.get("from") == "stored"
}

fn stored(draft: &Draft) -> Value {
    let mut choice = Map::new();
    if !draft.get("stored_model").is_empty() {
        choice.insert("model".into(), draft.get("stored_model").into());
    }
    if !draft.get("note").is_empty() {
        choice.insert("metadata".into(), json!({draft.get("note"): draft.get("note_value")}));
    }
    for (name, end) in [("created_after", false), ("created_before", true)] {
        if !draft.get(name).is_empty() {
            choice.insert(name.into(), seconds(draft.get(name), end));
        }
    }
    if !draft.get("limit").is_empty() {
        choice.insert("limit".into(), number_or_text(draft.get("limit")));
    }
    choice.into()
}

/// Returns the first, or the last, second of a day (UTC); the text itself if it is none.
fn seconds(day: &str, end: bool) -> Value {
    let date = day.parse::<Date>().ok().and_then(|date| if end { date.tomorrow().ok() } else { Some(date) });
    match date.and_then(|date| date.to_zoned(TimeZone::UTC).ok()) {
        Some(midnight) => (midnight.timestamp().as_second() - i64::from(end)).into(),
        None => day.into(),
    }
}

/// Returns the graders of the choice.
fn graders(draft: &Draft, question: &str) -> Result<Value, FieldFault> {
    let missing = |field: &'static str, message: &str| Err(FieldFault { field, message: message.into() });
    let check = |name: &str, operation: &str, reference: String| {
        json!([{"type": "string_check", "name": name, "operation": operation, "input": "{{sample.output_text}}",
                "reference": reference}])
    };
    match draft.get("filter") {
        "" => Ok(json!([])),
        "same" => {
            let field = if draft.get("filter_field").is_empty() { ANSWER } else { draft.get("filter_field") };
            Ok(check("right answer", "ilike", format!("{{{{item.{field}}}}}")))
        }
        "contains" if draft.get("filter_text").is_empty() => {
            missing("filter_text", "Write the text that every answer must contain.")
        }
        "contains" => Ok(check("contains", "like", draft.get("filter_text").to_owned())),
        "judge" if draft.get("judge").is_empty() => missing("judge", "Choose the model that judges the answers."),
        "judge" => {
            let rule = draft.get("judge_rule");
            let rule = if rule.is_empty() { String::new() } else { format!(" {rule}") };
            let asked = format!(
                "Question:\n{{{{{question}}}}}\n\nAnswer:\n{{{{sample.output_text}}}}\n\nIs this a right and complete answer \
                 to the question?{rule} Say `good` if it is, and `bad` if it is not or if you cannot tell."
            );
            Ok(json!([{"type": "label_model", "name": "judge", "model": draft.get("judge"), "labels": ["good", "bad"],
                       "passing_labels": ["good"], "input": [{"role": "user", "content": asked}]}]))
        }
        "json" => match serde_json::from_str(draft.get("graders")) {
            Ok(graders @ Value::Array(_)) => Ok(graders),
            Ok(grader @ Value::Object(_)) => Ok(json!([grader])),
            Ok(_) => missing("graders", "The graders must be a JSON array of objects."),
            Err(fault) => Err(FieldFault { field: "graders", message: format!("The graders are no JSON: {fault}.") }),
        },
        other => Err(FieldFault { field: "filter", message: format!("'{other}' is none of the choices.") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(pairs: &[(&str, &str)]) -> Draft {
        Draft::of(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>())
    }

    fn settings(pairs: &[(&str, &str)]) -> Value {
        body(&draft(pairs), "item.prompt").expect("a body")["method"]["distillation"].take()
    }

    #[test]
    fn a_form_becomes_the_body_that_the_api_takes() {
        let form = [
            ("method", "distillation"),
            ("model", "demo"),
            ("suffix", "mine"),
            ("seed", "7"),
            ("from", "file"),
            ("prompts", "file-1"),
            ("note", "left from before"),
            ("teacher", "teacher:big"),
            ("max_teacher_cost", "2.50"),
            ("samples", "2"),
            ("keep", "all"),
            ("n_epochs", "3"),
        ];
        let made = body(&draft(&form), "item.prompt").expect("a body");
        assert_eq!(
            made,
            json!({"model": "demo", "suffix": "mine", "seed": 7, "method": {"type": "distillation", "distillation": {
                "prompts": "file-1", "teacher": "teacher:big", "max_teacher_cost": 2.5, "samples": 2, "keep": "all",
                "hyperparameters": {"n_epochs": 3}}}})
        );
    }

    #[test]
    fn stored_chats_are_chosen_by_whole_days() {
        let form = [
            ("from", "stored"),
            ("prompts", "file-left-from-before"),
            ("note", "app"),
            ("note_value", "desk"),
            ("created_after", "2026-01-31"),
            ("created_before", "2026-01-31"),
            ("limit", "50"),
        ];
        let settings = settings(&form);
        assert!(settings.get("prompts").is_none());
        let first = 1_769_817_600;
        assert_eq!(
            settings["stored_completions"],
            json!({"metadata": {"app": "desk"}, "created_after": first, "created_before": first + 86_399, "limit": 50})
        );
        // The API says what is wrong with it.
        assert_eq!(seconds("2026-02-30", false), json!("2026-02-30"));
    }

    #[test]
    fn ready_made_choices_become_graders_and_nothing_is_cut() {
        let same = settings(&[("filter", "same")]);
        assert_eq!(same["graders"][0]["reference"], "{{item.answer}}");
        let judged = settings(&[("filter", "judge"), ("judge", "teacher:big"), ("judge_rule", "Be strict.")]);
        let asked = judged["graders"][0]["input"][0]["content"].as_str().unwrap_or_default().to_owned();
        assert!(asked.contains("{{item.prompt}}") && asked.contains("question? Be strict. Say"), "{asked}");
        let own = settings(&[("filter", "json"), ("graders", "{\"type\": \"multi\"}")]);
        assert_eq!(own["graders"], json!([{"type": "multi"}]));
        let long = "x".repeat(LONGEST + 1);
        for (form, field) in [
            (&[("filter", "contains")][..], "filter_text"),
            (&[("filter", "judge")], "judge"),
            (&[("filter", "json"), ("graders", "[")], "graders"),
            (&[("filter", "json"), ("graders", "3")], "graders"),
            (&[("filter", "else")], "filter"),
            (&[("filter", "contains"), ("filter_text", &long)], "filter_text"),
        ] {
            assert_eq!(body(&draft(form), "item.prompt").expect_err("a fault").field, field, "{form:?}");
        }
    }
}
