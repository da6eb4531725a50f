//! Draws of tokens.

use attune::model::kernels::{Draw, NO_TOKEN, cuda};
use candle_core::Tensor;

use super::{CPU, each, random, wide};
use crate::draws;

#[test]
fn tokens_are_drawn_by_their_weights() {
    let all = Draw { temperature: 1.0, ..Draw::GREEDY };
    let requests: Vec<Draw> = [
        Draw::GREEDY,
        all,
        Draw { temperature: 0.7, point: 0.3, ..all },
        Draw { temperature: 1.5, point: 0.5, ..all },
        Draw { point: 0.999_999, ..all },
        Draw { point: 0.1, ..all },
        Draw { point: 0.9, ..Draw::GREEDY },
        Draw { point: 0.75, ..all },
        Draw { point: 0.2, ..all },
        Draw { point: 0.6, min_p: 0.1, ..all },
        Draw { point: 0.4, top_k: 1, ..all },
        Draw { point: 0.97, top_k: 5, temperature: 2.0, ..all },
        Draw { point: 0.5, top_k: 5000, ..all },
        Draw { point: 0.8, top_p: 0.9, temperature: 1.3, ..all },
        Draw { point: 0.3, top_p: 0.5, top_k: 40, min_p: 0.05, ..all },
        Draw { point: 0.99, top_p: 0.95, top_k: 20, temperature: 0.6, ..all },
        Draw { point: 0.9, top_p: 1e-6, ..all },
    ]
    .into();
    each(|emulator, dtype, _| {
        for classes in [7, 1500] {
            let logits = (random((requests.len(), classes), 1, dtype) * 3.0).unwrap();
            let mut rows: Vec<Vec<f32>> = wide(&logits).to_vec2().unwrap();
            // Equal logits, of which the first counts, and one NaN.
            rows[6][2] = 40.0;
            rows[6][5] = 40.0;
            rows[8][3] = f32::NAN;
            // Cuts that go through equal logits; also through zeros of both signs.
            for row in rows.iter_mut().skip(10) {
                for (place, value) in [(1, 2.0), (3, 2.0), (4, 2.0), (5, 0.0), (6, -0.0)] {
                    row[place] = value;
                }
            }
            let logits = Tensor::new(rows.clone(), &CPU).unwrap().to_dtype(dtype).unwrap();
            let tokens = cuda::draw::draw(emulator, &logits, &requests).unwrap();
            for (index, (logits, token)) in rows.iter().zip(tokens).enumerate() {
                if index == 8 {
                    assert_eq!(token, NO_TOKEN);
                    continue;
                }
                if requests[index].temperature == 0.0 {
                    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    assert_eq!(token as usize, logits.iter().position(|logit| *logit >= largest).unwrap());
                    continue;
                }
                let candidates = draws::candidates(logits, &requests[index]);
                let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
                let place = candidates.iter().position(|(candidate, _)| *candidate == token as usize);
                let place = place.unwrap_or_else(|| panic!("row {index}: {token} is left out of {candidates:?}"));
                let before: f64 = candidates[..place].iter().map(|(_, weight)| weight).sum();
                let after = before + candidates[place].1;
                let (point, slack) = (requests[index].point * total, 1e-5 * total);
                assert!(before <= point + slack && point <= after + slack, "row {index}: {before} {point} {after}");
            }
        }
    });
}
