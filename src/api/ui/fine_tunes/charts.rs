//! The charts of a job: which figures stand together, their words, and the JSON that the scripts draw. Made of
//! [`Curves`], thinned.

use maud::{Markup, html};
use serde::Serialize;

use super::spark;
use super::thinning::{Smoother, thin};
use crate::api::ui::words::figure;
use crate::jobs::curves::Curves;

/// Rows of the table beside a chart.
const ROWS: usize = 25;
/// What the names of classification metrics begin with, in events and in the result file.
pub(super) const CLASSES: &str = "classification/";

/// A chart.
struct Kind {
    /// Word in the JSON.
    id: &'static str,
    /// Words above it.
    title: &'static str,
    /// True for figures that people want to see smaller.
    falls: bool,
    /// True if the figures go up and down by chance, so that a smooth line helps.
    noisy: bool,
    /// Tells whether a figure stands in it.
    holds: fn(&str) -> bool,
}

/// The charts in their order; a figure stands in the first that holds it.
const KINDS: [Kind; 8] = [
    Kind { id: "loss", title: "Loss", falls: true, noisy: true, holds: |name| name.ends_with("loss") },
    Kind {
        id: "margin",
        title: "Reward margin",
        falls: false,
        noisy: true,
        holds: |name| name.ends_with("reward_margin"),
    },
    Kind {
        id: "classes",
        title: "Classification",
        falls: false,
        noisy: false,
        holds: |name| name.starts_with(CLASSES),
    },
    Kind { id: "accuracy", title: "Accuracy", falls: false, noisy: true, holds: |name| name.ends_with("accuracy") },
    Kind {
        id: "validation",
        title: "Validation",
        falls: false,
        noisy: false,
        holds: |name| name.starts_with("valid_") && !name.ends_with("counted_answers"),
    },
    Kind { id: "rate", title: "Learning rate", falls: false, noisy: false, holds: |name| name == "learning_rate" },
    Kind { id: "norm", title: "Gradient norm", falls: true, noisy: true, holds: |name| name == "gradient_norm" },
    Kind {
        id: "speed",
        title: "Tokens per second",
        falls: false,
        noisy: true,
        holds: |name| name == "tokens_per_second",
    },
];

/// A job's charts as JSON.
#[derive(Debug, Serialize)]
pub(super) struct JobCharts {
    /// Steps of the whole run, and passes over the file: the axis of epochs is their ratio.
    pub total_steps: Option<i64>,
    pub epochs: Option<u32>,
    /// Number of the last event in them.
    pub last_event: i64,
    /// Attempt and seconds that live points go on from.
    pub attempt: i32,
    pub seconds_before: f64,
    /// Steps with a checkpoint.
    pub checkpoints: Vec<i64>,
    pub charts: Vec<Chart>,
}

/// One chart.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    pub id: &'static str,
    pub title: &'static str,
    pub noisy: bool,
    pub falls: bool,
    pub lines: Vec<Line>,
}

/// One line of a chart, thinned.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    /// Name of the figure in the events.
    pub name: String,
    /// Words for it.
    pub label: String,
    pub step: Vec<i64>,
    pub seconds: Vec<f64>,
    pub value: Vec<f64>,
    /// The smooth line; empty if the chart has none.
    pub smooth: Vec<f64>,
    /// Where live points go on from.
    pub sum: f64,
    pub weight: f64,
    /// Points before thinning, and the lowest, the highest and the last of them.
    #[serde(skip)]
    count: usize,
    #[serde(skip)]
    low: (i64, f64),
    #[serde(skip)]
    high: (i64, f64),
}

impl JobCharts {
    /// Makes the charts of curves; `smoothing` is from 0 to below 1.
    pub(super) fn of(curves: &Curves, epochs: Option<u32>, smoothing: f64) -> Self {
        let mut charts: Vec<Chart> = KINDS
            .iter()
            .map(|kind| Chart {
                id: kind.id,
                title: kind.title,
                noisy: kind.noisy,
                falls: kind.falls,
                lines: Vec::new(),
            })
            .collect();
        for (name, values) in &curves.figures {
            let Some(chart) = KINDS.iter().position(|kind| (kind.holds)(name)) else { continue };
            // The validation file is the same each time.
            let is_noisy = KINDS[chart].noisy && !name.contains("valid_");
            let factor = if is_noisy { smoothing } else { 0.0 };
            charts[chart].lines.extend(Line::of(curves, name, values, factor));
        }
        for chart in &mut charts {
            // Training before validation, short names before long ones.
            chart.lines.sort_by_key(|line| (!line.name.starts_with("train_"), line.name.len(), line.name.clone()));
        }
        charts.retain(|chart| !chart.lines.is_empty());
        let Curves { total_steps, last_event, attempt, seconds_before, .. } = *curves;
        Self { total_steps, epochs, last_event, attempt, seconds_before, checkpoints: Vec::new(), charts }
    }
}

impl Line {
    /// Makes the line of a column; `None` if it has no numbers.
    fn of(curves: &Curves, name: &str, values: &[f64], factor: f64) -> Option<Self> {
        let measured =
            || curves.steps.iter().copied().zip(values.iter().copied()).filter(|(_, value)| value.is_finite());
        let low = measured().min_by(|left, right| left.1.total_cmp(&right.1))?;
        let high = measured().max_by(|left, right| left.1.total_cmp(&right.1))?;
        let mut smoother = Smoother::new(factor);
        let smooth: Vec<f64> = values.iter().map(|value| smoother.add(*value)).collect();
        let kept = thin(&curves.steps, values);
        let pick = |column: &[f64]| kept.iter().map(|place| column[*place]).collect::<Vec<_>>();
        Some(Self {
            label: label(name),
            name: name.to_owned(),
            step: kept.iter().map(|place| curves.steps[*place]).collect(),
            seconds: pick(&curves.seconds),
            value: pick(values),
            smooth: if factor > 0.0 { pick(&smooth) } else { Vec::new() },
            sum: smoother.sum,
            weight: smoother.weight,
            count: measured().count(),
            low,
            high,
        })
    }

    /// Returns the last value.
    pub(super) fn last(&self) -> f64 {
        self.value.last().copied().unwrap_or(f64::NAN)
    }
}

/// Returns words for a figure: `full_valid_loss` is `Full validation loss`.
pub(super) fn label(name: &str) -> String {
    let words: Vec<&str> = name
        .strip_prefix(CLASSES)
        .unwrap_or(name)
        .split('_')
        .map(|word| match word {
            "train" => "training",
            "valid" => "validation",
            "auroc" => "AUROC",
            "auprc" => "AUPRC",
            "f1" => "F1",
            word => word,
        })
        .collect();
    let text = words.join(" ");
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

impl Chart {
    /// Returns the chart as it reads without JavaScript: its line, a sentence, and its points as a table.
    pub(super) fn show(&self) -> Markup {
        html! {
            figure.card.chart data-chart=(self.id) aria-labelledby={ "chart-" (self.id) } {
                figcaption id={ "chart-" (self.id) } { (self.title) }
                div.plot {
                    @for line in self.lines.iter().take(1) { (spark::curve(&line.value)) }
                }
                p.said { (self.sentence()) }
                details {
                    summary { "As a table" }
                    (self.table())
                }
            }
        }
    }

    /// Returns what the chart shows, in words.
    fn sentence(&self) -> String {
        let sentence = |line: &Line| {
            let (step, best) = if self.falls { line.low } else { line.high };
            let extreme = if self.falls { "lowest" } else { "highest" };
            let last = line.last();
            if line.count < 2 {
                return format!("{}: {}.", line.label, figure(last));
            }
            format!("{}: {} at last, {extreme} {} at step {step}.", line.label, figure(last), figure(best))
        };
        self.lines.iter().map(sentence).collect::<Vec<_>>().join(" ")
    }

    fn table(&self) -> Markup {
        let Some(longest) = self.lines.iter().max_by_key(|line| line.step.len()) else { return html! {} };
        let length = longest.step.len();
        let picked = (0..length.min(ROWS)).map(|row| row * (length - 1) / (length.min(ROWS) - 1).max(1));
        html! {
            div.scroll tabindex="0" role="region" aria-label={ (self.title) ", as a table" } {
                table {
                    caption { "Picked evenly; every step is in the table of all points." }
                    thead {
                        tr {
                            th scope="col" { "Step" }
                            @for line in &self.lines { th.number scope="col" { (line.label) } }
                        }
                    }
                    tbody {
                        @for step in picked.map(|place| longest.step[place]) {
                            tr {
                                th scope="row" { (step) }
                                @for line in &self.lines {
                                    td.number {
                                        @if let Ok(place) = line.step.binary_search(&step) { (figure(line.value[place])) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves() -> Curves {
        let mut curves = Curves { steps: vec![1, 2, 3], seconds: vec![1.0, 2.0, 3.0], ..Curves::default() };
        for (name, column) in [
            ("train_loss", [3.0, 1.0, 2.0]),
            ("valid_loss", [f64::NAN, 2.5, f64::NAN]),
            ("full_valid_loss", [f64::NAN; 3]),
            ("train_mean_token_accuracy", [0.1, 0.2, 0.3]),
            ("train_reward_accuracy", [0.5, 0.5, 0.5]),
            ("train_reward_margin", [0.0, 0.1, 0.2]),
            ("classification/accuracy", [f64::NAN, 0.75, f64::NAN]),
            ("classification/auroc", [f64::NAN; 3]),
            ("learning_rate", [1e-3, 1e-3, 5e-4]),
            ("valid_right_answers", [f64::NAN, 4.0, f64::NAN]),
            ("valid_counted_answers", [f64::NAN, 5.0, f64::NAN]),
        ] {
            curves.figures.insert(name.into(), column.to_vec());
        }
        curves
    }

    #[test]
    fn figures_stand_in_the_chart_that_they_belong_to() {
        let charts = JobCharts::of(&curves(), Some(2), 0.5).charts;
        let shown: Vec<(&str, Vec<&str>)> = charts
            .iter()
            .map(|chart| (chart.id, chart.lines.iter().map(|line| line.name.as_str()).collect()))
            .collect();
        assert_eq!(
            shown,
            [
                ("loss", vec!["train_loss", "valid_loss"]),
                ("margin", vec!["train_reward_margin"]),
                ("classes", vec!["classification/accuracy"]),
                ("accuracy", vec!["train_reward_accuracy", "train_mean_token_accuracy"]),
                ("validation", vec!["valid_right_answers"]),
                ("rate", vec!["learning_rate"]),
            ]
        );
        assert!(charts[5].lines[0].smooth.is_empty(), "a learning rate is not smoothed");
        assert_eq!(charts[0].lines.iter().map(|line| line.smooth.len()).collect::<Vec<_>>(), [3, 0]);
    }

    #[test]
    fn figures_have_words() {
        for (name, words) in [
            ("full_valid_loss", "Full validation loss"),
            ("classification/weighted_f1_score", "Weighted F1 score"),
            ("classification/f0.5", "F0.5"),
            ("classification/auroc", "AUROC"),
        ] {
            assert_eq!(label(name), words);
        }
    }

    #[test]
    fn a_sentence_says_the_last_and_the_best() {
        let charts = JobCharts::of(&curves(), None, 0.0).charts;
        assert_eq!(
            charts[0].sentence(),
            "Training loss: 2.000 at last, lowest 1.000 at step 2. Validation loss: 2.500."
        );
        let html = charts[0].show().into_string();
        assert!(html.contains("<table") && html.contains("3.000") && html.contains("polyline"), "{html}");
    }
}
