//! Reads the values of coded panels, from blocks that are widened as for a product.

use super::super::level::Level;
use super::super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::super::x86::{Avx2, Avx512};
use super::super::{LANES, Line, Panels};
use super::factors::Factors;
use super::numbers::Numbers;
use super::{BLOCK, Code, Coded, Codes, Layout, QUADS, kernel, with_code};

/// Most lines of a widened block.
const MOST_LINES: usize = QUADS + 4;

/// The values of one block of a panel.
pub(in super::super) struct WideBlock {
    lines: [Line; MOST_LINES],
    layout: Layout,
    /// Number that the bytes exceed the values by; `None` if they are signed.
    zero: Option<i32>,
}

impl WideBlock {
    /// Widens the `block`-th 32 inputs of a panel.
    pub(in super::super) fn read(panels: &Panels, code: Code, panel: usize, block: usize) -> Self {
        let layout = code.layout();
        let group = &panels.panel_lines(panel)[block / layout.blocks * layout.group_lines()..][..layout.group_lines()];
        let mut lines = [Line([0; 64]); MOST_LINES];
        let work = (group, &panels.table, block % layout.blocks, &mut lines);
        with_code!(code, F => widened::<F>(panels.level, work));
        Self { lines, layout, zero: panels.level.offsets_bytes().then_some(layout.zero) }
    }

    /// Returns the value at `depth`, below 32, of an output.
    #[allow(clippy::inline_always, reason = "the loops over it are the work")]
    #[inline(always)]
    pub(in super::super) fn value(&self, depth: usize, lane: usize) -> f32 {
        let Layout { halves, offsets, .. } = self.layout;
        let byte = self.lines[depth / 4].0[lane * 4 + depth % 4];
        let number = self.zero.map_or(i32::from(byte as i8), |zero| i32::from(byte) - zero) as f32;
        let half = depth * halves / BLOCK;
        let value = number * self.factor(half, lane);
        if offsets { value + self.factor(halves + half, lane) } else { value }
    }

    /// Computes the values from `depth`, below 32, on, for all 16 outputs each.
    pub(in super::super) fn values(&self, depth: usize, tile: &mut [[f32; LANES]]) {
        let Layout { halves, offsets, .. } = self.layout;
        // Flipping its highest bit makes a signed byte an unsigned one that exceeds it by 128.
        let (flip, zero) = self.zero.map_or((0x80, 128), |zero| (0, zero));
        let words: &[[u32; LANES]] = bytemuck::must_cast_slice(&self.lines);
        let factors: &[[f32; LANES]] = bytemuck::must_cast_slice(&self.lines[QUADS..]);
        for (values, depth) in tile.iter_mut().zip(depth..) {
            let (quad, shift, half) = (&words[depth / 4], depth % 4 * 8, depth * halves / BLOCK);
            for ((value, word), scale) in values.iter_mut().zip(quad).zip(&factors[half]) {
                let byte = u32::from_le(*word) >> shift & 0xff;
                *value = ((byte ^ flip) as i32 - zero) as f32 * scale;
            }
            if offsets {
                for (value, offset) in values.iter_mut().zip(&factors[halves + half]) {
                    *value += offset;
                }
            }
        }
    }

    fn factor(&self, line: usize, lane: usize) -> f32 {
        let factors: &[[f32; LANES]] = bytemuck::must_cast_slice(&self.lines[QUADS..]);
        factors[line][lane]
    }
}

/// A group, its table, the place of a block in it, and the lines that the block is widened to.
type Work<'a> = (&'a [Line], &'a [u8; 32], usize, &'a mut [Line; MOST_LINES]);

/// A format whose blocks are widened one at a time.
trait Widen {
    /// Widens one block.
    unsafe fn widen<S: Codes>(work: Work<'_>);
}

#[allow(clippy::inline_always, reason = "part of the kernels")]
impl<N: Numbers, F: Factors> Widen for Coded<N, F> {
    #[inline(always)]
    unsafe fn widen<S: Codes>((group, table, block, lines): Work<'_>) {
        assert_eq!(group.len(), Self::LAYOUT.group_lines(), "a group has its lines");
        // SAFETY: the group is whole, `lines` has room for the widest block, and the caller promises the instructions.
        unsafe {
            kernel::widen_block::<S, N, F>(group.as_ptr().cast(), table.as_ptr(), block, lines.as_mut_ptr().cast());
        }
    }
}

fn widened<F: Widen>(level: Level, work: Work<'_>) {
    // SAFETY: panels are packed for a level that the CPU has.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::<F>(work),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::<F>(work),
            _ => F::widen::<Portable>(work),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<F: Widen>(work: Work<'_>) {
    // SAFETY: the caller's promises.
    unsafe { F::widen::<Avx2>(work) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn avx512<F: Widen>(work: Work<'_>) {
    // SAFETY: the caller's promises.
    unsafe { F::widen::<Avx512>(work) }
}
