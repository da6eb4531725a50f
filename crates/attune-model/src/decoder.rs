//! The decoder of all families: one set of weights, one forward pass, two contexts.
//!
//! Serving ([`Decoder::step`], called by `engine`) attends over a paged cache and applies each row's own adapter.
//! Training (`train/backward.rs`) attends over packed sequences and keeps the activations that [`Block::forward`]
//! returns.

mod head;
mod second_stream;
mod serving;
mod warm_up;

use candle_core::{DType, Device, Tensor};

use crate::ModelConfig;
use crate::Result;
use crate::kernels::Kernels;
pub use crate::kernels::SequenceRows;
use crate::linear::{Linear, Storage};
use crate::lora::{Adapter, Site};
use crate::matrix::Matrix;
use crate::rope::{Angles, Rope};
use crate::weights::Weights;

/// Weights of a model, and the forward pass over them.
#[derive(Debug)]
pub struct Decoder {
    /// `[vocabulary, hidden]`
    embedding: Linear,
    /// Decoder blocks, bottom first.
    pub blocks: Vec<Block>,
    /// `[hidden]`
    pub final_norm: Tensor,
    /// `[vocabulary, hidden]`; `None` if the embedding is the head, too.
    untied_head: Option<Linear>,
    /// Rotary frequencies.
    pub rope: Rope,
    /// Added inside the norms.
    pub norm_eps: f32,
    kernels: Kernels,
    activation_dtype: DType,
    adapter_precision: DType,
}

/// One decoder block: attention and MLP, each behind a norm, added to the residual stream.
#[derive(Debug)]
pub struct Block {
    /// Number of the block, from 0.
    pub index: usize,
    /// `input_layernorm`: the norm before attention, `[hidden]`.
    pub input_layernorm: Tensor,
    /// `self_attn.q_proj`
    pub q: Linear,
    /// `self_attn.k_proj`
    pub k: Linear,
    /// `self_attn.v_proj`
    pub v: Linear,
    /// `self_attn.o_proj`
    pub o: Linear,
    /// `self_attn.q_norm` and `self_attn.k_norm`, `[head_dim]` each; `None` if the family has none (Qwen 3 has).
    pub query_key_norm: Option<(Tensor, Tensor)>,
    /// `post_attention_layernorm`: the norm before the MLP, `[hidden]`.
    pub post_attention_layernorm: Tensor,
    /// `mlp.gate_proj`
    pub gate: Linear,
    /// `mlp.up_proj`
    pub up: Linear,
    /// `mlp.down_proj`
    pub down: Linear,
    /// Tokens that attention looks back, itself included.
    pub window: Option<usize>,
    /// False where positions are not rotated.
    pub rotary: bool,
    /// Added to the mean of the squares in every norm of the block.
    pub norm_eps: f32,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    kernels: Kernels,
}

/// Adapters of the rows of a block.
pub trait LowRank {
    /// Adds the low-rank parts of the linear layers at `sites` (one of [`GROUPS`](crate::routes::GROUPS)) to `outputs`
    /// `[rows, out]`, the base's products of `x` `[rows, in]`.
    fn add_lora(&self, layer: usize, sites: &[Site], x: &Tensor, outputs: &mut [Tensor]) -> Result<()>;
}

/// Rows of a forward pass beside their values: adapters, sequences and positions.
pub trait Context: LowRank {
    /// Computes causal attention of `q` `[rows, heads, head_dim]` over `k`, `v` `[rows, kv_heads, head_dim]`: the
    /// output `[rows, heads, head_dim]`, and the logarithm of each softmax's sum `[rows, heads]`.
    fn attend(&self, block: &Block, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)>;

    /// Returns cosines and sines of the rows' positions.
    fn angles(&self) -> &Angles;
}

/// Intermediate results of a block, as the backward pass needs them. Rows are tokens.
#[derive(Debug)]
pub struct Activations {
    /// Input of the block, `[rows, hidden]`.
    pub input: Tensor,
    /// Normed input of attention, `[rows, hidden]`.
    pub attention_input: Tensor,
    /// Query and key before their norms, `[rows, heads, head_dim]`; `None` if the family has none.
    pub unnormed: Option<(Tensor, Tensor)>,
    /// Rotated queries, `[rows, heads, head_dim]`.
    pub q: Tensor,
    /// Rotated keys, `[rows, kv_heads, head_dim]`.
    pub k: Tensor,
    /// Values, `[rows, kv_heads, head_dim]`.
    pub v: Tensor,
    /// Attention's output, `[rows, heads · head_dim]`.
    pub attended: Tensor,
    /// Logarithm of each softmax's sum, `[rows, heads]`.
    pub log_sum_exp: Tensor,
    /// Residual stream between attention and MLP, `[rows, hidden]`.
    pub middle: Tensor,
    /// Normed input of the MLP, `[rows, hidden]`.
    pub mlp_input: Tensor,
    /// `[rows, intermediate]`
    pub gate: Tensor,
    /// `[rows, intermediate]`
    pub up: Tensor,
    /// silu(gate) · up, `[rows, intermediate]`.
    pub gated: Tensor,
}

/// Queries and keys as attention takes them, the result of [`Block::norm_and_rotate`].
pub struct RotatedHeads {
    /// Rotated queries, `[rows, heads, head_dim]`.
    pub q: Tensor,
    /// Rotated keys, `[rows, kv_heads, head_dim]`.
    pub k: Tensor,
    /// Query and key before their norms, `[rows, heads, head_dim]`; `None` if the family has none.
    pub unnormed: Option<(Tensor, Tensor)>,
}

impl Block {
    fn load(
        index: usize,
        config: &ModelConfig,
        weights: &Weights,
        storage: &Storage,
        kernels: &Kernels,
    ) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let query_width = config.num_attention_heads * config.head_dim;
        let key_width = config.num_key_value_heads * config.head_dim;
        let prefix = format!("model.layers.{index}");
        let norm = |name: &str, width: usize| weights.get(&format!("{prefix}.{name}.weight"), &[width]);
        let linear = |site: Site, input: usize, output: usize| -> Result<Linear> {
            let name = format!("{prefix}.{}", site.path());
            let weight = weights.matrix(&format!("{name}.weight"), [output, input])?;
            let bias_name = format!("{name}.bias");
            let has_bias = match site {
                Site::Query | Site::Key | Site::Value => config.biases.query_key_value,
                Site::Output => config.biases.output,
                Site::Gate | Site::Up | Site::Down => config.biases.mlp,
            };
            let bias = if has_bias {
                weights.get_optional(&bias_name, &[output])?
            } else {
                if weights.has(&bias_name) {
                    tracing::warn!(tensor = bias_name, "config.json has no such bias: it is not read");
                }
                None
            };
            Linear::of(&weight, bias, storage, kernels)
        };
        let query_key_norm = if config.query_key_norm {
            Some((norm("self_attn.q_norm", config.head_dim)?, norm("self_attn.k_norm", config.head_dim)?))
        } else {
            None
        };
        Ok(Self {
            index,
            input_layernorm: norm("input_layernorm", hidden)?,
            q: linear(Site::Query, hidden, query_width)?,
            k: linear(Site::Key, hidden, key_width)?,
            v: linear(Site::Value, hidden, key_width)?,
            o: linear(Site::Output, query_width, hidden)?,
            query_key_norm,
            post_attention_layernorm: norm("post_attention_layernorm", hidden)?,
            gate: linear(Site::Gate, hidden, intermediate)?,
            up: linear(Site::Up, hidden, intermediate)?,
            down: linear(Site::Down, intermediate, hidden)?,
            window: config.sliding_windows[index],
            rotary: config.rotary[index],
            norm_eps: config.rms_norm_eps,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            kernels: kernels.clone(),
        })
    }

    /// Returns the kernels that the block's layers run on.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Returns the frozen layer at `site`.
    pub fn linear(&self, site: Site) -> &Linear {
        match site {
            Site::Query => &self.q,
            Site::Key => &self.k,
            Site::Value => &self.v,
            Site::Output => &self.o,
            Site::Gate => &self.gate,
            Site::Up => &self.up,
            Site::Down => &self.down,
        }
    }

    /// Computes the products of `x` `[rows, in]` with the layers at `sites`, adapters included, `[rows, out]` each.
    fn project<const N: usize>(&self, sites: [Site; N], x: &Tensor, context: &impl LowRank) -> Result<[Tensor; N]> {
        let mut outputs = Linear::forward_each(sites.map(|site| self.linear(site)), x, None)?;
        context.add_lora(self.index, &sites, x, &mut outputs)?;
        Ok(outputs)
    }

    /// Computes `residual` plus the product of `x` `[rows, in]` with the layer at `site`, adapters included,
    /// `[rows, out]`.
    fn project_onto(&self, residual: &Tensor, site: Site, x: &Tensor, context: &impl LowRank) -> Result<Tensor> {
        let mut output = [self.linear(site).forward_onto(residual, x)?];
        context.add_lora(self.index, &[site], x, &mut output)?;
        let [output] = output;
        Ok(output)
    }

    /// Computes the block's output `[rows, hidden]` of `x` `[rows, hidden]`, and all intermediate results.
    pub fn forward(&self, x: Tensor, context: &impl Context) -> Result<(Tensor, Activations)> {
        let activations = self.activations(x, context)?;
        let y = self.project_onto(&activations.middle, Site::Down, &activations.gated, context)?; // [rows, hidden]
        Ok((y, activations))
    }

    /// Computes the intermediate results of [`Block::forward`]: all but its last product.
    pub fn activations(&self, x: Tensor, context: &impl Context) -> Result<Activations> {
        let rows = x.dim(0)?;

        // Attention: middle = x + W_o · attend(q, k, v)
        let attention_input = self.kernels.rms_norm(&x, &self.input_layernorm, self.norm_eps)?; // [rows, hidden]
        let [q, k, v] = self.project([Site::Query, Site::Key, Site::Value], &attention_input, context)?;
        let q = q.reshape((rows, self.heads, self.head_dim))?;
        let k = k.reshape((rows, self.kv_heads, self.head_dim))?;
        let v = v.reshape((rows, self.kv_heads, self.head_dim))?;
        let RotatedHeads { q, k, unnormed } = self.norm_and_rotate(q, k, context.angles())?;
        let (attended, log_sum_exp) = context.attend(self, &q, &k, &v)?; // [rows, heads, head_dim]
        let attended = attended.reshape((rows, self.heads * self.head_dim))?;
        let middle = self.project_onto(&x, Site::Output, &attended, context)?; // [rows, hidden]

        // MLP: y = middle + W_down · (silu(W_gate · m) · (W_up · m))
        let mlp_input = self.kernels.rms_norm(&middle, &self.post_attention_layernorm, self.norm_eps)?; // [rows, hidden]
        let [gate, up] = self.project([Site::Gate, Site::Up], &mlp_input, context)?; // [rows, intermediate] each
        let gated = self.kernels.swiglu(&gate, &up)?; // [rows, intermediate]

        Ok(Activations {
            input: x,
            attention_input,
            unnormed,
            q,
            k,
            v,
            attended,
            log_sum_exp,
            middle,
            mlp_input,
            gate,
            up,
            gated,
        })
    }

    /// Norms, if the family does, and rotates query and key `[rows, heads, head_dim]`.
    pub fn norm_and_rotate(&self, mut q: Tensor, mut k: Tensor, angles: &Angles) -> Result<RotatedHeads> {
        let mut unnormed = None;
        if let Some((q_norm, k_norm)) = &self.query_key_norm {
            let normed_q = self.kernels.rms_norm(&q, q_norm, self.norm_eps)?;
            let normed_k = self.kernels.rms_norm(&k, k_norm, self.norm_eps)?;
            unnormed = Some((std::mem::replace(&mut q, normed_q), std::mem::replace(&mut k, normed_k)));
        }
        if self.rotary {
            (q, k) = self.kernels.rope(&q, &k, angles)?;
        }
        Ok(RotatedHeads { q, k, unnormed })
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
        let embedding = weights.matrix("model.embed_tokens.weight", [config.vocab_size, config.hidden_size])?;
        let untied_head = head::untied(config, weights, &embedding)?;
        let table = |weight: &Matrix| Linear::table_of(weight, storage, kernels);
        let untied_head = untied_head.as_ref().map(table).transpose()?;
        let embedding = table(&embedding)?;
        let blocks = (0..config.num_hidden_layers).map(|index| Block::load(index, config, weights, storage, kernels));
        Ok(Self {
            embedding,
            blocks: blocks.collect::<Result<_>>()?,
            final_norm: weights.get("model.norm.weight", &[config.hidden_size])?,
            untied_head,
            rope: Rope::new(config),
            norm_eps: config.rms_norm_eps,
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

    /// Looks up the embeddings of `tokens`, `[rows, hidden]`.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        self.embedding.rows(tokens)
    }

    /// Computes logits `[rows, vocabulary]` of hidden states `[rows, hidden]`, in their type.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head().forward(hidden)
    }

    /// Counts the bytes of the weight matrices in memory.
    pub fn weight_bytes(&self) -> usize {
        let layers = self.blocks.iter().flat_map(|block| Site::ALL.map(|site| block.linear(site).bytes()));
        layers.sum::<usize>() + self.embedding.bytes() + self.untied_head.as_ref().map_or(0, Linear::bytes)
    }

    /// Returns the layer from hidden states to logits.
    pub fn head(&self) -> &Linear {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }
}
