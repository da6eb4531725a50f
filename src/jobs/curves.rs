//! The figures of all steps of a job, as curves. Read by `api::ui`, which thins and draws them.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use sqlx::types::Json;

use crate::jobs::queue::Queue;
use crate::jobs::{Job, Result, sql};
use crate::store::MAX_PAGE;

/// Figures that tell where a step stands rather than how it went.
const PLACES: [&str; 4] = ["step", "total_steps", "elapsed_seconds", "remaining_seconds"];

/// The curves of one job: a column of figures for each name, with a row for each step that was told. A figure that a
/// step does not have, or that was no number, is NaN.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// Optimizer steps, ascending.
    pub steps: Vec<i64>,
    /// Seconds of training until then, of all attempts together.
    pub seconds: Vec<f64>,
    /// Columns by their names in the events.
    pub figures: BTreeMap<String, Vec<f64>>,
    /// Steps of the whole run.
    pub total_steps: Option<i64>,
    /// Number of the last event that was read; 0 before the first.
    pub last_event: i64,
    /// The attempt of the last row, and the seconds of those before it.
    pub attempt: i32,
    /// Seconds of training in the attempts before.
    pub seconds_before: f64,
}

/// A row of `job_events`.
#[derive(sqlx::FromRow)]
struct Row {
    seq: i64,
    attempt: i32,
    data: Json<Figures>,
}

/// Numbers in the data of an event, with their names; `None` for null.
#[derive(Debug, PartialEq)]
pub struct Figures(pub Vec<(String, Option<f64>)>);

impl Figures {
    /// Returns a number by its name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(other, _)| other == name)?.1
    }

    /// Returns the figures that tell how the step went.
    pub fn values(&self) -> impl Iterator<Item = (&str, Option<f64>)> {
        let values = self.0.iter().filter(|(name, _)| !PLACES.contains(&name.as_str()));
        values.map(|(name, value)| (name.as_str(), *value))
    }
}

impl Queue {
    /// Reads all curves of the job.
    pub async fn curves(&self, job: &Job) -> Result<Curves> {
        let mut curves = Curves::default();
        loop {
            let rows: Vec<Row> = sqlx::query_as(sql::METRICS)
                .bind(job.key)
                .bind(curves.last_event)
                .bind(MAX_PAGE)
                .fetch_all(&self.store.pool)
                .await?;
            let is_last = (rows.len() as i64) < MAX_PAGE;
            for row in rows {
                curves.add(row.seq, row.attempt, &row.data.0);
            }
            if is_last {
                return Ok(curves);
            }
        }
    }

    /// Reads the steps of the job at which its validation file was measured. They are few, and soon read.
    pub async fn validations(&self, job: &Job) -> Result<Curves> {
        let rows = sqlx::query_as(sql::VALIDATIONS).bind(job.key).bind(MAX_PAGE);
        Ok(Curves::of(rows.fetch_all(&self.store.pool).await?))
    }

    /// Reads the figures of at most `limit` steps of the job that follow the step `after`. Their seconds are those of
    /// their attempts.
    pub async fn points(&self, job: &Job, after: i64, limit: i64) -> Result<Curves> {
        let rows = sqlx::query_as(sql::POINTS).bind(job.key).bind(after).bind(limit.clamp(0, MAX_PAGE));
        Ok(Curves::of(rows.fetch_all(&self.store.pool).await?))
    }
}

impl Curves {
    fn of(rows: Vec<Row>) -> Self {
        let mut curves = Self::default();
        for row in rows {
            curves.add(row.seq, row.attempt, &row.data.0);
        }
        curves
    }

    /// Adds the figures of a step, which the event `seq` of an attempt told. An attempt that does steps again, after a
    /// crash, takes the place of what they were before.
    pub fn add(&mut self, seq: i64, attempt: i32, figures: &Figures) {
        self.last_event = seq;
        let Some(step) = figures.get("step").map(|step| step as i64) else { return };
        if attempt != self.attempt {
            self.seconds_before = self.seconds.last().copied().unwrap_or_default();
            self.attempt = attempt;
        }
        let kept = self.steps.partition_point(|other| *other < step);
        self.steps.truncate(kept);
        self.seconds.truncate(kept);
        for column in self.figures.values_mut() {
            column.truncate(kept);
        }
        self.steps.push(step);
        self.seconds.push(self.seconds_before + figures.get("elapsed_seconds").unwrap_or_default());
        self.total_steps = figures.get("total_steps").map(|steps| steps as i64).or(self.total_steps);
        for (name, value) in figures.values() {
            let value = value.unwrap_or(f64::NAN);
            if let Some(column) = self.figures.get_mut(name) {
                column.push(value);
            } else {
                let mut column = vec![f64::NAN; kept];
                column.push(value);
                self.figures.insert(name.to_owned(), column);
            }
        }
        for column in self.figures.values_mut() {
            column.resize(kept + 1, f64::NAN);
        }
    }

    /// Returns the steps whose training loss was told, but is no number.
    pub fn steps_without_loss(&self) -> Vec<i64> {
        let Some(losses) = self.figures.get("train_loss") else { return Vec::new() };
        self.steps.iter().zip(losses).filter(|(_, loss)| !loss.is_finite()).map(|(step, _)| *step).collect()
    }
}

impl<'de> Deserialize<'de> for Figures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(FiguresVisitor)
    }
}

/// Reads the numbers of an object and passes over everything else.
struct FiguresVisitor;

impl<'de> Visitor<'de> for FiguresVisitor {
    type Value = Figures;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Figures, A::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Value {
            Figure(Option<f64>),
            Other(IgnoredAny),
        }
        let mut figures = Vec::with_capacity(16);
        while let Some(name) = map.next_key()? {
            if let Value::Figure(figure) = map.next_value()? {
                figures.push((name, figure));
            }
        }
        Ok(Figures(figures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(json: &str) -> Figures {
        serde_json::from_str(json).expect("figures")
    }

    fn same(left: &[f64], right: &[f64]) -> bool {
        left.len() == right.len() && left.iter().zip(right).all(|(a, b)| a.total_cmp(b).is_eq())
    }

    #[test]
    fn numbers_are_read_and_texts_passed_over() {
        let read = figures(r#"{"step": 3, "train_loss": 1.5, "valid_loss": null, "note": "x", "more": {"a": 1}}"#);
        assert_eq!(read.get("train_loss"), Some(1.5));
        assert_eq!(read.values().collect::<Vec<_>>(), [("train_loss", Some(1.5)), ("valid_loss", None)]);
    }

    #[test]
    fn a_figure_that_comes_late_or_seldom_has_gaps() {
        let mut curves = Curves::default();
        curves.add(7, 1, &figures(r#"{"step": 1, "total_steps": 9, "train_loss": 3.0, "elapsed_seconds": 1}"#));
        curves.add(8, 1, &figures(r#"{"step": 2, "train_loss": 2.0, "valid_loss": 2.5, "elapsed_seconds": 2}"#));
        curves.add(9, 1, &figures(r#"{"step": 3, "train_loss": null, "elapsed_seconds": 3}"#));
        assert_eq!((&curves.steps[..], curves.total_steps, curves.last_event), (&[1, 2, 3][..], Some(9), 9));
        assert!(same(&curves.figures["train_loss"], &[3.0, 2.0, f64::NAN]));
        assert!(same(&curves.figures["valid_loss"], &[f64::NAN, 2.5, f64::NAN]));
        assert_eq!(curves.steps_without_loss(), [3]);
    }

    #[test]
    fn steps_that_are_done_again_take_the_place_of_the_lost_ones() {
        let mut curves = Curves::default();
        for (seq, attempt, step, elapsed) in [(1, 1, 1, 10), (2, 1, 2, 20), (3, 1, 3, 30), (4, 2, 2, 5), (5, 2, 3, 6)] {
            let data = format!(r#"{{"step": {step}, "train_loss": {seq}, "elapsed_seconds": {elapsed}}}"#);
            curves.add(seq, attempt, &figures(&data));
        }
        assert_eq!(curves.steps, [1, 2, 3]);
        assert!(same(&curves.figures["train_loss"], &[1.0, 4.0, 5.0]));
        assert!(same(&curves.seconds, &[10.0, 35.0, 36.0]), "the lost steps took their time, too");
    }
}
