//! Loads the experts from the forms that checkpoints have them in: a tensor for each expert and layer, under the names
//! of Qwen or of Mixtral, or one tensor for the layers of all experts, as transformers 5 holds them in memory and
//! gpt-oss in bf16 on disk, or a stack of MXFP4 blocks, as gpt-oss is published. Called when the decoder is loaded.

use candle_core::Tensor;

use super::super::loading::BlockWeights;
use super::{Expert, Experts};
use crate::Result;
use crate::config::{ExpertsConfig, Glu};
use crate::kernels::Kernels;
use crate::linear::{Linear, Storage};
use crate::matrix::Matrix;
use crate::weights::Weights;

/// The layers gate and up of all experts.
const GATE_UP: &str = "mlp.experts.gate_up_proj";
/// The layer down of all experts.
const DOWN: &str = "mlp.experts.down_proj";

/// A layer of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Gate,
    Up,
    Down,
}

impl Part {
    /// Returns the name in the checkpoints of Qwen, which other sources of weights use as well.
    fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Returns the name in the checkpoints of Mixtral.
    fn mixtral_name(self) -> &'static str {
        match self {
            Self::Gate => "w1",
            Self::Up => "w3",
            Self::Down => "w2",
        }
    }

    /// Returns the first output of the layer where gate and up take turns: even ones are the gate's, odd ones those of
    /// up.
    fn turn(self) -> usize {
        usize::from(self == Self::Up)
    }
}

/// The layers of all experts of a block, as the checkpoint has them.
enum Form {
    /// A matrix for each expert and layer, with biases if the family has some.
    Single { names: fn(usize, Part) -> String },
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
        let source = Source { block: format!("model.layers.{index}"), hidden: model.hidden_size, config, weights };
        let form = source.form()?;
        let experts = (0..config.count).map(|expert| {
            let linear = |part: Part| {
                let (matrix, bias) = source.layer(&form, expert, part)?;
                Linear::of(&matrix, bias, storage, kernels)
            };
            Ok(Expert { gate: linear(Part::Gate)?, up: linear(Part::Up)?, down: linear(Part::Down)? })
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

/// The checkpoint's tensors of one block.
struct Source<'a> {
    block: String,
    hidden: usize,
    config: &'a ExpertsConfig,
    weights: &'a Weights,
}

impl Source<'_> {
    fn name(&self, rest: &str) -> String {
        format!("{}.{rest}", self.block)
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
    fn form(&self) -> Result<Form> {
        let (count, hidden, width) = (self.config.count, self.hidden, self.config.intermediate_size);
        let get = |name: &str, shape: &[usize]| self.weights.get(&self.name(&format!("mlp.experts.{name}")), shape);
        if self.weights.has_mxfp4_experts(&self.name(GATE_UP)) {
            if let Glu::Gated(_) = self.config.glu {
                let message =
                    "experts in MXFP4 blocks are read of gpt-oss alone: the order of gate and up is not known";
                return Err(self.weights.fault(message));
            }
            return Ok(Form::Blocks {
                gate_up_bias: get("gate_up_proj_bias", &[count, 2 * width])?,
                down_bias: get("down_proj_bias", &[count, hidden])?,
            });
        }
        if !self.has(GATE_UP) {
            let is_mixtral = self.has("block_sparse_moe.experts.0.w1.weight");
            return Ok(Form::Single {
                names: if is_mixtral {
                    |expert, part| format!("block_sparse_moe.experts.{expert}.{}", part.mixtral_name())
                } else {
                    |expert, part| format!("mlp.experts.{expert}.{}", part.name())
                },
            });
        }
        match self.config.glu {
            Glu::Gated(_) => Ok(Form::Stacked {
                gate_up: get("gate_up_proj", &[count, 2 * width, hidden])?,
                down: get("down_proj", &[count, hidden, width])?,
            }),
            Glu::Clamped(_) => Ok(Form::Interleaved {
                gate_up: get("gate_up_proj", &[count, hidden, 2 * width])?,
                gate_up_bias: get("gate_up_proj_bias", &[count, 2 * width])?,
                down: get("down_proj", &[count, width, hidden])?,
                down_bias: get("down_proj_bias", &[count, hidden])?,
            }),
        }
    }

    /// Loads one layer of one expert, `[outputs, inputs]`, and its bias `[outputs]`.
    fn layer(&self, form: &Form, expert: usize, part: Part) -> Result<(Matrix, Option<Tensor>)> {
        let (hidden, width) = (self.hidden, self.config.intermediate_size);
        let (outputs, inputs) = if part == Part::Down { (hidden, width) } else { (width, hidden) };
        match form {
            Form::Single { names } => {
                let name = names(expert, part);
                let bias = self.bias(&name, outputs)?;
                Ok((self.weights.matrix(&self.name(&format!("{name}.weight")), [outputs, inputs])?, bias))
            }
            Form::Stacked { gate_up, down } => {
                let matrix = match part {
                    Part::Gate => gate_up.get(expert)?.narrow(0, 0, width)?,
                    Part::Up => gate_up.get(expert)?.narrow(0, width, width)?,
                    Part::Down => down.get(expert)?,
                };
                Ok((Matrix::Dense(matrix.contiguous()?), None))
            }
            Form::Interleaved { gate_up, gate_up_bias, down, down_bias } => {
                if part == Part::Down {
                    let matrix = down.get(expert)?.t()?.contiguous()?;
                    return Ok((Matrix::Dense(matrix), Some(down_bias.get(expert)?.contiguous()?)));
                }
                let turn = part.turn();
                let matrix = gate_up.get(expert)?.reshape((hidden, width, 2))?.narrow(2, turn, 1)?.squeeze(2)?.t()?;
                Ok((Matrix::Dense(matrix.contiguous()?), Some(every_second(&gate_up_bias.get(expert)?, turn)?)))
            }
            Form::Blocks { gate_up_bias, down_bias } => {
                let read = |name: &str, outputs: usize, rows: Vec<usize>| {
                    self.weights.mxfp4_expert(&self.name(name), expert, [self.config.count, outputs, inputs], &rows)
                };
                if part == Part::Down {
                    let bias = down_bias.get(expert)?.contiguous()?;
                    return Ok((read(DOWN, hidden, (0..hidden).collect())?, Some(bias)));
                }
                let rows = (part.turn()..2 * width).step_by(2).collect();
                let bias = every_second(&gate_up_bias.get(expert)?, part.turn())?;
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
