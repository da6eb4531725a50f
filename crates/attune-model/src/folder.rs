//! Finds out what stands at a model's path, and checks a folder before anything else is started: in the first moment,
//! from names and small files alone, and with advice on what to do about what is there instead. Called by
//! [`Checkpoint`](crate::checkpoint::Checkpoint), which `app` and `cli` open at the start.

use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use crate::gguf::later_shard;
use crate::second_engine::SecondEngineModel;
use crate::static_model::StaticModel;
use crate::{Error, ModelConfig, Result, vectors, weights};

/// What a model's folder must hold, for messages.
const NEEDED: &str = "config.json, *.safetensors and tokenizer.json";
/// Part of the names of files with the image or audio part of a model.
const PROJECTOR: &str = "mmproj";
/// First bytes of a file that Git LFS has not fetched.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// What stands at a model's path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The folder with the files of a model, the one that was given or one below it.
    Folder(PathBuf),
    /// The folder of a table of vectors of tokens.
    Static(StaticModel),
    /// The folder of a model that another engine runs.
    SecondEngine(SecondEngineModel),
    /// A GGUF file, or the first one of several shards.
    Gguf(PathBuf),
}

/// Finds out what stands at `path`; refuses what is neither a model's folder, nor a GGUF file, nor a folder with one.
pub(crate) fn find(path: &Path) -> Result<Form> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => missing(path),
        _ => fault(path, &format!("it cannot be read: {error}")),
    })?;
    if metadata.is_file() {
        return if is_gguf(path) { checked_file(path.to_path_buf()) } else { Err(not_a_folder(path)) };
    }
    let names = list(path)?;
    if let Some(model) = StaticModel::find(path)? {
        return Ok(Form::Static(model));
    }
    if let Some(model) = SecondEngineModel::find(path)? {
        return Ok(Form::SecondEngine(model));
    }
    if vectors::folder::has_modules(path) {
        return Ok(Form::Folder(vectors::folder::of_model(path)?));
    }
    if names.iter().any(|name| name == "config.json") {
        return Ok(Form::Folder(path.to_path_buf()));
    }
    let all: Vec<_> = names.iter().filter(|name| name.to_ascii_lowercase().ends_with(".gguf")).collect();
    let is_model = |name: &&&String| !later_shard(name) && !name.contains(PROJECTOR);
    match all.iter().filter(is_model).collect::<Vec<_>>().as_slice() {
        [file] => checked_file(path.join(file)),
        // Not a model alone: opened, the file says what it is.
        [] if !all.is_empty() => checked_file(path.join(all[0])),
        [] => Err(without_config(path, &names)),
        [first, ..] => {
            let example = path.join(first);
            Err(fault(path, &format!("the folder has several GGUF models: give one, such as {}", example.display())))
        }
    }
}

fn checked_file(path: PathBuf) -> Result<Form> {
    if begins_with(&path, LFS_POINTER) {
        return Err(fault(&path, "the file is only a pointer of Git LFS: run `git lfs pull` in its folder"));
    }
    Ok(Form::Gguf(path))
}

/// Refuses a folder that no model can be loaded from, and returns the shape of its model.
pub(crate) fn check(path: &Path) -> Result<ModelConfig> {
    let names = list(path)?;
    let config = ModelConfig::read(path)?;
    check_weights(path, &names)?;
    if !names.iter().any(|name| name == "tokenizer.json") {
        let advice = if names.iter().any(|name| name == "tokenizer.model") {
            "; transformers makes it from tokenizer.model: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        } else {
            "; the model's page has it"
        };
        return Err(fault(path, &format!("the folder has no tokenizer.json{advice}")));
    }
    Ok(config)
}

fn fault(path: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", path.display()))
}

/// Returns the names in the folder, sorted.
fn list(path: &Path) -> Result<Vec<String>> {
    let unreadable = |error: std::io::Error| fault(path, &format!("the folder cannot be read: {error}"));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Says what to do where nothing is: a model's name on a hub is told from a path by `hf:`.
fn missing(path: &Path) -> Error {
    let text = path.to_string_lossy();
    let plain = |part: &str| {
        let allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    match text.split_once('/') {
        Some((owner, name)) if plain(owner) && plain(name) => fault(
            path,
            &format!(
                "there is no such folder. If you mean the model of this name on Hugging Face, write hf:{text} in place of \
                 the path; `attune pull {text}` downloads it beforehand"
            ),
        ),
        _ => fault(
            path,
            &format!(
                "there is no such folder or file; give a folder with {NEEDED}, a GGUF file, or a model of a hub as \
                 hf:OWNER/NAME"
            ),
        ),
    }
}

fn not_a_folder(path: &Path) -> Error {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parts = ["safetensors", "json", "bin", "pt", "pth", "model", "jinja"];
    let is_part = path.extension().and_then(|end| end.to_str()).is_some_and(|end| parts.contains(&end));
    if is_part {
        return fault(path, &format!("this is one file of a model: give its folder, {}", folder.display()));
    }
    fault(path, &format!("this is a file; give a GGUF file, or a model's folder, with {NEEDED}"))
}

fn is_gguf(path: &Path) -> bool {
    let named = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    named || begins_with(path, b"GGUF")
}

fn begins_with(file: &Path, start: &[u8]) -> bool {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map(|file| file.take(start.len() as u64).read_to_end(&mut bytes));
    matches!(opened, Ok(Ok(_))) && bytes == start
}

/// Returns the first of `names` that ends with `end`.
fn ending<'a>(names: &'a [String], end: &str) -> Option<&'a String> {
    names.iter().find(|name| name.ends_with(end))
}

/// Says what the folder is instead of a model's.
fn without_config(path: &Path, names: &[String]) -> Error {
    if names.iter().any(|name| name == "adapter_config.json") {
        return fault(
            path,
            "this is a PEFT adapter, not a base model: serve the model that it was trained on, and load the adapter with \
             POST /v1/load_lora_adapter",
        );
    }
    // The cache of Hugging Face's own programs.
    let snapshots = list(&path.join("snapshots")).unwrap_or_default();
    if let Some(snapshot) = snapshots.first() {
        let folder = path.join("snapshots").join(snapshot);
        return fault(path, &format!("this is the cache of a download: give its folder {}", folder.display()));
    }
    let below = names.iter().find(|name| path.join(name).join("config.json").is_file());
    if let Some(name) = below {
        return fault(path, &format!("the folder has no config.json, but {name} in it has: give that folder"));
    }
    fault(path, &format!("the folder has no config.json; a model's folder holds {NEEDED}, or a GGUF file"))
}

/// Looks at the headers of the weights.
fn check_weights(path: &Path, names: &[String]) -> Result<()> {
    let has = |name: &str| names.iter().any(|known| known == name);
    if !has("model.safetensors") && !has("model.safetensors.index.json") {
        let other = [".bin", ".pt", ".pth", ".gguf", ".safetensors"].iter().find_map(|end| ending(names, end));
        let advice = match other {
            Some(file) if file.starts_with("consolidated") => format!(
                "{file} has Mistral's own names, which are not read: the model's page has model.safetensors too, or its parts"
            ),
            Some(file) => format!(
                "{file} is not read; transformers saves a model in this form: \
                 AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            ),
            None => "the download is not complete".into(),
        };
        let message = format!("neither model.safetensors nor its index is there: {advice}");
        return Err(fault(path, &message));
    }
    for file in weights::files(path)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let size =
            std::fs::metadata(&file).map_err(|error| fault(path, &format!("the weights {name}: {error}")))?.len();
        if begins_with(&file, LFS_POINTER) {
            return Err(fault(path, &format!("{name} is only a pointer of Git LFS: run `git lfs pull` in the folder")));
        }
        if size == 0 {
            return Err(fault(path, &format!("{name} is empty: the download is not complete")));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
