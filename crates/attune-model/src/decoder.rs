//! The decoder of all families, encoders included, which are decoders that look both ways: one set of weights, one forward
//! pass, and contexts for what goes through it.
//!
//! Serving ([`Decoder::step`], called by `engine`) attends over a paged cache and applies each row's own adapter.
//! Training (`train/backward.rs`) attends over packed sequences and keeps the activations that [`Block::forward`]
//! returns. Encoders serve whole texts, packed as in training ([`Decoder::encode`]).

mod attention;
mod convolution;
mod distance;
mod embeddings;
mod encoding;
mod experts;
mod head;
mod loading;
mod mixer;
mod mlp;
mod norm;
mod projection;
mod residual;
mod second_stream;
mod serving;
mod warm_up;

use candle_core::{DType, Device, Tensor};

pub use self::attention::{Attention, AttentionActivations, RotatedHeads};
pub use self::convolution::{Convolution, ConvolutionActivations};
pub use self::embeddings::{Embeddings, RowPlace};
pub use self::encoding::TextRows;
pub use self::experts::{Expert, ExpertActivations, Experts, Group, Routing};
pub(crate) use self::experts::{ExpertForm, ExpertTensors};
use self::loading::BlockWeights;
pub use self::mixer::{Mixer, MixerActivations};
pub use self::mlp::{DenseActivations, DenseMlp, Mlp, MlpActivations};
pub use self::norm::{NormForm, NormLayer};
pub use self::projection::Projection;
pub use self::residual::{Added, Residual};
use crate::ModelConfig;
use crate::Result;
pub use crate::kernels::SequenceRows;
use crate::kernels::{Kernels, LogitForm};
use crate::linear::{Linear, Storage};
use crate::lora::{Adapter, Site};
use crate::matrix::Matrix;
use crate::rope::{Angles, Rope, RopeTable};
use crate::weights::Weights;

/// Weights of a model, and the forward pass over them.
#[derive(Debug)]
pub struct Decoder {
    /// Rows of the tokens, and what encoders add to them.
    pub embeddings: Embeddings,
    /// Decoder blocks, bottom first.
    pub blocks: Vec<Block>,
    /// Norm behind the last block, `[hidden]`; `None` if the family has none.
    pub final_norm: Option<NormLayer>,
    /// `[vocabulary, hidden]`; `None` if the embedding is the head, too.
    untied_head: Option<Linear>,
    /// Rotary frequencies, by kind.
    pub ropes: Vec<Rope>,
    /// Makes logits of the head's products.
    pub logit_form: LogitForm,
    /// True if texts are read as a whole, see [`Decoder::encode`].
    is_encoder: bool,
    kernels: Kernels,
    activation_dtype: DType,
    adapter_precision: DType,
}

/// One decoder block: mixer and MLP, each added to the residual stream.
#[derive(Debug)]
pub struct Block {
    /// Number of the block, from 0.
    pub index: usize,
    /// The stream around the mixer.
    pub mixer_residual: Residual,
    /// Attention, or what stands in its place.
    pub mixer: Mixer,
    /// The stream around the MLP.
    pub mlp_residual: Residual,
    /// The MLP.
    pub mlp: Mlp,
}

/// Adapters of the rows of a block. Experts ask from several threads at a time.
pub trait LowRank: Sync {
    /// Adds the low-rank parts of the linear layers at `sites` (one of [`GROUPS`](crate::routes::GROUPS)) to `outputs`
    /// `[rows, out]`, the base's products of `x` `[rows, in]`.
    fn add_lora(&self, layer: usize, sites: &[Site], x: &Tensor, outputs: &mut [Tensor]) -> Result<()>;

    /// Adds the low-rank parts of an expert's layers at `sites`, gate and up or down, to `outputs`
    /// `[rows of the group, out]`, the base's products of `x` `[rows of the group, in]`.
    fn add_expert_lora(
        &self,
        layer: usize,
        group: &Group,
        sites: &[Site],
        x: &Tensor,
        outputs: &mut [Tensor],
    ) -> Result<()>;
}

/// The context of rows without adapters.
#[derive(Debug, Clone, Copy)]
pub struct BaseAlone;

impl LowRank for BaseAlone {
    fn add_lora(&self, _: usize, _: &[Site], _: &Tensor, _: &mut [Tensor]) -> Result<()> {
        Ok(())
    }

    fn add_expert_lora(&self, _: usize, _: &Group, _: &[Site], _: &Tensor, _: &mut [Tensor]) -> Result<()> {
        Ok(())
    }
}

/// Rows of a forward pass beside their values: adapters, sequences and positions.
pub trait Context: LowRank {
    /// Computes causal attention of `q` `[rows, heads, head_dim]` over `k`, `v` `[rows, kv_heads, head_dim]`: the
    /// output `[rows, heads, head_dim]`, and the logarithm of each softmax's sum `[rows, heads]`.
    fn attend(&self, attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)>;

    /// Computes C ⊙ convolve(B ⊙ x), `[rows, hidden]`, along each sequence, of `projected` B, C and x `[rows, 3 ·
    /// hidden]`.
    fn convolve(&self, convolution: &Convolution, projected: &Tensor) -> Result<Tensor>;

    /// Returns cosines and sines of the rows' positions for the kind `rope` of rotation.
    fn angles(&self, rope: usize) -> &Angles;
}

/// Intermediate results of a block, as the backward pass needs them. Rows are tokens.
#[derive(Debug)]
pub struct Activations {
    /// Input of the block, `[rows, hidden]`.
    pub input: Tensor,
    /// Normed input of the mixer, `[rows, hidden]`.
    pub mixer_input: Tensor,
    /// Those of the mixer.
    pub mixer: MixerActivations,
    /// Input of the norm behind the mixer, see [`Added::kept`].
    pub mixer_branch: Option<Tensor>,
    /// Residual stream between mixer and MLP, `[rows, hidden]`.
    pub middle: Tensor,
    /// Normed input of the MLP, `[rows, hidden]`.
    pub mlp_input: Tensor,
    /// Those of the MLP.
    pub mlp: MlpActivations,
    /// Input of the norm behind the MLP, see [`Added::kept`].
    pub mlp_branch: Option<Tensor>,
}

impl Block {
    fn load(from: &BlockWeights<'_>) -> Result<Self> {
        Ok(Self {
            index: from.index,
            mixer_residual: from.residual(true)?,
            mixer: Mixer::load(from)?,
            mlp_residual: from.residual(false)?,
            mlp: Mlp::load(from)?,
        })
    }

    /// Computes the block's output `[rows, hidden]` of `x` `[rows, hidden]`, and all intermediate results.
    pub fn forward(&self, x: Tensor, context: &impl Context) -> Result<(Tensor, Activations)> {
        let (activations, output) = self.activations(x, context)?;
        let y = match output {
            Some(y) => y,
            None => self.mlp.output(&self.mlp_residual, &activations.middle, &activations.mlp, context)?.y,
        };
        Ok((y, activations))
    }

    /// Computes the intermediate results of [`Block::forward`]: all but its last product, unless the backward pass
    /// needs that too; then the output is returned beside them.
    pub fn activations(&self, x: Tensor, context: &impl Context) -> Result<(Activations, Option<Tensor>)> {
        // Attention: middle = behind(x + m · after(W_o · attend(q, k, v))), with q, k, v of before(x)
        let mixer_input = self.mixer_residual.input(&x)?; // [rows, hidden]
        let mixer = self.mixer.activations(&mixer_input, context)?;
        let (last, inner) = (self.mixer.last(), mixer.inner());
        let Added { y: middle, kept: mixer_branch } = self.mixer_residual.add_projection(&x, last, inner, context)?;

        // MLP: y = behind(middle + m · after(mlp(before(middle))))
        let mlp_input = self.mlp_residual.input(&middle)?; // [rows, hidden]
        let mlp = self.mlp.activations(&mlp_input, context)?;
        let (mut output, mut mlp_branch) = (None, None);
        if self.mlp_residual.keeps() {
            let added = self.mlp.output(&self.mlp_residual, &middle, &mlp, context)?;
            (output, mlp_branch) = (Some(added.y), added.kept);
        }
        let activations =
            Activations { input: x, mixer_input, mixer, mixer_branch, middle, mlp_input, mlp, mlp_branch };
        Ok((activations, output))
    }

    /// Returns the experts in the place of the MLP; `None` if the family has none.
    pub fn experts(&self) -> Option<&Experts> {
        match &self.mlp {
            Mlp::Experts(experts) => Some(experts),
            Mlp::Dense(_) => None,
        }
    }

    /// Returns the layers that adapters may change.
    fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.mixer.projections().into_iter().chain(self.mlp.projections())
    }
}

impl Decoder {
    /// Builds the decoder from a checkpoint's tensors, its weight matrices held as `storage` says, on the device that
    /// `weights` are loaded onto.
    pub fn load(config: &ModelConfig, weights: &Weights, storage: &Storage) -> Result<Self> {
        Self::load_on(config, weights, storage, &Kernels::of(weights.device())?)
    }

    /// Builds the same decoder over `kernels`, whose device `weights` are loaded onto.
    pub fn load_on(config: &ModelConfig, weights: &Weights, storage: &Storage, kernels: &Kernels) -> Result<Self> {
        storage.check_on(kernels)?;
        if config.overflows_f16 && storage.activation_dtype(kernels) == DType::F16 {
            return Err(weights.fault("activations of this family overflow in f16: take dtype = \"bf16\" or \"f32\""));
        }
        let name = format!("{}.weight", config.embedding_name);
        let embedding = weights.matrix(&name, [config.vocab_size, config.hidden_size])?;
        let untied_head = head::untied(config, weights, &embedding)?;
        let table = |weight: &Matrix| Linear::table_of(weight, storage, kernels);
        let untied_head = untied_head.as_ref().map(table).transpose()?;
        let embeddings = Embeddings::load(config, weights, table(&embedding)?, storage, kernels)?;
        let block = |index| Block::load(&BlockWeights { index, config, weights, storage, kernels });
        let blocks = (0..config.num_hidden_layers).map(block);
        Ok(Self {
            embeddings,
            blocks: blocks.collect::<Result<_>>()?,
            final_norm: norm::final_norm(config, weights, kernels)?,
            untied_head,
            ropes: config.ropes.iter().map(|rope| Rope::new(config.head_dim, rope)).collect(),
            logit_form: config.logit_form,
            is_encoder: config.is_encoder,
            kernels: kernels.clone(),
            activation_dtype: storage.activation_dtype(kernels),
            adapter_precision: storage.adapter_precision(kernels),
        })
    }

    /// Returns the type that adapters are held in while they are served, f32, bf16 or f16: as precise as the weights
    /// that they change.
    pub fn adapter_precision(&self) -> DType {
        self.adapter_precision
    }

    /// Converts the adapter to the layout and type that steps of this decoder read fastest.
    pub fn served(&self, adapter: &Adapter) -> Result<Adapter> {
        match &self.kernels {
            Kernels::Cpu => adapter.for_serving(self.adapter_precision),
            Kernels::Gpu(gpu) => adapter.on(gpu.device(), self.adapter_precision),
        }
    }

    /// Returns the type of values between the layers: f32 on the CPU, on a GPU that of the weights (f32, bf16 or f16).
    pub fn activation_dtype(&self) -> DType {
        self.activation_dtype
    }

    /// Returns the factor on the gradients between the layers, about `wanted`: without it those of f16 would be too
    /// small for its range (Micikevicius et al., "Mixed precision training", 2018). 1 for other types.
    pub fn gradient_scale(&self, wanted: f64) -> f64 {
        if self.activation_dtype == DType::F16 { wanted.max(1.0).log2().floor().exp2() } else { 1.0 }
    }

    /// Returns the device that the weights are on.
    pub fn device(&self) -> &Device {
        self.kernels.device()
    }

    /// Returns the kernels that the decoder runs on.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Looks up the embeddings of `tokens` at their `places`, `[rows, hidden]`.
    pub fn embed(&self, tokens: &[u32], places: &[RowPlace]) -> Result<Tensor> {
        self.embeddings.rows(tokens, places)
    }

    /// Norms the hidden states `x` `[rows, hidden]` of the last block.
    pub fn hidden(&self, x: Tensor) -> Result<Tensor> {
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// Computes logits `[rows, vocabulary]` of hidden states `[rows, hidden]`, in their type.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.kernels.to_logits(self.head().forward(hidden)?, self.logit_form)
    }

    /// Returns the tokens up to which a sequence is rotated by the table of short ones; `None` if there is one table.
    pub fn short_context(&self) -> Option<usize> {
        self.ropes.iter().find_map(Rope::short_context)
    }

    /// Returns the table of a sequence that may come to have `tokens` rows.
    pub fn rope_table(&self, tokens: usize) -> RopeTable {
        RopeTable::of(tokens, self.short_context())
    }

    /// Computes cosines and sines of the rows at `places`, by kind of rotation.
    pub fn angles(&self, places: &[RowPlace]) -> Result<Vec<Angles>> {
        let rows = || places.iter().map(|place| (place.position, place.table));
        self.ropes.iter().map(|rope| rope.angles(rows(), self.device())).collect()
    }

    /// Counts the bytes of the weight matrices in memory.
    pub fn weight_bytes(&self) -> usize {
        let layers = self.blocks.iter().flat_map(Block::projections).map(|layer| layer.linear.bytes());
        let experts = self.blocks.iter().filter_map(Block::experts).map(Experts::bytes);
        layers.sum::<usize>()
            + experts.sum::<usize>()
            + self.embeddings.bytes()
            + self.untied_head.as_ref().map_or(0, Linear::bytes)
    }

    /// Returns the layer from hidden states to logits.
    pub fn head(&self) -> &Linear {
        self.untied_head.as_ref().unwrap_or(&self.embeddings.words)
    }
}
