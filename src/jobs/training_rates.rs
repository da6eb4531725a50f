//! Speeds at which machines have trained models. The worker reads them to tell how long a job will take, and adds those
//! that jobs and calibrations showed.

use std::collections::BTreeMap;

use crate::jobs::{Result, sql};
use crate::store::Store;
use crate::train::estimate::TrainingRate;

/// Seconds of training that a rate remembers at most, so that new measurements count for more than old ones.
const MEMORY_SECONDS: f64 = 3600.0;

impl Store {
    /// Returns the rates of a base model on a machine, by setup.
    pub async fn training_rates(&self, machine: &str, model: &str) -> Result<BTreeMap<String, TrainingRate>> {
        let rows: Vec<(String, f64, f64, f64, f64)> =
            sqlx::query_as(sql::TRAINING_RATES).bind(machine).bind(model).fetch_all(&self.pool).await?;
        let rate = |(setup, tokens, seconds, idle_seconds, spread)| {
            (setup, TrainingRate { tokens, seconds, idle_seconds, spread })
        };
        Ok(rows.into_iter().map(rate).collect())
    }

    /// Adds a measurement to the known rate, each weighted by its seconds, so that the steps of jobs soon count for
    /// more than a calibration of some seconds. Ignores one without positive, finite tokens and seconds.
    pub async fn add_training_rate(&self, machine: &str, model: &str, setup: &str, shown: TrainingRate) -> Result<()> {
        let TrainingRate { tokens, seconds, idle_seconds, spread } = shown;
        if ![tokens, seconds, idle_seconds].iter().all(|figure| *figure > 0.0 && figure.is_finite()) {
            return Ok(());
        }
        sqlx::query(sql::ADD_TRAINING_RATE)
            .bind(machine)
            .bind(model)
            .bind(setup)
            .bind(tokens)
            .bind(seconds)
            .bind(idle_seconds)
            .bind(spread)
            .bind(MEMORY_SECONDS)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
