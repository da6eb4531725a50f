//! Which files of a repository Attune takes: a folder in Hugging Face form, an adapter, or one GGUF model with all its
//! parts. Pickles, other programs' formats and scripts are never taken.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::listing::RemoteFile;
use crate::name::{Pick, Repository, is_gguf};
use crate::{Error, Result};

/// The file whose `weight_map` names the parts of large weights.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";

/// Files beside the weights that a folder may have.
const SMALL: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];
/// The list of the modules of sentence-transformers, and what a repository with one has beside a model.
const MODULES: &str = "modules.json";
const OF_VECTORS: [&str; 9] = [
    MODULES,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
/// Files of a module, in a folder such as `1_Pooling`.
const OF_MODULE: [&str; 2] = ["config.json", WEIGHTS];
/// More templates, each with a name of its own.
const TEMPLATES: &str = "additional_chat_templates/";
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// Marks of GGUF files that hold no language model of their own: images, statistics, and drafts for another model.
const NO_MODEL: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];
/// The quantizations to take where none is named, the best compromise first.
const USUAL_TAGS: [&str; 2] = ["Q4_K_M", "Q8_0"];
/// Most names in a message.
const MOST_NAMES: usize = 8;

/// The form that a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A folder with `config.json`, weights and tokenizer.
    Folder,
    /// A PEFT adapter.
    Adapter,
    /// GGUF files.
    Gguf,
}

/// The files to take.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) form: Form,
    /// All files; of weights in parts only the index, until [`Choice::add_parts`].
    pub(crate) files: Vec<RemoteFile>,
    /// Path of the model below the snapshot: the first GGUF file, or nothing for the folder itself.
    pub(crate) entry: String,
}

impl Choice {
    /// Chooses from the `files` of `repository`.
    pub(crate) fn of(repository: &Repository, files: &[RemoteFile], pick: &Pick) -> Result<Self> {
        let find = |name: &str| files.iter().find(|file| file.path == name);
        match pick {
            Pick::File(path) => return gguf_file(repository, files, path),
            Pick::Tag(tag) => return gguf(repository, files, Some(tag)),
            Pick::Usual => {}
        }
        if find("config.json").is_some() && (find(WEIGHTS).is_some() || find(INDEX).is_some()) {
            return folder(repository, files);
        }
        if ADAPTER.iter().all(|name| find(name).is_some()) {
            let files = ADAPTER.iter().filter_map(|name| find(name).cloned()).collect();
            return Ok(Self { form: Form::Adapter, files, entry: String::new() });
        }
        if models(files).next().is_some() {
            return gguf(repository, files, None);
        }
        Err(Error::Unusable { repository: repository.to_string(), reason: instead(files) })
    }

    /// Returns true if the weights are in parts that the index names.
    pub(crate) fn has_index(&self) -> bool {
        self.files.iter().any(|file| file.path == INDEX)
    }

    /// Adds the parts that the `index` names from all `files` of the repository.
    pub(crate) fn add_parts(&mut self, repository: &Repository, index: &str, files: &[RemoteFile]) -> Result<()> {
        let fault = |reason: String| Error::Unusable { repository: repository.to_string(), reason };
        let value: Value =
            serde_json::from_str(index).map_err(|error| fault(format!("{INDEX} cannot be read: {error}")))?;
        let map = value["weight_map"].as_object().ok_or_else(|| fault(format!("{INDEX} has no `weight_map`")))?;
        let parts: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        for part in parts {
            let file = files.iter().find(|file| file.path == part && !part.contains('/'));
            let file = file.ok_or_else(|| fault(format!("{INDEX} names {part:?}, which is not among the files")))?;
            self.files.push(file.clone());
        }
        Ok(())
    }
}

fn folder(repository: &Repository, files: &[RemoteFile]) -> Result<Choice> {
    let whole = files.iter().any(|file| file.path == WEIGHTS);
    let has_modules = files.iter().any(|file| file.path == MODULES);
    let wanted = |file: &&RemoteFile| {
        let path = file.path.as_str();
        let small = SMALL.contains(&path) && !(whole && path == INDEX);
        let of_vectors = has_modules && (OF_VECTORS.contains(&path) || is_of_module(path));
        small || of_vectors || path == WEIGHTS || path.strip_prefix(TEMPLATES).is_some_and(|name| !name.contains('/'))
    };
    let chosen: Vec<RemoteFile> = files.iter().filter(wanted).cloned().collect();
    if !chosen.iter().any(|file| file.path == "tokenizer.json") {
        let other = files.iter().find(|file| file.path == "tokenizer.model");
        let reason = match other {
            Some(_) => "it has tokenizer.model, but no tokenizer.json, which Attune needs",
            None => "it has no tokenizer.json, which Attune needs",
        };
        return Err(Error::Unusable { repository: repository.to_string(), reason: reason.into() });
    }
    Ok(Choice { form: Form::Folder, files: chosen, entry: String::new() })
}

/// Returns true for a file of a module behind the model, such as `1_Pooling/config.json`.
fn is_of_module(path: &str) -> bool {
    let Some((folder, file)) = path.split_once('/') else { return false };
    let is_numbered = folder.split_once('_').is_some_and(|(number, _)| number.parse::<u8>().is_ok());
    is_numbered && OF_MODULE.contains(&file)
}

/// Returns the GGUF files that begin a model of their own: whole ones, and the first of several parts.
pub(crate) fn models(files: &[RemoteFile]) -> impl Iterator<Item = &RemoteFile> {
    files.iter().filter(|file| {
        let name = file.path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        let other =
            NO_MODEL.iter().any(|mark| if mark.ends_with('-') { name.starts_with(mark) } else { name.contains(mark) });
        is_gguf(&file.path) && !other && part(&file.path).is_none_or(|(_, number, _)| number == 1)
    })
}

/// Reads the end of a part's name, `…-00001-of-00003.gguf`: what stands before it, its number, and how many there are.
fn part(path: &str) -> Option<(&str, usize, usize)> {
    let stem = path.get(..path.len().checked_sub(".gguf".len())?)?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let read = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some((prefix, read(number)?, read(count)?))
}

/// Returns true if the tag stands in the file's name before a `.` or a `-`, or is that of its folder, whatever the case.
fn has_tag(path: &str, tag: &str) -> bool {
    let (path, tag) = (path.to_ascii_lowercase(), tag.to_ascii_lowercase());
    // `K` of `Q4_K` must not be found inside another word.
    let starts = |at: usize| at == 0 || path[..at].ends_with(|before: char| !before.is_ascii_alphanumeric());
    path.match_indices(&tag).any(|(at, _)| starts(at) && path[at + tag.len()..].starts_with(['.', '-', '/']))
}

fn gguf(repository: &Repository, files: &[RemoteFile], tag: Option<&str>) -> Result<Choice> {
    let of_tag = |tag: &str| models(files).find(|file| has_tag(&file.path, tag));
    let found = if let Some(tag) = tag {
        of_tag(tag)
    } else {
        USUAL_TAGS.iter().find_map(|tag| of_tag(tag)).or_else(|| models(files).next())
    };
    let first = found.ok_or_else(|| Error::FileMissing {
        repository: repository.to_string(),
        what: format!("GGUF file with the tag `{}`", tag.unwrap_or_default()),
        known: nearest(tag.unwrap_or_default(), models(files).map(|file| file.path.as_str())),
    })?;
    with_parts(repository, files, first)
}

fn gguf_file(repository: &Repository, files: &[RemoteFile], path: &str) -> Result<Choice> {
    let file = files.iter().find(|file| file.path == path).ok_or_else(|| Error::FileMissing {
        repository: repository.to_string(),
        what: format!("file `{path}`"),
        known: nearest(path, files.iter().map(|file| file.path.as_str()).filter(|path| is_gguf(path))),
    })?;
    with_parts(repository, files, file)
}

/// Takes the GGUF file `first`, with the parts that belong to it.
fn with_parts(repository: &Repository, files: &[RemoteFile], first: &RemoteFile) -> Result<Choice> {
    let Some((prefix, _, count)) = part(&first.path) else {
        return Ok(Choice { form: Form::Gguf, files: vec![first.clone()], entry: first.path.clone() });
    };
    let mut parts = Vec::new();
    for number in 1..=count {
        let path = format!("{prefix}-{number:05}-of-{count:05}.gguf");
        let file = files.iter().find(|file| file.path == path);
        parts.push(file.cloned().ok_or_else(|| Error::Unusable {
            repository: repository.to_string(),
            reason: format!("the part {path} is missing"),
        })?);
    }
    let entry = parts.first().map_or_else(String::new, |file| file.path.clone());
    Ok(Choice { form: Form::Gguf, files: parts, entry })
}

/// Says what a repository holds instead of a model that Attune loads.
fn instead(files: &[RemoteFile]) -> String {
    let needs = "Attune loads *.safetensors with config.json and tokenizer.json, and GGUF files";
    let ends = [".bin", ".pt", ".pth", ".onnx", ".msgpack", ".h5", ".safetensors", ".gguf"];
    match ends.iter().find_map(|end| files.iter().find(|file| file.path.ends_with(end))) {
        Some(file) => format!("it has {}, but {needs}", file.path),
        None => format!("it has no weights; {needs}"),
    }
}

/// Returns some of `names`, the most similar to `wanted` first.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<&str> = names.collect();
    let similarity = |name: &str| strsim::jaro_winkler(&wanted.to_lowercase(), &name.to_lowercase());
    names.sort_by(|one, other| similarity(other).total_cmp(&similarity(one)).then(one.cmp(other)));
    names.into_iter().take(MOST_NAMES).map(str::to_owned).collect()
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
