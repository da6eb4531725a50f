//! The shape of a decoder, read from a checkpoint's `config.json` as transformers writes it: in the current spelling
//! (`rope_parameters`, `layer_types`) and in the older one (`rope_theta`, `rope_scaling`, `use_sliding_window`). Fields
//! that are missing have the values that transformers' configuration classes give them. Read when a model is loaded,
//! used by the decoder.

mod defaults;
mod encoders;
mod experts;
mod families;
mod fields;
mod ropes;

use std::path::Path;

use self::defaults::Defaults;
pub use self::encoders::{EncoderConfig, PositionTable, RenamedBlocks};
pub use self::experts::{ExpertsConfig, Glu, GluLimits};
use self::families::Family;
use self::fields::Fields;
use crate::forms::{Activation, LogitForm};
use crate::rope_scaling::{QueryScaling, RopeScaling};
use crate::sites::{self, BlockNames, Module, Site};
use crate::{Error, Result};

/// The shape of a decoder.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "independent flags of families")]
pub struct ModelConfig {
    /// Family, as the file's `model_type` names it. What it means for the maths stands in the other fields.
    pub family: &'static str,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; fewer than query heads with grouped-query attention.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Tokens that the model can attend to.
    pub max_position_embeddings: usize,
    /// Epsilon that the norms add to the mean square.
    pub rms_norm_eps: f32,
    /// Kinds of rotary embeddings; most families have one.
    pub ropes: Vec<RopeParameters>,
    /// True if the output head is the embedding, unless the checkpoint has another one.
    pub tie_word_embeddings: bool,
    /// Layers that have biases. Others in the checkpoint are not read, as in transformers.
    pub biases: Biases,
    /// Places of the norms in a block.
    pub norm_places: NormPlaces,
    /// True if the checkpoint's norms hold their weights minus 1 (Gemma).
    pub norms_plus_one: bool,
    /// Norm of queries and keys before the rotation; `None` if they are not normed.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// Factor on the products of queries and keys.
    pub attention_scale: f32,
    /// Cap of attention's scores s, which become cap · tanh(s / cap); `None` if they have none.
    pub attention_cap: Option<f32>,
    /// Activation of the MLP's gate.
    pub activation: Activation,
    /// True if activations overflow in f16 (Gemma).
    pub overflows_f16: bool,
    /// Factor on the embeddings.
    pub embedding_multiplier: f32,
    /// Factor on what attention and MLP add to the residual stream.
    pub residual_multiplier: f32,
    /// Makes logits of the head's products.
    pub logit_form: LogitForm,
    /// Linear layers of a block that adapters can change, as the checkpoint names them: all that it has outside experts.
    pub modules: &'static [Module],
    /// Per block: number of tokens that attention looks back, the current one included; `None` for all.
    pub sliding_windows: Vec<Option<usize>>,
    /// Per block: index of its kind in `ropes`; `None` if positions are not rotated (SmolLM 3).
    pub rotary: Vec<Option<usize>>,
    /// Experts in the place of the blocks' MLP; `None` if the family has none.
    pub experts: Option<ExpertsConfig>,
    /// True if attention has a sink: a learned logit for each head (gpt-oss).
    pub attention_sinks: bool,
    /// Convolutions in the place of some blocks' attention; `None` if the family has none.
    pub convolution: Option<ConvolutionConfig>,
    /// Norms whose names differ from Llama's (LFM 2, encoders): the usual name, and the checkpoint's.
    pub norm_names: &'static [(&'static str, &'static str)],
    /// Name of the embedding in the checkpoint.
    pub embedding_name: &'static str,
    /// Name of the list of blocks in the checkpoint.
    pub blocks_name: &'static str,
    /// True if the model reads whole texts and generates none: attention looks both ways.
    pub is_encoder: bool,
    /// True if a head over the hidden states gives a number for each label.
    pub has_label_head: bool,
    /// What encoders of BERT's kind have beside the parts of a decoder; `None` for all others.
    pub encoder: Option<EncoderConfig>,
}

/// Gated short convolutions along the sequence, one filter for each channel (LFM 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvolutionConfig {
    /// Tokens that a filter looks back, the current one included.
    pub taps: usize,
    /// True if filters and layers have biases.
    pub bias: bool,
    /// Per block: true if it has a convolution in the place of attention.
    pub blocks: Vec<bool>,
}

impl ConvolutionConfig {
    /// Most taps of a filter: what a row needs of earlier ones must lie in two blocks of the cache.
    pub const MOST_TAPS: usize = 16;
}

/// Parameters of one kind of rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParameters {
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching of the frequencies for long contexts.
    pub scaling: RopeScaling,
    /// Share of each head that is rotated, its first elements (Phi-4-mini); 1 for all.
    pub share: f64,
    /// Growth of the rotated queries; `None` if they do not grow (they do in Ministral 3).
    pub query_scaling: Option<QueryScaling>,
}

impl RopeParameters {
    /// Returns parameters for all elements of a head.
    pub const fn whole(theta: f64, scaling: RopeScaling) -> Self {
        Self { theta, scaling, share: 1.0, query_scaling: None }
    }

    /// Returns how many elements of a head of `head_dim` are rotated.
    pub fn rotated(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.share) as usize
    }

    /// Refuses what does not fit heads of `head_dim` elements.
    fn check(&self, head_dim: usize) -> Result<(), String> {
        let rotated = self.rotated(head_dim);
        if rotated == 0 || rotated > head_dim || !rotated.is_multiple_of(2) {
            return Err(format!("partial_rotary_factor {}: it rotates {rotated} of {head_dim} elements", self.share));
        }
        self.scaling.check(rotated)
    }
}

/// Places of the norms in a block, which adds attention's and the MLP's results to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlaces {
    /// Norms of the inputs of attention and MLP (Llama and most others).
    Before,
    /// Norms of their inputs and of their results (Gemma 2 and 3).
    Around,
    /// Norms of their results alone (OLMo 2 and 3).
    After,
    /// Norms of the stream once their results were added (BERT).
    Behind,
}

/// Names of the norms around a branch of a block, as Llama and those after it call them; `None` where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NormNames {
    /// Norm of the branch's input.
    pub before: Option<&'static str>,
    /// Norm of the branch's result.
    pub after: Option<&'static str>,
    /// Norm of the stream behind the branch.
    pub behind: Option<&'static str>,
}

impl NormPlaces {
    /// Returns the names of the norms around attention (`true`) or the MLP.
    pub fn names(self, of_attention: bool) -> NormNames {
        let (input, attended) = (Some("input_layernorm"), Some("post_attention_layernorm"));
        let (middle, computed) = (Some("pre_feedforward_layernorm"), Some("post_feedforward_layernorm"));
        let (before, after, behind) = match (self, of_attention) {
            (Self::Before, true) => (input, None, None),
            (Self::Before, false) => (attended, None, None),
            (Self::Around, true) => (input, attended, None),
            (Self::Around, false) => (middle, computed, None),
            (Self::After, true) => (None, attended, None),
            (Self::After, false) => (None, computed, None),
            (Self::Behind, true) => (None, None, attended),
            (Self::Behind, false) => (None, None, computed),
        };
        NormNames { before, after, behind }
    }

    /// Returns the names of all norms around attention and MLP.
    pub fn all_names(self) -> impl Iterator<Item = &'static str> {
        let names = [true, false].map(|of_attention| self.names(of_attention));
        names.into_iter().flat_map(|names| [names.before, names.after, names.behind]).flatten()
    }
}

/// What a norm of queries and keys spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// Each head for itself, with weights `[head_dim]` that all heads share (Qwen 3, Gemma 3).
    Head,
    /// All heads of a row together, with weights `[heads · head_dim]` (OLMo 2 and 3).
    Row,
}

/// Which linear layers of a block have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// True for those of query, key and value.
    pub query_key_value: bool,
    /// True for attention's output.
    pub output: bool,
    /// True for the three layers of the MLP.
    pub mlp: bool,
}

impl ModelConfig {
    /// Reads and checks `config.json` of `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_file(&folder.join("config.json"))
    }

    /// Reads and checks one configuration file.
    pub fn read_file(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))?;
        Self::parse(&text).map_err(|message| Error::Setup(format!("{}: {message}", file.display())))
    }

    /// Reads and checks the text of a `config.json`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields = Fields::parse(text)?;
        let family = Family::of(fields.text("model_type")?.ok_or("`model_type` is missing")?)?;
        let fields = match family.inside {
            Some(model_type) => fields.inside(model_type)?,
            None => fields,
        };
        let fields = fields.with_usual_names();
        check_supported(&fields, family)?;
        let mut config = Self::of_fields(&fields, family)?;
        (family.apply)(&fields, &mut config)?;
        // transformers makes any decoder look both ways.
        let looks_back = !fields.has("is_causal") || fields.flag("is_causal", false)?;
        if !looks_back && (family.reads_both_ways || !config.is_encoder) {
            return Err("`is_causal` false is not supported for this model_type: attention looks back only".into());
        }
        if config.experts.is_some() {
            config.modules = &sites::ATTENTION;
        }
        if config.ropes.is_empty() {
            config.ropes = vec![ropes::read(&fields, &family.defaults, config.max_position_embeddings)?];
        }
        for rope in &config.ropes {
            rope.check(config.head_dim)?;
        }
        Ok(config)
    }

    /// Returns the convolutions of the model if `block` has one in the place of attention.
    pub fn convolution_of(&self, block: usize) -> Option<&ConvolutionConfig> {
        self.convolution.as_ref().filter(|convolution| convolution.blocks.get(block) == Some(&true))
    }

    /// Returns the layers of the blocks as PEFT's files name them.
    pub fn block_names(&self) -> BlockNames {
        let blocks = match &self.encoder {
            Some(encoder) if self.has_label_head => encoder.blocks_beside_head,
            // PEFT's names are those of a model without a head.
            Some(_) => self.blocks_name.strip_prefix("model.").unwrap_or(self.blocks_name),
            None => self.blocks_name,
        };
        BlockNames {
            blocks,
            modules: self.modules,
            experts_interleaved: self.experts.is_some_and(|experts| experts.biases),
        }
    }

    /// Returns the names that PEFT's files may have for the layers of the blocks: the usual ones, and those of code that
    /// renames them.
    pub fn adapter_names(&self) -> impl Iterator<Item = BlockNames> {
        let renamed = self.encoder.as_ref().and_then(|encoder| encoder.renamed).map(|renamed| {
            let blocks = if self.has_label_head { renamed.blocks_beside_head } else { renamed.blocks };
            BlockNames { blocks, modules: renamed.modules, experts_interleaved: false }
        });
        std::iter::once(self.block_names()).chain(renamed)
    }

    /// Returns the layers of `block` that adapters can change, in the order of the forward pass.
    pub fn modules_of(&self, block: usize) -> impl Iterator<Item = &'static Module> + use<> {
        let convolves = self.convolution_of(block).is_some();
        self.modules.iter().filter(move |module| is_there(module, convolves))
    }

    /// Returns the parameters with the layers of all experts of a block that adapters can change; none without experts.
    pub fn expert_modules(&self) -> &'static [Module] {
        if self.experts.is_some() { &sites::EXPERTS } else { &[] }
    }

    /// Returns the module with the experts of a block, and the names of an expert's gate, up and down in it, as checkpoints
    /// have them where each is a tensor of its own.
    pub fn single_expert_names(&self) -> (&'static str, [&'static str; 3]) {
        if self.family == "mixtral" {
            ("block_sparse_moe.experts", ["w1", "w3", "w2"])
        } else {
            ("mlp.experts", ["gate_proj", "up_proj", "down_proj"])
        }
    }

    /// Returns true if `block` has the layer `module`: in some models, blocks differ.
    pub fn has_module(&self, block: usize, module: &Module) -> bool {
        is_there(module, self.convolution_of(block).is_some())
    }

    /// Returns the places in `block` that adapters can change, in the order of the forward pass.
    pub fn sites_of(&self, block: usize) -> impl Iterator<Item = Site> + use<> {
        self.modules_of(block).flat_map(|module| module.sites).copied()
    }

    /// Returns true if the layers at `site` have biases.
    pub fn has_bias(&self, site: Site) -> bool {
        match site {
            Site::Query | Site::Key | Site::Value => self.biases.query_key_value,
            Site::Output => self.biases.output,
            Site::Gate | Site::Up | Site::Down => self.biases.mlp,
            Site::ConvolutionInput | Site::ConvolutionOutput => {
                self.convolution.as_ref().is_some_and(|convolution| convolution.bias)
            }
        }
    }

    /// Returns the checkpoint's name of the norm that Llama calls `usual`.
    pub fn norm_name(&self, usual: &'static str) -> &'static str {
        self.norm_names.iter().find(|(known, _)| *known == usual).map_or(usual, |(_, name)| name)
    }

    /// Reads the fields that all families have; the others are as in Llama.
    fn of_fields(fields: &Fields, family: &Family) -> Result<Self, String> {
        let defaults = &family.defaults;
        let hidden_size = fields.size("hidden_size", defaults.hidden_size)?;
        let layers = fields.size("num_hidden_layers", defaults.num_hidden_layers)?;
        let (num_attention_heads, num_key_value_heads, head_dim) = heads(fields, defaults, hidden_size)?;
        let max_position_embeddings = fields.size("max_position_embeddings", defaults.max_position_embeddings)?;
        Ok(Self {
            family: family.name,
            hidden_size,
            num_hidden_layers: layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            intermediate_size: fields.size("intermediate_size", defaults.intermediate_size)?,
            vocab_size: fields.size("vocab_size", defaults.vocab_size)?,
            max_position_embeddings,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32,
            ropes: Vec::new(),
            tie_word_embeddings: fields.flag("tie_word_embeddings", defaults.tie_word_embeddings)?,
            biases: Biases { query_key_value: false, output: false, mlp: false },
            norm_places: NormPlaces::Before,
            norms_plus_one: false,
            query_key_norm: None,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_cap: None,
            activation: defaults.activation.read(fields)?,
            overflows_f16: false,
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            logit_form: LogitForm::PLAIN,
            modules: &sites::PLAIN,
            sliding_windows: vec![None; layers],
            rotary: vec![Some(0); layers],
            experts: None,
            attention_sinks: false,
            convolution: None,
            norm_names: &[],
            embedding_name: "model.embed_tokens",
            blocks_name: "model.layers",
            is_encoder: false,
            has_label_head: has_label_head(fields)?,
            encoder: None,
        })
    }
}

/// Refuses, by name, settings that the decoder would not apply.
fn check_supported(fields: &Fields, family: &Family) -> Result<(), String> {
    if fields.flag("use_bidirectional_attention", false)? && !family.reads_both_ways {
        return Err(
            "use_bidirectional_attention is not supported for this model_type: attention looks back only".into()
        );
    }
    crate::quantized::check(|name| fields.get(name))
}

/// Returns true if a block has the layer `module`; one that `convolves` has no attention.
fn is_there(module: &Module, convolves: bool) -> bool {
    module.sites.iter().all(|site| if convolves { !site.is_of_attention() } else { !site.is_of_convolution() })
}

/// Returns true if the file says that the checkpoint classifies sequences.
fn has_label_head(fields: &Fields) -> Result<bool, String> {
    let architectures = fields.list("architectures", serde_json::Value::as_str)?.unwrap_or_default();
    Ok(architectures.iter().any(|name| name.ends_with("ForSequenceClassification")))
}

/// Returns the number of query heads, that of key-value heads, and their width.
fn heads(fields: &Fields, defaults: &Defaults, hidden_size: usize) -> Result<(usize, usize, usize), String> {
    let heads = fields.size("num_attention_heads", defaults.num_attention_heads)?;
    let default = if fields.has("num_key_value_heads") { None } else { defaults.num_key_value_heads };
    let key_value_heads = fields.size("num_key_value_heads", default.unwrap_or(heads))?;
    if !heads.is_multiple_of(key_value_heads) {
        return Err(format!("{heads} attention heads cannot share {key_value_heads} key-value heads evenly"));
    }
    let head_dim = fields.size("head_dim", defaults.head_dim.unwrap_or(hidden_size / heads))?;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(format!("head_dim {head_dim} must be even"));
    }
    Ok((heads, key_value_heads, head_dim))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
