//! Tensors of a GGUF file under the names and in the shapes that transformers has, rows in its order. Norms are as the
//! decoder multiplies by them: where transformers adds 1 to their weights in computing, the file has it added. Read by
//! [`Weights`](crate::weights::Weights).

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::file::{Gguf, GgufTensor};
use super::tensors::{Names, Part, Place};
use crate::blocks::{BlockMatrix, BlockType};
use crate::{Error, Result};

/// The tensors of a file.
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<Gguf>,
    names: Names,
    /// Names of the file's tensors that were asked for.
    read: Mutex<BTreeSet<String>>,
}

impl Source {
    /// Makes the source of the tensors of `file`.
    pub(crate) fn new(file: Arc<Gguf>) -> Result<Self> {
        let names = Names::of(file.metadata())?;
        Ok(Self { file, names, read: Mutex::default() })
    }

    /// Returns true if the file has the tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Returns the type of the file's tensor that holds `name`; `None` if there is none.
    pub(crate) fn stored_type(&self, name: &str) -> Option<BlockType> {
        self.find(name).map(|(_, tensor)| tensor.kind)
    }

    /// Returns the matrix `name` `[rows, columns]`.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<BlockMatrix> {
        let (place, tensor) = self.require(name)?;
        let [rows, columns] = shape;
        let part = self
            .part_of(tensor, &place.part)
            .filter(|part| part.len() == rows && tensor.shape.last() == Some(&columns) && tensor.shape.len() > 1);
        let Some(part) = part else { return Err(self.other_shape(name, &place, tensor, &shape)) };
        let (weights, size) = tensor.kind.size();
        let row = columns / weights * size;
        let bytes = tensor.bytes.slice(part.start * row..part.end * row);
        let bytes = match place.heads {
            Some(heads) => self.in_order(&bytes, rows, heads, name)?,
            None => bytes,
        };
        self.mark(place);
        BlockMatrix::new(tensor.kind, rows, columns, bytes)
    }

    /// Returns the values of the vector `name` `[width]`.
    pub(crate) fn vector(&self, name: &str, width: usize) -> Result<Vec<f32>> {
        let (place, tensor) = self.require(name)?;
        let part = match (&place.part, tensor.shape.as_slice()) {
            (Part::Whole, [length]) if *length == width => Some(0..width),
            (Part::Rows(rows), [length]) if rows.len() == width && rows.end <= *length => Some(rows.clone()),
            (Part::Expert(expert), [count, length]) if self.is_expert(*expert, *count) && *length == width => {
                Some(expert * width..(expert + 1) * width)
            }
            (Part::ExpertHalf { expert, second }, [count, length])
                if self.is_expert(*expert, *count) && *length == 2 * width =>
            {
                let start = 2 * expert * width + usize::from(*second) * width;
                Some(start..start + width)
            }
            _ => None,
        };
        let Some(part) = part else { return Err(self.other_shape(name, &place, tensor, &[width])) };
        let mut values = tensor.matrix()?.dequantize()?[part].to_vec();
        if let Some(heads) = place.heads {
            let order = self.order(width, heads, name)?;
            values = order.map(|row| values[row]).collect();
        }
        self.mark(place);
        Ok(values)
    }

    /// Returns an error about the file, which it names.
    pub(crate) fn fault(&self, message: &str) -> Error {
        self.file.fault(message)
    }

    /// Refuses a file with a tensor that nothing has asked for: the model would compute something else without it.
    pub(crate) fn check_all_read(&self) -> Result<()> {
        let read = self.read.lock();
        let unread: Vec<_> = self
            .file
            .tensors()
            .map(|(name, _)| name)
            .filter(|name| !read.contains(*name) && !self.is_setting(name))
            .collect();
        match unread.as_slice() {
            [] => Ok(()),
            [first, others @ ..] => {
                let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
                Err(self.fault(&format!("the tensor `{first}`{more} of this file is not supported: {FOREIGN}")))
            }
        }
    }

    /// Returns true for tensors that are read as a part of the configuration.
    fn is_setting(&self, name: &str) -> bool {
        super::config::settings(self.names.architecture()).contains(&name)
    }

    fn find(&self, name: &str) -> Option<(Place, &GgufTensor)> {
        let mut places = self.names.places(name).into_iter();
        places.find_map(|place| self.file.tensor(&place.tensor).map(|tensor| (place, tensor)))
    }

    fn require(&self, name: &str) -> Result<(Place, &GgufTensor)> {
        self.find(name).ok_or_else(|| {
            let places = self.names.places(name);
            let usual = places.first().map_or(name, |place| &place.tensor);
            self.fault(&format!("the tensor `{usual}` is missing"))
        })
    }

    fn mark(&self, place: Place) {
        self.read.lock().insert(place.tensor);
    }

    fn other_shape(&self, name: &str, place: &Place, tensor: &GgufTensor, wanted: &[usize]) -> Error {
        self.fault(&format!(
            "the tensor `{}` has shape {:?}, which does not give `{name}` the shape {wanted:?}",
            place.tensor, tensor.shape
        ))
    }

    /// Returns the rows of a part of a tensor, all its dimensions but the last one taken together; `None` if it has none
    /// such.
    fn part_of(&self, tensor: &GgufTensor, part: &Part) -> Option<Range<usize>> {
        let all: usize = tensor.shape.iter().rev().skip(1).product();
        let expert_rows = |expert: usize| match tensor.shape.as_slice() {
            [count, rows, _] if self.is_expert(expert, *count) => Some(expert * rows..(expert + 1) * rows),
            _ => None,
        };
        match part {
            Part::Whole => Some(0..all),
            Part::Rows(rows) => (rows.end <= all).then(|| rows.clone()),
            Part::Expert(expert) => expert_rows(*expert),
            Part::ExpertHalf { expert, second } => {
                let rows = expert_rows(*expert)?;
                let half = rows.start + rows.len() / 2;
                Some(if *second { half..rows.end } else { rows.start..half })
            }
        }
    }

    /// Returns true if `expert` is one of the `count` experts of a stack, which are as many as the keys say.
    fn is_expert(&self, expert: usize, count: usize) -> bool {
        expert < count && count == self.names.experts()
    }

    /// Copies rows into transformers' order.
    fn in_order(&self, bytes: &Bytes, rows: usize, heads: usize, name: &str) -> Result<Bytes> {
        let row = bytes.len() / rows.max(1);
        let mut ordered = Vec::with_capacity(bytes.len());
        for source in self.order(rows, heads, name)? {
            ordered.extend_from_slice(&bytes[source * row..(source + 1) * row]);
        }
        Ok(ordered.into())
    }

    /// Returns for each row in transformers' order its place in the file.
    fn order(&self, rows: usize, heads: usize, name: &str) -> Result<impl Iterator<Item = usize>> {
        if heads == 0 || !rows.is_multiple_of(2 * heads) {
            return Err(self.fault(&format!("the {rows} rows of `{name}` do not make {heads} heads")));
        }
        Ok(file_rows(rows, heads))
    }
}

/// Why a tensor that is not read is refused.
const FOREIGN: &str = "without it the model would answer differently";

/// Returns for each row in transformers' order its place in files that rotate neighbours: the rows `i` and
/// `i + head_dim / 2` of a head stand there side by side.
pub(crate) fn file_rows(rows: usize, heads: usize) -> impl Iterator<Item = usize> {
    let head_dim = rows / heads;
    let half = head_dim / 2;
    (0..rows).map(move |row| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (within % half) + within / half
    })
}
