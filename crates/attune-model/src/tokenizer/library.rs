//! The library's tokenizer over a model that copies of it share: a grammar asks for tokens in a way of its own
//! (`vocabulary`), and the model is nearly all that a tokenizer holds. Made by `reading.rs`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{
    DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Result, Token,
    TokenizerImpl,
};

use super::byte_pairs::BytePairs;

/// A tokenizer whose copies share its model.
pub(crate) type Library =
    TokenizerImpl<SharedModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A model that its copies share.
#[derive(Debug, Clone)]
pub(crate) struct SharedModel(Arc<Held>);

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each model")]
enum Held {
    BytePairs(BytePairs),
    Other(ModelWrapper),
}

impl SharedModel {
    /// Shares a model of byte pairs.
    pub(super) fn byte_pairs(model: BytePairs) -> Self {
        Self(Arc::new(Held::BytePairs(model)))
    }

    /// Shares a model of the library's own.
    pub(super) fn other(model: impl Into<ModelWrapper>) -> Self {
        Self(Arc::new(Held::Other(model.into())))
    }

    /// Returns true if each token is spelled like its part of a text, and a text is made of tokens by merges alone.
    pub(crate) fn spells_texts(&self) -> bool {
        match &*self.0 {
            Held::BytePairs(_) => true,
            Held::Other(ModelWrapper::BPE(model)) => {
                let marks = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
                marks.into_iter().flatten().all(String::is_empty)
            }
            Held::Other(_) => false,
        }
    }
}

impl Model for SharedModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        match &*self.0 {
            Held::BytePairs(model) => Ok(model.tokenize(sequence)),
            Held::Other(model) => model.tokenize(sequence),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match &*self.0 {
            Held::BytePairs(model) => model.id(token),
            Held::Other(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match &*self.0 {
            Held::BytePairs(model) => model.spelling(id).map(str::to_owned),
            Held::Other(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match &*self.0 {
            Held::BytePairs(model) => model.vocabulary(),
            Held::Other(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match &*self.0 {
            Held::BytePairs(model) => model.count(),
            Held::Other(model) => model.get_vocab_size(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        match &*self.0 {
            Held::BytePairs(_) => Err("this model is not written to files".into()),
            Held::Other(model) => model.save(folder, prefix),
        }
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match &*self.0 {
            Held::BytePairs(_) => BpeTrainer::default().into(),
            Held::Other(model) => model.get_trainer(),
        }
    }
}
