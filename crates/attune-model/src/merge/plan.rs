//! What a model is made of: its tensors by transformers' names, with their values as the adapter was trained on them.
//! For outputs whose form is another than the base's.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::addition::Change;
use super::weight_type::WeightType;
use crate::checkpoint::Checkpoint;
use crate::config::QueryKeyNorm;
use crate::kernels::Kernels;
use crate::linear::{Linear, Storage};
use crate::matrix::Matrix;
use crate::sites::Site;
use crate::weights::Weights;
use crate::{ModelConfig, Result};

/// A tensor of the model.
pub(super) struct Item {
    /// As transformers has it.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: Kind,
    /// Type of the base's tensor; `None` if it is quantized there.
    pub(super) own: Option<WeightType>,
    /// What the adapter adds; `None` if it leaves the tensor as it is.
    pub(super) change: Option<Change>,
}

/// What a tensor is, as far as forms differ in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A matrix that is quantized at load, if any is.
    Matrix,
    /// The matrix that chooses experts, which is always plain.
    Router,
    /// The weights of a norm.
    Norm,
    /// A bias.
    Vector,
}

/// A base model with its tensors.
pub(super) struct Plan {
    pub(super) config: ModelConfig,
    pub(super) items: Vec<Item>,
    /// True if the head is the embedding.
    pub(super) tied: bool,
    weights: Weights,
    quantize: Option<String>,
}

impl Plan {
    /// Lists the tensors of the model in `checkpoint`, whose matrices are served in blocks of the format `quantize`. Takes
    /// from `changes` what belongs to them.
    pub(super) fn of(
        checkpoint: &Checkpoint,
        quantize: Option<&str>,
        changes: &mut BTreeMap<String, Change>,
    ) -> Result<Self> {
        let config = checkpoint.config()?;
        let weights = checkpoint.weights(&Device::Cpu)?;
        if config.attention_sinks {
            let advice = "the experts of gpt-oss have another form in safetensors than in GGUF files, and are written in \
                          the base's form alone";
            return Err(checkpoint.fault(advice));
        }
        if config.convolution.is_some() {
            let advice = "the convolutions of LFM 2 are written in the base's form alone";
            return Err(checkpoint.fault(advice));
        }
        if config.is_encoder {
            let advice = "encoders are written in the base's form alone, from weights that are not quantized: the forms differ in \
                          what they can say of how vectors are made";
            return Err(checkpoint.fault(advice));
        }
        let mut plan = Self { config, items: Vec::new(), tied: false, weights, quantize: quantize.map(str::to_owned) };
        plan.list(changes)?;
        Ok(plan)
    }

    fn list(&mut self, changes: &mut BTreeMap<String, Change>) -> Result<()> {
        let config = self.config.clone();
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        self.add("model.embed_tokens.weight", &[vocabulary, hidden], Kind::Matrix, changes);
        for block in 0..config.num_hidden_layers {
            self.list_block(block, &config, changes)?;
        }
        self.add("model.norm.weight", &[hidden], Kind::Norm, changes);
        self.tied = config.tie_word_embeddings && self.has_no_other_head([vocabulary, hidden])?;
        if !self.tied {
            self.add("lm_head.weight", &[vocabulary, hidden], Kind::Matrix, changes);
        }
        Ok(())
    }

    fn list_block(&mut self, block: usize, config: &ModelConfig, changes: &mut BTreeMap<String, Change>) -> Result<()> {
        let name = |rest: &str| format!("model.layers.{block}.{rest}");
        for norm in config.norm_places.all_names() {
            self.add(&name(&format!("{norm}.weight")), &[config.hidden_size], Kind::Norm, changes);
        }
        if let Some(width) = config.query_key_norm {
            let heads = [("q", config.num_attention_heads), ("k", config.num_key_value_heads)];
            for (part, heads) in heads {
                let heads = if width == QueryKeyNorm::Row { heads } else { 1 };
                let name = name(&format!("self_attn.{part}_norm.weight"));
                self.add(&name, &[heads * config.head_dim], Kind::Norm, changes);
            }
        }
        for module in config.modules_of(block) {
            let (output, input) = module.shape(config);
            self.add(&name(&format!("{}.weight", module.path)), &[output, input], Kind::Matrix, changes);
            let has_bias = module.sites.iter().any(|site| match site {
                Site::Query | Site::Key | Site::Value => config.biases.query_key_value,
                Site::Output => config.biases.output,
                Site::Gate | Site::Up | Site::Down => config.biases.mlp,
                // Models with convolutions are not listed, see `of`.
                Site::ConvolutionInput | Site::ConvolutionOutput => false,
            });
            let bias = name(&format!("{}.bias", module.path));
            if has_bias && self.weights.has(&bias) {
                self.add(&bias, &[output], Kind::Vector, changes);
            }
        }
        if let Some(experts) = &config.experts {
            let router = if config.family == "mixtral" { "block_sparse_moe.gate" } else { "mlp.gate" };
            let (prefix, layers) = config.single_expert_names();
            if self.weights.has(&name("mlp.experts.gate_up_proj")) {
                let advice =
                    "the experts are stacked in one tensor: save the model with transformers, which writes each";
                return Err(self.weights.fault(advice));
            }
            let (hidden, width) = (config.hidden_size, experts.intermediate_size);
            self.add(&name(&format!("{router}.weight")), &[experts.count, hidden], Kind::Router, changes);
            for expert in 0..experts.count {
                for (layer, shape) in layers.iter().zip([[width, hidden], [width, hidden], [hidden, width]]) {
                    self.add(&name(&format!("{prefix}.{expert}.{layer}.weight")), &shape, Kind::Matrix, changes);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, shape: &[usize], kind: Kind, changes: &mut BTreeMap<String, Change>) {
        let change = changes.remove(name.strip_prefix("model.").unwrap_or(name));
        let quantized = kind == Kind::Matrix && self.quantize.is_some();
        let own = if quantized { None } else { self.plain_type(name) };
        self.items.push(Item { name: name.to_owned(), shape: shape.to_vec(), kind, own, change });
    }

    /// Returns the type of the base's tensor `name`; `None` if it is quantized.
    fn plain_type(&self, name: &str) -> Option<WeightType> {
        match self.weights.stored_type(name)? {
            crate::weights::StoredType::Safetensors(dtype) => WeightType::of_dtype(dtype),
            crate::weights::StoredType::Blocks(kind) => WeightType::of_blocks(kind),
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

    /// Returns the values of `item`; those of a norm as the decoder multiplies by them, with 1 added where transformers
    /// adds it.
    pub(super) fn values(&self, item: &Item) -> Result<Vec<f32>> {
        let values = |tensor: &Tensor| Ok(tensor.flatten_all()?.to_vec1::<f32>()?);
        match (item.kind, item.shape.as_slice()) {
            (Kind::Norm, [width]) => values(&self.weights.norm(&item.name, *width, self.config.norms_plus_one)?),
            (Kind::Matrix, [outputs, inputs]) => {
                let matrix = self.weights.matrix(&item.name, [*outputs, *inputs])?;
                as_trained(&matrix, self.quantize.as_deref())
            }
            (_, shape) => values(&self.weights.get(&item.name, shape)?),
        }
    }

    /// Returns the values of `item` with what the adapter adds.
    pub(super) fn merged(&self, item: &Item) -> Result<Vec<f64>> {
        let values = self.values(item)?;
        match &item.change {
            Some(change) => change.sum(&item.name, &item.shape, &values),
            None => Ok(values.into_iter().map(f64::from).collect()),
        }
    }

    /// Refuses a GGUF file with a tensor that is in no item. To be asked when all values were read.
    pub(super) fn check_all_read(&self) -> Result<()> {
        self.weights.check_all_read()
    }
}

/// Returns the values of a matrix as products on the CPU take them where it is served in blocks of the format `quantize`.
pub(super) fn as_trained(matrix: &Matrix, quantize: Option<&str>) -> Result<Vec<f32>> {
    let Some(format) = quantize else {
        return Ok(matrix.dense(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
    };
    let storage = Storage { dtype: None, quantize: Some(format.to_owned()) };
    let weight = matrix.dense(&Device::Cpu)?;
    let rows: Vec<u32> = (0..weight.dim(0)? as u32).collect();
    Ok(Linear::new(&weight, None, &storage, &Kernels::Cpu)?.rows(&rows)?.flatten_all()?.to_vec1::<f32>()?)
}
