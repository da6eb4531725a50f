//! Gives the library a checkpoint in the form that it reads: some families it computes only where their weights lie
//! otherwise than in the published files. What is written is the same model, to the last bit: rows that are put elsewhere,
//! zeros beside them, a constant that no choice depends on. Called by [`load`](crate::load) before the library.
//!
//! [`config`] does the same with `config.json`, [`tensors`] with each tensor, and [`files`] writes them to files that are
//! gone with the process.

mod config;
mod files;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use attune_engine::child::protocol::Load;
use candle_core::safetensors::MmapedSafetensors;
use serde_json::Value;

use self::config::{Changes, changes, with_older_names};
use self::tensors::{Found, Part, Tensor};

/// Experts of a layer by the end of their tensors' names.
type Experts = BTreeMap<(String, &'static str), BTreeMap<usize, String>>;

/// A folder that the library loads in place of the model's own; it goes when this is dropped.
pub(crate) struct Rewritten {
    folder: PathBuf,
    /// Files that have no name but the links in the folder.
    files: Vec<File>,
}

impl Drop for Rewritten {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Rewritten {
    /// Writes the model of `load` anew; `None` if the library reads it as it is.
    pub(crate) fn of(load: &Load) -> Result<Option<Self>> {
        let text = std::fs::read_to_string(load.path.join("config.json")).context("config.json")?;
        let Ok(before) = serde_json::from_str::<Value>(&text) else { return Ok(None) };
        let mut config = before.clone();
        with_older_names(&mut config);
        let source = open(&load.path)?;
        let changes = changes(&mut config, &source, load.on_cpu)?;
        if config == before && changes.is_none() {
            return Ok(None);
        }
        let mut made = Self { folder: new_folder()?, files: Vec::new() };
        made.link(&load.path, changes.is_some())?;
        std::fs::write(made.folder.join("config.json"), config.to_string())?;
        if let Some(changes) = changes {
            ensure!(
                load.adapter.is_none(),
                "the weights of this family are written anew for the library, which adds no adapter to them: merge it with PEFT"
            );
            made.write(&source, &changes)?;
        }
        Ok(Some(made))
    }

    /// Returns the folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts all other files of the model into the folder.
    fn link(&self, model: &Path, without_weights: bool) -> Result<()> {
        for entry in std::fs::read_dir(model)? {
            let path = std::path::absolute(entry?.path())?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let is_weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
            if name != "config.json" && !(without_weights && is_weights) {
                std::os::unix::fs::symlink(&path, self.folder.join(&name))?;
            }
        }
        Ok(())
    }

    /// Writes the tensors, those of each layer into a file of its own.
    fn write(&mut self, source: &MmapedSafetensors, changes: &Changes) -> Result<()> {
        let mut layers: BTreeMap<Option<usize>, Vec<Tensor>> = BTreeMap::new();
        for tensor in planned(source, changes)? {
            layers.entry(layer(&tensor.name)).or_default().push(tensor);
        }
        let count = layers.len();
        for (number, tensors) in layers.values().enumerate() {
            let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
            let file = files::write(&self.folder.join(&name), source, tensors).with_context(|| {
                format!(
                    "{}: the weights are written anew there for the library, which takes as much room as the model's files; \
                     TMPDIR names another place",
                    self.folder.display()
                )
            })?;
            self.files.push(file);
        }
        Ok(())
    }
}

/// Makes a folder for temporary files that nobody else can look into. Its name is new: a process that was killed while it loaded
/// leaves its own behind, and may have had the same id.
fn new_folder() -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let name = format!("attune-mistralrs-{}-{}", std::process::id(), now.as_nanos());
    let folder = std::env::temp_dir().join(name);
    DirBuilder::new().mode(0o700).create(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Opens the weights in `folder`.
fn open(folder: &Path) -> Result<MmapedSafetensors> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            paths.push(path);
        }
    }
    ensure!(!paths.is_empty(), "{}: there are no *.safetensors", folder.display());
    // SAFETY: nothing changes the files while they are mapped, as with the library itself.
    Ok(unsafe { MmapedSafetensors::multi(&paths) }?)
}

/// Returns the layer that a tensor belongs to.
fn layer(name: &str) -> Option<usize> {
    let (_, rest) = name.split_once(".layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// Returns the tensors to write.
fn planned(source: &MmapedSafetensors, changes: &Changes) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    let mut experts = Experts::new();
    for (name, _) in source.tensors() {
        // Layers that predict further tokens come behind the last one; the library does not read them.
        if layer(&name).is_some_and(|layer| layer >= changes.layers) {
            continue;
        }
        match expert(&name).filter(|_| changes.packs_experts) {
            Some((layer, kind, number)) => {
                experts.entry((layer, kind)).or_default().insert(number, name);
            }
            None => tensors.push(changes.of(&name, &Found::of(source, &name)?)?),
        }
    }
    let layers: BTreeSet<String> = experts.keys().map(|(layer, _)| layer.clone()).collect();
    for layer in layers {
        let mut of =
            |kind| experts.remove(&(layer.clone(), kind)).unwrap_or_default().into_values().collect::<Vec<_>>();
        let (gate, up, down) = (of("gate_proj"), of("up_proj"), of("down_proj"));
        ensure!(gate.len() == up.len() && up.len() == down.len(), "{layer}: an expert lacks a tensor");
        let beside = gate.into_iter().zip(up).map(|(gate, up)| vec![gate, up]).collect();
        tensors.push(Tensor::packed(format!("{layer}.gate_up_proj"), beside, source)?);
        let alone = down.into_iter().map(|down| vec![down]).collect();
        tensors.push(Tensor::packed(format!("{layer}.down_proj"), alone, source)?);
    }
    Ok(tensors)
}

/// Splits the name of an expert's tensor: the experts, the kind of layer, and which one.
fn expert(name: &str) -> Option<(String, &'static str, usize)> {
    let (before, rest) = name.split_once(".experts.")?;
    let (number, kind) = rest.strip_suffix(".weight")?.split_once('.')?;
    let kind = ["gate_proj", "up_proj", "down_proj"].into_iter().find(|known| *known == kind)?;
    Some((format!("{before}.experts"), kind, number.parse().ok()?))
}

impl Changes {
    /// Returns how a tensor that is no expert's is written.
    fn of(&self, name: &str, found: &Found<'_>) -> Result<Tensor> {
        let part = if let Some(values) = self.values.filter(|_| name.ends_with(".self_attn.kv_b_proj.weight")) {
            Part::Padded { place: 0, blocks: values.heads, by: (values.key + values.wide, values.key + values.value) }
        } else if let Some(values) = self.values.filter(|_| name.ends_with(".self_attn.o_proj.weight")) {
            let rows = found.shape.first().copied().unwrap_or_default();
            Part::Padded { place: 1, blocks: rows * values.heads, by: (values.wide, values.value) }
        } else if let Some(halves) = self.halves.filter(|_| is_rotated(name)) {
            Part::Interleaved { width: halves.width, rotated: halves.rotated }
        } else if self.raises_bias && name.ends_with(".gate.e_score_correction_bias") {
            Part::Raised
        } else {
            Part::Same
        };
        Tensor::changed(name, found, part)
    }
}

/// Returns true if the rows of the tensor are rotated in attention.
fn is_rotated(name: &str) -> bool {
    let ends = ["q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias", "q_norm.weight", "k_norm.weight"];
    ends.iter().any(|end| name.strip_suffix(end).is_some_and(|before| before.ends_with(".self_attn.")))
}
