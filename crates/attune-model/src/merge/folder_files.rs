//! The files beside the weights of a model's folder: copied from a folder, or made of the keys of a GGUF file.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::weight_type::WeightType;
use super::{COPIED, TEMPLATES, copy};
use crate::checkpoint::Checkpoint;
use crate::gguf::{self, Gguf};
use crate::tokenizer::TokenizerSource;
use crate::{Error, ModelConfig, Result, python_json};

/// Classes of transformers that generate text, without the end of their names, by the `model_type` of their files.
const CLASSES: [(&str, &str); 19] = [
    ("llama", "Llama"),
    ("mistral", "Mistral"),
    ("mixtral", "Mixtral"),
    ("ministral3", "Ministral3"),
    ("qwen2", "Qwen2"),
    ("qwen3", "Qwen3"),
    ("qwen3_moe", "Qwen3Moe"),
    ("smollm3", "SmolLM3"),
    ("gemma", "Gemma"),
    ("gemma2", "Gemma2"),
    ("gemma3_text", "Gemma3"),
    ("granite", "Granite"),
    ("phi3", "Phi3"),
    ("olmo2", "Olmo2"),
    ("olmo3", "Olmo3"),
    ("olmoe", "Olmoe"),
    ("granitemoehybrid", "GraniteMoeHybrid"),
    ("gpt_oss", "GptOss"),
    ("lfm2", "Lfm2"),
];
/// Defaults of answers that transformers reads from `generation_config.json`.
const GENERATION: [&str; 6] = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "suppress_tokens"];

/// Writes the files of the model in `checkpoint`, whose layers are now plain numbers of the type `kind`.
pub(super) fn write(checkpoint: &Checkpoint, part: &Path, kind: WeightType, tied: bool) -> Result<()> {
    match checkpoint {
        Checkpoint::Folder(folder) => {
            write_json(part, "config.json", &Value::Object(of_folder(folder, kind, tied)?))?;
            copy(folder, part, &COPIED)?;
            super::copy_templates(folder, part)
        }
        Checkpoint::Gguf(file) => of_file(file, part, kind, tied),
        Checkpoint::Static(_) => Err(checkpoint.fault(super::NO_LAYERS)),
        Checkpoint::SecondEngine(_) => Err(checkpoint.fault(super::NOT_TRAINED)),
    }
}

/// Returns the folder's configuration without what it says about quantization; that of the language model alone, which is
/// what is written of a model that sees images too.
fn of_folder(folder: &Path, kind: WeightType, tied: bool) -> Result<Map<String, Value>> {
    let fault = |message: &str| Error::Setup(format!("{}: {message}", folder.join("config.json").display()));
    let Some(Value::Object(mut fields)) = python_json::read(&folder.join("config.json"))? else {
        return Err(fault("it holds no object"));
    };
    if let Some(Value::Object(inner)) = fields.remove("text_config") {
        fields = inner;
        let class = fields.get("model_type").and_then(Value::as_str).and_then(class);
        fields.extend(class.map(|class| ("architectures".to_owned(), json!([class]))));
    }
    for gone in ["quantization_config", "quantization", "compression_config", "torch_dtype"] {
        fields.remove(gone);
    }
    fields.insert("dtype".into(), json!(kind.name()));
    fields.insert("tie_word_embeddings".into(), tied.into());
    Ok(fields)
}

/// Returns the class that generates text with models of this `model_type`; `None` if it is not known.
fn class(model_type: &str) -> Option<String> {
    let (_, name) = CLASSES.iter().find(|(known, _)| *known == model_type)?;
    Some(format!("{name}ForCausalLM"))
}

/// Writes what the keys of a GGUF file say.
fn of_file(file: &Gguf, part: &Path, kind: WeightType, tied: bool) -> Result<()> {
    let metadata = file.metadata();
    let mut fields = gguf::config::fields_for_transformers(file)?;
    let source = gguf::tokenizer::source(metadata)?;
    let tokenizer = crate::tokenizer::Tokenizer::new(&source)?;
    let ends = gguf::tokenizer::end_tokens(metadata)?;
    let id = |role: &str| source.special_tokens.get(role).and_then(|text| tokenizer.token(text));
    for (field, role) in [("bos_token_id", "bos_token"), ("pad_token_id", "pad_token")] {
        fields.insert(field.into(), json!(id(role)));
    }
    let end = match ends.as_slice() {
        [one] => json!(one),
        several => json!(several),
    };
    fields.insert("eos_token_id".into(), end.clone());
    fields.insert("dtype".into(), json!(kind.name()));
    fields.insert("tie_word_embeddings".into(), tied.into());
    let class = fields.get("model_type").and_then(Value::as_str).and_then(class);
    fields.extend(class.map(|class| ("architectures".to_owned(), json!([class]))));
    let mut generation = gguf::sampling::settings(metadata)?;
    generation.retain(|name, _| GENERATION.contains(&name.as_str()));
    let is_drawn = generation.contains_key("temperature") || generation.contains_key("top_p");
    generation.extend([("eos_token_id".to_owned(), end), ("bos_token_id".to_owned(), json!(id("bos_token")))]);
    if is_drawn {
        generation.insert("do_sample".into(), true.into());
    }
    let context = fields["max_position_embeddings"].clone();
    write_json(part, "config.json", &Value::Object(fields))?;
    // What was written is read again, since transformers reads no more than that.
    ModelConfig::read(part)?;
    write_json(part, "generation_config.json", &Value::Object(generation))?;
    write_tokenizer(&source, part, &context)?;
    for (name, text) in gguf::template::find(metadata)? {
        let target = if name == "default" {
            part.join("chat_template.jinja")
        } else {
            let folder = part.join(TEMPLATES);
            std::fs::create_dir_all(&folder).map_err(Error::io(format!("make {}", folder.display())))?;
            folder.join(format!("{}.jinja", name.replace(['/', '\\'], "_")))
        };
        std::fs::write(&target, text).map_err(Error::io(format!("write {}", target.display())))?;
    }
    Ok(())
}

fn write_tokenizer(source: &TokenizerSource, part: &Path, context: &Value) -> Result<()> {
    let file = part.join("tokenizer.json");
    std::fs::write(&file, &source.json).map_err(Error::io(format!("write {}", file.display())))?;
    let mut settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": context,
    });
    for (role, text) in &source.special_tokens {
        settings[*role] = json!(text);
    }
    write_json(part, "tokenizer_config.json", &settings)
}

pub(super) fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| Error::Internal(error.to_string()))?;
    let file = folder.join(name);
    std::fs::write(&file, text).map_err(Error::io(format!("write {}", file.display())))
}
