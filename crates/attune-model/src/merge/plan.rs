//! What a model is made of: its tensors by transformers' names, as an output of another form than the base's has them, and
//! where the base has their values. `values.rs` reads these.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Device;
use parking_lot::Mutex;

use super::addition::Change;
use super::weight_type::WeightType;
use crate::checkpoint::Checkpoint;
use crate::config::{ExpertsConfig, Glu, QueryKeyNorm};
use crate::decoder::ExpertForm;
use crate::gguf::tensors::Names;
use crate::sites::{Module, Site};
use crate::weights::{StoredType, Weights};
use crate::{ModelConfig, Result};

/// The form of an output.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// A folder for transformers.
    Folder,
    /// A GGUF file with tensors of these names.
    File(&'a Names),
}

/// A tensor of the model.
pub(super) struct Item {
    /// As transformers has it.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: Kind,
    /// Type of the base's tensor; `None` if it is quantized there.
    pub(super) own: Option<WeightType>,
    /// What the adapter adds; `None` if it leaves the tensor as it is. A stack's layers have their own.
    pub(super) change: Option<Change>,
    pub(super) source: Source,
}

/// Where the base has the values of a tensor.
pub(super) enum Source {
    /// In its own tensor of the same name.
    Own,
    /// In some rows of the tensor `name`, which has `all`.
    Rows { name: String, all: usize, rows: Range<usize> },
    /// In tensors of so many rows, one behind the other.
    Joined(Vec<(String, usize)>),
    /// In a layer of an expert, in any form that checkpoints have experts in.
    Expert { block: usize, expert: usize, site: Site },
    /// In the layers of each expert, whose outputs take turns, inputs and outputs exchanged: gpt-oss in transformers' form.
    Stack(Vec<Vec<Item>>),
}

/// What a tensor is, as far as forms differ in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A matrix that is quantized at load, if any is.
    Matrix,
    /// The matrix that chooses experts, which is always plain.
    Router,
    /// The filters of a convolution, `[channels, 1, taps]` in folders and `[channels, taps]` in files, which are always plain.
    Filters,
    /// The weights of a norm.
    Norm,
    /// A bias, or attention's sinks.
    Vector,
}

/// A base model with its tensors.
pub(super) struct Plan {
    pub(super) config: ModelConfig,
    pub(super) items: Vec<Item>,
    /// True if the head is the embedding.
    pub(super) tied: bool,
    pub(super) weights: Weights,
    pub(super) quantize: Option<String>,
    /// The experts of the block that was asked for last.
    pub(super) experts: Mutex<Option<(usize, Arc<ExpertForm>)>>,
}

impl Plan {
    /// Lists the tensors that `target` has of the model in `checkpoint`, whose matrices are served in blocks of the format
    /// `quantize`. Takes from `changes` what belongs to them.
    pub(super) fn of(
        checkpoint: &Checkpoint,
        quantize: Option<&str>,
        target: Target<'_>,
        changes: &mut BTreeMap<String, Change>,
    ) -> Result<Self> {
        let config = checkpoint.config()?;
        let weights = checkpoint.weights(&Device::Cpu)?;
        refuse_encoder(checkpoint, &config)?;
        let quantize = quantize.map(str::to_owned);
        let mut plan = Self { config, items: Vec::new(), tied: false, weights, quantize, experts: Mutex::default() };
        plan.list(target, changes)?;
        Ok(plan)
    }

    fn list(&mut self, target: Target<'_>, changes: &mut BTreeMap<String, Change>) -> Result<()> {
        let config = self.config.clone();
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        self.add("model.embed_tokens.weight", &[vocabulary, hidden], Kind::Matrix, changes);
        for block in 0..config.num_hidden_layers {
            self.list_norms(block, &config, changes);
            for module in config.modules_of(block) {
                self.list_layer(block, module, &config, target, changes);
            }
            self.list_convolution(block, &config, target, changes);
            if config.attention_sinks {
                self.add(&named(block, "self_attn.sinks"), &[config.num_attention_heads], Kind::Vector, changes);
            }
            if let Some(experts) = &config.experts {
                self.list_experts(block, experts, &config, target, changes);
            }
        }
        self.add(&format!("{}.weight", config.norm_name("model.norm")), &[hidden], Kind::Norm, changes);
        self.tied = config.tie_word_embeddings && self.has_no_other_head([vocabulary, hidden])?;
        if !self.tied {
            self.add("lm_head.weight", &[vocabulary, hidden], Kind::Matrix, changes);
        }
        Ok(())
    }

    fn list_norms(&mut self, block: usize, config: &ModelConfig, changes: &mut BTreeMap<String, Change>) {
        for norm in config.norm_places.all_names() {
            let name = named(block, &format!("{}.weight", config.norm_name(norm)));
            self.add(&name, &[config.hidden_size], Kind::Norm, changes);
        }
        let attends = config.convolution_of(block).is_none();
        if let Some(width) = config.query_key_norm.filter(|_| attends) {
            let heads =
                [("self_attn.q_norm", config.num_attention_heads), ("self_attn.k_norm", config.num_key_value_heads)];
            for (norm, heads) in heads {
                let heads = if width == QueryKeyNorm::Row { heads } else { 1 };
                let name = named(block, &format!("{}.weight", config.norm_name(norm)));
                self.add(&name, &[heads * config.head_dim], Kind::Norm, changes);
            }
        }
    }

    /// Lists the layer `module` as the target has it: whole, or its sites one by one.
    fn list_layer(
        &mut self,
        block: usize,
        module: &Module,
        config: &ModelConfig,
        target: Target<'_>,
        changes: &mut BTreeMap<String, Change>,
    ) {
        let (all, input) = module.shape(config);
        let has_bias = module.sites.iter().any(|site| config.has_bias(*site));
        let rows: Vec<(Site, Range<usize>)> = module.rows(config).collect();
        let stored = match target {
            Target::Folder => vec![*module],
            Target::File(names) => names.in_file(module),
        };
        for end in [".weight", ".bias"].into_iter().take(1 + usize::from(has_bias)) {
            let whole = named(block, &format!("{}{end}", module.path));
            let single = |site: Site| named(block, &format!("{}{end}", site.path()));
            let is_whole_in_base = self.weights.has(&whole);
            let are_single_in_base = rows.iter().all(|(site, _)| self.weights.has(&single(*site)));
            if end == ".bias" && !is_whole_in_base && !are_single_in_base {
                continue;
            }
            for stored in &stored {
                let (name, own_rows) = match rows.iter().find(|(site, _)| stored.sites == [*site]) {
                    Some((_, rows)) if stored.path != module.path => {
                        (named(block, &format!("{}{end}", stored.path)), rows.clone())
                    }
                    _ => (whole.clone(), 0..all),
                };
                let source = match (name == whole, is_whole_in_base) {
                    (true, false) if are_single_in_base => {
                        Source::Joined(rows.iter().map(|(site, rows)| (single(*site), rows.len())).collect())
                    }
                    (false, true) => Source::Rows { name: whole.clone(), all, rows: own_rows.clone() },
                    _ => Source::Own,
                };
                let (shape, kind) = match end {
                    ".bias" => (vec![own_rows.len()], Kind::Vector),
                    _ => (vec![own_rows.len(), input], Kind::Matrix),
                };
                let item = self.item(&name, &shape, kind, source, changes);
                self.items.push(item);
            }
        }
    }

    fn list_convolution(
        &mut self,
        block: usize,
        config: &ModelConfig,
        target: Target<'_>,
        changes: &mut BTreeMap<String, Change>,
    ) {
        let Some(convolution) = config.convolution_of(block) else { return };
        let (hidden, taps) = (config.hidden_size, convolution.taps);
        let shape = match target {
            Target::Folder => vec![hidden, 1, taps],
            Target::File(_) => vec![hidden, taps],
        };
        self.add(&named(block, "conv.conv.weight"), &shape, Kind::Filters, changes);
        if convolution.bias {
            self.add(&named(block, "conv.conv.bias"), &[hidden], Kind::Vector, changes);
        }
    }

    /// Lists router and experts, each layer of each expert on its own; those of gpt-oss in a folder in stacks.
    fn list_experts(
        &mut self,
        block: usize,
        experts: &ExpertsConfig,
        config: &ModelConfig,
        target: Target<'_>,
        changes: &mut BTreeMap<String, Change>,
    ) {
        let stacked = matches!((experts.glu, target), (Glu::Clamped(_), Target::Folder));
        let router = match config.family {
            "mixtral" => "block_sparse_moe.gate",
            "gpt_oss" => "mlp.router",
            _ => "mlp.gate",
        };
        let (hidden, width, count) = (config.hidden_size, experts.intermediate_size, experts.count);
        self.add(&named(block, &format!("{router}.weight")), &[count, hidden], Kind::Router, changes);
        if experts.biases {
            self.add(&named(block, &format!("{router}.bias")), &[count], Kind::Vector, changes);
        }
        let (prefix, names) = config.single_expert_names();
        let [gate, up, down] = names;
        for (stack, layers, outputs, inputs) in [
            ("gate_up_proj", vec![(Site::Gate, gate), (Site::Up, up)], width, hidden),
            ("down_proj", vec![(Site::Down, down)], hidden, width),
        ] {
            for end in [".weight", ".bias"].into_iter().take(1 + usize::from(experts.biases)) {
                let (shape, kind) = match end {
                    ".bias" => (vec![outputs], Kind::Vector),
                    _ => (vec![outputs, inputs], Kind::Matrix),
                };
                let mut layer_of = |expert: usize, (site, layer): &(Site, &str)| {
                    let name = named(block, &format!("{prefix}.{expert}.{layer}{end}"));
                    self.item(&name, &shape, kind, Source::Expert { block, expert, site: *site }, changes)
                };
                let all: Vec<Vec<Item>> =
                    (0..count).map(|expert| layers.iter().map(|layer| layer_of(expert, layer)).collect()).collect();
                if !stacked {
                    self.items.extend(all.into_iter().flatten());
                    continue;
                }
                let both = layers.len() * outputs;
                let (stack, shape) = match end {
                    ".bias" => (format!("{stack}_bias"), vec![count, both]),
                    _ => (stack.to_owned(), vec![count, inputs, both]),
                };
                let own = all.iter().flatten().next().and_then(|layer| layer.own);
                let name = named(block, &format!("{prefix}.{stack}"));
                self.items.push(Item { name, shape, kind, own, change: None, source: Source::Stack(all) });
            }
        }
    }

    fn add(&mut self, name: &str, shape: &[usize], kind: Kind, changes: &mut BTreeMap<String, Change>) {
        let item = self.item(name, shape, kind, Source::Own, changes);
        self.items.push(item);
    }

    fn item(
        &self,
        name: &str,
        shape: &[usize],
        kind: Kind,
        source: Source,
        changes: &mut BTreeMap<String, Change>,
    ) -> Item {
        let change = changes.remove(name.strip_prefix("model.").unwrap_or(name));
        let own =
            if kind == Kind::Matrix && self.quantize.is_some() { None } else { self.own_type(name, kind, &source) };
        Item { name: name.to_owned(), shape: shape.to_vec(), kind, own, change, source }
    }

    /// Returns the type of the base's tensor that has the values of `name`; `None` if it is quantized.
    fn own_type(&self, name: &str, kind: Kind, source: &Source) -> Option<WeightType> {
        match source {
            Source::Own => self.plain_type(name),
            Source::Rows { name, .. } => self.plain_type(name),
            Source::Joined(parts) => parts.first().and_then(|(name, _)| self.plain_type(name)),
            Source::Expert { block, site, .. } => self.plain_type(name).or_else(|| {
                let stack = if *site == Site::Down { "down_proj" } else { "gate_up_proj" };
                let end = if kind == Kind::Vector { "_bias" } else { "" };
                self.plain_type(&named(*block, &format!("mlp.experts.{stack}{end}")))
            }),
            Source::Stack(_) => None,
        }
    }

    /// Returns the type of the base's tensor `name`; `None` if it is quantized.
    fn plain_type(&self, name: &str) -> Option<WeightType> {
        match self.weights.stored_type(name)? {
            StoredType::Safetensors(dtype) => WeightType::of_dtype(dtype),
            StoredType::Blocks(kind) => WeightType::of_blocks(kind),
        }
    }

    /// Returns true if the base has no head beside the embedding, or the same once more.
    fn has_no_other_head(&self, shape: [usize; 2]) -> Result<bool> {
        if !self.weights.has("lm_head.weight") {
            return Ok(true);
        }
        let [head, embedding] =
            ["lm_head.weight", "model.embed_tokens.weight"].map(|name| self.weights.get(name, &shape));
        Ok(head?.ne(&embedding?)?.max_all()?.to_scalar::<u8>()? == 0)
    }

    /// Refuses a GGUF file with a tensor that is in no item. To be asked when all values were read.
    pub(super) fn check_all_read(&self) -> Result<()> {
        self.weights.check_all_read()
    }
}

impl Item {
    /// Returns true if the adapter changes a part of the tensor.
    pub(super) fn is_changed(&self) -> bool {
        let in_stack = match &self.source {
            Source::Stack(experts) => experts.iter().flatten().any(Self::is_changed),
            _ => false,
        };
        self.change.is_some() || in_stack
    }
}

/// Refuses encoders, which keep the form of their base.
pub(super) fn refuse_encoder(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<()> {
    if config.is_encoder {
        let advice = "encoders are written in the base's form alone, from weights that are not quantized: the forms differ in \
                      what they can say of how vectors are made";
        return Err(checkpoint.fault(advice));
    }
    Ok(())
}

/// Returns the name of `rest` in a block.
fn named(block: usize, rest: &str) -> String {
    format!("model.layers.{block}.{rest}")
}
