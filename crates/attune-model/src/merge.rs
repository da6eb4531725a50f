//! A model with an adapter's changes added to its weights, for programs that know no adapters: as a folder that
//! transformers loads, or as a GGUF file, whichever of the two its base is. The changes are added to the weights that
//! the adapter was trained on, those of a quantized base as the numbers that they stand for, and rounded once. All that
//! the adapter leaves as it is keeps its bytes where its form stays, and tied weights stay tied. Called by
//! `attune export`.
//!
//! `merge/addition.rs` computes, `merge/weight_type.rs` rounds. Each pair of forms has its writer: `copied_folder.rs` and
//! `gguf_file.rs` keep the form of the base, `new_folder.rs` and `new_gguf.rs` write what `plan.rs` lists in another,
//! with the values of `values.rs`.

mod addition;
mod copied_folder;
mod folder_files;
mod gguf_file;
mod new_folder;
mod new_gguf;
mod plan;
mod safetensors_files;
mod values;
mod weight_type;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::addition::Change;
pub use self::weight_type::WeightType;
use crate::checkpoint::Checkpoint;
use crate::folder::{self, Form};
use crate::gguf::Gguf;
use crate::gguf::tensors::Names;
use crate::lora::{Adapter, LoraPair};
use crate::sites::{Module, Site};
use crate::{Error, ModelConfig, Result, python_json, vectors};

/// Files beside the weights that are copied.
const COPIED: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];
/// Why nothing is added to a static model.
const NO_LAYERS: &str = "this is a table of vectors of tokens, without layers that an adapter could change";
/// Why nothing is added to a model of the second engine.
const NOT_TRAINED: &str =
    "another engine runs models of this family, which are not trained: there is no adapter that could be added";
/// A folder of further templates.
const TEMPLATES: &str = "additional_chat_templates";
/// Bytes of one file of weights at the most, as transformers cuts them.
pub const FILE_BYTES: usize = 5_000_000_000;

/// The weights that an adapter is added to.
#[derive(Debug, Clone)]
pub struct Base {
    /// A model's folder or GGUF file.
    pub path: PathBuf,
    /// Block format that its matrices are served in, and that training saw; `None` if they are not quantized at load.
    pub quantize: Option<String>,
}

impl Base {
    /// Makes a base of the weights at `path` as they are.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), quantize: None }
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(match folder::find(&self.path)? {
            Form::Folder(folder) => Checkpoint::Folder(folder),
            Form::Gguf(path) => Checkpoint::Gguf(Arc::new(Gguf::open(&path)?)),
            Form::SecondEngine(_) => return Err(fault(&self.path, NOT_TRAINED)),
            Form::Static(_) => return Err(fault(&self.path, NO_LAYERS)),
        })
    }
}

/// Writes `base` with `adapter` added to the new folder `output`; files of weights have `file_bytes` at the most, unless
/// one tensor has more. Plain tensors keep their type; those that were quantized get the type `kind`, by default that of
/// the base's `config.json`, else F16. Nothing is left of a write that fails.
pub fn write_folder(
    base: &Base,
    adapter: &Adapter,
    output: &Path,
    kind: Option<WeightType>,
    file_bytes: usize,
) -> Result<()> {
    if output.exists() {
        return Err(fault(output, "it exists already; name a folder that does not"));
    }
    let checkpoint = base.checkpoint()?;
    // A folder beside it, so that the last step is a change of the name.
    let part = part_of(output);
    std::fs::create_dir_all(&part).map_err(Error::io(format!("make {}", part.display())))?;
    let written = write_parts(base, &checkpoint, adapter, &part, kind, file_bytes)
        .and_then(|()| std::fs::rename(&part, output).map_err(Error::io(format!("name {}", output.display()))));
    if written.is_err() {
        // The reason matters more than what may be left.
        let _ = std::fs::remove_dir_all(&part);
    }
    written
}

fn write_parts(
    base: &Base,
    checkpoint: &Checkpoint,
    adapter: &Adapter,
    part: &Path,
    kind: Option<WeightType>,
    file_bytes: usize,
) -> Result<()> {
    let config = checkpoint.config()?;
    let changes = changes(&adapter.in_names_of(&config)?, &config, |module| vec![*module])?;
    if let Checkpoint::Folder(_) = checkpoint {
        vectors::copy::copy(&base.path, part)?;
    }
    if let (Checkpoint::Folder(folder), None) = (checkpoint, &base.quantize)
        && copied_folder::are_plain(folder, &changes)?
    {
        return match kind {
            Some(_) => Err(fault(folder, "these weights are not quantized and keep their types: leave out --type")),
            None => copied_folder::write(folder, changes, part, file_bytes),
        };
    }
    new_folder::write(base, checkpoint, changes, part, kind, file_bytes)
}

/// Writes `base` with `adapter` added to the new GGUF file `output`. Of a base in GGUF, the changed matrices are written
/// in the type `kind`, by default their own if that is no block type, else F16, and all else is copied; of a folder, all
/// matrices, by default in their own. Nothing is left of a write that fails.
pub fn write_gguf(base: &Base, adapter: &Adapter, output: &Path, kind: Option<WeightType>) -> Result<()> {
    if output.exists() {
        return Err(fault(output, "it exists already; name a file that does not"));
    }
    let checkpoint = base.checkpoint()?;
    let config = checkpoint.config()?;
    let adapter = &adapter.in_names_of(&config)?;
    match checkpoint {
        Checkpoint::Gguf(file) => {
            let names = Names::of(file.metadata())?;
            let changes = changes(adapter, &config, |module| names.in_file(module))?;
            gguf_file::write(base, &file, &names, changes, output, kind)
        }
        Checkpoint::Folder(folder) => {
            let checkpoint = Checkpoint::Folder(folder.clone());
            new_gguf::write(base, &checkpoint, &folder, adapter, output, kind)
        }
        Checkpoint::Static(_) => Err(fault(&base.path, NO_LAYERS)),
        Checkpoint::SecondEngine(_) => Err(fault(&base.path, NOT_TRAINED)),
    }
}

/// What stands before the names of a model's tensors in files of it that have a head, too.
const PREFIXES: [&str; 5] = ["model.", "bert.", "nomic_bert.", "roberta.", "mpnet."];

/// Returns what is added to the tensors of a model of the shape `config`, by their names without `model.` and its like.
/// `stored` returns the layers that the base has in the place of one; of experts, each layer has a tensor.
fn changes(
    adapter: &Adapter,
    config: &ModelConfig,
    stored: impl Fn(&Module) -> Vec<Module>,
) -> Result<BTreeMap<String, Change>> {
    let named = |(name, pair): (String, LoraPair)| -> Result<(String, Change)> {
        let name = PREFIXES.into_iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(&name);
        Ok((format!("{name}.weight"), Change::of(&pair)?))
    };
    let mut changes: BTreeMap<String, Change> =
        adapter.linear_wholes(stored)?.into_iter().map(named).collect::<Result<_>>()?;
    let (module, names) = config.single_expert_names();
    for (block, layer) in adapter.layers.iter().enumerate() {
        for expert in 0..layer.expert_count() {
            for (site, name) in [Site::Gate, Site::Up, Site::Down].into_iter().zip(names) {
                let Some(pair) = layer.expert(expert, site) else { continue };
                changes.insert(format!("layers.{block}.{module}.{expert}.{name}.weight"), Change::of(pair)?);
            }
        }
    }
    Ok(changes)
}

/// Refuses changes that no tensor has taken.
fn refuse_rest(changes: &BTreeMap<String, Change>, checkpoint: &Checkpoint) -> Result<()> {
    match changes.keys().next() {
        Some(name) => {
            Err(checkpoint
                .fault(&format!("the adapter changes `{name}`, which this model has no tensor of its own for")))
        }
        None => Ok(()),
    }
}

/// Returns the type that matrices get which have none of their own: the one that `config.json` names, else F16; BF16 for
/// models whose activations are beyond F16.
fn usual_type(checkpoint: &Checkpoint, overflows_f16: bool) -> Result<WeightType> {
    let usual = if overflows_f16 { WeightType::Bf16 } else { WeightType::F16 };
    let Checkpoint::Folder(folder) = checkpoint else { return Ok(usual) };
    let fields = python_json::read(&folder.join("config.json"))?.unwrap_or_default();
    let named = [&fields, &fields["text_config"]].into_iter().find_map(|fields| {
        ["dtype", "torch_dtype"].iter().find_map(|name| WeightType::of_name(fields[*name].as_str()?))
    });
    // In f32 a model would be eight times as large as it was.
    Ok(named.filter(|named| *named != WeightType::F32).unwrap_or(usual))
}

/// Returns the path beside `output` that is written to first.
fn part_of(output: &Path) -> PathBuf {
    let mut part = output.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

/// Copies those of the files that are there.
fn copy(from: &Path, to: &Path, names: &[impl AsRef<str>]) -> Result<()> {
    for name in names {
        let file = from.join(name.as_ref());
        if file.is_file() {
            std::fs::copy(&file, to.join(name.as_ref())).map_err(Error::io(format!("copy {}", file.display())))?;
        }
    }
    Ok(())
}

/// Copies the folder of further templates, if there is one.
fn copy_templates(from: &Path, to: &Path) -> Result<()> {
    let templates = from.join(TEMPLATES);
    if !templates.is_dir() {
        return Ok(());
    }
    let to = to.join(TEMPLATES);
    std::fs::create_dir(&to).map_err(Error::io(format!("make {}", to.display())))?;
    let listing = std::fs::read_dir(&templates).map_err(Error::io(format!("list {}", templates.display())))?;
    let names: Vec<_> = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    copy(&templates, &to, &names)
}

fn fault(path: &Path, message: &str) -> Error {
    Error::Setup(format!("{}: {message}", path.display()))
}
