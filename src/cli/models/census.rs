//! Counts a checkpoint's weights by the shapes in its files' headers, and tells what they take in memory on the CPU.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::model::ModelConfig;
use crate::model::gguf::Gguf;

/// Longest header of a safetensors file, as its own library has it.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes of 32 weights in blocks, with their scales: an `f32` scale for `q8_0` as the engine holds it, f16 for `q4_0`.
const Q8_0_BLOCK: u64 = 36;
const Q4_0_BLOCK: u64 = 18;

/// Weights of a model by what can be done with them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Census {
    /// Weights of linear layers.
    linear: u64,
    /// Weights of embedding and head.
    tables: u64,
    /// Norms and biases, which are always f32.
    vectors: u64,
    /// True if all matrices are bf16, which f32 holds in two bytes as well.
    is_bf16: bool,
    /// True if some weights are packed: their number does not follow from the shapes.
    is_packed: bool,
}

impl Census {
    /// Counts the weights of the folder or the GGUF file at `path`; `None` if its headers cannot be read, which of a GGUF
    /// file with blocks of an unknown type is so, too.
    pub(super) fn of(path: &Path) -> Option<Self> {
        if path.is_file() {
            return Gguf::open(path).ok().map(|file| Self::of_gguf(&file));
        }
        let tied = ModelConfig::read(path).is_ok_and(|config| config.tie_word_embeddings);
        let mut census = Self { is_bf16: true, ..Self::default() };
        for file in weights(path)? {
            for (name, tensor) in header(&file)?.as_object()?.iter().filter(|(name, _)| *name != "__metadata__") {
                if !(tied && name == "lm_head.weight") {
                    census.add(name, tensor)?;
                }
            }
        }
        Some(census)
    }

    /// Returns the bytes of the weights' files.
    pub(super) fn bytes(path: &Path) -> Option<u64> {
        let files = if path.is_file() { vec![path.to_owned()] } else { weights(path)? };
        files.iter().map(|file| std::fs::metadata(file).ok().map(|metadata| metadata.len())).sum()
    }

    fn add(&mut self, name: &str, tensor: &Value) -> Option<()> {
        // Numbers of positions, which some encoders' files hold.
        if name.ends_with("position_ids") {
            return Some(());
        }
        let sizes: Option<Vec<u64>> = tensor["shape"].as_array()?.iter().map(Value::as_u64).collect();
        let sizes = sizes?;
        let count = sizes.iter().try_fold(1_u64, |product, size| product.checked_mul(*size))?;
        let dtype = tensor["dtype"].as_str()?;
        self.is_packed |= !["F32", "F16", "BF16"].contains(&dtype);
        let is_table = ["embed", "lm_head"].iter().any(|part| name.contains(part));
        let of = match sizes.len() {
            0 | 1 => &mut self.vectors,
            _ if is_table => &mut self.tables,
            _ => &mut self.linear,
        };
        *of = of.saturating_add(count);
        self.is_bf16 &= sizes.len() < 2 || dtype == "BF16";
        Some(())
    }

    fn of_gguf(file: &Gguf) -> Self {
        let mut census = Self::default();
        for (name, tensor) in file.tensors() {
            let sizes = &tensor.shape;
            let count = sizes.iter().fold(1_u64, |product, size| product.saturating_mul(*size as u64));
            let is_table = ["token_embd.", "output."].iter().any(|start| name.starts_with(start));
            let of = match sizes.len() {
                0 | 1 => &mut census.vectors,
                _ if is_table => &mut census.tables,
                _ => &mut census.linear,
            };
            *of = of.saturating_add(count);
        }
        census
    }

    /// Returns the number of weights; `None` if they are packed.
    pub(super) fn parameters(&self) -> Option<u64> {
        (!self.is_packed).then_some(self.linear.saturating_add(self.tables).saturating_add(self.vectors))
    }

    /// Returns the bytes as f32: two for each weight of a matrix in bf16.
    pub(super) fn f32(&self) -> Option<u64> {
        let width = if self.is_bf16 { 2 } else { 4 };
        self.sum(self.linear.saturating_mul(width), width)
    }

    /// Returns the bytes as bf16.
    pub(super) fn bf16(&self) -> Option<u64> {
        self.sum(self.linear.saturating_mul(2), 2)
    }

    /// Returns the bytes in blocks of 8 bits, embedding and head included.
    pub(super) fn q8_0(&self) -> Option<u64> {
        let blocks = self.linear.saturating_add(self.tables).div_ceil(32);
        self.parameters().map(|_| blocks.saturating_mul(Q8_0_BLOCK).saturating_add(self.vectors.saturating_mul(4)))
    }

    /// Returns the bytes with the linear layers in blocks of 4 bits, and embedding and head as by default.
    pub(super) fn q4_0(&self) -> Option<u64> {
        let width = if self.is_bf16 { 2 } else { 4 };
        self.sum(self.linear.div_ceil(32).saturating_mul(Q4_0_BLOCK), width)
    }

    /// Adds embedding and head, of `width` bytes for each weight, and the vectors.
    fn sum(&self, linear: u64, width: u64) -> Option<u64> {
        let others = self.tables.saturating_mul(width).saturating_add(self.vectors.saturating_mul(4));
        self.parameters().map(|_| linear.saturating_add(others))
    }
}

/// Returns the files of weights in `folder`.
fn weights(folder: &Path) -> Option<Vec<PathBuf>> {
    if let Some(file) = ["model.safetensors", "adapter_model.safetensors"]
        .iter()
        .map(|name| folder.join(name))
        .find(|file| file.is_file())
    {
        return Some(vec![file]);
    }
    let index = std::fs::read_to_string(folder.join("model.safetensors.index.json")).ok()?;
    let index: Value = serde_json::from_str(&index).ok()?;
    let mut names: Vec<&str> = index["weight_map"].as_object()?.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.iter().all(|name| !name.contains(['/', '\\'])).then(|| names.iter().map(|name| folder.join(name)).collect())
}

/// Reads the header of a safetensors file.
fn header(file: &Path) -> Option<Value> {
    let mut file = File::open(file).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return None;
    }
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::blocks::BlockType;
    use crate::model::gguf::Metadata;
    use crate::model::gguf::writer::{self, TensorToWrite};

    fn folder(config: &Value, tensors: &Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let header = tensors.to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(folder.path().join("model.safetensors"), bytes).expect("written");
        folder
    }

    #[test]
    fn memory_follows_from_shapes_and_a_tied_head_counts_once() {
        let tensors = json!({
            "__metadata__": {"format": "pt"},
            "model.embed_tokens.weight": {"dtype": "BF16", "shape": [100, 64]},
            "lm_head.weight": {"dtype": "BF16", "shape": [100, 64]},
            "model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": [128, 64]},
            "model.norm.weight": {"dtype": "BF16", "shape": [64]},
        });
        let tied = folder(&json!({"model_type": "llama", "tie_word_embeddings": true}), &tensors);
        let census = Census::of(tied.path()).expect("counted");
        assert_eq!(census.parameters(), Some(6400 + 8192 + 64));
        assert_eq!(census.f32(), Some(2 * (6400 + 8192) + 256), "bf16 is held in two bytes");
        assert_eq!(census.bf16(), census.f32());
        assert_eq!(census.q8_0(), Some((6400 + 8192) * 36 / 32 + 256));
        assert_eq!(census.q4_0(), Some(8192 * 18 / 32 + 2 * 6400 + 256));
        let free = folder(&json!({"model_type": "llama"}), &tensors);
        assert_eq!(Census::of(free.path()).and_then(|census| census.parameters()), Some(2 * 6400 + 8192 + 64));
    }

    #[test]
    fn embeddings_of_encoders_are_tables_and_numbers_of_positions_are_no_weights() {
        let tensors = json!({
            "embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [100, 8]},
            "embeddings.position_ids": {"dtype": "I64", "shape": [1, 16]},
            "embeddings.LayerNorm.weight": {"dtype": "F32", "shape": [8]},
            "encoder.layer.0.output.dense.weight": {"dtype": "F32", "shape": [8, 32]},
        });
        let census = Census::of(folder(&json!({"model_type": "bert"}), &tensors).path()).expect("counted");
        assert_eq!((census.tables, census.linear, census.vectors, census.parameters()), (800, 256, 8, Some(1064)));
    }

    #[test]
    fn weights_of_a_gguf_file_are_counted_by_its_shapes_and_a_cut_file_gives_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.gguf");
        let tensor = |name: &str, shape: &[usize]| TensorToWrite {
            name: name.into(),
            shape: shape.to_vec(),
            kind: BlockType::F32,
        };
        let tensors =
            [tensor("token_embd.weight", &[3, 64]), tensor("blk.0.attn_q.weight", &[2, 64]), tensor("a.bias", &[5])];
        let metadata = Metadata::new("x", [("general.architecture".to_owned(), "llama".into())]);
        let mut bytes = Vec::new();
        let zeros = |tensor: &TensorToWrite| Ok(vec![0; 4 * tensor.shape.iter().product::<usize>()].into());
        writer::write(&mut bytes, &metadata, &tensors, zeros).expect("written");
        std::fs::write(&path, &bytes).expect("written");
        let census = Census::of(&path).expect("counted");
        assert_eq!((census.tables, census.linear, census.vectors), (192, 128, 5));
        std::fs::write(&path, &bytes[..bytes.len() - 40]).expect("written");
        assert_eq!(Census::of(&path), None);
    }

    #[test]
    fn packed_weights_are_not_counted_and_hostile_headers_end_nothing() {
        let packed = json!({"a.qweight": {"dtype": "I32", "shape": [8, 8]}});
        assert_eq!(Census::of(folder(&json!({}), &packed).path()).expect("counted").parameters(), None);
        for tensors in [json!([]), json!({"a": 1}), json!({"a": {"dtype": "F32", "shape": [u64::MAX, 2]}})] {
            assert_eq!(Census::of(folder(&json!({}), &tensors).path()), None, "{tensors}");
        }
        assert_eq!(Census::of(Path::new("/no/such/folder")), None);
    }
}
