//! Keeps rendered examples in a temporary file, so that a training file may be larger than memory: only the position of
//! each example stays in memory, 16 bytes. [`super::read`] writes them, the trainer reads those of a step, in any
//! order.
//!
//! A record is the tokens, then the weights as runs of equal ones (a prompt's zeros, an answer's ones), all in little
//! endian. The record of texts has a run for each text, with the number of the text in place of a weight, and, if the
//! line has a score or a label, an empty run with that.
//! Files of usual size never leave the system's cache.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::TokenizedExample;
use crate::{Error, Result};

/// Length and value of each run.
type Runs = Vec<(usize, f32)>;

/// Bytes that are collected before a write.
const BUFFER: usize = 1 << 20;

/// Written examples, for reading.
#[derive(Debug)]
pub struct ExampleStore {
    file: File,
    places: Vec<ExampleSpan>,
    digest: [u8; 32],
    /// Whether the examples are texts.
    pub(super) of_texts: bool,
    unpooled: [usize; 2],
}

/// Position of an example in the file.
#[derive(Debug, Clone, Copy)]
struct ExampleSpan {
    offset: u64,
    tokens: u32,
    runs: u32,
}

impl ExampleSpan {
    fn bytes(self) -> usize {
        4 * self.tokens as usize + 8 * self.runs as usize
    }
}

/// Examples that are being written.
#[derive(Debug)]
pub struct ExampleWriter {
    file: File,
    buffer: Vec<u8>,
    /// Bytes so far, including those in the buffer.
    end: u64,
    places: Vec<ExampleSpan>,
    digest: Sha256,
    of_texts: bool,
    /// Tokens at the begin of each anchor, and of each other text, that their vectors leave out.
    pub(crate) unpooled: [usize; 2],
}

impl ExampleWriter {
    /// Creates an empty file in `folder`, without a name: the system deletes it with the process, however that ends.
    pub fn new(folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder);
        let file = file.map_err(Error::io(format!("make a temporary file in {}", folder.display())))?;
        let (buffer, places, digest) = (Vec::new(), Vec::new(), Sha256::new());
        Ok(Self { file, buffer, end: 0, places, digest, of_texts: false, unpooled: [0; 2] })
    }

    /// Appends a sequence.
    pub fn push(&mut self, example: &TokenizedExample) -> Result<()> {
        let runs = example.weights.chunk_by(|a, b| a.to_bits() == b.to_bits());
        self.append(&example.tokens, runs.map(|run| (run.len(), run[0])))
    }

    /// Appends the texts of a pair, each with at least one token. A store holds either pairs or sequences.
    pub fn push_texts(&mut self, texts: &[Vec<u32>]) -> Result<()> {
        self.of_texts = true;
        self.append(&texts.concat(), texts.iter().enumerate().map(|(number, text)| (text.len(), number as f32)))
    }

    /// Appends texts with the score or label that is learned of them.
    pub fn push_scored(&mut self, texts: &[Vec<u32>], number: f32) -> Result<()> {
        self.of_texts = true;
        let runs = texts.iter().enumerate().map(|(number, text)| (text.len(), number as f32));
        self.append(&texts.concat(), runs.chain([(0, number)]))
    }

    fn append(&mut self, tokens: &[u32], runs: impl Iterator<Item = (usize, f32)>) -> Result<()> {
        let start = self.buffer.len();
        self.buffer.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        let mut count = 0;
        for (length, value) in runs {
            self.buffer.extend((length as u32).to_le_bytes());
            self.buffer.extend(value.to_le_bytes());
            count += 1;
        }
        let place = ExampleSpan { offset: self.end, tokens: tokens.len() as u32, runs: count };
        // Lengths before contents, so that no two lists of examples give the same bytes.
        self.digest.update(place.tokens.to_le_bytes());
        self.digest.update(place.runs.to_le_bytes());
        self.digest.update(&self.buffer[start..]);
        self.end += place.bytes() as u64;
        self.places.push(place);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// Ends the writing and returns the store.
    pub fn finish(mut self) -> Result<ExampleStore> {
        self.flush()?;
        let Self { file, places, digest, of_texts, unpooled, .. } = self;
        Ok(ExampleStore { file, places, digest: digest.finalize().into(), of_texts, unpooled })
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.buffer).map_err(Error::io("write a temporary file"))?;
        self.buffer.clear();
        Ok(())
    }
}

impl ExampleStore {
    /// Creates a store of `examples` in the system's temporary folder, for a few that the program makes itself.
    pub fn of(examples: impl IntoIterator<Item = TokenizedExample>) -> Result<Self> {
        let mut writer = ExampleWriter::new(&std::env::temp_dir())?;
        for example in examples {
            writer.push(&example)?;
        }
        writer.finish()
    }

    /// Creates a store of pairs of texts in the system's temporary folder.
    pub fn of_texts(pairs: impl IntoIterator<Item = Vec<Vec<u32>>>) -> Result<Self> {
        let mut writer = ExampleWriter::new(&std::env::temp_dir())?;
        for texts in pairs {
            writer.push_texts(&texts)?;
        }
        writer.finish()
    }

    /// Creates a store of texts with a score or a label in the system's temporary folder.
    pub fn of_scored(examples: impl IntoIterator<Item = (Vec<Vec<u32>>, f32)>) -> Result<Self> {
        let mut writer = ExampleWriter::new(&std::env::temp_dir())?;
        for (texts, number) in examples {
            writer.push_scored(&texts, number)?;
        }
        writer.finish()
    }

    /// Returns the number of tokens at the begin of each anchor, and of each other text, that their vectors leave out.
    pub const fn unpooled(&self) -> [usize; 2] {
        self.unpooled
    }

    /// Counts the examples.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns true if there are no examples.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Counts the tokens of the example at `index`.
    pub fn tokens(&self, index: usize) -> usize {
        self.places[index].tokens as usize
    }

    /// Returns a hash of all examples in order.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Reads the sequence at `index`; an error if the store holds pairs of texts.
    pub fn get(&self, index: usize) -> Result<TokenizedExample> {
        if self.of_texts {
            return Err(Error::Internal("pairs of texts were read as sequences".into()));
        }
        let (tokens, runs) = self.read(index)?;
        let mut weights = Vec::with_capacity(tokens.len());
        for (length, weight) in runs {
            weights.resize(weights.len() + length, weight);
        }
        Ok(TokenizedExample { tokens, weights })
    }

    /// Reads the texts at `index`; an error if the store holds sequences.
    pub fn texts(&self, index: usize) -> Result<Vec<Vec<u32>>> {
        Ok(self.read_texts(index)?.0)
    }

    /// Reads the texts at `index` with their score or label; an error if they have none.
    pub fn scored(&self, index: usize) -> Result<(Vec<Vec<u32>>, f32)> {
        let (texts, number) = self.read_texts(index)?;
        let number = number.ok_or_else(|| Error::Internal("texts without a number were read with one".into()))?;
        Ok((texts, number))
    }

    /// Reads the texts at `index` with their score or label, if they have one.
    pub(super) fn read_texts(&self, index: usize) -> Result<(Vec<Vec<u32>>, Option<f32>)> {
        if !self.of_texts {
            return Err(Error::Internal("sequences were read as pairs of texts".into()));
        }
        let (tokens, runs) = self.read(index)?;
        let number = runs.last().filter(|(length, _)| *length == 0).map(|(_, number)| *number);
        let (mut rest, texts) = (tokens.into_iter(), runs.into_iter().filter(|(length, _)| *length > 0));
        Ok((texts.map(|(length, _)| rest.by_ref().take(length).collect()).collect(), number))
    }

    /// Reads the tokens and the runs of the record at `index`.
    fn read(&self, index: usize) -> Result<(Vec<u32>, Runs)> {
        let place = self.places[index];
        let mut bytes = vec![0; place.bytes()];
        self.file.read_exact_at(&mut bytes, place.offset).map_err(Error::io("read a temporary file"))?;
        let (tokens, runs) = bytes.split_at(4 * place.tokens as usize);
        let run = |run: &[u8]| (number(&run[..4]) as usize, f32::from_bits(number(&run[4..])));
        Ok((tokens.chunks_exact(4).map(number).collect(), runs.chunks_exact(8).map(run).collect()))
    }

    /// Reads the sequences at `indices`.
    pub fn range(&self, indices: Range<usize>) -> Result<Vec<TokenizedExample>> {
        indices.map(|index| self.get(index)).collect()
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(count: usize) -> Vec<TokenizedExample> {
        let example = |i: usize| TokenizedExample {
            tokens: (0..i % 50).map(|token| (token * 7919 * i) as u32).collect(),
            weights: (0..i % 50).map(|token| [0.0, 0.01, 1.0, -0.0, f32::NAN][(i + token / 3) % 5]).collect(),
        };
        (0..count).map(example).collect()
    }

    fn same(a: &TokenizedExample, b: &TokenizedExample) -> bool {
        let bits =
            |example: &TokenizedExample| example.weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>();
        a.tokens == b.tokens && bits(a) == bits(b)
    }

    #[test]
    fn examples_come_back_to_the_bit_in_any_order() {
        // Enough for more than one buffer.
        let examples = examples(20_000);
        let store = ExampleStore::of(examples.clone()).unwrap();
        assert_eq!(store.len(), 20_000);
        for index in (0..20_000).rev().step_by(37).chain([0, 19_999]) {
            assert!(same(&store.get(index).unwrap(), &examples[index]), "example {index}");
            assert_eq!(store.tokens(index), examples[index].tokens.len());
        }
        assert!(store.range(5..9).unwrap().iter().zip(&examples[5..9]).all(|(a, b)| same(a, b)));
        assert!(ExampleStore::of([]).unwrap().is_empty());
    }

    #[test]
    fn the_file_lies_in_the_folder_that_was_named_and_has_no_name_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ExampleWriter::new(folder.path()).unwrap();
        for example in examples(20_000) {
            writer.push(&example).unwrap();
        }
        let store = writer.finish().unwrap();
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&store.file));
        assert!(std::fs::read_link(link).unwrap().starts_with(folder.path().canonicalize().unwrap()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a killed process leaves nothing");
        let said = ExampleWriter::new(&folder.path().join("none")).unwrap_err().to_string();
        assert!(said.contains("none"), "{said}");
    }

    #[test]
    fn the_digest_tells_lists_apart() {
        let digest = |examples: &[TokenizedExample]| *ExampleStore::of(examples.to_vec()).unwrap().digest();
        let list = examples(30);
        assert_eq!(digest(&list), digest(&list));
        assert_ne!(digest(&list), digest(&list[..29]));
        let mut other = list.clone();
        other[20].weights[3] = 0.5;
        assert_ne!(digest(&list), digest(&other));
        let example = |tokens: &[u32]| TokenizedExample { tokens: tokens.to_vec(), weights: vec![1.0; tokens.len()] };
        assert_ne!(digest(&[example(&[1]), example(&[2, 3])]), digest(&[example(&[1, 2]), example(&[3])]));
    }

    #[test]
    fn pairs_of_texts_come_back_as_texts_and_nothing_else() {
        let pairs = [vec![vec![5, 6, 7], vec![8], vec![9, 10]], vec![vec![1], vec![2, 3]]];
        let store = ExampleStore::of_texts(pairs.clone()).unwrap();
        for (index, texts) in pairs.iter().enumerate() {
            assert_eq!(store.texts(index).unwrap(), *texts);
            assert_eq!(store.tokens(index), texts.concat().len());
        }
        assert!(store.get(0).is_err());
        assert!(ExampleStore::of(examples(3)).unwrap().texts(0).is_err());
    }

    #[test]
    fn scores_come_back_with_their_texts_and_are_part_of_the_digest() {
        let texts = vec![vec![5, 6, 7], vec![8]];
        let store = |score| ExampleStore::of_scored([(texts.clone(), score), (texts.clone(), 1.0)]).unwrap();
        assert_eq!(store(-0.25).scored(0).unwrap(), (texts.clone(), -0.25));
        assert_eq!(store(0.0).texts(0).unwrap(), texts, "a score of 0 is no text");
        assert_ne!(store(0.5).digest(), store(0.25).digest());
        assert!(ExampleStore::of_texts([texts.clone()]).unwrap().scored(0).is_err());
    }

    #[test]
    fn digests_that_checkpoints_are_recognised_by_stay_as_they_are() {
        let hex =
            |store: ExampleStore| store.digest().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        let example = TokenizedExample { tokens: vec![1, 2, 3, 4], weights: vec![0.0, 0.0, 1.0, 1.0] };
        assert_eq!(
            hex(ExampleStore::of([example]).unwrap()),
            "ac3894e1924e0ee4df71f6fcaa80538271304efa8ed99a8ce31b52988296da50"
        );
        let pairs = [vec![vec![5, 6, 7], vec![8], vec![9, 10]], vec![vec![1], vec![2, 3]]];
        assert_eq!(
            hex(ExampleStore::of_texts(pairs).unwrap()),
            "f5882c66232e21ddd5707bb5948f8ef4559cbb89185947060960f19599a98995"
        );
    }
}
