//! Loads the experts from the forms that checkpoints have them in: a tensor for each expert and layer, under the names
//! of Qwen or of Mixtral, or one tensor for the layers of all experts, as transformers 5 holds them in memory and
//! gpt-oss in bf16 on disk, or a stack of MXFP4 blocks, as gpt-oss is published. Called when the decoder is loaded, and
//! when a model is merged with an adapter.

use candle_core::Tensor;

use super::super::loading::BlockWeights;
use super::{Expert, Experts};
use crate::Result;
use crate::config::{ExpertsConfig, Glu};
use crate::kernels::Kernels;
use crate::linear::{Linear, Storage};
use crate::lora::Site;
use crate::matrix::Matrix;
use crate::weights::Weights;

/// The layers gate and up of all experts.
const GATE_UP: &str = "mlp.experts.gate_up_proj";
/// The layer down of all experts.
const DOWN: &str = "mlp.experts.down_proj";

/// Returns the name of a layer of an expert in the checkpoints of Qwen, which other sources of weights use as well.
fn qwen_name(site: Site) -> &'static str {
    match site {
        Site::Up => "up_proj",
        Site::Down => "down_proj",
        _ => "gate_proj",
    }
}

/// Returns the name in the checkpoints of Mixtral.
fn mixtral_name(site: Site) -> &'static str {
    match site {
        Site::Up => "w3",
        Site::Down => "w2",
        _ => "w1",
    }
}

/// Returns the first output of the layer where gate and up take turns: even ones are the gate's, odd ones those of up.
fn turn(site: Site) -> usize {
    usize::from(site == Site::Up)
}

/// The layers of all experts of a block, as the checkpoint has them.
pub(crate) enum ExpertForm {
    /// A matrix for each expert and layer, with biases if the family has some.
    Single { names: fn(usize, Site) -> String },
    /// `gate_up` `[experts, 2 · intermediate, hidden]`, all of the gate first; `down` `[experts, hidden, intermediate]`.
    Stacked { gate_up: Tensor, down: Tensor },
    /// `gate_up` `[experts, hidden, 2 · intermediate]`, gate and up in turns, its bias `[experts, 2 · intermediate]`;
    /// `down` `[experts, intermediate, hidden]`, its bias `[experts, hidden]`.
    Interleaved { gate_up: Tensor, gate_up_bias: Tensor, down: Tensor, down_bias: Tensor },
    /// Stacks of MXFP4 blocks: `gate_up` of matrices `[2 · intermediate, hidden]`, gate and up in turns, and `down` of
    /// `[hidden, intermediate]`; the biases as above.
    Blocks { gate_up_bias: Tensor, down_bias: Tensor },
}

impl Experts {
    /// Loads the experts of a block.
    pub(in super::super) fn load(from: &BlockWeights<'_>, config: &ExpertsConfig) -> Result<Self> {
        let BlockWeights { index, config: model, weights, storage, kernels } = *from;
        let source = ExpertTensors { block: index, hidden: model.hidden_size, config, weights };
        let form = source.form()?;
        let experts = (0..config.count).map(|expert| {
            let linear = |site: Site| {
                let (matrix, bias) = source.layer(&form, expert, site)?;
                Linear::of(&matrix, bias, storage, kernels)
            };
            Ok(Expert { gate: linear(Site::Gate)?, up: linear(Site::Up)?, down: linear(Site::Down)? })
        });
        Ok(Self {
            block: index,
            router: source.router(kernels)?,
            all: experts.collect::<Result<_>>()?,
            chosen: config.chosen,
            normalized: config.normalized,
            glu: config.glu,
            kernels: kernels.clone(),
        })
    }
}

/// The tensors of a checkpoint that hold the experts of one block.
pub(crate) struct ExpertTensors<'a> {
    /// Number of the block, from 0.
    pub(crate) block: usize,
    /// Width of the model.
    pub(crate) hidden: usize,
    pub(crate) config: &'a ExpertsConfig,
    pub(crate) weights: &'a Weights,
}

impl ExpertTensors<'_> {
    fn name(&self, rest: &str) -> String {
        format!("model.layers.{}.{rest}", self.block)
    }

    fn has(&self, rest: &str) -> bool {
        self.weights.has(&self.name(rest))
    }

    /// Loads the router: in f32, however the others are held.
    fn router(&self, kernels: &Kernels) -> Result<Linear> {
        const NAMES: [&str; 3] = ["mlp.gate", "block_sparse_moe.gate", "mlp.router"];
        let is_there = |name: &&&str| self.has(&format!("{name}.weight"));
        let name = NAMES.iter().find(is_there).unwrap_or(&NAMES[0]);
        let weight = self.weights.get(&self.name(&format!("{name}.weight")), &[self.config.count, self.hidden])?;
        let bias = self.bias(name, self.config.count)?;
        Linear::new(&weight, bias, &Storage::default(), kernels)
    }

    /// Loads the bias of the layer `name`, `[width]`; `None` if the family has none.
    fn bias(&self, name: &str, width: usize) -> Result<Option<Tensor>> {
        let bias = || self.weights.get(&self.name(&format!("{name}.bias")), &[width]);
        self.config.biases.then(bias).transpose()
    }

    /// Finds out in which form the checkpoint has the experts.
    pub(crate) fn form(&self) -> Result<ExpertForm> {
        let (count, hidden, width) = (self.config.count, self.hidden, self.config.intermediate_size);
        let get = |name: &str, shape: &[usize]| self.weights.get(&self.name(&format!("mlp.experts.{name}")), shape);
        if self.weights.has_mxfp4_experts(&self.name(GATE_UP)) {
            if let Glu::Gated(_) = self.config.glu {
                let message =
                    "experts in MXFP4 blocks are read of gpt-oss alone: the order of gate and up is not known";
                return Err(self.weights.fault(message));
            }
            return Ok(ExpertForm::Blocks {
                gate_up_bias: get("gate_up_proj_bias", &[count, 2 * width])?,
                down_bias: get("down_proj_bias", &[count, hidden])?,
            });
        }
        if !self.has(GATE_UP) {
            let is_mixtral = self.has("block_sparse_moe.experts.0.w1.weight");
            return Ok(ExpertForm::Single {
                names: if is_mixtral {
                    |expert, site| format!("block_sparse_moe.experts.{expert}.{}", mixtral_name(site))
                } else {
                    |expert, site| format!("mlp.experts.{expert}.{}", qwen_name(site))
                },
            });
        }
        match self.config.glu {
            Glu::Gated(_) => Ok(ExpertForm::Stacked {
                gate_up: get("gate_up_proj", &[count, 2 * width, hidden])?,
                down: get("down_proj", &[count, hidden, width])?,
            }),
            Glu::Clamped(_) => Ok(ExpertForm::Interleaved {
                gate_up: get("gate_up_proj", &[count, hidden, 2 * width])?,
                gate_up_bias: get("gate_up_proj_bias", &[count, 2 * width])?,
                down: get("down_proj", &[count, width, hidden])?,
                down_bias: get("down_proj_bias", &[count, hidden])?,
            }),
        }
    }

    /// Loads one layer of one expert, `[outputs, inputs]`, and its bias `[outputs]`.
    pub(crate) fn layer(&self, form: &ExpertForm, expert: usize, site: Site) -> Result<(Matrix, Option<Tensor>)> {
        let (hidden, width) = (self.hidden, self.config.intermediate_size);
        let (outputs, inputs) = if site == Site::Down { (hidden, width) } else { (width, hidden) };
        match form {
            ExpertForm::Single { names } => {
                let name = names(expert, site);
                let bias = self.bias(&name, outputs)?;
                Ok((self.weights.matrix(&self.name(&format!("{name}.weight")), [outputs, inputs])?, bias))
            }
            ExpertForm::Stacked { gate_up, down } => {
                let matrix = match site {
                    Site::Down => down.get(expert)?,
                    _ => gate_up.get(expert)?.narrow(0, turn(site) * width, width)?,
                };
                Ok((Matrix::Dense(matrix.contiguous()?), None))
            }
            ExpertForm::Interleaved { gate_up, gate_up_bias, down, down_bias } => {
                if site == Site::Down {
                    let matrix = down.get(expert)?.t()?.contiguous()?;
                    return Ok((Matrix::Dense(matrix), Some(down_bias.get(expert)?.contiguous()?)));
                }
                let turn = turn(site);
                let matrix = gate_up.get(expert)?.reshape((hidden, width, 2))?.narrow(2, turn, 1)?.squeeze(2)?.t()?;
                Ok((Matrix::Dense(matrix.contiguous()?), Some(every_second(&gate_up_bias.get(expert)?, turn)?)))
            }
            ExpertForm::Blocks { gate_up_bias, down_bias } => {
                let read = |name: &str, outputs: usize, rows: Vec<usize>| {
                    self.weights.mxfp4_expert(&self.name(name), expert, [self.config.count, outputs, inputs], &rows)
                };
                if site == Site::Down {
                    let bias = down_bias.get(expert)?.contiguous()?;
                    return Ok((read(DOWN, hidden, (0..hidden).collect())?, Some(bias)));
                }
                let rows = (turn(site)..2 * width).step_by(2).collect();
                let bias = every_second(&gate_up_bias.get(expert)?, turn(site))?;
                Ok((read(GATE_UP, 2 * width, rows)?, Some(bias)))
            }
        }
    }
}

/// Returns the values of `both` `[2 · width]` that are the gate's, or up's for the turn 1: they take turns.
fn every_second(both: &Tensor, turn: usize) -> Result<Tensor> {
    let width = both.dim(0)? / 2;
    Ok(both.reshape((width, 2))?.narrow(1, turn, 1)?.squeeze(1)?.contiguous()?)
}
