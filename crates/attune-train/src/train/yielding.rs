//! Cuts a pass over the decoder's blocks into pieces, so that requests need not wait for the whole pass. Called by the
//! passes of training.
//!
//! A GPU is given work far ahead of its progress: a whole batch, for a large model most of a second, would be queued in
//! front of a request that comes meanwhile. So the pass goes at most [`AHEAD`] blocks ahead and calls the same function
//! before each block as before each batch. On the CPU, yielding before each batch is soon enough.

use std::collections::VecDeque;

use crate::Result;
use attune_model::kernels::{DeviceEvent, Kernels};

/// Blocks whose work may wait in the GPU's queue: one that it computes and one to follow.
const AHEAD: usize = 2;

/// Function called before each micro-step, on a GPU between its blocks too: may wait for requests to go first; an error
/// ends the step with nothing changed.
pub type BeforeMicroStep<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Policy for going on from one block of a pass to the next.
#[derive(Default)]
pub struct YieldPolicy<'a> {
    before: Option<BeforeMicroStep<'a>>,
    marks: VecDeque<Box<dyn DeviceEvent>>,
}

impl<'a> YieldPolicy<'a> {
    /// Calls `before` between the blocks of a pass; its error ends the pass. The default calls nothing.
    pub fn asking(before: BeforeMicroStep<'a>) -> Self {
        Self { before: Some(before), marks: VecDeque::new() }
    }

    /// Notes that a block's work was handed to the device, then calls `before`.
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
