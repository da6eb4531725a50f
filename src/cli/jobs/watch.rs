//! `attune jobs watch`: shows a job's progress until it ends, as a bar, or as plain lines if standard output is no
//! terminal. A server that does not answer, for example during a restart, is asked again.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::{Error, Result, format};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::client::{Failure, Server, ServerPlace};
use crate::cli::output;

/// Exit statuses beside 0 (the job succeeded) and 1 (its end is not known).
const FAILED: u8 = 3;
const CANCELLED: u8 = 4;
/// Time between two polls of the server.
const EVERY: Duration = Duration::from_secs(1);
/// Events per page, and the most pages that one poll reads.
const PAGE: &str = "100";
const MAX_PAGES: usize = 50;

/// The flags of `attune jobs watch`.
#[derive(Debug, Args)]
pub(in crate::cli) struct WatchOptions {
    #[command(flatten)]
    place: ServerPlace,
    /// The job's id: `ftjob-…`.
    id: String,
    /// Give up after this many seconds without an answer from the server.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    patience: u64,
}

impl WatchOptions {
    /// Follows the job, and returns the exit status that says how it ended.
    pub(super) async fn run(self) -> Result<ExitCode> {
        if !self.id.starts_with("ftjob-") {
            let message =
                format!("{}: watch follows jobs of /v1/fine_tuning/jobs, whose ids begin with ftjob-", self.id);
            return Err(Error::Setup(message));
        }
        let server = self.place.server()?;
        let display = Display::new(std::io::stdout().is_terminal());
        let mut newest = None;
        let (mut answered, mut told) = (Instant::now(), false);
        loop {
            match look(&server, &self.id, newest.as_deref()).await {
                Ok((job, events)) => {
                    (answered, told) = (Instant::now(), false);
                    newest = events.last().and_then(|event| event["id"].as_str()).map(str::to_owned).or(newest);
                    display.show(&job, &events)?;
                    if let Some(end) = End::of(&job) {
                        display.finish();
                        return end.tell(&job);
                    }
                }
                Err(Failure::Refused { message, .. }) => return Err(Error::Setup(message)),
                Err(Failure::Away { message, .. }) if answered.elapsed() >= Duration::from_secs(self.patience) => {
                    return Err(Error::Unavailable(message));
                }
                Err(Failure::Away { message, .. }) => {
                    if !told {
                        display.line(&format!("{message}; asking again"))?;
                        told = true;
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// Returns the job, and its events after `newest`, oldest first; the last page of events if `newest` is `None`.
async fn look(server: &Server, id: &str, newest: Option<&str>) -> Result<(Value, Vec<Value>), Failure> {
    // The job is read first: an event that arrives in between is read by the next poll, and the events of a job that
    // has ended are all there.
    let job = server.get(&["fine_tuning", "jobs", id], &[]).await?;
    let mut events: Vec<Value> = Vec::new();
    for _ in 0..MAX_PAGES {
        let after = events.last().and_then(|event| event["id"].as_str()).map(str::to_owned);
        let mut query = vec![("limit", PAGE)];
        query.extend(after.as_deref().map(|after| ("after", after)));
        let page = server.get(&["fine_tuning", "jobs", id, "events"], &query).await?;
        let found = page["data"].as_array().cloned().unwrap_or_default();
        let fresh = found.iter().take_while(|event| newest.is_none() || event["id"].as_str() != newest);
        let before = events.len();
        events.extend(fresh.cloned());
        if newest.is_none() || events.len() - before < found.len() || page["has_more"] != true {
            break;
        }
    }
    events.reverse();
    Ok((job, events))
}

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Succeeded,
    Failed,
    Cancelled,
}

impl End {
    fn of(job: &Value) -> Option<Self> {
        match job["status"].as_str() {
            Some("succeeded") => Some(Self::Succeeded),
            Some("failed") => Some(Self::Failed),
            Some("cancelled") => Some(Self::Cancelled),
            _ => None,
        }
    }

    /// Prints the last line, and returns the exit status.
    fn tell(self, job: &Value) -> Result<ExitCode> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (line, code) = match self {
            Self::Succeeded => (format!("succeeded: {}", text(&job["fine_tuned_model"])), 0),
            Self::Failed => (format!("failed: {}", text(&job["error"]["message"])), FAILED),
            Self::Cancelled => ("cancelled".to_owned(), CANCELLED),
        };
        output::line(&line)?;
        Ok(code.into())
    }
}

/// A progress bar with lines above it, or lines only.
struct Display {
    bar: Option<ProgressBar>,
}

impl Display {
    fn new(terminal: bool) -> Self {
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stdout());
            let style = ProgressStyle::with_template("{bar:30.cyan/dim} {pos}/{len} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar }
    }

    fn show(&self, job: &Value, events: &[Value]) -> Result<()> {
        for event in events {
            let metrics = if event["type"] == "metrics" { &event["data"] } else { &Value::Null };
            match (&self.bar, metrics) {
                (Some(bar), Value::Object(_)) => {
                    bar.set_length(metrics["total_steps"].as_u64().unwrap_or_default());
                    bar.set_position(metrics["step"].as_u64().unwrap_or_default());
                    bar.set_message(figures(metrics));
                }
                (None, Value::Object(_)) => self.line(&format!("{} {}", time(event), step_line(metrics)))?,
                _ => message_lines(event).iter().try_for_each(|line| self.line(line))?,
            }
        }
        if let Some(bar) = &self.bar {
            let status = job["status"].as_str().unwrap_or_default();
            let left = job["estimated_finish"].as_i64().filter(|_| status == "running");
            let left = left.map(|end| (end - Timestamp::now().as_second()).max(0) as f64);
            bar.set_prefix(left.map_or_else(|| status.to_owned(), |left| format!("{} left", format::duration(left))));
            if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/dim} {pos}/{len} {prefix} {msg}") {
                bar.set_style(style);
            }
            bar.tick();
        }
        Ok(())
    }

    fn line(&self, line: &str) -> Result<()> {
        match &self.bar {
            Some(bar) => {
                bar.println(line);
                Ok(())
            }
            None => output::line(line),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Formats an event for people: its message; of the answers to validation prompts each text on a line of its own, as
/// long as the server gives it.
fn message_lines(event: &Value) -> Vec<String> {
    let message = clean(event["message"].as_str().unwrap_or_default());
    let Some(answers) = event["data"]["answers"].as_array() else {
        return vec![format!("{} {message}", time(event))];
    };
    let (head, _) = message.split_once(':').unwrap_or((&message, ""));
    let mut lines = vec![format!("{} {head}:", time(event))];
    for (number, answer) in (1..).zip(answers) {
        let shown = [("prompt", "prompt"), ("expected", "expected"), ("base", "base"), ("fine-tuned", "fine_tuned")];
        for (index, (name, field)) in shown.into_iter().enumerate() {
            let number = if index == 0 { format!("({number})") } else { String::new() };
            lines.push(format!("  {number:<4}{name:<10} {}", clean(answer[field].as_str().unwrap_or_default().trim())));
        }
    }
    lines
}

/// Formats a step: `step 12/300: loss 1.23, 1,020 tokens/s, 3 min 2 s left`.
fn step_line(metrics: &Value) -> String {
    let count = |name: &str| metrics[name].as_u64().unwrap_or_default();
    let left = metrics["remaining_seconds"].as_f64();
    let left = left.map_or_else(String::new, |left| format!(", {} left", format::duration(left)));
    format!("step {}/{}: {}{left}", count("step"), count("total_steps"), figures(metrics))
}

/// Formats `loss 1.23, 1,020 tokens/s`, with the validation figures if they were measured and accuracies when training
/// on pairs.
fn figures(metrics: &Value) -> String {
    let number = |name: &str| metrics[name].as_f64();
    let mut parts = vec![format!("loss {:.3}", number("train_loss").unwrap_or(f64::NAN))];
    // Training on pairs reports an accuracy; for tokens the loss says more.
    parts.extend(number("train_accuracy").map(|share| format!("accuracy {share:.2}")));
    parts.extend(number("valid_loss").map(|loss| format!("validation loss {loss:.3}")));
    parts.extend(number("valid_accuracy").map(|share| format!("validation accuracy {share:.2}")));
    parts.extend(number("full_valid_loss").map(|loss| format!("full validation loss {loss:.3}")));
    let count = |name: &str| metrics[name].as_u64();
    if let (Some(right), Some(of)) = (count("valid_right_answers"), count("valid_counted_answers")) {
        let before = count("valid_right_answers_before").map_or_else(String::new, |n| format!(" (before: {n})"));
        parts.push(format!("{right} of {of} answers right{before}"));
    }
    parts.extend(number("tokens_per_second").map(|rate| format!("{} tokens/s", format::count(rate))));
    parts.join(", ")
}

/// Formats an event's time of day, UTC.
fn time(event: &Value) -> String {
    let at = event["created_at"].as_i64().and_then(|seconds| Timestamp::from_second(seconds).ok());
    at.map_or_else(|| "--:--:--".into(), |at| at.strftime("%H:%M:%S").to_string())
}

/// Replaces control characters: messages hold what clients wrote, such as names, which must not move the cursor.
fn clean(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_is_one_line_with_what_is_left() {
        let metrics = json!({"step": 12, "total_steps": 300, "train_loss": 1.2345, "valid_loss": null,
            "tokens_per_second": 1020.4, "remaining_seconds": 182.0});
        assert_eq!(step_line(&metrics), "step 12/300: loss 1.234, 1,020 tokens/s, 3 min 2 s left");
        let last = json!({"step": 3, "total_steps": 3, "train_loss": 0.5, "valid_loss": 0.75, "tokens_per_second": 9.5,
            "remaining_seconds": 0.0});
        let pairs = json!({"train_loss": 0.5, "train_accuracy": 0.875, "valid_loss": 0.25, "valid_accuracy": 1.0});
        assert_eq!(figures(&pairs), "loss 0.500, accuracy 0.88, validation loss 0.250, validation accuracy 1.00");
        assert_eq!(step_line(&last), "step 3/3: loss 0.500, validation loss 0.750, 9.5 tokens/s, 0.0 s left");
    }

    #[test]
    fn the_whole_validation_file_has_its_own_figures() {
        let metrics = json!({"train_loss": 0.5, "valid_loss": 0.25, "full_valid_loss": 0.228, "valid_right_answers": 33,
            "valid_counted_answers": 40, "valid_right_answers_before": 0});
        let expected =
            "loss 0.500, validation loss 0.250, full validation loss 0.228, 33 of 40 answers right (before: 0)";
        assert_eq!(figures(&metrics), expected);
    }

    #[test]
    fn answers_stand_below_each_other_with_prompt_and_expected_answer() {
        let answers = json!([{"prompt": "long\nprompt", "expected": "yes", "base": "no", "fine_tuned": "yes"}]);
        let message = "Answers to 1 validation prompts: (1) base: \"no\"";
        let event = json!({"created_at": 0, "message": message, "data": {"answers": answers}});
        let expected = [
            "00:00:00 Answers to 1 validation prompts:",
            "  (1) prompt     long prompt",
            "      expected   yes",
            "      base       no",
            "      fine-tuned yes",
        ];
        assert_eq!(message_lines(&event), expected);
    }

    #[test]
    fn only_final_states_end_the_watch() {
        for (status, end) in [("running", None), ("paused", None), ("failed", Some(End::Failed))] {
            assert_eq!(End::of(&json!({"status": status})), end, "{status}");
        }
    }

    #[test]
    fn what_clients_wrote_cannot_move_the_cursor() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
