//! Gated short convolutions over packed sequences and over the cache.

use std::ops::Range;

use attune::model::kernels::cuda::RowTables;
use attune::model::kernels::{CachedStep, Filters, Kernels, PackedRows, SequenceRows, cuda, reference};
use attune::model::kv_cache::BLOCK_TOKENS;
use attune::model::rope::RopeTable;
use candle_core::{DType, Tensor};

use super::{CPU, assert_close, each, floats, random, wide};

/// Channels, also no whole number of vectors, with taps and whether there are biases.
const CASES: [(usize, usize, bool); 5] = [(64, 3, false), (40, 4, true), (77, 3, true), (16, 1, true), (24, 16, false)];
/// Sequences of one row, of fewer rows than filters look back, and longer ones.
const SEQUENCES: [Range<usize>; 4] = [0..1, 1..3, 3..40, 40..58];

fn filters((channels, taps, has_bias): (usize, usize, bool)) -> Filters {
    let bias = has_bias.then(|| random(channels, 8, DType::F32));
    Filters { weight: random((channels, taps), 7, DType::F32), bias }
}

#[test]
fn convolutions_of_packed_sequences_and_their_gradients() {
    for case in CASES {
        let (filters, channels) = (filters(case), case.0);
        each(|emulator, dtype, rounding| {
            let (projected, dy) = (random((58, 3 * channels), 1, dtype), random((58, channels), 2, dtype));
            let tables = RowTables::packed(&SEQUENCES, &CPU).unwrap();
            let y = cuda::convolution::packed(emulator, &projected, &filters, &tables).unwrap();
            let exact = reference::packed_convolution(&wide(&projected), &filters, &SEQUENCES).unwrap();
            // The inputs of the filters are rounded, too.
            assert_close(&y, &exact, 2.0 * rounding);
            let gradient = cuda::convolution::packed_backward(emulator, &projected, &filters, &dy, &tables).unwrap();
            let exact =
                reference::packed_convolution_backward(&wide(&projected), &filters, &wide(&dy), &SEQUENCES).unwrap();
            assert_close(&gradient, &exact, 2.0 * rounding);
            if dtype == DType::F32 {
                let rows = PackedRows::new(&SEQUENCES, &Kernels::Cpu).unwrap();
                assert_close(&y, &Kernels::Cpu.packed_convolution(&projected, &filters, &rows).unwrap(), 1e-6);
                let of_cpu = Kernels::Cpu.packed_convolution_backward(&projected, &filters, &dy, &rows).unwrap();
                assert_close(&gradient, &of_cpu, 1e-6);
            }
        });
    }
}

/// Numbers of the rows that each of three sequences takes in each step. The second one begins behind its first two blocks,
/// which are those of the first one; in the fourth step each has one row.
const STEPS: [[usize; 3]; 7] = [[35, 0, 1], [1, 0, 2], [1, 3, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [10, 2, 13]];
const SHARED: usize = 2 * BLOCK_TOKENS;
const BLOCKS: [&[u32]; 3] = [&[6, 1, 3, 9], &[6, 1, 0], &[4, 8]];

/// The bits of a row are the same however its sequence was cut into steps, and the cache holds what the CPU's does.
#[test]
fn convolutions_over_the_cache_and_what_is_written_to_it() {
    let lengths: [usize; 3] = std::array::from_fn(|sequence| STEPS.iter().map(|counts| counts[sequence]).sum());
    let lengths = [lengths[0], SHARED + lengths[1], lengths[2]];
    for case in CASES {
        let (filters, (channels, taps, _)) = (filters(case), case);
        each(|emulator, dtype, rounding| {
            let mut all = [0, 1, 2].map(|sequence| random((lengths[sequence], 3 * channels), sequence as u64, dtype));
            let own = all[1].narrow(0, SHARED, lengths[1] - SHARED).unwrap();
            all[1] = Tensor::cat(&[&all[0].narrow(0, 0, SHARED).unwrap(), &own], 0).unwrap();
            let whole = all.each_ref().map(|projected| {
                #[allow(clippy::single_range_in_vec_init, reason = "one sequence is meant")]
                let tables = RowTables::packed(&[0..projected.dims()[0]], &CPU).unwrap();
                cuda::convolution::packed(emulator, projected, &filters, &tables).unwrap()
            });
            // What other sequences left in the blocks.
            let inputs = random((10 * (taps - 1), 1, channels), 5, dtype);
            let of_cpu = wide(&inputs).copy().unwrap();
            let mut starts = [0, SHARED, 0];
            for (number, counts) in STEPS.iter().enumerate() {
                let (mut sequences, mut parts, mut expected) = (Vec::new(), Vec::new(), Vec::new());
                let mut end = 0;
                for (sequence, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                    let (start, blocks) = (starts[sequence], BLOCKS[sequence]);
                    let rows = end..end + count;
                    sequences.push(SequenceRows { rows, start, blocks, adapter: None, rope: RopeTable::Short });
                    parts.push(all[sequence].narrow(0, start, count).unwrap());
                    expected.push(whole[sequence].narrow(0, start, count).unwrap());
                    (end, starts[sequence]) = (end + count, start + count);
                }
                let [projected, expected] = [parts, expected].map(|parts| Tensor::cat(&parts, 0).unwrap());
                let tables = RowTables::cached(&sequences, &CPU).unwrap();
                let y = cuda::convolution::cached(emulator, &projected, &filters, &inputs, &tables).unwrap();
                assert_eq!(floats(&y), floats(&expected), "step {number}, {case:?}");

                let step = CachedStep::new(&sequences, &Kernels::Cpu).unwrap();
                let y_of_cpu = Kernels::Cpu.cached_convolution(&wide(&projected), &filters, &of_cpu, &step).unwrap();
                assert_close(&y, &y_of_cpu, if dtype == DType::F32 { 1e-6 } else { 2.0 * rounding });
                assert_close(&inputs, &of_cpu, if dtype == DType::F32 { 0.0 } else { rounding });
            }
            assert_eq!(starts, lengths);
        });
    }
}

#[test]
fn filters_and_caches_that_do_not_fit_are_refused() {
    each(|emulator, dtype, _| {
        #[allow(clippy::single_range_in_vec_init, reason = "one sequence is meant")]
        let tables = RowTables::packed(&[0..4], &CPU).unwrap();
        let projected = random((4, 3 * 16), 1, dtype);
        let of = |weight: Tensor, bias: Option<Tensor>| {
            cuda::convolution::packed(emulator, &projected, &Filters { weight, bias }, &tables).map(drop)
        };
        let weight = |channels: usize| random((channels, 3), 2, DType::F32);
        of(weight(16), Some(random(16, 3, DType::F32))).unwrap();
        of(weight(8), None).unwrap_err();
        of(weight(16), Some(random(8, 3, DType::F32))).unwrap_err();
        of(weight(16).to_dtype(DType::BF16).unwrap(), None).unwrap_err();
        let other = if dtype == DType::F32 { DType::BF16 } else { DType::F32 };
        let filters = Filters { weight: weight(16), bias: None };
        let inputs = random((4, 1, 16), 4, other);
        cuda::convolution::cached(emulator, &projected, &filters, &inputs, &tables).unwrap_err();
    });
}
