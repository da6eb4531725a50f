//! How far shares can be trusted: the interval of a share of passed items, and whether two models differ on the same
//! items.

/// Two-sided 95 % of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Returns the 95 % interval of Wilson of the share `passed` of `all`; `None` without any.
pub fn wilson(passed: u64, all: u64) -> Option<(f64, f64)> {
    if all == 0 {
        return None;
    }
    let (count, share) = (all as f64, passed as f64 / all as f64);
    let width = 1.0 + Z * Z / count;
    let middle = share + Z * Z / (2.0 * count);
    let spread = Z * (share * (1.0 - share) / count + Z * Z / (4.0 * count * count)).sqrt();
    Some((((middle - spread) / width).max(0.0), ((middle + spread) / width).min(1.0)))
}

/// Returns the two-sided p-value of the exact test of McNemar: `only_first` items that the first alone passed, and
/// `only_second` that the second alone did. Those of both or neither tell nothing.
pub fn mcnemar(only_first: u64, only_second: u64) -> f64 {
    let (fewer, all) = (only_first.min(only_second), only_first + only_second);
    if all == 0 {
        return 1.0;
    }
    // The terms of the binomial distribution at 1/2, as logarithms: the first of many items is smaller than any float.
    let mut term = -(all as f64) * std::f64::consts::LN_2;
    let mut tail = term.exp();
    for index in 0..fewer {
        term += ((all - index) as f64).ln() - ((index + 1) as f64).ln();
        tail += term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_formula() {
        // Computed apart, in Python.
        for (passed, all, low, high) in [
            (0, 10, 0.0, 0.277_532_799_862_889_1),
            (5, 10, 0.236_593_090_512_564, 0.763_406_909_487_436),
            (10, 10, 0.722_467_200_137_110_7, 1.0),
            (37, 50, 0.604_468_427_351_511_6, 0.841_284_725_064_476_2),
        ] {
            let (lower, upper) = wilson(passed, all).expect("some items");
            assert!((lower - low).abs() < 1e-9 && (upper - high).abs() < 1e-9, "{passed} of {all}: {lower} {upper}");
        }
        assert_eq!(wilson(0, 0), None);
    }

    #[test]
    fn two_models_differ_where_one_passes_more_than_chance_would() {
        // Computed apart, from whole binomial coefficients.
        for (first, second, expected) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (5, 5, 1.0),
            (0, 6, 0.031_25),
            (9, 2, 0.065_429_687_5),
            (30, 12, 0.007_915_897_3),
        ] {
            let value = mcnemar(first, second);
            assert!((value - expected).abs() < 1e-9, "{first} {second}: {value}");
            assert_eq!(value.total_cmp(&mcnemar(second, first)), std::cmp::Ordering::Equal);
        }
        assert!(mcnemar(4000, 5000) < 1e-20);
    }
}
