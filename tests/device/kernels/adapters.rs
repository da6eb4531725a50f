//! Low-rank products of many adapters.

use std::ops::Range;

use attune::model::kernels::{LoraRun, cuda, reference};
use attune::model::lora::{Adapter, LoraLayer, LoraPair, Site};
use candle_core::{DType, Tensor};

use super::{CPU, assert_close, each, each_but_few_sanitized, floats, random, wide};
use crate::emulator::Emulator;

/// First of the layers that share an input.
const FIRST: Site = Site::Query;

/// Creates an adapter of `rank` on layers of these widths in the second block; without the last layer if `is_partial`.
fn adapter(rank: usize, input: usize, widths: [usize; 3], is_partial: bool, dtype: DType) -> Adapter {
    let mut layer = LoraLayer::default();
    for (site, width) in [Site::Query, Site::Key, Site::Value].into_iter().zip(widths).take(3 - usize::from(is_partial))
    {
        let a = (random((rank, input), 3 + rank as u64, dtype) * 0.1).unwrap();
        let b = random((width, rank), 4 + rank as u64, dtype);
        layer.set(site, LoraPair { a, b, scale: 0.5 });
    }
    Adapter::new(String::new(), vec![LoraLayer::default(), layer])
}

/// Checks the kernels' result for `runs`, rows with an adapter, against the formula; all other rows keep every bit.
fn check_adapters(
    emulator: &Emulator,
    all_rows: usize,
    input: usize,
    widths: [usize; 3],
    runs: &[(Range<usize>, Adapter)],
    rounding: f32,
) {
    let dtype = runs[0].1.layers[1].get(FIRST).unwrap().a.dtype();
    let x = random((all_rows, input), 1, dtype);
    let before = widths.map(|width| random((all_rows, width), 2, dtype));
    let on_device: Vec<LoraRun<'_>> = runs
        .iter()
        .map(|(rows, adapter)| LoraRun { rows: rows.clone(), pointers: adapter.pointers().unwrap() })
        .collect();
    let ours = before.each_ref().map(|y| y.copy().unwrap());
    cuda::lora::add(emulator, &ours, &x, &on_device, 1, FIRST).unwrap();
    for (index, site) in [Site::Query, Site::Key, Site::Value].into_iter().enumerate() {
        let mut exact = wide(&before[index]).copy().unwrap();
        for (rows, adapter) in runs {
            let Some(pair) = adapter.layers[1].get(site) else { continue };
            let pair = LoraPair { a: wide(&pair.a), b: wide(&pair.b), scale: pair.scale };
            exact = reference::add_lora(exact, &wide(&x), rows.clone(), &pair).unwrap();
        }
        assert_close(&ours[index], &exact, rounding * 2.0);
        for row in (0..all_rows).filter(|row| !runs.iter().any(|(rows, _)| rows.contains(row))) {
            let row = |of: &Tensor| floats(&of.get(row).unwrap());
            assert_eq!(row(&before[index]), row(&ours[index]), "a row without an adapter");
        }
    }
}

/// Covers a step with few adapters, and one with so many that the kernels need more room for them.
#[test]
fn adapters_of_mixed_ranks_change_their_own_rows_only() {
    let few: [(Range<usize>, usize); 7] =
        [(1..2, 1), (2..5, 3), (5..6, 8), (7..18, 16), (18..40, 20), (41..42, 128), (42..44, 4)];
    let many: Vec<(Range<usize>, usize)> = (1..43).map(|row| (row..row + 1, 1 + row % 5)).collect();
    each(|emulator, dtype, rounding| {
        for ranks in [&few[..], &many] {
            for (input, widths) in [(80, [96, 40, 300]), (77, [93, 5, 8])] {
                let runs: Vec<(Range<usize>, Adapter)> = (ranks.iter())
                    .map(|(rows, rank)| (rows.clone(), adapter(*rank, input, widths, *rank == 4, dtype)))
                    .collect();
                check_adapters(emulator, 45, input, widths, &runs, rounding);
            }
        }
    });
}

/// Covers prompts of several adapters, computed on matrix units if the widths allow it, beside a row that decodes.
#[test]
fn adapters_of_prompts_change_their_own_rows_only() {
    let prompts: [(Range<usize>, usize); 4] = [(1..2, 16), (2..40, 16), (41..58, 6), (58..138, 40)];
    each_but_few_sanitized(|emulator, dtype, rounding| {
        for (input, widths) in [(328, [96, 40, 302]), (64, [64, 8, 130]), (77, [93, 5, 8])] {
            let runs = prompts.clone().map(|(rows, rank)| (rows, adapter(rank, input, widths, false, dtype)));
            check_adapters(emulator, 140, input, widths, &runs, rounding);
        }
    });
}

#[test]
fn an_adapter_whose_b_is_zero_changes_no_bit() {
    each(|emulator, dtype, _| {
        let zeros = Tensor::zeros((40, 4), dtype, &CPU).unwrap();
        let mut layer = LoraLayer::default();
        layer.set(FIRST, LoraPair { a: random((4, 32), 1, dtype), b: zeros, scale: 1.0 });
        let adapter = Adapter::new(String::new(), vec![layer]);
        for rows in [3, 20] {
            let before = random((rows, 40), 1, DType::F32).clamp(0.0, 1.0).unwrap().neg().unwrap();
            let before = before.to_dtype(dtype).unwrap();
            let after = [before.copy().unwrap()];
            let run = LoraRun { rows: 0..rows, pointers: adapter.pointers().unwrap() };
            cuda::lora::add(emulator, &after, &random((rows, 32), 2, dtype), &[run], 0, FIRST).unwrap();
            let bits = |tensor: &Tensor| floats(tensor).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(&before).contains(&(-0.0_f32).to_bits()));
            assert_eq!(bits(&before), bits(&after[0]));
        }
    });
}
