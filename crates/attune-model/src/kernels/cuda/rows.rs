//! Device tables with the sequence of each row of a step or packed batch: made once, read by attention in every layer.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Device, Tensor};

use crate::address::address;
use crate::kernels::{AttentionForm, DistanceBias, SequenceRows};
use crate::kv_cache::BLOCK_TOKENS;
use crate::{Error, Result};

/// Tables of the rows of sequences, as `rows.cuh` describes them.
#[derive(Debug)]
pub struct RowTables {
    /// Sequence of each row, `[rows]`.
    sequences: Tensor,
    /// Position of each row in its sequence, `[rows]`.
    positions: Tensor,
    /// Blocks of the cache, `[sequences, blocks]`; or first rows, `[sequences + 1]`, if the keys lie in rows.
    places: Tensor,
    /// Slot in the cache for each row's own key and value, `[rows]`; `None` for packed sequences.
    slots: Option<Tensor>,
    /// First row and number of rows, `[tiles, 2]`: up to [`TILE`] rows of one sequence that has at least
    /// [`FEWEST_ROWS`]; `None` if no sequence has so many.
    tiles: Option<Tensor>,
    /// Rows of all other sequences; `None` if there are no others.
    others: Option<Tensor>,
    blocks: usize,
    /// Most tokens that any row sees.
    longest: usize,
    single_rows: bool,
}

/// Most rows of a tile, `TILE` of `flash.cu`.
const TILE: usize = 64;
/// Rows of a sequence from which matrix units pay: for fewer, most of their results would be unused.
const FEWEST_ROWS: usize = 8;

/// The structure `Rows` of `rows.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RowArguments {
    sequences: u64,
    positions: u64,
    places: u64,
    blocks: u32,
    window: u32,
}

/// The structure `Distances` of `rows.cuh`.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct DistanceArguments {
    terms: u64,
    most: u32,
    padding: u32,
}

impl DistanceArguments {
    /// Returns the terms of as many `heads` as the kernels take them; null if there is no `bias`.
    pub(super) fn of(bias: Option<&DistanceBias>, heads: usize) -> Result<Self> {
        let Some(DistanceBias { terms }) = bias else { return Ok(Self::default()) };
        let (of_heads, distances) = terms.dims2()?;
        if of_heads != heads || distances.is_multiple_of(2) || terms.dtype() != DType::F32 {
            return Err(Error::Internal(format!("terms by distance {:?} {:?}", terms.shape(), terms.dtype())));
        }
        Ok(Self { terms: address(terms)?, most: (distances / 2) as u32, padding: 0 })
    }
}

impl RowTables {
    /// Makes the tables of whole sequences that lie one after the other.
    pub fn packed(sequences: &[Range<usize>], device: &Device) -> Result<Self> {
        let rows = sequences.iter().enumerate().flat_map(|(index, rows)| (0..rows.len()).map(move |at| (index, at)));
        let (of_rows, positions): (Vec<u32>, Vec<u32>) = rows.map(|(index, at)| (index as u32, at as u32)).unzip();
        let end = sequences.last().map_or(0, |rows| rows.end);
        let starts: Vec<u32> = sequences.iter().map(|rows| rows.start).chain([end]).map(|row| row as u32).collect();
        Ok(Self {
            sequences: Tensor::new(of_rows, device)?,
            positions: Tensor::new(positions, device)?,
            places: Tensor::new(starts, device)?,
            slots: None,
            tiles: tiles(sequences.iter().map(|rows| (rows, 0)), device)?,
            others: others(sequences.iter(), device)?,
            blocks: 0,
            longest: sequences.iter().map(Range::len).max().unwrap_or(0),
            single_rows: sequences.iter().all(|rows| rows.len() == 1),
        })
    }

    /// Makes the tables of sequences, in the order of their rows, that have their keys in the cache's blocks.
    pub fn cached(sequences: &[SequenceRows<'_>], device: &Device) -> Result<Self> {
        let blocks = sequences.iter().map(|sequence| sequence.blocks.len()).max().unwrap_or(0);
        let (mut of_rows, mut positions, mut slots, mut places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, sequence) in sequences.iter().enumerate() {
            for position in sequence.start..sequence.start + sequence.rows.len() {
                of_rows.push(index as u32);
                positions.push(position as u32);
                let block = sequence.blocks[position / BLOCK_TOKENS] as usize;
                slots.push((block * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32);
            }
            places.extend_from_slice(sequence.blocks);
            places.resize((index + 1) * blocks, 0);
        }
        let longest = sequences.iter().map(|sequence| sequence.start + sequence.rows.len()).max().unwrap_or(0);
        Ok(Self {
            sequences: Tensor::new(of_rows, device)?,
            positions: Tensor::new(positions, device)?,
            places: Tensor::new(places, device)?,
            slots: Some(Tensor::new(slots, device)?),
            tiles: tiles(sequences.iter().map(|sequence| (&sequence.rows, sequence.start)), device)?,
            others: others(sequences.iter().map(|sequence| &sequence.rows), device)?,
            blocks,
            longest,
            single_rows: sequences.iter().all(|sequence| sequence.rows.len() == 1),
        })
    }

    /// Returns the slots for the rows' own keys and values, `[rows]`; `None` for packed sequences.
    pub(super) fn slots(&self) -> Option<&Tensor> {
        self.slots.as_ref()
    }

    /// Returns the tiles, `[tiles, 2]`: the first row and the number of up to 64 rows, for sequences that have at least
    /// eight; `None` if no sequence has so many.
    pub(super) fn tiles(&self) -> Option<&Tensor> {
        self.tiles.as_ref()
    }

    /// Returns the rows of all other sequences; `None` if there are no others.
    pub(super) fn others(&self) -> Option<&Tensor> {
        self.others.as_ref()
    }

    /// Returns the most tokens that any row sees.
    pub(super) fn longest(&self, form: AttentionForm) -> usize {
        let near = form.window.map(|window| if form.looks_ahead { 2 * window - 1 } else { window });
        near.map_or(self.longest, |near| near.min(self.longest))
    }

    /// Returns true if each sequence has one row.
    pub(super) fn has_single_rows(&self) -> bool {
        self.single_rows
    }

    pub(super) fn arguments(&self, window: Option<usize>) -> Result<RowArguments> {
        Ok(RowArguments {
            sequences: address(&self.sequences)?,
            positions: address(&self.positions)?,
            places: address(&self.places)?,
            blocks: self.blocks as u32,
            window: window.unwrap_or(0) as u32,
        })
    }
}

/// Returns the tiles of sequences, given by their rows and the position of the first one. Tiles that see most come
/// first, so that no long work is left over at the end.
fn tiles<'a>(sequences: impl Iterator<Item = (&'a Range<usize>, usize)>, device: &Device) -> Result<Option<Tensor>> {
    let long = sequences.filter(|(rows, _)| rows.len() >= FEWEST_ROWS);
    let mut tiles: Vec<(usize, [u32; 2])> = long
        .flat_map(|(rows, start)| {
            let firsts = rows.clone().step_by(TILE);
            firsts.map(move |row| (start + row - rows.start, [row as u32, TILE.min(rows.end - row) as u32]))
        })
        .collect();
    tiles.sort_by_key(|(position, _)| std::cmp::Reverse(*position));
    let count = tiles.len();
    let tiles = tiles.into_iter().flat_map(|(_, tile)| tile).collect();
    if count == 0 { Ok(None) } else { Ok(Some(Tensor::from_vec(tiles, (count, 2), device)?)) }
}

fn others<'a>(sequences: impl Iterator<Item = &'a Range<usize>>, device: &Device) -> Result<Option<Tensor>> {
    let rows: Vec<u32> =
        sequences.filter(|rows| rows.len() < FEWEST_ROWS).flat_map(Clone::clone).map(|row| row as u32).collect();
    if rows.is_empty() { Ok(None) } else { Ok(Some(Tensor::new(rows, device)?)) }
}
