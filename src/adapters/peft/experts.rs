//! Updates of experts in the files of an adapter. PEFT's `target_parameters` have one pair of matrices for all experts of
//! a block, of `mlp.experts.gate_up_proj` and of `mlp.experts.down_proj`; adapters that were trained with transformers 4
//! have a pair for each layer of each expert, which PEFT loads as well. Read for [`super::host`]; written, as
//! `target_parameters`, for [`super::write`].

use std::collections::BTreeMap;

use bytes::Bytes;
use candle_core::{DType, Device, Tensor};

use super::config::PeftConfig;
use super::matrix::{Matrix, Update};
use super::refuse;
use crate::adapters::Result;
use crate::adapters::pieces::{Pieces, parts};
use crate::model::ModelConfig;
use crate::model::config::ExpertsConfig;
use crate::model::lora::modules::{EXPERTS, Module};
use crate::model::lora::{Adapter, LoraPair, Site};

/// The module whose parameters hold the experts, as PEFT names it in every family.
const WRAPPED: &str = "mlp.experts";
/// First version of PEFT whose A takes the inputs of an expert and not its outputs, in every family.
const INPUTS_FIRST: (u32, u32) = (0, 19);
/// The same in full, for the files that are written here.
pub(super) const VERSION: &str = "0.19.0";

/// A and B of one place.
type Halves = [Option<Matrix>; 2];

/// Returns where files have the output `output` of an expert's layers, which are one behind the other: in gpt-oss, those
/// of gate and up take turns.
fn stored_output(module: &Module, output: usize, outputs: usize, interleaved: bool) -> usize {
    if module.sites.len() == 2 && interleaved {
        let each = outputs / 2;
        2 * (output % each) + output / each
    } else {
        output
    }
}

/// The matrices of experts, as the file's header has them.
#[derive(Default)]
pub(super) struct ExpertHalves {
    /// By block; true for a wrapper inside of another.
    stacks: BTreeMap<(usize, bool), Halves>,
    /// By block, layer and expert.
    single: BTreeMap<(usize, Site, usize), Halves>,
}

impl ExpertHalves {
    /// Returns the matrices of the module `path` in `block`; `None` if it is none of experts that can be changed.
    pub(super) fn at(&mut self, block: usize, path: &str, model: &ModelConfig) -> Option<&mut Halves> {
        let experts = model.experts.as_ref()?;
        for inner in [false, true] {
            if path == wrapper(inner) {
                return Some(self.stacks.entry((block, inner)).or_default());
            }
        }
        let (module, layers) = single(model)?;
        let (number, layer) = path.strip_prefix(module)?.strip_prefix('.')?.split_once('.')?;
        let site = SITES[layers.iter().position(|name| *name == layer)?];
        let expert: usize = number.parse().ok()?;
        // `01` is another spelling of 1, which would let two tensors claim one place.
        let is_there = expert < experts.count && expert.to_string() == number;
        is_there.then(|| self.single.entry((block, site, expert)).or_default())
    }

    /// Checks the matrices against the configuration and the model, and returns what they change. In `weights` each
    /// expert's rows of B are brought together.
    pub(super) fn updates(
        mut self,
        config: &PeftConfig,
        model: &ModelConfig,
        max_rank: usize,
        weights: &mut Bytes,
        pieces: &mut Pieces<'_>,
    ) -> Result<Vec<Update>> {
        let Some(experts) = &model.experts else {
            return match config.parameters() {
                [] => Ok(Vec::new()),
                _ => Err(refuse("`target_parameters` is not supported: the model has no experts")),
            };
        };
        if let Some(other) = config.named_parameter(&other_parameters(model)) {
            return Err(refuse(format_args!(
                "target_parameters names `{other}`; of a model's parameters gate_up_proj and down_proj of its experts can be \
                 changed"
            )));
        }
        if !self.single.is_empty() {
            return self.of_single(config, model, experts, max_rank);
        }
        let mut updates = Vec::new();
        for block in 0..model.num_hidden_layers {
            let path = |module: &Module| format!("model.layers.{block}.{}", module.path);
            let targets: Vec<&Module> =
                EXPERTS.iter().filter(|module| config.changes_parameter(&path(module))).collect();
            // The last one is the outermost.
            for (module, inner) in targets.into_iter().rev().zip([false, true]) {
                let Some(halves) = self.stacks.remove(&(block, inner)) else {
                    return Err(refuse(format_args!(
                        "target_parameters names `{}`, for which there are no tensors",
                        path(module)
                    )));
                };
                let [a, b] = both(&format!("model.layers.{block}.{}", wrapper(inner)), halves)?;
                let found = Found { module, path: path(module), name: wrapper(inner), block, a, b };
                updates.extend(found.updates(config, model, experts, max_rank, weights, pieces)?);
            }
        }
        match self.stacks.first_key_value() {
            None => Ok(updates),
            Some((&(block, inner), _)) => Err(refuse(format_args!(
                "there are tensors for `model.layers.{block}.{}`, which target_parameters does not name",
                wrapper(inner)
            ))),
        }
    }

    /// Does the same for matrices of single experts.
    fn of_single(
        mut self,
        config: &PeftConfig,
        model: &ModelConfig,
        experts: &ExpertsConfig,
        max_rank: usize,
    ) -> Result<Vec<Update>> {
        if !self.stacks.is_empty() || !config.parameters().is_empty() {
            return Err(refuse("it has tensors of single experts and target_parameters"));
        }
        if !config.is_uniform() {
            return Err(refuse(
                "rank_pattern, alpha_pattern and use_rslora are not supported together with tensors of single experts, whose \
                 ranks PEFT adds up",
            ));
        }
        let Some((module, names)) = single(model) else { return Ok(Vec::new()) };
        let (width, hidden) = (experts.intermediate_size, model.hidden_size);
        let mut updates = Vec::new();
        for block in 0..model.num_hidden_layers {
            let mut changed = [0; 3];
            for (part, site) in SITES.into_iter().enumerate() {
                let (out, input) = if site == Site::Down { (hidden, width) } else { (width, hidden) };
                for expert in 0..experts.count {
                    let path = format!("model.layers.{block}.{module}.{expert}.{}", names[part]);
                    let halves = match (self.single.remove(&(block, site, expert)), config.changes(&path)) {
                        (None, false) => continue,
                        (Some(halves), true) => halves,
                        (None, true) => {
                            return Err(refuse(format_args!(
                                "target_modules names `{path}`, for which there are no tensors"
                            )));
                        }
                        (Some(_), false) => {
                            return Err(refuse(format_args!(
                                "there are tensors for `{path}`, which target_modules does not name"
                            )));
                        }
                    };
                    let [a, b] = both(&path, halves)?;
                    let (rank, scale) = config.scaling(&path, max_rank)?;
                    let a = a.checked(&format!("{path}.lora_A"), (rank, input))?;
                    let b = b.checked(&format!("{path}.lora_B"), (out, rank))?;
                    changed[part] += 1;
                    updates.push(Update { block, expert: Some(expert), site, scale, a, b });
                }
            }
            let [gate, up, down] = changed;
            if gate != up || [gate, down].iter().any(|count| ![0, experts.count].contains(count)) {
                return Err(refuse(format_args!(
                    "it changes only some experts of block {block}, or one of {} and {} without the other, which PEFT does not \
                     load",
                    names[0], names[1]
                )));
            }
        }
        Ok(updates)
    }
}

/// A and B of a parameter, and where they were found.
struct Found<'a> {
    module: &'a Module,
    /// Name of the parameter in the model.
    path: String,
    /// Name of PEFT's module in its block.
    name: &'static str,
    block: usize,
    a: Matrix,
    b: Matrix,
}

impl Found<'_> {
    /// Splits them by expert, once they are checked: A is `[experts · rank, in]`, B `[out, rank · experts]`.
    fn updates(
        &self,
        config: &PeftConfig,
        model: &ModelConfig,
        experts: &ExpertsConfig,
        max_rank: usize,
        weights: &mut Bytes,
        pieces: &mut Pieces<'_>,
    ) -> Result<Vec<Update>> {
        let Self { module, path, name, block, .. } = self;
        let (rank, scale) = config.scaling(path, max_rank)?;
        let (out, input) = experts.shape(module, model.hidden_size);
        let (count, all) = (experts.count, experts.count * rank);
        // gpt-oss has its matrices the other way round, which older versions took for the rule.
        let may_be_old = !experts.biases && config.is_before(INPUTS_FIRST);
        let is_exchanged = out != input && self.a.shape == (all, out) && self.b.shape == (input, all);
        if is_exchanged || (may_be_old && out == input) {
            return Err(refuse(format_args!(
                "`{path}` is changed by matrices from before PEFT 0.19, which has exchanged an expert's inputs and outputs"
            )));
        }
        let named = |half: char| format!("model.layers.{block}.{name}.lora_{half}");
        let a = self.a.checked(&named('A'), (all, input))?;
        let b = self.b.checked(&named('B'), (out, all))?;
        let sizes = Sizes { experts: count, out, rank, value: b.dtype.bitsize() / 8 };
        let mut file: Vec<u8> = std::mem::take(weights).into();
        let stored = |output| stored_output(module, output, out, experts.biases);
        gather(&mut file[b.bytes.clone()], sizes, stored, pieces);
        *weights = file.into();
        let b = Matrix { shape: (count * out, rank), ..b };
        let each = out / module.sites.len();
        let updates = (0..count).flat_map(|expert| {
            let (a, b) = (&a, &b);
            module.sites.iter().enumerate().map(move |(part, site)| {
                let first = expert * out + part * each;
                let a = a.rows(expert * rank..(expert + 1) * rank);
                Update { block: *block, expert: Some(expert), site: *site, scale, a, b: b.rows(first..first + each) }
            })
        });
        Ok(updates.collect())
    }
}

/// Sizes of a B.
#[derive(Clone, Copy)]
struct Sizes {
    experts: usize,
    out: usize,
    rank: usize,
    /// Bytes of a value.
    value: usize,
}

/// Brings the bytes of a B from `[out, rank, experts]` into the order `[experts, out, rank]`; `stored` tells an output's
/// place before.
fn gather(bytes: &mut [u8], sizes: Sizes, stored: impl Fn(usize) -> usize, pieces: &mut Pieces<'_>) {
    let Sizes { experts, out, rank, value } = sizes;
    let mut before = Vec::with_capacity(bytes.len());
    for part in parts(bytes.len(), 1) {
        pieces.work(part.len());
        before.extend_from_slice(&bytes[part]);
    }
    for expert in 0..experts {
        for outputs in parts(out, rank * value) {
            pieces.work(outputs.len() * rank * value);
            for output in outputs {
                for row in 0..rank {
                    let from = ((stored(output) * rank + row) * experts + expert) * value;
                    let to = ((expert * out + output) * rank + row) * value;
                    bytes[to..to + value].copy_from_slice(&before[from..from + value]);
                }
            }
        }
    }
}

/// The update of a parameter that holds a layer of all experts of a block.
pub(super) struct ParameterUpdate {
    /// Name of the parameter, such as `model.layers.0.mlp.experts.down_proj`.
    pub path: String,
    /// Name of PEFT's module for it.
    pub module: String,
    /// Rank and scale of each expert's update.
    pub scaling: (usize, f32),
    /// A, `[experts · rank, in]`.
    pub a: Tensor,
    /// B, `[out, rank · experts]`.
    pub b: Tensor,
}

/// Returns the updates of experts as files have them.
pub(super) fn parameter_updates(adapter: &Adapter) -> Result<Vec<ParameterUpdate>> {
    let mut updates = Vec::new();
    for (block, layer) in adapter.layers.iter().enumerate() {
        let mut changed = Vec::new();
        for module in &EXPERTS {
            changed.extend(layer.whole_of_experts(module)?.map(|pair| (module, pair)));
        }
        // The last one is the outermost.
        for ((module, LoraPair { a, b, scale }), inner) in changed.into_iter().rev().zip([false, true]) {
            let (experts, (rows, rank)) = (layer.expert_count(), b.dims2()?);
            let out = rows / experts;
            let values = b.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let mut scattered = vec![0.0; values.len()];
            for (row, values) in values.chunks_exact(rank).enumerate() {
                let stored = stored_output(module, row % out, out, adapter.names.experts_interleaved);
                for (column, value) in values.iter().enumerate() {
                    scattered[(stored * rank + column) * experts + row / out] = *value;
                }
            }
            updates.push(ParameterUpdate {
                path: adapter.names.path(block, module.path),
                module: adapter.names.path(block, wrapper(inner)),
                scaling: (rank, scale),
                a,
                b: Tensor::from_vec(scattered, (out, rank * experts), &Device::Cpu)?,
            });
        }
    }
    Ok(updates)
}

/// Returns the names of the changed parameters for `target_parameters`: of the module alone if all blocks are changed
/// in the same ones, else in full.
pub(super) fn parameter_names(adapter: &Adapter, updates: &[ParameterUpdate]) -> Vec<String> {
    let of = |module: &Module| updates.iter().filter(|update| update.path.ends_with(module.path)).count();
    if EXPERTS.iter().all(|module| [0, adapter.layers.len()].contains(&of(module))) {
        return EXPERTS.iter().filter(|module| of(module) > 0).map(|module| module.path.to_owned()).collect();
    }
    updates.iter().map(|update| update.path.clone()).collect()
}

/// Returns the name in its block of PEFT's module around the experts, or of the one inside of it.
fn wrapper(inner: bool) -> &'static str {
    if inner { "mlp.experts.base_layer" } else { WRAPPED }
}

/// Layers of an expert, in the order of the names of [`single`].
const SITES: [Site; 3] = [Site::Gate, Site::Up, Site::Down];

/// Returns the module with the experts in transformers 4, and the names of an expert's layers in it; `None` for families
/// whose adapters of single experts PEFT does not load.
fn single(model: &ModelConfig) -> Option<(&'static str, [&'static str; 3])> {
    matches!(model.family, "mixtral" | "qwen3_moe" | "olmoe").then(|| model.single_expert_names())
}

/// Returns A and B of `path`.
fn both(path: &str, halves: Halves) -> Result<[Matrix; 2]> {
    match halves {
        [Some(a), Some(b)] => Ok([a, b]),
        _ => Err(refuse(format_args!("`{path}` has only one of lora_A and lora_B"))),
    }
}

/// Returns the names of the model's parameters beside the matrices of its experts.
fn other_parameters(model: &ModelConfig) -> Vec<String> {
    let outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"].map(str::to_owned);
    let mut inside: Vec<String> = model
        .modules
        .iter()
        .flat_map(|module| ["weight", "bias"].map(|end| format!("{}.{end}", module.path)))
        .collect();
    let norms = model.norm_places.all_names();
    inside.extend(norms.map(|norm| format!("{norm}.weight")));
    inside.extend(
        [
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
            "self_attn.sinks",
            "mlp.gate.weight",
            "mlp.router.weight",
        ]
        .map(str::to_owned),
    );
    inside
        .extend(["mlp.router.bias", "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"].map(str::to_owned));
    let blocks = (0..model.num_hidden_layers)
        .flat_map(|block| inside.iter().map(move |parameter| format!("model.layers.{block}.{parameter}")));
    outside.into_iter().chain(blocks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_experts_rows_of_b_come_together_in_the_order_of_the_model() {
        // [4 outputs, rank 2, 3 experts]: the value tells all three.
        let stored: Vec<u8> = (0..4 * 2 * 3).map(|at| (at / 6) * 64 + (at / 3 % 2) * 16 + at % 3).collect();
        let sizes = Sizes { experts: 3, out: 4, rank: 2, value: 1 };
        let mut at_once = |_| {};
        for (module, outputs) in [(&EXPERTS[0], [0, 2, 1, 3]), (&EXPERTS[1], [0, 1, 2, 3])] {
            let mut bytes = stored.clone();
            let place = |output| stored_output(module, output, 4, true);
            gather(&mut bytes, sizes, place, &mut Pieces::new(&mut at_once));
            let expected =
                (0..3).flat_map(|expert| outputs.map(|output| [0, 16].map(|row| output * 64 + row + expert)));
            assert_eq!(bytes, expected.flatten().collect::<Vec<u8>>());
        }
    }
}
