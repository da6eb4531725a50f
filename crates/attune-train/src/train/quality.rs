//! Measures how well vectors or scores put the held-out examples in order: before the first step, and each time that all
//! of them are measured. The method decides what is measured ([`Labels::quality`](super::methods::Labels)). Called by
//! `jobs/worker/training.rs`.

use crate::Result;
use crate::train::evaluation::HeldOut;
use crate::train::trainer::Trainer;
use crate::train::yielding::BeforeMicroStep;
use attune_model::lora::Adapter;

impl HeldOut {
    /// Adds the measurement of how well vectors or scores put all examples in order, before the first step and each time
    /// that all examples are measured.
    #[must_use]
    pub fn ordering(mut self) -> Self {
        self.orders = true;
        self
    }

    /// Returns true if it is measured how well vectors or scores put the examples in order.
    pub fn orders(&self) -> bool {
        self.orders
    }
}

impl Trainer {
    /// Measures the model that training begins with. Does nothing if an earlier attempt has.
    pub fn order_before(&mut self, held_out: &HeldOut, before_micro_step: BeforeMicroStep<'_>) -> Result<()> {
        if self.quality_before.is_empty() {
            self.quality_before = self.quality_of(self.beginning.as_ref(), held_out, before_micro_step)?;
        }
        Ok(())
    }

    /// Returns the figures of the model that training began with; empty if they were not measured.
    pub fn quality_before(&self) -> &[f64] {
        &self.quality_before
    }

    /// Measures the current adapter and records the figures with the last step.
    pub fn order_now(&mut self, held_out: &HeldOut, before_micro_step: BeforeMicroStep<'_>) -> Result<()> {
        let adapter = self.state.adapter(self.source.device())?;
        let figures = self.quality_of(Some(&adapter), held_out, before_micro_step)?;
        if let Some(record) = self.history.last_mut() {
            record.quality = figures;
        }
        Ok(())
    }

    /// Measures `adapter`, which is on the host.
    pub fn order_with(
        &self,
        adapter: &Adapter,
        held_out: &HeldOut,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Vec<f64>> {
        let adapter = adapter.to_device(self.source.device())?;
        self.quality_of(Some(&adapter), held_out, before_micro_step)
    }

    /// Measures `adapter`, or the base model if there is none; no figures if none are wanted.
    fn quality_of(
        &self,
        adapter: Option<&Adapter>,
        held_out: &HeldOut,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Vec<f64>> {
        if !held_out.orders {
            return Ok(Vec::new());
        }
        let current = self.state.adapter(self.source.device())?;
        let run = self.run_inputs(&held_out.examples, &current);
        self.method.quality_of(&run, adapter, before_micro_step)
    }
}
