//! The architectures of GGUF files that are read, by `general.architecture`, and where their files differ from the
//! checkpoints that they were made of.

use super::metadata::Metadata;
use crate::Result;

/// Key of the architecture's name.
const KEY: &str = "general.architecture";

/// An architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, and with experts Mixtral: Llama 1 to 3, Mistral, SmolLM 1 and 2, Yi, Falcon 3 and many more.
    Llama,
    /// Ministral 3 and the language model of Mistral 3.
    Mistral3,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// SmolLM 3.
    SmolLm3,
    /// Gemma.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, its language model.
    Gemma3,
    /// Granite 3, and Granite 4 without Mamba layers.
    Granite,
    /// Phi 3, 3.5 and 4.
    Phi3,
    /// `OLMo` 2 and 3.
    Olmo2,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// `OLMoE`.
    Olmoe,
    /// gpt-oss.
    GptOss,
    /// LFM 2 and 2.5.
    Lfm2,
    /// BERT, and RoBERTa, XLM-RoBERTa, CamemBERT and `DistilBERT`, whose files differ from its own in tokenizers alone.
    Bert,
    /// Nomic's BERT.
    NomicBert,
    /// ModernBERT.
    ModernBert,
    /// EmbeddingGemma.
    GemmaEmbedding,
}

/// All architectures by their names.
const ALL: [(&str, Architecture); 19] = [
    ("llama", Architecture::Llama),
    ("mistral3", Architecture::Mistral3),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("smollm3", Architecture::SmolLm3),
    ("gemma", Architecture::Gemma),
    ("gemma2", Architecture::Gemma2),
    ("gemma3", Architecture::Gemma3),
    ("granite", Architecture::Granite),
    ("phi3", Architecture::Phi3),
    ("olmo2", Architecture::Olmo2),
    ("qwen3moe", Architecture::Qwen3Moe),
    ("olmoe", Architecture::Olmoe),
    ("gpt-oss", Architecture::GptOss),
    ("lfm2", Architecture::Lfm2),
    ("bert", Architecture::Bert),
    ("nomic-bert", Architecture::NomicBert),
    ("modern-bert", Architecture::ModernBert),
    ("gemma-embedding", Architecture::GemmaEmbedding),
];

impl Architecture {
    /// Reads the architecture; refuses an unknown one with the list of known ones.
    pub fn of(metadata: &Metadata) -> Result<Self> {
        let name = metadata.require(KEY, metadata.text(KEY)?)?;
        let known = ALL.iter().find(|(known, _)| *known == name).map(|(_, architecture)| *architecture);
        known.ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
            metadata.fault(&format!("the architecture `{name}` is not supported; supported are {}", names.join(", ")))
        })
    }

    /// Returns the architecture of decoders of a `model_type` of transformers; `None` if files of it are not written.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        let name = match model_type {
            "mistral" | "mixtral" => "llama",
            "ministral3" => "mistral3",
            "gemma3_text" => "gemma3",
            "olmo3" => "olmo2",
            "qwen3_moe" => "qwen3moe",
            "gpt_oss" => "gpt-oss",
            // Converters write a model without Mamba layers as one of Granite 3.
            "granitemoehybrid" => "granite",
            same => same,
        };
        let found = ALL.iter().find(|(known, _)| *known == name).map(|(_, architecture)| *architecture);
        found.filter(|architecture| !architecture.is_encoder())
    }

    /// Returns true if attention looks both ways: the model makes vectors and writes no text.
    pub fn is_encoder(self) -> bool {
        matches!(self, Self::Bert | Self::NomicBert | Self::ModernBert | Self::GemmaEmbedding)
    }

    /// Returns the name, which the architecture's keys begin with.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }

    /// Returns true if files have the rows of query and key in the order in which neighbours are rotated together;
    /// transformers rotates the halves of a head against each other.
    pub fn rotates_neighbours(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral3 | Self::SmolLm3 | Self::Granite)
    }

    /// Returns true if files have the norms' weights with 1 added, which transformers adds when it computes.
    pub fn adds_one_to_norms(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3 | Self::GemmaEmbedding)
    }
}
