//! Names of tensors: where in a GGUF file the tensor lies that transformers has under a name, and back. Read by the
//! source of weights, and by whoever writes a file.

use std::ops::Range;

use super::architecture::Architecture;
use super::metadata::Metadata;
use crate::Result;
use crate::sites::Module;

/// Names of a model's tensors in both forms.
#[derive(Debug, Clone)]
pub struct Names {
    architecture: Architecture,
    /// Query heads.
    heads: usize,
    /// Key and value heads.
    kv_heads: usize,
    /// Rows of query, key and value, in this order.
    widths: [usize; 3],
    /// Width of a dense MLP.
    intermediate: usize,
    /// Experts of a block; 0 without experts.
    experts: usize,
}

/// Where a tensor lies in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the file's tensor.
    pub tensor: String,
    /// The part of it.
    pub part: Part,
    /// Heads whose rows have another order in the file than in transformers; `None` if the order is the same.
    pub heads: Option<usize>,
}

/// A part of a file's tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Some rows.
    Rows(Range<usize>),
    /// All rows of one expert.
    Expert(usize),
    /// The first half of the rows of one expert if `second` is false, else the second half.
    ExpertHalf {
        /// The expert.
        expert: usize,
        /// The half.
        second: bool,
    },
}

/// Experts beyond which no file is read: each has names of its own.
const MOST_EXPERTS: usize = 4096;

/// Tensors outside the blocks, by transformers' names.
const OUTSIDE: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Tensors of a block that nearly all architectures have.
const BLOCK: [(&str, &str); 10] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Tensors of a block of LFM 2.
const LFM2: [(&str, &str); 14] = [
    ("operator_norm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.out_proj", "attn_output"),
    ("self_attn.q_layernorm", "attn_q_norm"),
    ("self_attn.k_layernorm", "attn_k_norm"),
    ("conv.in_proj", "shortconv.in_proj"),
    ("conv.conv", "shortconv.conv"),
    ("conv.out_proj", "shortconv.out_proj"),
    ("ffn_norm", "ffn_norm"),
    ("feed_forward.w1", "ffn_gate"),
    ("feed_forward.w3", "ffn_up"),
    ("feed_forward.w2", "ffn_down"),
];

/// The last norm of LFM 2, which is called that of the embedding in both.
const LFM2_NORM: (&str, &str) = ("model.embedding_norm", "token_embd_norm");

/// Tensors of a block that are fused in the files of Phi 3, and in its checkpoints.
const FUSED: [(&str, &str); 2] = [("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")];

/// Names of the tensors of an encoder of BERT's kind.
struct EncoderNames {
    /// Name of the list of blocks, with a dot behind it.
    blocks: &'static str,
    /// Tensors outside the blocks: transformers' names, and names in a file.
    outside: &'static [(&'static str, &'static str)],
    /// Tensors of a block.
    inside: &'static [(&'static str, &'static str)],
}

/// BERT.
const BERT: EncoderNames = EncoderNames {
    blocks: "model.encoder.layer.",
    outside: &[
        ("model.embeddings.word_embeddings", "token_embd"),
        ("model.embeddings.position_embeddings", "position_embd"),
        ("model.embeddings.token_type_embeddings", "token_types"),
        ("model.embeddings.LayerNorm", "token_embd_norm"),
    ],
    inside: &[
        ("attention.self.query", "attn_q"),
        ("attention.self.key", "attn_k"),
        ("attention.self.value", "attn_v"),
        ("attention.output.dense", "attn_output"),
        ("attention.output.LayerNorm", "attn_output_norm"),
        ("intermediate.dense", "ffn_up"),
        ("output.dense", "ffn_down"),
        ("output.LayerNorm", "layer_output_norm"),
    ],
};

/// Nomic's BERT.
const NOMIC_BERT: EncoderNames = EncoderNames {
    blocks: "model.encoder.layers.",
    outside: &[
        ("model.embeddings.word_embeddings", "token_embd"),
        ("model.embeddings.token_type_embeddings", "token_types"),
        ("model.emb_ln", "token_embd_norm"),
    ],
    inside: &[
        ("attn.Wqkv", "attn_qkv"),
        ("attn.out_proj", "attn_output"),
        ("norm1", "attn_output_norm"),
        ("mlp.fc11", "ffn_up"),
        ("mlp.fc12", "ffn_gate"),
        ("mlp.fc2", "ffn_down"),
        ("norm2", "layer_output_norm"),
    ],
};

/// ModernBERT, whose gate and up are one layer.
const MODERN_BERT: EncoderNames = EncoderNames {
    blocks: "model.layers.",
    outside: &[
        ("model.embeddings.tok_embeddings", "token_embd"),
        ("model.embeddings.norm", "token_embd_norm"),
        ("model.final_norm", "output_norm"),
    ],
    inside: &[
        ("attn_norm", "attn_norm"),
        ("attn.Wqkv", "attn_qkv"),
        ("attn.Wo", "attn_output"),
        ("mlp_norm", "ffn_norm"),
        ("mlp.Wi", "ffn_up"),
        ("mlp.Wo", "ffn_down"),
    ],
};

/// Layers of an expert: transformers' name, Mixtral's name, name in a file.
const EXPERT: [(&str, &str, &str); 3] =
    [("gate_proj", "w1", "ffn_gate_exps"), ("up_proj", "w3", "ffn_up_exps"), ("down_proj", "w2", "ffn_down_exps")];

/// The learned logits of gpt-oss's attention, which have no `.weight` behind their name in transformers.
const SINKS: (&str, &str) = ("self_attn.sinks", "attn_sinks");

impl Names {
    /// Reads what the names depend on.
    pub fn of(metadata: &Metadata) -> Result<Self> {
        let architecture = Architecture::of(metadata)?;
        let key = |name: &str| format!("{}.{name}", architecture.name());
        let size = |name: &str| metadata.size_of_blocks(&key(name));
        let required = |name: &str| metadata.require(&key(name), size(name)?);
        let heads = required("attention.head_count")?.max(1);
        let kv_heads = match architecture {
            Architecture::Lfm2 => metadata.size_of_attention(&key("attention.head_count_kv"))?,
            _ => size("attention.head_count_kv")?,
        };
        let kv_heads = kv_heads.unwrap_or(heads);
        let head_dim = match size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => required("embedding_length")? / heads,
        };
        let experts = size("expert_count")?.unwrap_or(0);
        if experts > MOST_EXPERTS {
            return Err(metadata.fault(&format!("the key `{}` is larger than any model's", key("expert_count"))));
        }
        Ok(Self {
            architecture,
            heads,
            kv_heads,
            widths: [heads, kv_heads, kv_heads].map(|heads| heads.saturating_mul(head_dim)),
            intermediate: size("feed_forward_length")?.unwrap_or(0),
            experts,
        })
    }

    /// Returns the architecture.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Returns the number of experts of a block; 0 without experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Returns the places where the tensor with transformers' `name` may lie in a file, the usual one first.
    pub fn places(&self, name: &str) -> Vec<Place> {
        let (stem, end) = split_end(name);
        let whole = |tensor: String| vec![Place { tensor, part: Part::Whole, heads: None }];
        if let Some((_, file)) = self.outside().find(|(known, _)| *known == stem) {
            return whole(format!("{file}{end}"));
        }
        let Some((block, rest)) = block_of(stem, self.blocks()) else { return Vec::new() };
        if rest == SINKS.0 && end.is_empty() {
            return whole(format!("blk.{block}.{}.weight", SINKS.1));
        }
        if let Some(places) = self.expert(block, rest, end) {
            return places;
        }
        let at = |file: &str, part| Place {
            tensor: format!("blk.{block}.{file}{end}"),
            part,
            heads: self.reordered_heads(rest),
        };
        let direct = self.block_names().find(|(known, _)| *known == rest).map(|(_, file)| at(file, Part::Whole));
        direct.into_iter().chain(self.fused(rest).map(|(file, rows)| at(file, Part::Rows(rows)))).collect()
    }

    /// Returns the layers that files hold in the place of `module`: itself, or those of its sites one by one, under the
    /// names that they have in most families.
    pub fn in_file(&self, module: &Module) -> Vec<Module> {
        let is_whole = self.block_names().any(|(known, _)| known == module.path);
        if is_whole {
            return vec![*module];
        }
        module.sites.iter().map(|site| Module::new(site.path(), std::slice::from_ref(site))).collect()
    }

    /// Returns transformers' names for the file's tensor `name`, one for each expert if it is a stack of them; none for a
    /// tensor that transformers does not have.
    pub fn originals(&self, name: &str) -> Vec<String> {
        let (stem, end) = split_end(name);
        if let Some((original, _)) = self.outside().find(|(_, known)| *known == stem) {
            return vec![format!("{original}{end}")];
        }
        let Some((block, rest)) = block_of(stem, "blk.") else { return Vec::new() };
        let blocks = self.blocks();
        if rest == SINKS.1 {
            return vec![format!("{blocks}{block}.{}", SINKS.0)];
        }
        if let Some((part, mixtral, _)) = EXPERT.iter().find(|(_, _, known)| *known == rest) {
            let name = |expert| match self.architecture {
                Architecture::Llama => format!("model.layers.{block}.block_sparse_moe.experts.{expert}.{mixtral}{end}"),
                _ => format!("model.layers.{block}.mlp.experts.{expert}.{part}{end}"),
            };
            return (0..self.experts).map(name).collect();
        }
        let original = self.block_names().find(|(_, known)| *known == rest);
        original.map(|(original, _)| format!("{blocks}{block}.{original}{end}")).into_iter().collect()
    }

    /// Returns the heads whose rows have another order in the file; `None` for tensors without such rows.
    fn reordered_heads(&self, rest: &str) -> Option<usize> {
        match rest {
            _ if !self.architecture.rotates_neighbours() => None,
            "self_attn.q_proj" => Some(self.heads),
            "self_attn.k_proj" => Some(self.kv_heads),
            _ => None,
        }
    }

    /// Returns the names of an encoder of BERT's kind; `None` for others.
    fn encoder(&self) -> Option<&'static EncoderNames> {
        match self.architecture {
            Architecture::Bert => Some(&BERT),
            Architecture::NomicBert => Some(&NOMIC_BERT),
            Architecture::ModernBert => Some(&MODERN_BERT),
            _ => None,
        }
    }

    /// Returns transformers' name of the list of blocks, with a dot behind it.
    fn blocks(&self) -> &'static str {
        self.encoder().map_or("model.layers.", |names| names.blocks)
    }

    /// Returns the tensors outside the blocks: transformers' names and those of the file.
    fn outside(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let of_encoder = self.encoder().map(|names| names.outside);
        let is_lfm = self.architecture == Architecture::Lfm2;
        let usual = OUTSIDE.iter().copied().filter(move |(_, file)| !is_lfm || *file != "output_norm");
        let usual = usual.chain(is_lfm.then_some(LFM2_NORM)).filter(move |_| of_encoder.is_none());
        usual.chain(of_encoder.unwrap_or_default().iter().copied())
    }

    /// Returns the tensors of a block: transformers' names and those of the file.
    fn block_names(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let is_phi = self.architecture == Architecture::Phi3;
        let common: &[_] = match (self.encoder(), self.architecture) {
            (Some(names), _) => names.inside,
            (None, Architecture::Lfm2) => &LFM2,
            (None, _) => &BLOCK,
        };
        let common = common
            .iter()
            .copied()
            .filter(move |(_, file)| !is_phi || !["attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"].contains(file));
        let fused = FUSED.into_iter().filter(move |_| is_phi);
        let norms = self.norms().iter().copied();
        let router = match self.architecture {
            Architecture::GptOss => "mlp.router",
            Architecture::Llama => "block_sparse_moe.gate",
            _ => "mlp.gate",
        };
        let router = (self.experts > 0).then_some((router, "ffn_gate_inp"));
        common.chain(fused).chain(norms).chain(router)
    }

    /// Returns the norms of a block beside `input_layernorm`.
    fn norms(&self) -> &'static [(&'static str, &'static str)] {
        match self.architecture {
            _ if self.encoder().is_some() => &[],
            Architecture::Gemma2 | Architecture::Gemma3 | Architecture::GemmaEmbedding => &[
                ("post_attention_layernorm", "post_attention_norm"),
                ("pre_feedforward_layernorm", "ffn_norm"),
                ("post_feedforward_layernorm", "post_ffw_norm"),
            ],
            Architecture::Olmo2 => {
                &[("post_attention_layernorm", "post_attention_norm"), ("post_feedforward_layernorm", "post_ffw_norm")]
            }
            // Among the others already.
            Architecture::Lfm2 => &[],
            // It stands before the MLP, as in all others; only its name in the file is another.
            Architecture::GptOss => &[("post_attention_layernorm", "post_attention_norm")],
            _ => &[("post_attention_layernorm", "ffn_norm")],
        }
    }

    /// Returns the fused tensor that may hold a layer, and the rows of the layer in it.
    fn fused(&self, rest: &str) -> Option<(&'static str, Range<usize>)> {
        let [query, key, value] = self.widths;
        let gate_and_up = if self.architecture == Architecture::Phi3 { "ffn_up" } else { "ffn_gate_up" };
        let (file, start, rows) = match rest {
            "self_attn.q_proj" | "attention.self.query" => ("attn_qkv", 0, query),
            "self_attn.k_proj" | "attention.self.key" => ("attn_qkv", query, key),
            "self_attn.v_proj" | "attention.self.value" => ("attn_qkv", query.saturating_add(key), value),
            "mlp.gate_proj" => (gate_and_up, 0, self.intermediate),
            "mlp.up_proj" => (gate_and_up, self.intermediate, self.intermediate),
            _ => return None,
        };
        Some((file, start..start.saturating_add(rows)))
    }

    /// Returns the places of a layer of an expert; `None` if `rest` is none.
    fn expert(&self, block: usize, rest: &str, end: &str) -> Option<Vec<Place>> {
        let is_mixtral = self.architecture == Architecture::Llama;
        let experts = if is_mixtral { "block_sparse_moe.experts." } else { "mlp.experts." };
        let (expert, layer) = rest.strip_prefix(experts)?.split_once('.')?;
        let expert = expert.parse().ok()?;
        let named = |(name, mixtral, _): &&(&str, &str, &str)| *(if is_mixtral { mixtral } else { name }) == layer;
        let (name, _, file) = EXPERT.iter().find(named)?;
        let at = |file: &str, part| Place { tensor: format!("blk.{block}.{file}{end}"), part, heads: None };
        let mut places = vec![at(file, Part::Expert(expert))];
        if *name != "down_proj" {
            let second = *name == "up_proj";
            places.push(at("ffn_gate_up_exps", Part::ExpertHalf { expert, second }));
        }
        Some(places)
    }
}

/// Splits `.weight` or `.bias` from a name.
fn split_end(name: &str) -> (&str, &str) {
    let end = [".weight", ".bias"].into_iter().find(|end| name.ends_with(end)).unwrap_or("");
    name.split_at(name.len() - end.len())
}

/// Splits a name within a block into the block's number and the rest.
fn block_of<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
#[path = "tensors_tests.rs"]
mod tests;
