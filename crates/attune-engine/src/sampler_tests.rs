//! Tests that draws have the probabilities of the definition.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
    let mut sampling = Sampling { seed: Some(7), ..Sampling::default() };
    change(&mut sampling);
    Sampler::new(sampling)
}

/// Returns the share of each token in 20,000 draws.
fn shares(mut sampler: Sampler, logits: &[f32]) -> Vec<f64> {
    let mut shares = vec![0.0; logits.len()];
    for _ in 0..20_000 {
        shares[sampler.draw(logits).unwrap() as usize] += 1.0 / 20_000.0;
    }
    shares
}

fn close(shares: &[f64], expected: &[f64]) {
    // Five standard deviations of a share near one half: 5 · sqrt(0.25 / 20,000) < 0.018.
    assert!(shares.iter().zip(expected).all(|(share, expected)| (share - expected).abs() < 0.018), "{shares:?}");
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_obeys_bias_and_penalties() {
    let logits = [0.5, 2.0, 2.0, 1.9];
    let greedy = |sampling: &mut Sampling| sampling.temperature = 0.0;
    assert_eq!(sampler(greedy).draw(&logits).unwrap(), 1);
    let mut biased = sampler(|sampling| {
        greedy(sampling);
        sampling.logit_bias = [(1, -100.0), (3, 0.2), (400, 5.0)].into();
    });
    assert_eq!(biased.draw(&logits).unwrap(), 3);
    let mut penalised = sampler(|sampling| {
        greedy(sampling);
        (sampling.presence_penalty, sampling.frequency_penalty) = (0.05, 0.06);
    });
    let drawn: Vec<u32> = (0..6).map(|_| penalised.draw(&logits).unwrap()).collect();
    // 2.0, 1.89, 1.83, 1.77 … for tokens 1 and 2; 1.9, 1.79 … for token 3.
    assert_eq!(drawn, [1, 2, 3, 1, 2, 1]);
}

#[test]
fn shares_follow_temperature() {
    let logits: Vec<f32> = [0.5_f32, 0.3, 0.2].iter().map(|p| p.ln() + 3.0).collect();
    close(&shares(sampler(|_| ()), &logits), &[0.5, 0.3, 0.2]);
    let squares = 0.25 + 0.09 + 0.04;
    let halved = shares(sampler(|sampling| sampling.temperature = 0.5), &logits);
    close(&halved, &[0.25 / squares, 0.09 / squares, 0.04 / squares]);
    for temperature in [1e-6, f32::MIN_POSITIVE / 4.0] {
        assert_eq!(sampler(|sampling| sampling.temperature = temperature).draw(&logits).unwrap(), 0);
    }
}

#[test]
fn top_p_keeps_the_fewest_most_probable_tokens() {
    let logits: Vec<f32> = [0.2_f32, 0.5, 0.3].iter().map(|p| p.ln()).collect();
    close(&shares(sampler(|sampling| sampling.top_p = 0.75), &logits), &[0.0, 0.625, 0.375]);
    close(&shares(sampler(|sampling| sampling.top_p = 0.4), &logits), &[0.0, 1.0, 0.0]);
    close(&shares(sampler(|sampling| sampling.top_p = 0.0), &logits), &[0.0, 1.0, 0.0]);
    // A flat distribution needs more candidates than the first attempt has; of equal weights the lowest ids are kept.
    let flat = shares(sampler(|sampling| sampling.top_p = 0.5), &[1.0; 1000]);
    assert!(flat[..500].iter().all(|share| *share > 0.0) && flat[501..].iter().all(|share| *share == 0.0));
}

/// Filters by the definition: sort all, cut three times.
fn kept_by_definition(weights: &[f32], sampling: &Sampling) -> Vec<u32> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let total: f64 = order.iter().map(|id| f64::from(weights[*id])).sum();
    let mut share = 0.0;
    let mut left = Vec::new();
    for id in order {
        let enough = sampling.top_p < 1.0 && share >= f64::from(sampling.top_p) * total;
        if !left.is_empty() && (enough || weights[id] < sampling.min_p) {
            break;
        }
        share += f64::from(weights[id]);
        left.push(id as u32);
    }
    left
}

#[test]
fn what_is_kept_is_what_the_definition_keeps() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for case in 0..400 {
        // Some have many equal weights, some are peaked, some flat; more and fewer than a block.
        let (count, spread) = ([1, 5, 64, 65, 1000, 5000][case % 6], [0.01, 1.0, 4.0, 30.0][case % 4]);
        let mut weights: Vec<f32> =
            (0..count)
                .map(|_| {
                    if case % 5 == 0 {
                        random.random_range(0..3) as f32
                    } else {
                        random.random_range(-1.0..1.0) * spread
                    }
                })
                .collect();
        row::to_weights(&mut weights, 1.0);
        let sampling = Sampling {
            top_k: [0, 1, 3, 50, 64, 70, 2000, 9000][random.random_range(0..8)],
            // Avoids shares that equal weights reach exactly: the two sums round differently.
            top_p: [1.0, 0.913, 0.513, 0.013, 0.0][random.random_range(0..5)],
            min_p: [0.0, 0.05, 0.5, 1.0][random.random_range(0..4)],
            ..Sampling::default()
        };
        let ids: Vec<u32> = kept(&weights, &sampling).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, kept_by_definition(&weights, &sampling), "case {case}: {sampling:?}");
    }
}

#[test]
fn top_k_and_min_p_share_out_what_is_left() {
    let logits: Vec<f32> = [0.2_f32, 0.4, 0.3, 0.1].iter().map(|p| p.ln()).collect();
    close(&shares(sampler(|sampling| sampling.top_k = 2), &logits), &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
    close(&shares(sampler(|sampling| sampling.top_k = 9), &logits), &[0.2, 0.4, 0.3, 0.1]);
    close(&shares(sampler(|sampling| sampling.min_p = 0.45), &logits), &[2.0 / 9.0, 4.0 / 9.0, 3.0 / 9.0, 0.0]);
    // The share of top_p is one of the three tokens that top_k keeps: 0.4 + 0.3 of 0.9.
    let both = |sampling: &mut Sampling| (sampling.top_k, sampling.top_p) = (3, 0.75);
    close(&shares(sampler(both), &logits), &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
}

#[test]
fn all_weights_are_drawn_by_their_share_in_every_block() {
    let mut logits = vec![f32::MIN; 300];
    for (id, share) in [(0, 0.2_f32), (63, 0.1), (64, 0.3), (299, 0.4)] {
        logits[id] = share.ln();
    }
    let shares = shares(sampler(|_| ()), &logits);
    close(&[shares[0], shares[63], shares[64], shares[299]], &[0.2, 0.1, 0.3, 0.4]);
}

#[test]
fn the_repetition_penalty_counts_prompt_and_answer() {
    let logits = [2.0, 1.9, 1.8, -0.5, -0.6];
    let greedy =
        |penalty| move |sampling: &mut Sampling| (sampling.temperature, sampling.repetition_penalty) = (0.0, penalty);
    // 2.0 / 1.1 = 1.82 for the prompt's token 0, then 1.9 / 1.1 = 1.73 for token 1, drawn.
    let mut draws = sampler(greedy(1.1)).with_prompt(&[0, 0, 700].into());
    assert_eq!([0; 4].map(|_| draws.draw(&logits).unwrap()), [1, 0, 0, 0].map(|id: u32| id));
    // Below zero it multiplies: -0.5 becomes -0.6 · 1.0.
    let mut below = sampler(greedy(1.5)).with_prompt(&[0].into());
    assert_eq!(below.draw(&[-0.5, -0.6]).unwrap(), 1);
    // A penalty below 1 favours earlier tokens; the smallest one overflows nothing.
    for penalty in [0.9, f32::MIN_POSITIVE] {
        let mut favoured = sampler(|sampling| {
            greedy(penalty)(sampling);
            sampling.seed = Some(1);
        })
        .with_prompt(&[2].into());
        assert_eq!(favoured.draw(&[1.0, 1.05, 1.0]).unwrap(), 2);
    }
    let mut drawn = sampler(|sampling| sampling.repetition_penalty = f32::MIN_POSITIVE).with_prompt(&[0, 1].into());
    assert_eq!(drawn.draw(&[3.0, -3.0, 5.0]).unwrap(), 0);
    assert_eq!(sampler(greedy(1.0)).with_prompt(&[0].into()).draw(&logits).unwrap(), 0);
}

#[test]
fn a_seed_gives_the_same_draws_and_another_gives_others() {
    let logits: Vec<f32> = (0..50).map(|index| (index as f32).sin()).collect();
    let draw = |seed| {
        let mut sampler = sampler(|sampling| sampling.seed = seed);
        (0..40).map(|_| sampler.draw(&logits).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(Some(1)), draw(Some(1)));
    assert_ne!(draw(Some(1)), draw(Some(2)));
    assert_ne!(draw(None), draw(None));
}

#[test]
fn broken_logits_are_an_error() {
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(matches!(sampler(|_| ()).draw(&[0.0, broken]), Err(Error::Internal(_))));
    }
    assert!(sampler(|_| ()).draw(&[]).is_err());
}
