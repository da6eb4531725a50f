//! Which sequence each row of a step or a packed batch belongs to, on the device: made once, read by attention in every layer.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::Result;
use crate::address::address;
use crate::kernels::SequenceRows;
use crate::kv_cache::BLOCK_TOKENS;

/// The rows of sequences, as `rows.cuh` describes them.
#[derive(Debug)]
pub struct RowTables {
    /// `[rows]`
    sequences: Tensor,
    /// `[rows]`
    positions: Tensor,
    /// `[sequences, blocks]`, or `[sequences + 1]` where the keys lie in rows.
    places: Tensor,
    /// `[rows]`, where each row's own key and value go; of cached sequences.
    slots: Option<Tensor>,
    /// `[tiles, 2]`: the first and the number of up to [`TILE`] rows of one sequence that has enough of them.
    tiles: Option<Tensor>,
    /// The rows of all other sequences.
    others: Option<Tensor>,
    blocks: usize,
    /// Tokens that the row sees which sees most.
    longest: usize,
    single_rows: bool,
}

/// Rows of a tile at most, `TILE` of `flash.cu`.
const TILE: usize = 64;
/// Rows of a sequence from which matrix units pay: what they compute for fewer is mostly nothing.
const FEWEST_ROWS: usize = 8;

/// The structure `Rows` of `rows.cuh`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RowArguments {
    sequences: u64,
    positions: u64,
    places: u64,
    blocks: u32,
    window: u32,
}

impl RowTables {
    /// Sequences that lie one after the other and are whole.
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

    /// Sequences in the order of their rows whose keys are in the cache's blocks.
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

    /// Where the rows' own keys and values go, `[rows]`; of cached sequences.
    pub(super) fn slots(&self) -> Option<&Tensor> {
        self.slots.as_ref()
    }

    /// `[tiles, 2]`: the first and the number of up to 64 rows, for sequences that have at least eight.
    pub(super) fn tiles(&self) -> Option<&Tensor> {
        self.tiles.as_ref()
    }

    /// The rows of all other sequences.
    pub(super) fn others(&self) -> Option<&Tensor> {
        self.others.as_ref()
    }

    /// Tokens that a row sees at most.
    pub(super) fn longest(&self, window: Option<usize>) -> usize {
        window.map_or(self.longest, |window| window.min(self.longest))
    }

    /// True where each sequence has one row.
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

/// Those of sequences with these rows, the first at this position. What sees most comes first, so that no long work is left over
/// at the end.
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
