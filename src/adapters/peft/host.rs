//! An adapter in host memory: its checked file, and where in it each matrix lies. It becomes an [`Adapter`] on a device
//! by copying alone, which takes far less time than one prefill. All work on its bytes goes on in [`Pieces`].
//!
//! The registry checks every adapter this way, from the file's header before anything is allocated, and keeps the
//! result in the tier between device and disk. No content of a file may panic.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{SafeTensors, TensorInfo};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserializer as _, de};
use sha2::{Digest as _, Sha256};

use crate::adapters::peft::config::PeftConfig;
use crate::adapters::peft::experts::ExpertHalves;
use crate::adapters::peft::matrix::{Matrix, Update, with_values};
use crate::adapters::peft::{self, PREFIX, refuse};
use crate::adapters::pieces::{PIECE_BYTES, Pieces, parts};
use crate::adapters::{Error, Result};
use crate::model::ModelConfig;
use crate::model::lora::MAX_RANK;
use crate::model::lora::layout::{LANES, PairShape, Stretch};
use crate::model::lora::modules::{self, BlockNames};
use crate::model::lora::{Adapter, LoraLayer, LoraPair, Site};

/// Bytes of the header of `adapter_model.safetensors` at the most. Tensors of single experts, 40,000 of them, need most of
/// it; others a twentieth.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// Names of the list of blocks in models that read images, too, around a language model: in transformers 5, and before.
const WRAPPED: [&str; 2] = ["model.language_model.layers", "language_model.model.layers"];

/// The checked files of one generation.
pub struct HostAdapter {
    id: String,
    weights: Bytes,
    blocks: usize,
    /// Layers of the blocks, changed or not.
    names: BlockNames,
    rank: usize,
    updates: Vec<Update>,
}

impl fmt::Debug for HostAdapter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("HostAdapter");
        shown
            .field("id", &self.id)
            .field("rank", &self.rank)
            .field("bytes", &self.weights.len())
            .finish_non_exhaustive()
    }
}

impl HostAdapter {
    /// Checks the two files of a PEFT folder for a model of shape `model`: the configuration, the header, the shapes,
    /// then the numbers. Nothing but a small plan is allocated, and one matrix of experts at a time.
    pub fn check(
        config: &[u8],
        weights: Bytes,
        model: &ModelConfig,
        max_rank: usize,
        pieces: &mut Pieces<'_>,
    ) -> Result<Self> {
        let mut digest = Sha256::new();
        for piece in weights.chunks(PIECE_BYTES) {
            pieces.work(piece.len());
            digest.update(piece);
        }
        let adapter = Self::planned(peft::name(digest, config), config, weights, model, max_rank, pieces)?;
        adapter.check_values(pieces)?;
        Ok(adapter)
    }

    /// As [`HostAdapter::check`], for files that were stored as `generation`, of which not a byte may have changed:
    /// reads the `bytes` of `weights` as well, each piece hashed while it is in the core's cache. If the caller knows
    /// the files as `verified`, they have been through this before: they are not hashed, nor are their numbers checked.
    pub fn read_stored(
        generation: &str,
        config: &[u8],
        weights: impl Read,
        bytes: usize,
        verified: bool,
        model: &ModelConfig,
        pieces: &mut Pieces<'_>,
    ) -> Result<Self> {
        let mut digest = (!verified).then(Sha256::new);
        let weights = pieces.read(weights, bytes, |piece| digest.iter_mut().for_each(|digest| digest.update(piece)));
        let weights = weights.map_err(Error::io(format!("read the files of adapter {generation}")))?;
        if digest.is_some_and(|digest| peft::name(digest, config) != generation) {
            // Checked first: a damaged file is our fault (500), not the client's.
            return Err(Error::Internal(format!("the files of adapter {generation} do not match its hash")));
        }
        let adapter = Self::planned(generation.to_owned(), config, weights.into(), model, MAX_RANK, pieces)?;
        if !verified {
            adapter.check_values(pieces)?;
        }
        Ok(adapter)
    }

    /// Checks everything but the numbers.
    fn planned(
        id: String,
        config: &[u8],
        mut weights: Bytes,
        model: &ModelConfig,
        max_rank: usize,
        pieces: &mut Pieces<'_>,
    ) -> Result<Self> {
        let config = PeftConfig::read(config)?;
        let Places { names, halves, experts } = Places::read(&weights, model)?;
        if let Some(other) = config.named_target(&other_modules(model)) {
            return Err(refuse(format_args!(
                "target_modules names `{other}`, which is none of the layers that can be adapted: {}",
                modules::names(names.modules).join(", ")
            )));
        }
        let blocks = model.num_hidden_layers;
        let updates = experts.updates(&config, model, max_rank, &mut weights, pieces)?;
        let rank = updates.iter().map(|update| update.a.shape.0).max().unwrap_or(0);
        // Without its wrapper the language model has the usual names.
        let own = if WRAPPED.contains(&names.blocks) { model.block_names() } else { names };
        let mut adapter = Self { id, weights, blocks, names: own, rank, updates };
        for (block, index) in all_places(model, &names) {
            let module = &names.modules[index];
            let path = &names.path(block, module.path);
            match (halves.get(&(block, index)), config.changes(path)) {
                (None, false) => {}
                (None, true) => {
                    return Err(refuse(format_args!("target_modules names `{path}`, for which there are no tensors")));
                }
                (Some(_), false) => {
                    return Err(refuse(format_args!(
                        "there are tensors for `{path}`, which target_modules does not name"
                    )));
                }
                (Some([Some(a), Some(b)]), true) => {
                    let (rank, scale) = config.scaling(path, max_rank)?;
                    let (out, input) = module.shape(model);
                    let a = a.checked(&format!("{path}.lora_A"), (rank, input))?;
                    let b = b.checked(&format!("{path}.lora_B"), (out, rank))?;
                    adapter.rank = adapter.rank.max(rank);
                    for (site, rows) in module.rows(model) {
                        let (a, b) = (a.clone(), b.rows(rows));
                        adapter.updates.push(Update { block, expert: None, site, scale, a, b });
                    }
                }
                (Some(_), true) => {
                    return Err(refuse(format_args!("`{path}` has only one of lora_A and lora_B")));
                }
            }
        }
        Ok(adapter)
    }

    /// SHA-256 over the two files, in hex.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The largest rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes in host memory.
    pub fn host_bytes(&self) -> u64 {
        (self.weights.len() + self.updates.len() * size_of::<Update>()) as u64
    }

    /// Bytes on the device, its matrices held in `precision`.
    pub fn device_bytes(&self, precision: DType) -> u64 {
        let elements = self.updates.iter().map(|update| update.shape().elements());
        (elements.sum::<usize>() * precision.size_in_bytes()) as u64
    }

    /// Copies the adapter to `device`, ready to compute, in f32.
    pub fn to_adapter(&self, device: &Device, pieces: &mut Pieces<'_>) -> Result<Adapter> {
        let mut layers = vec![LoraLayer::default(); self.blocks];
        for Update { block, expert, site, scale, a, b } in &self.updates {
            let mut tensor = |matrix: &Matrix| {
                let mut values = Vec::with_capacity(matrix.shape.0 * matrix.shape.1);
                for piece in matrix.pieces() {
                    pieces.work(piece.len());
                    matrix.read(&self.weights[piece], &mut values);
                }
                Tensor::from_vec(values, matrix.shape, device)
            };
            put(&mut layers[*block], *expert, *site, LoraPair { a: tensor(a)?, b: tensor(b)?, scale: *scale })?;
        }
        Ok(Adapter::of_blocks(self.id.clone(), layers, self.names))
    }

    /// Lays the adapter out for a serving step on the CPU: as [`Adapter::for_serving`], without the way over tensors.
    pub fn to_served(&self, precision: DType, pieces: &mut Pieces<'_>) -> Result<Adapter> {
        let shapes: Vec<PairShape> = self.updates.iter().map(Update::shape).collect();
        let mut stretch = Stretch::new(precision, shapes.iter().map(PairShape::elements).sum())?;
        for (update, shape) in self.updates.iter().zip(&shapes) {
            // A piece is all of A's rows in some columns, or some panels of B.
            for columns in parts(shape.input, shape.rank * size_of::<f32>()) {
                pieces.work(columns.len() * shape.rank * size_of::<f32>());
                with_values!(update.a, self.weights, |stored, value| stretch.add_a(shape, columns, stored, value));
            }
            for panels in parts(shape.panels(), shape.rank * LANES * size_of::<f32>()) {
                pieces.work(panels.len() * shape.rank * LANES * size_of::<f32>());
                with_values!(update.b, self.weights, |stored, value| stretch.add_b(shape, panels, stored, value));
            }
        }
        let mut layers = vec![LoraLayer::default(); self.blocks];
        for (Update { block, expert, site, .. }, pair) in self.updates.iter().zip(stretch.pairs(&shapes)?) {
            put(&mut layers[*block], *expert, *site, pair)?;
        }
        Ok(Adapter::of_blocks(self.id.clone(), layers, self.names))
    }

    /// Returns the name of the layer that an update changes.
    fn name(&self, update: &Update) -> String {
        let own = self.names.modules.iter().find(|module| module.sites.contains(&update.site));
        match (update.expert, own) {
            (Some(expert), _) => self.names.path(update.block, &format!("mlp.experts.{expert}: {:?}", update.site)),
            (None, own) => self.names.path(update.block, own.map_or("", |module| module.path)),
        }
    }

    /// Refuses matrices with infinities or NaN, by their bits alone.
    fn check_values(&self, pieces: &mut Pieces<'_>) -> Result<()> {
        for update in &self.updates {
            for (matrix, half) in [(&update.a, 'A'), (&update.b, 'B')] {
                for piece in matrix.pieces() {
                    pieces.work(piece.len());
                    if !matrix.are_finite(&self.weights[piece]) {
                        let path = self.name(update);
                        return Err(refuse(format_args!("`{path}.lora_{half}` has values that are not finite")));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Puts an update to its place in a block.
fn put(layer: &mut LoraLayer, expert: Option<usize>, site: Site, pair: LoraPair) -> Result<()> {
    match expert {
        Some(expert) => layer.set_expert(expert, site, pair)?,
        None => layer.set(site, pair),
    }
    Ok(())
}

/// Every place that an adapter of the model can have: the block, and the index of the layer among those of `names`.
fn all_places(model: &ModelConfig, names: &BlockNames) -> impl Iterator<Item = (usize, usize)> {
    let modules = names.modules;
    let all = (0..model.num_hidden_layers).flat_map(move |block| (0..modules.len()).map(move |index| (block, index)));
    all.filter(|(block, index)| model.has_module(*block, &modules[*index]))
}

/// Returns the names of everything in the model that is no linear layer of a block.
fn other_modules(model: &ModelConfig) -> Vec<String> {
    if model.encoder.is_some() {
        return [
            "embeddings",
            "encoder",
            "pooler",
            "pooler.dense",
            "classifier",
            "classifier.dense",
            "head",
            "head.dense",
        ]
        .map(str::to_owned)
        .into();
    }
    let norm = model.norm_name("model.norm");
    let outside = ["model", "model.embed_tokens", "model.layers", norm, "model.rotary_emb", "lm_head"];
    let has = |part: &str| model.modules.iter().any(|module| module.path.starts_with(part));
    let parts: &[&str] = if has("shared_mlp.") {
        &[".shared_mlp", ".shared_mlp.activation"]
    } else if has("conv.") {
        &[".feed_forward", ".conv", ".conv.conv"]
    } else {
        &[".mlp", ".mlp.act_fn"]
    };
    let mut inside: Vec<String> = ["", ".self_attn"].iter().chain(parts).map(|name| (*name).to_owned()).collect();
    let norms = model.norm_places.all_names();
    let heads = ["self_attn.q_norm", "self_attn.k_norm"].into_iter().filter(|_| model.query_key_norm.is_some());
    inside.extend(norms.chain(heads).map(|norm| format!(".{}", model.norm_name(norm))));
    if model.experts.is_some() {
        inside.extend([".mlp.gate", ".mlp.router", ".mlp.experts", ".mlp.experts.act_fn"].map(str::to_owned));
    }
    let blocks = (0..model.num_hidden_layers)
        .flat_map(|block| inside.iter().map(move |module| format!("model.layers.{block}{module}")));
    outside.into_iter().map(str::to_owned).chain(blocks).collect()
}

/// A and B of each place, as the file's header has them.
type Halves = BTreeMap<(usize, usize), [Option<Matrix>; 2]>;

/// Where the matrices of a file belong.
struct Places {
    /// Names that the file has for the layers.
    names: BlockNames,
    halves: Halves,
    experts: ExpertHalves,
}

impl Places {
    /// Finds the place of each tensor of a file; refuses one without.
    fn read(weights: &[u8], model: &ModelConfig) -> Result<Self> {
        let (header, tensors) = tensors(weights)?;
        let layer = |names: &BlockNames, name: &str| {
            let (_, path, _) = parse_name(name, names)?;
            names.modules.iter().position(|module| module.path == path)
        };
        // A file has the names of one program: where the first of its layers is known, all others must be.
        let is_known = |names: &BlockNames| tensors.keys().any(|name| layer(names, name).is_some());
        let usual = model.block_names();
        let wrapped = WRAPPED.into_iter().filter(|_| usual.blocks == "model.layers");
        let wrapped = wrapped.map(|blocks| BlockNames { blocks, ..usual });
        let names = model.adapter_names().chain(wrapped).find(is_known).unwrap_or(usual);
        let (mut halves, mut experts) = (Halves::new(), ExpertHalves::default());
        for (name, info) in &tensors {
            let place = parse_name(name, &names).filter(|(block, ..)| *block < model.num_hidden_layers);
            let (block, path, half) = place.ok_or_else(|| no_place(name, model))?;
            let place = match names.modules.iter().position(|module| module.path == path) {
                Some(index) if model.has_module(block, &names.modules[index]) => {
                    halves.entry((block, index)).or_default()
                }
                Some(_) => return Err(no_place(name, model)),
                None => experts.at(block, path, model).ok_or_else(|| no_place(name, model))?,
            };
            if place[half].replace(Matrix::of(name, info, header)?).is_some() {
                return Err(refuse(format_args!("`{name}` is there twice, with and without the adapter's name")));
            }
        }
        Ok(Self { names, halves, experts })
    }
}

/// Returns where the tensors of a file begin, and what its header says of each.
fn tensors(weights: &[u8]) -> Result<(usize, BTreeMap<String, TensorInfo>)> {
    let damaged = |why: &dyn fmt::Display| refuse(format_args!("adapter_model.safetensors is damaged: {why}"));
    let length = weights.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    if length.is_none_or(|length| length > MAX_HEADER_BYTES) {
        return Err(damaged(&format_args!("its header must have at most {MAX_HEADER_BYTES} bytes")));
    }
    let (header, metadata) = SafeTensors::read_metadata(weights).map_err(|error| damaged(&error))?;
    refuse_duplicates(&weights[8..8 + header]).map_err(|error| damaged(&error))?;
    let tensors = metadata.tensors();
    if tensors.is_empty() {
        return Err(refuse("adapter_model.safetensors has no tensors"));
    }
    Ok((8 + header, tensors.into_iter().map(|(name, info)| (name, info.clone())).collect()))
}

fn no_place(name: &str, model: &ModelConfig) -> Error {
    let is_part = model.modules.iter().find(|module| {
        module.sites.len() > 1 && module.sites.iter().any(|site| name.contains(&format!(".{}.", site.path())))
    });
    if let Some(whole) = is_part {
        return refuse(format_args!(
            "the model has no place for the tensor `{name}`: its layer is `{}`, which PEFT adapts as a whole",
            whole.name()
        ));
    }
    let why = if name.contains("lora_magnitude_vector") {
        " (DoRA is not supported)"
    } else if name.contains("embed") || name.contains("lm_head") {
        " (the embedding and the output head cannot be changed)"
    } else if name.contains(".gate.") || name.contains(".router.") {
        " (the router of experts cannot be changed)"
    } else {
        ""
    };
    refuse(format_args!("the model has no place for the tensor `{name}`{why}"))
}

/// Block, module in it and half (0 for A, 1 for B) of a tensor's name.
fn parse_name<'a>(name: &'a str, names: &BlockNames) -> Option<(usize, &'a str, usize)> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix(names.blocks)?.strip_prefix('.')?;
    let (index, rest) = rest.split_once('.')?;
    let block: usize = index.parse().ok()?;
    // A state that was saved without PEFT's own function keeps the adapter's name.
    let rest = rest.strip_suffix(".weight")?;
    let rest = rest.strip_suffix(".default").unwrap_or(rest);
    let (path, half) = match rest.strip_suffix(".lora_A") {
        Some(path) => (path, 0),
        None => (rest.strip_suffix(".lora_B")?, 1),
    };
    // `01` is another spelling of 1, which would let two tensors claim one place.
    (block.to_string() == index).then_some((block, path, half))
}

/// A header that has a name twice means different tensors to different readers.
fn refuse_duplicates(header: &[u8]) -> serde_json::Result<()> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
            let mut names = std::collections::HashSet::new();
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                if names.contains(&name) {
                    return Err(de::Error::custom(format_args!("`{name}` is there twice")));
                }
                names.insert(name);
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_slice(header).deserialize_map(Names)
}
