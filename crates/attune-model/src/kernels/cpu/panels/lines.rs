//! The memory of panels: a weight's own, or scratch memory that one transposed weight after the other is written to.

use std::ops::{Deref, DerefMut};

use attune_support::system::LongLived;

use super::Line;

/// Lines of a weight.
#[derive(Debug)]
pub(super) enum Lines {
    /// Of a weight of the model.
    Kept(LongLived),
    /// Of a weight that is needed for one product.
    Scratch(Vec<Line>),
}

impl Lines {
    /// Makes the lines of a weight of the model, all zeros.
    pub(super) fn zeros(count: usize) -> Self {
        Self::Kept(LongLived::zeros(count * size_of::<Line>()))
    }

    /// Returns the memory, to write the next ones to it.
    pub(super) fn into_scratch(self) -> Vec<Line> {
        match self {
            Self::Kept(_) => Vec::new(),
            Self::Scratch(lines) => lines,
        }
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        match self {
            Self::Kept(memory) => bytemuck::cast_slice(memory.bytes()),
            Self::Scratch(lines) => lines,
        }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Self::Kept(memory) => bytemuck::cast_slice_mut(memory.bytes_mut()),
            Self::Scratch(lines) => lines,
        }
    }
}
