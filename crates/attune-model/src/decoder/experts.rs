//! The mixture of experts in the place of a block's MLP: a router picks a few of many small MLPs for each row, and
//! their outputs are summed with the router's weights (Shazeer et al., "Outrageously large neural networks", 2017;
//! Jiang et al., "Mixtral of experts", 2024). Called by the decoder's passes and by the backward pass of training.
//!
//! Rows are sorted by expert, so that each expert's products run once over all of its rows, and experts without a row
//! cost nothing. A row's outputs are summed in the order of its own choice: its result does not depend on the rows
//! beside it.

mod load;
mod routing;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

pub(crate) use self::load::{ExpertForm, ExpertTensors};
pub use self::routing::{Group, Routing};
use super::LowRank;
use crate::Result;
use crate::config::Glu;
use crate::kernels::{GpuKernels, Kernels};
use crate::linear::Linear;
use crate::lora::Site;

/// The experts of one block, with their router.
#[derive(Debug)]
pub struct Experts {
    /// Number of the block, from 0.
    block: usize,
    /// Logits of the experts, `[experts, hidden]`, in f32.
    router: Linear,
    all: Vec<Expert>,
    /// Experts that each row goes through.
    chosen: usize,
    /// True if the weights of a row's experts are divided by their sum.
    normalized: bool,
    glu: Glu,
    kernels: Kernels,
}

/// One expert: an MLP.
#[derive(Debug)]
pub struct Expert {
    /// `[intermediate, hidden]`
    pub gate: Linear,
    /// `[intermediate, hidden]`
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
}

/// Intermediate results of the experts, as the backward pass needs them: one tensor for each of the routing's groups.
#[derive(Debug)]
pub struct ExpertActivations {
    /// The rows' experts and their weights.
    pub routing: Routing,
    /// `[rows of the group, intermediate]` each.
    pub gate: Vec<Tensor>,
    /// `[rows of the group, intermediate]` each.
    pub up: Vec<Tensor>,
}

impl Experts {
    /// Returns the number of the block, from 0.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Returns the router.
    pub fn router(&self) -> &Linear {
        &self.router
    }

    /// Returns true if the weights of a row's experts are divided by their sum.
    pub fn normalized(&self) -> bool {
        self.normalized
    }

    /// Chooses the experts of each row of `x` `[rows, hidden]`.
    pub fn route(&self, x: &Tensor) -> Result<Routing> {
        // The choice is the model's most sensitive decision: f32, whatever the weights are held in.
        let logits = self.router.forward(&x.to_dtype(DType::F32)?)?; // [rows, experts]
        Routing::of(&logits.flatten_all()?.to_vec1()?, self.all.len(), self.chosen, self.normalized)
    }

    /// Computes `Σ weight · down(glu(gate(x), up(x)))` over each row's experts, adapters included, `[rows, hidden]`, of
    /// `x` `[rows, hidden]`.
    pub fn forward(&self, x: &Tensor, context: &impl LowRank) -> Result<Tensor> {
        let routing = self.route(x)?;
        let outputs = self.each(&routing, |_, expert, group| {
            let [gate, up] = self.gate_and_up(expert, group, x, context)?;
            self.down(expert, group, &self.gated(&gate, &up)?, context)
        })?;
        self.sum(&routing, &outputs, Some(&routing.weights))
    }

    /// Computes the intermediate results of [`Experts::forward`].
    pub fn activations(&self, x: &Tensor, context: &impl LowRank) -> Result<ExpertActivations> {
        let routing = self.route(x)?;
        let halves = self.each(&routing, |_, expert, group| self.gate_and_up(expert, group, x, context))?;
        let (gate, up) = halves.into_iter().map(|[gate, up]| (gate, up)).unzip();
        Ok(ExpertActivations { routing, gate, up })
    }

    /// Computes the result of [`Experts::forward`], `[rows, hidden]`, from its intermediate results.
    pub fn output(&self, activations: &ExpertActivations, context: &impl LowRank) -> Result<Tensor> {
        let ExpertActivations { routing, gate, up } = activations;
        let outputs = self.each(routing, |index, expert, group| {
            self.down(expert, group, &self.gated(&gate[index], &up[index])?, context)
        })?;
        self.sum(routing, &outputs, Some(&routing.weights))
    }

    /// Computes an expert's gate and up, `[rows of the group, intermediate]` each, of `x` `[rows, hidden]`.
    fn gate_and_up(&self, expert: &Expert, group: &Group, x: &Tensor, context: &impl LowRank) -> Result<[Tensor; 2]> {
        let x = group.take(x)?; // [rows of the group, hidden]
        let mut outputs = Linear::forward_each([&expert.gate, &expert.up], &x, None)?;
        context.add_expert_lora(self.block, group, &[Site::Gate, Site::Up], &x, &mut outputs)?;
        Ok(outputs)
    }

    /// Computes an expert's output, `[rows of the group, hidden]`, of `gated` `[rows of the group, intermediate]`.
    fn down(&self, expert: &Expert, group: &Group, gated: &Tensor, context: &impl LowRank) -> Result<Tensor> {
        let mut output = [expert.down.forward(gated)?];
        context.add_expert_lora(self.block, group, &[Site::Down], gated, &mut output)?;
        let [output] = output;
        Ok(output)
    }

    /// Computes the gated activation of `gate` and `up`, `[rows, intermediate]`.
    pub fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match self.glu {
            Glu::Gated(activation) => self.kernels.gated(activation, gate, up),
            Glu::Clamped(limits) => self.kernels.clamped_glu(gate, up, limits),
        }
    }

    /// Computes the gradients of [`Experts::gated`] with respect to `gate` and `up`.
    pub fn gated_backward(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        match self.glu {
            Glu::Gated(activation) => self.kernels.gated_backward(activation, gate, up, dy),
            Glu::Clamped(limits) => self.kernels.clamped_glu_backward(gate, up, dy, limits),
        }
    }

    /// Calls `work` with each group of rows, its index and its expert; on the CPU, several at the same time.
    pub fn each<T: Send>(
        &self,
        routing: &Routing,
        work: impl Fn(usize, &Expert, &Group) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let run = |(index, group): (usize, &Group)| work(index, &self.all[group.expert], group);
        if self.kernels.is_cpu() {
            routing.groups.par_iter().enumerate().map(run).collect()
        } else {
            routing.groups.iter().enumerate().map(run).collect()
        }
    }

    /// Adds up for each row what its experts computed, `[rows, hidden]`: `outputs` has the rows of each group, `weights`
    /// a factor for each row and choice, 1 without them.
    pub fn sum(&self, routing: &Routing, outputs: &[Tensor], weights: Option<&[f32]>) -> Result<Tensor> {
        let sorted = match outputs {
            [one] => one.clone(),
            several => Tensor::cat(several, 0)?, // [rows · chosen, hidden]
        };
        self.kernels.sum_chosen(&sorted, &routing.places, weights, routing.chosen)
    }

    /// Counts the bytes of the weight matrices in memory.
    pub(super) fn bytes(&self) -> usize {
        let layers = self.all.iter().flat_map(|expert| [&expert.gate, &expert.up, &expert.down]);
        self.router.bytes() + layers.map(Linear::bytes).sum::<usize>()
    }

    /// Maps the tensors for `kernels`; `None` if layers are packed or quantized.
    pub(super) fn with(
        &self,
        kernels: &GpuKernels,
        change: &impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        let Some(router) = self.router.with(kernels, change)? else { return Ok(None) };
        let mut experts = Vec::with_capacity(self.all.len());
        for Expert { gate, up, down } in &self.all {
            let [gate, up, down] = [gate, up, down].map(|layer| layer.with(kernels, change));
            let (Some(gate), Some(up), Some(down)) = (gate?, up?, down?) else { return Ok(None) };
            experts.push(Expert { gate, up, down });
        }
        Ok(Some(Self { router, all: experts, kernels: Kernels::Gpu(kernels.clone()), ..*self }))
    }
}

impl Group {
    /// Returns the group's rows of `x` `[rows, width]`.
    pub fn take(&self, x: &Tensor) -> Result<Tensor> {
        // Rows are in order and different: as many as there are means all.
        if self.rows.len() == x.dim(0)? {
            return Ok(x.clone());
        }
        Ok(x.index_select(&Tensor::new(self.rows.as_slice(), x.device())?, 0)?)
    }
}
