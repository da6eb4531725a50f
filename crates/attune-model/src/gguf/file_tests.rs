//! Files that are broken, cut or made to hurt, and files in several shards: each gets an error that says what is wrong, or
//! is read, within memory that its size bounds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use super::*;
use crate::gguf::config;
use crate::gguf::source::Source;
use crate::gguf::tensors::Names;
use crate::gguf::writer::{self, TensorToWrite};
use crate::gguf::{Metadata, Value};

/// Counts what each thread has allocated at most.
struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(grown: usize, freed: usize) {
    // Memory may be freed by another thread than the one that took it, and after a thread's variables are gone.
    let _ = LIVE.try_with(|live| {
        live.set(live.get().wrapping_add(grown).saturating_sub(freed));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: the system's allocator does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the promises of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that reading a file may take for each of its own, and besides.
const PER_BYTE: usize = 64;
const BESIDES: usize = 256 << 10;

/// Numbers that look random, the same ones in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

fn keys(more: &[(&str, Value)]) -> Metadata {
    let keys: [(&str, Value); 12] = [
        ("general.architecture", "llama".into()),
        ("llama.block_count", 1_u32.into()),
        ("llama.context_length", 64_u32.into()),
        ("llama.embedding_length", 32_u32.into()),
        ("llama.feed_forward_length", vec![64_u32].into()),
        ("llama.attention.head_count", 2_u32.into()),
        ("llama.attention.head_count_kv", 1_u64.into()),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5_f32.into()),
        ("llama.rope.freq_base", 1e4_f32.into()),
        ("tokenizer.ggml.tokens", (0..8).map(|id| format!("t{id}")).collect::<Vec<_>>().into()),
        ("tokenizer.ggml.scores", vec![0.5_f32; 8].into()),
        ("tokenizer.ggml.add_bos_token", false.into()),
    ];
    let more = more.iter().cloned();
    Metadata::new("test", keys.into_iter().chain(more).map(|(key, value)| (key.to_owned(), value)))
}

/// The tensors of a tiny Llama of one block.
fn tensors() -> Vec<TensorToWrite> {
    let of = |name: &str, shape: &[usize], kind| TensorToWrite { name: name.into(), shape: shape.into(), kind };
    let (plain, blocks) = (BlockType::F32, BlockType::Q8_0);
    vec![
        of("token_embd.weight", &[8, 32], blocks),
        of("output_norm.weight", &[32], plain),
        of("blk.0.attn_norm.weight", &[32], plain),
        of("blk.0.ffn_norm.weight", &[32], plain),
        of("blk.0.attn_q.weight", &[32, 32], blocks),
        of("blk.0.attn_k.weight", &[16, 32], blocks),
        of("blk.0.attn_v.weight", &[16, 32], BlockType::F16),
        of("blk.0.attn_output.weight", &[32, 32], plain),
        of("blk.0.ffn_gate.weight", &[64, 32], blocks),
        of("blk.0.ffn_up.weight", &[64, 32], blocks),
        of("blk.0.ffn_down.weight", &[32, 64], blocks),
    ]
}

fn bytes(metadata: &Metadata, tensors: &[TensorToWrite]) -> Vec<u8> {
    let mut file = Vec::new();
    let data = |tensor: &TensorToWrite| {
        let (weights, size) = tensor.kind.size();
        Ok(vec![1; tensor.shape.iter().product::<usize>() / weights * size].into())
    };
    writer::write(&mut file, metadata, tensors, data).unwrap();
    file
}

/// Reads all of a file that a load would read, and returns what is wrong with it.
fn read_all(path: &Path) -> Result<()> {
    let file = Gguf::open(path)?;
    config::read(&file)?;
    let names = Names::of(file.metadata())?;
    let source = Source::new(Arc::new(file.clone()))?;
    for (name, tensor) in file.tensors() {
        for original in names.originals(name) {
            match *tensor.shape {
                [width] => drop(source.vector(&original, width)?),
                [rows, columns] => drop(source.matrix(&original, [rows, columns])?.dequantize()?),
                _ => {}
            }
        }
    }
    source.check_all_read()
}

fn said(file: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file).unwrap();
    read_all(&path).err().map_or_else(|| "fine".into(), |error| error.to_string())
}

#[test]
fn a_file_is_read_whole() {
    assert_eq!(said(&bytes(&keys(&[]), &tensors())), "fine");
    assert_eq!(said(&bytes(&keys(&[("general.alignment", 64_u32.into())]), &tensors())), "fine");
}

/// Returns `file` with `bytes` put in the place of the number that stands `behind` bytes behind `text`.
fn changed(file: &[u8], text: &str, behind: usize, bytes: &[u8]) -> Vec<u8> {
    let found = file.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    let start = found + text.len() + behind;
    let mut file = file.to_vec();
    file[start..start + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn what_is_wrong_with_a_file_is_told_by_name() {
    let good = bytes(&keys(&[]), &tensors());
    let at = |start: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[start..start + bytes.len()].copy_from_slice(bytes);
        file
    };
    let kind = |number: u32| changed(&good, "blk.0.attn_q.weight", 4 + 8 + 8, &number.to_le_bytes());
    let length = |file: Vec<u8>, cut: usize| file[..file.len() - cut].to_vec();
    for (file, says) in [
        (at(0, b"GGML"), "no GGUF file"),
        (at(4, &1_u32.to_le_bytes()), "version 1 of GGUF is no longer read"),
        (at(4, &9_u32.to_le_bytes()), "version 9 of GGUF is not known"),
        (at(4, &3_u32.to_be_bytes()), "the file is big-endian"),
        (at(8, &u64::MAX.to_le_bytes()), "the number of tensors is 18446744073709551615"),
        (at(16, &(1_u64 << 40).to_le_bytes()), "the number of keys is 1099511627776"),
        (length(good.clone(), 100), "the tensor `blk.0.ffn_down.weight` ends beyond the file's"),
        (good[..900].to_vec(), "the file ends at byte 900, within its header"),
        (
            changed(&good, "llama.context_length", 0, &77_u32.to_le_bytes()),
            "the key `llama.context_length` has the type 77",
        ),
        (changed(&good, "llama.feed_forward_length", 4, &9_u32.to_le_bytes()), "a list of lists"),
        (
            changed(&good, "tokenizer.ggml.scores", 8, &(1_u64 << 60).to_le_bytes()),
            "the length of `tokenizer.ggml.scores`",
        ),
        (
            changed(&good, "tokenizer.ggml.tokens", 16, &(1_u64 << 33).to_le_bytes()),
            "a value of `tokenizer.ggml.tokens`",
        ),
        (changed(&good, "token_embd.weight", 0, &5_u32.to_le_bytes()), "has 5 dimensions"),
        (changed(&good, "token_embd.weight", 4 + 8, &0_u64.to_le_bytes()), "a dimension of no size"),
        (changed(&good, "token_embd.weight", 4, &33_u64.to_le_bytes()), "is 33 wide, which is no whole number of"),
        (changed(&good, "token_embd.weight", 4 + 8, &(1_u64 << 61).to_le_bytes()), "is larger than any file"),
        (changed(&good, "output_norm.weight", 4 + 8 + 4, &33_u64.to_le_bytes()), "begins at offset 33 of the data"),
        (kind(4), "the tensor `blk.0.attn_q.weight`: the tensor type Q4_2 was removed"),
        (kind(31), "Q4_0_4_4 was removed"),
        (kind(36), "IQ4_NL_4_4 was removed"),
        (kind(18), "IQ3_XXS is not read"),
        (kind(105), "the tensor type 105 is not known"),
        (changed(&good, "t7", 0, b""), "fine"),
        (changed(&good, "t0", 8, b"\xff\xff"), "a value of `tokenizer.ggml.tokens` is not UTF-8"),
    ] {
        let said = said(&file);
        assert!(said.contains(says), "{says}: {said}");
    }
}

#[test]
fn keys_and_tensors_that_do_not_fit_are_told_by_name() {
    let with = |more: &[(&str, Value)]| bytes(&keys(more), &tensors());
    let mut twice = tensors();
    twice.push(TensorToWrite { kind: BlockType::F32, ..twice[1].clone() });
    let mut long = tensors();
    long[1].name = "n".repeat(64);
    let mut foreign = tensors();
    foreign.push(TensorToWrite { name: "blk.0.attn_q_a.weight".into(), ..foreign[1].clone() });
    let mut narrow = tensors();
    narrow[4].shape = vec![16, 32];
    let mut missing = tensors();
    missing.remove(0);
    let plain = |tensors: &[TensorToWrite]| bytes(&keys(&[]), tensors);
    let key_twice = changed(&plain(&tensors()), "llama.rope.freq_ba", 0, b"se");
    for (file, says) in [
        (with(&[("general.type", "adapter".into())]), "`general.type` is `adapter`: it is a LoRA adapter"),
        (with(&[("general.type", "mmproj".into())]), "the image or audio part"),
        (with(&[("general.type", "song".into())]), "only the type `model`"),
        (
            with(&[("general.architecture", "mamba".into())]),
            "the architecture `mamba` is not supported; supported are llama",
        ),
        (
            with(&[("llama.attention.sliding_window", 4_u32.into())]),
            "the key `llama.attention.sliding_window` is not known",
        ),
        (with(&[("llama.rope.scaling.type", "ntk".into())]), "the key `llama.rope.scaling.type` is `ntk`"),
        (
            with(&[("llama.rope.dimension_count", 8_u32.into())]),
            "`llama.rope.dimension_count` is not the width of a head",
        ),
        (with(&[("llama.attention.value_length", 8_u32.into())]), "`llama.attention.value_length` differs"),
        (with(&[("llama.attention.causal", false.into())]), "this is an encoder"),
        (with(&[("llama.block_count", u32::MAX.into())]), "`llama.block_count` is larger than any model's"),
        (with(&[("llama.block_count", 99_u32.into())]), "`llama.block_count` is more than the file has tensors"),
        (
            with(&[("llama.feed_forward_length", vec![1_u32, 2].into())]),
            "`llama.feed_forward_length` differs between blocks",
        ),
        (with(&[("llama.embedding_length", "wide".into())]), "`llama.embedding_length` must be a whole number"),
        (with(&[("llama.expert_count", (1_u32 << 20).into())]), "`llama.expert_"),
        (plain(&twice), "the tensor `output_norm.weight` is there twice"),
        (plain(&long), "at most 63 are allowed"),
        (plain(&foreign), "the tensor `blk.0.attn_q_a.weight` of this file is not supported"),
        (plain(&missing), "the tensor `token_embd.weight` is missing"),
        (key_twice, "fine"),
    ] {
        let said = said(&file);
        assert!(said.contains(says), "{says}: {said}");
    }
    // One key's name changed into another's.
    let same = changed(&with(&[("llama.rope.freq_basf", 1e4_f32.into())]), "llama.rope.freq_bas", 0, b"e");
    let same = changed(&same, "llama.rope.freq_base", 16, b"llama.rope.freq_base");
    assert!(said(&same).contains("the key `llama.rope.freq_base` is there twice"), "{}", said(&same));
    for alignment in [0_u32, 3] {
        let file =
            changed(&with(&[("general.alignment", 32_u32.into())]), "general.alignment", 4, &alignment.to_le_bytes());
        assert!(said(&file).contains("`general.alignment` must be a power of two"));
    }
}

#[test]
fn cut_and_changed_files_neither_panic_nor_take_memory() {
    let good = bytes(&keys(&[]), &tensors());
    let padded = |tensor: &TensorToWrite| {
        let (weights, size) = tensor.kind.size();
        (tensor.shape.iter().product::<usize>() / weights * size).next_multiple_of(32)
    };
    let header = good.len() - tensors().iter().map(padded).sum::<usize>();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut dice = Dice(0x5EED_CAFE);
    let (mut refused, mut read) = (0, 0);
    for round in 0..1200 {
        let mut file = good.clone();
        match round % 3 {
            0 => file.truncate(dice.below(good.len())),
            1 => {
                for _ in 0..=dice.below(3) {
                    let place = dice.below(header);
                    file[place] = dice.below(256) as u8;
                }
            }
            _ => {
                let place = dice.below(header - 8);
                let numbers = [u64::MAX, 1 << 63, 1 << 40, 1 << 31, u64::from(u32::MAX), 0, 1, good.len() as u64];
                file[place..place + 8].copy_from_slice(&numbers[dice.below(numbers.len())].to_le_bytes());
            }
        }
        std::fs::write(&path, &file).unwrap();
        let before = LIVE.with(Cell::get);
        PEAK.with(|peak| peak.set(before));
        let result = read_all(&path);
        let taken = PEAK.with(Cell::get).saturating_sub(before);
        assert!(taken <= file.len() * PER_BYTE + BESIDES, "round {round}: {taken} bytes for a file of {}", file.len());
        match result {
            Ok(()) => read += 1,
            Err(error) => {
                refused += 1;
                let said = error.to_string();
                assert!(said.len() > path.display().to_string().len() && said.len() < 500, "{said}");
            }
        }
    }
    // Some changes hit names of tokens or weights, where nothing is wrong.
    assert!(refused > 700 && read > 20, "{refused} refused, {read} read");
}

/// Writes a model in shards and returns the folder.
fn shards(change: impl Fn(usize, &mut Vec<(&str, Value)>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let all = tensors();
    for (number, tensors) in [&all[..0], &all[..4], &all[4..]].into_iter().enumerate() {
        let mut more = vec![("split.no", (number as u16).into()), ("split.count", 3_u16.into())];
        more.push(("split.tensors.count", (all.len() as i32).into()));
        change(number, &mut more);
        let name = format!("m-{:05}-of-00003.gguf", number + 1);
        std::fs::write(folder.path().join(name), bytes(&keys(&more), tensors)).unwrap();
    }
    folder
}

#[test]
fn the_shards_of_a_model_are_opened_together() {
    let of = |folder: &tempfile::TempDir, number: usize| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
    let said = |path: &Path| read_all(path).err().map_or_else(|| "fine".into(), |error| error.to_string());
    let whole = shards(|_, _| {});
    assert_eq!(said(&of(&whole, 1)), "fine");
    assert_eq!(Gguf::open(&of(&whole, 1)).unwrap().files().len(), 3);
    let first = of(&whole, 1).display().to_string();
    assert!(said(&of(&whole, 2)).contains(&format!("this is shard 2 of 3: give {first}")), "{}", said(&of(&whole, 2)));
    std::fs::rename(of(&whole, 3), whole.path().join("elsewhere.gguf")).unwrap();
    assert!(said(&of(&whole, 1)).contains("00003-of-00003.gguf: the file is missing, one of the 3 shards"));
    let renamed = whole.path().join("other.gguf");
    std::fs::rename(of(&whole, 1), &renamed).unwrap();
    assert!(said(&renamed).contains("a shard of a model must keep its name"));

    let wrong = shards(|number, keys| keys[0].1 = if number == 1 { 2_u16.into() } else { (number as u16).into() });
    assert!(said(&of(&wrong, 1)).contains("by its own keys the file is not shard 2 of this model"));
    let few = shards(|_, keys| keys[2].1 = 99_i32.into());
    assert!(said(&of(&few, 1)).contains("the shards hold 11 tensors, and should hold 99"));
    let twice = shards(|_, _| {});
    std::fs::write(
        of(&twice, 3),
        bytes(&keys(&[("split.no", 2_u16.into()), ("split.count", 3_u16.into())]), &tensors()[3..]),
    )
    .unwrap();
    assert!(said(&of(&twice, 1)).contains("is in another shard already"));
}
