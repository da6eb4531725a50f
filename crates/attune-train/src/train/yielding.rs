//! Pieces of a pass over the decoder's blocks, so that requests need not wait for a whole one.
//!
//! A GPU is given work far ahead of what it does: all of a batch, which for a large model is most of a second of it,
//! would lie in front of a request that comes meanwhile. So the pass goes no further ahead than [`AHEAD`] blocks, and
//! asks before each of them what it asks before each batch. On the CPU that is soon enough.

use std::collections::VecDeque;

use crate::Result;
use attune_model::kernels::{DeviceEvent, Kernels};

/// Blocks whose work may wait in the GPU's queue: one that it computes and one to follow.
const AHEAD: usize = 2;

/// Asked before each micro-step, on a GPU between its blocks too: may wait for requests to go first; an error ends the
/// step with nothing changed.
pub type BeforeMicroStep<'a> = &'a mut dyn FnMut() -> Result<()>;

/// How a pass over the blocks goes on from one to the next.
#[derive(Default)]
pub struct YieldPolicy<'a> {
    before: Option<BeforeMicroStep<'a>>,
    marks: VecDeque<Box<dyn DeviceEvent>>,
}

impl<'a> YieldPolicy<'a> {
    /// Asks `before` between the blocks of a pass; an error of it ends the pass. The default asks nobody.
    pub fn asking(before: BeforeMicroStep<'a>) -> Self {
        Self { before: Some(before), marks: VecDeque::new() }
    }

    /// To be called when the work of a block was handed to `device`.
    pub(super) fn next(&mut self, kernels: &Kernels) -> Result<()> {
        let Some(before) = &mut self.before else { return Ok(()) };
        let Some(gpu) = kernels.gpu() else { return Ok(()) };
        self.marks.push_back(gpu.mark()?);
        if self.marks.len() > AHEAD
            && let Some(mark) = self.marks.pop_front()
        {
            mark.wait()?;
        }
        before()
    }
}
