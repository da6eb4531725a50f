//! The settings of jobs as tables: those of one, as asked for and as used, or those in which several differ.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde_json::Value;

use super::collection;
use crate::jobs::Job;

/// Shows the settings of a job; `file_name` finds the name of a file by its id.
pub(super) fn table(job: &Job, file_name: impl Fn(&str) -> Option<String>) -> Markup {
    let (used, asked) = (used(job), asked(job));
    html! {
        dl.facts {
            dt { "Model" } dd { bdi { (job.spec.asked_model()) } }
            @if let Some(plan) = &job.spec.distillation { (collection::settings(plan, |id| file(id, &file_name))) }
            dt { "Training file" }
            dd {
                @if job.spec.distillation.is_some() && job.resolved.is_none() && file_name(&job.spec.training_file).is_none() {
                    "is made of the answers"
                } @else {
                    (file(&job.spec.training_file, &file_name))
                }
            }
            @if let Some(id) = &job.spec.validation_file { dt { "Validation file" } dd { (file(id, &file_name)) } }
            @if let Some(suffix) = &job.spec.suffix { dt { "Suffix" } dd { bdi { (suffix) } } }
            dt { "Seed" } dd { (job.spec.seed) }
            @if let Some(notes) = &job.spec.metadata {
                @for (name, note) in notes { dt { bdi { (name) } } dd { bdi { (text(note)) } } }
            }
        }
        div.scroll tabindex="0" role="region" aria-label="Settings of training" {
            table {
                caption { @if job.resolved.is_none() { "What stands on auto is chosen when training begins." } }
                thead { tr { th scope="col" { "Setting" } th scope="col" { "Used" } th scope="col" { "Asked for" } } }
                tbody {
                    @for name in names([&used, &asked]) {
                        tr {
                            th scope="row" { span.mono { (name) } }
                            td { bdi { (used.get(name).map_or_else(|| "–".into(), text)) } }
                            td { bdi { (asked.get(name).map_or_else(|| "auto".into(), text)) } }
                        }
                    }
                }
            }
        }
    }
}

/// Shows the settings in which jobs differ, a column for each.
pub(super) fn differences(jobs: &[Job], head: impl Fn(&Job) -> Markup) -> Markup {
    let all: Vec<BTreeMap<String, Value>> = jobs
        .iter()
        .map(|job| {
            let mut settings = asked(job);
            settings.extend(used(job));
            let spec = &job.spec;
            settings.insert("model".into(), spec.asked_model().into());
            settings.insert("training_file".into(), spec.training_file.clone().into());
            settings.insert("validation_file".into(), spec.validation_file.clone().into());
            settings.insert("seed".into(), spec.seed.into());
            settings.retain(|_, value| !value.is_null());
            settings
        })
        .collect();
    let differing: Vec<&String> = names(&all)
        .into_iter()
        .filter(|name| all.windows(2).any(|pair| pair[0].get(*name) != pair[1].get(*name)))
        .collect();
    html! {
        @if differing.is_empty() { p { "The settings of these jobs are the same." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Settings that differ" {
                table {
                    caption { "Settings that differ" }
                    thead { tr { th scope="col" { "Setting" } @for job in jobs { th scope="col" { (head(job)) } } } }
                    tbody {
                        @for name in differing {
                            tr {
                                th scope="row" { span.mono { (name) } }
                                @for settings in &all {
                                    td { bdi { (settings.get(name).map_or_else(|| "–".into(), text)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn file(id: &str, name: &impl Fn(&str) -> Option<String>) -> Markup {
    html! {
        @match name(id) {
            Some(name) => { bdi { (name) } " " span.hint.mono { (id) } },
            None => { span.mono { (id) } " (deleted)" },
        }
    }
}

fn used(job: &Job) -> BTreeMap<String, Value> {
    job.resolved.as_ref().map(settings).unwrap_or_default()
}

fn asked(job: &Job) -> BTreeMap<String, Value> {
    settings(&job.spec.hyperparameters)
}

/// Returns the settings that have a value, by their names.
fn settings(settings: &impl serde::Serialize) -> BTreeMap<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(object)) => object.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => BTreeMap::new(),
    }
}

/// Returns all names, each once.
fn names<'a>(maps: impl IntoIterator<Item = &'a BTreeMap<String, Value>>) -> Vec<&'a String> {
    let mut names: Vec<&String> = maps.into_iter().flat_map(BTreeMap::keys).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns a value as people write it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // Six digits, without those that only the machine sees.
        Value::Number(number) if number.is_f64() => number
            .as_f64()
            .and_then(|number| format!("{number:.5e}").parse::<f64>().ok())
            .unwrap_or_default()
            .to_string(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_as_people_write_them() {
        for (value, written) in [
            (json!(0.083_333_333_333), "0.0833333"),
            (json!(16.0), "16"),
            (json!(2e-5), "0.00002"),
            (json!(3), "3"),
            (json!("linear"), "linear"),
            (json!(["q_proj", "v_proj"]), "q_proj, v_proj"),
            (json!(false), "false"),
        ] {
            assert_eq!(text(&value), written);
        }
    }
}
