//! Times, states and figures as every page shows them.

use maud::{Markup, html};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::Config;
use crate::format;
use crate::jobs::cost::Pricing;
use crate::jobs::progress::Progress;
use crate::jobs::{Job, JobStatus};

/// Returns a text of a user's for places that hold no elements, such as the options of a list: one that runs from right to left
/// turns nothing around it (Unicode's FSI and PDI).
pub(crate) fn isolated(text: &str) -> String {
    format!("\u{2068}{text}\u{2069}")
}

/// Returns a time, given in unix seconds; `page.js` puts it into the reader's own words.
pub(crate) fn moment(seconds: i64) -> Markup {
    let time = jiff::Timestamp::from_second(seconds).ok();
    html! { @if let Some(time) = time { time datetime=(time) { (time.strftime("%Y-%m-%d %H:%M UTC")) } } }
}

/// Returns a name as a part of a path; slashes stay, as routes take them.
pub(crate) fn in_path(name: &str) -> String {
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b':');
    utf8_percent_encode(name, KEPT).to_string()
}

/// Returns a loss or another figure in three or four digits.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        0.001..0.01 => format!("{value:.5}"),
        0.01..0.1 => format!("{value:.4}"),
        0.1..10.0 => format!("{value:.3}"),
        10.0..1e6 => format::count(value),
        _ => format!("{value:.2e}"),
    }
}

/// Returns a name for a job: that of its model, or of what it will be.
pub(crate) fn title(job: &Job) -> String {
    match (&job.fine_tuned_model, &job.spec.suffix) {
        (Some(model), _) => model.clone(),
        (None, Some(suffix)) => format!("{} ({suffix})", job.spec.asked_model()),
        (None, None) => job.spec.asked_model().to_owned(),
    }
}

/// Returns where a job stands, as a word; a colour and a mark come with it.
pub(crate) fn state(job: &Job) -> Markup {
    let word = match (job.status, job.stop_request.as_deref()) {
        (JobStatus::Running, Some("cancel")) => "being cancelled",
        (JobStatus::Running, Some(_)) => "being paused",
        (JobStatus::Queued, _) => "waits for a worker",
        (status, _) => status.word(),
    };
    html! { span class={ "state " (job.status.word()) } { (word) } }
}

/// Returns how far a job is: a bar, its steps, and the time that is left.
pub(crate) fn steps(job: &Job, progress: &Progress) -> Markup {
    let (step, total) = (progress.step.unwrap_or(0), progress.total_steps);
    html! {
        @if let Some(total) = total {
            progress max=(total) value=(step) aria-label="Steps" { (step) " of " (total) }
            div.hint {
                "Step " (step) " of " (total)
                @if let Some(left) = time_left(job, progress) { ", " (left) " left" }
            }
        }
    }
}

/// Returns the time to the end of a job that runs.
pub(crate) fn time_left(job: &Job, progress: &Progress) -> Option<String> {
    let runs = job.status == JobStatus::Running && job.stop_request.is_none();
    progress.remaining_seconds.filter(|left| runs && left.is_finite()).map(format::duration)
}

/// Returns what a job has cost so far, or in the end, in words; `None` where nothing has a price or nothing is known.
pub(crate) fn cost_so_far(config: &Config, job: &Job, progress: &Progress) -> Option<String> {
    let base = base_of(config.models.iter().map(|model| model.id.as_str()), &job.spec.model)?;
    let pricing = Pricing::of(config);
    let seconds = match &progress.account {
        Some(account) => account["actual"]["duration_seconds"].as_f64(),
        None => progress.elapsed_seconds,
    };
    let cost = pricing.cost(base, seconds?, tokens_so_far(job, progress)?);
    let words = cost.in_words();
    (!words.is_empty()).then(|| words.join(", "))
}

/// Returns the tokens that a job has trained on: the expected ones, by its steps, until it has ended.
fn tokens_so_far(job: &Job, progress: &Progress) -> Option<u64> {
    if let Some(tokens) = job.trained_tokens {
        return u64::try_from(tokens).ok();
    }
    let expected = progress.estimate.as_ref()?["estimate"]["trained_tokens"].as_f64()?;
    Some((expected * progress.step? as f64 / progress.total_steps.filter(|total| *total > 0)? as f64) as u64)
}

/// Returns the base among `bases` that a model's name begins with: `BASE`, `ft:BASE:…` or `BASE:ft-…`.
fn base_of<'a>(bases: impl Iterator<Item = &'a str>, model: &str) -> Option<&'a str> {
    let name = model.strip_prefix("ft:").unwrap_or(model);
    let begins = |base: &&str| name.strip_prefix(*base).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
    bases.filter(begins).max_by_key(|base| base.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_or_four_digits() {
        for (value, text) in [
            (0.0, "0"),
            (1.23456, "1.235"),
            (0.01234, "0.0123"),
            (12345.6, "12,346"),
            (0.002, "0.00200"),
            (2e-5, "2.00e-5"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn the_base_is_read_from_either_form_of_name() {
        for (model, base) in [
            ("demo", Some("demo")),
            ("ft:demo:acme::x", Some("demo")),
            ("demo:ft-acme:x", Some("demo")),
            ("ft:demo:large:acme::x", Some("demo:large")),
            ("demonstration", None),
        ] {
            assert_eq!(base_of(["demo", "demo:large"].into_iter(), model), base, "{model}");
        }
    }
}
