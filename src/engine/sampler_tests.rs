//! Draws against the probabilities that the definition gives.

use super::*;

fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
    let mut sampling = Sampling { seed: Some(7), ..Sampling::default() };
    change(&mut sampling);
    Sampler::new(sampling)
}

/// Shares of 20,000 draws.
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
        sampling.logit_bias = vec![(1, -100.0), (3, 0.2), (400, 5.0)];
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
    // A flat distribution needs more candidates than the first look takes; equal weights are kept from the lowest id on.
    let flat = shares(sampler(|sampling| sampling.top_p = 0.5), &[1.0; 1000]);
    assert!(flat[..500].iter().all(|share| *share > 0.0) && flat[501..].iter().all(|share| *share == 0.0));
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
