//! Checks every backward pass against central differences in f64: of each kernel by itself, number by number, and of
//! whole models along random directions in each A and each B. The formulas in f64 are those of `common/exact.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::ops::Range;

use crate::exact::{Heads, Pair};
use crate::fixtures::{EXPERT_FAMILIES, Reference, TRAINED_FAMILIES, floats, load};
use attune::model::config::GluLimits;
use attune::model::kernels::{Activation, AttentionForm, AttentionState, Kernels, LogitForm, PackedRows};
use attune::model::lora::{LoraPair, Site};
use attune::model::rope::Angles;
use attune::train::backward;
use candle_core::{Device, Tensor};

const CPU: Device = Device::Cpu;
const KERNELS: Kernels = Kernels::Cpu;
/// Half the distance of the two points of a difference: its square is the error of the differences.
const STEP: f64 = 1e-5;
/// ‖gradient − differences‖ / ‖differences‖: sums of f32, whose steps are 6e-8, over some tens of terms.
const TOLERANCE: f64 = 1e-5;

/// Returns numbers of about 1, the same in every run, that f32 holds exactly.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    use rand::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| f64::from(random.random_range(-1.5_f32..1.5))).collect()
}

fn tensor(numbers: &[f64], shape: impl Into<candle_core::Shape>) -> Tensor {
    let numbers = numbers.iter().map(|number| *number as f32).collect();
    Tensor::from_vec::<_, f32>(numbers, shape.into(), &CPU).unwrap()
}

fn widened(tensor: &Tensor) -> Vec<f64> {
    floats(tensor).into_iter().map(f64::from).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Computes the slopes of `f` at `x`, one after the other.
fn slopes(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let slope = |index: usize| {
        let at = |step: f64| {
            let mut x = x.to_vec();
            x[index] += step;
            f(&x)
        };
        (at(STEP) - at(-STEP)) / (2.0 * STEP)
    };
    (0..x.len()).map(slope).collect()
}

#[track_caller]
fn assert_gradient(what: &str, gradient: &Tensor, expected: &[f64]) {
    let gradient = widened(gradient);
    assert_eq!(gradient.len(), expected.len());
    let difference: f64 = gradient.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
    let error = (difference / dot(expected, expected)).sqrt();
    assert!(error < TOLERANCE, "{what}: the gradient is off by {error:e}");
}

#[test]
fn of_the_norm() {
    for (rows, width) in [(1, 8), (5, 33), (7, 64)] {
        let (x, weight, dy) = (numbers(rows * width, 1), numbers(width, 2), numbers(rows * width, 3));
        let backward = |x: &Tensor, weight: &Tensor, eps, dy: &Tensor| KERNELS.rms_norm_backward(x, weight, eps, dy);
        let shape = (rows, width);
        let gradient = backward(&tensor(&x, shape), &tensor(&weight, width), 1e-5, &tensor(&dy, shape)).unwrap();
        let eps = f64::from(1e-5_f32);
        assert_gradient("norm", &gradient, &slopes(&x, |x| dot(&crate::exact::rms_norm(x, &weight, eps), &dy)));
    }
}

#[test]
fn of_the_rotation() {
    let (rows, heads, width) = (5, 3, 16);
    let angle = numbers(rows * width / 2, 1);
    let table = |f: fn(f64) -> f64| tensor(&angle.iter().map(|x| f(*x)).collect::<Vec<_>>(), (rows, width / 2));
    let query_scale = tensor(&[1.0, 1.0, 1.25, 1.25, 1.5], (rows, 1, 1));
    let angles = Angles { cos: table(f64::cos), sin: table(f64::sin), query_scale: None };
    let (x, dy) = (numbers(rows * heads * width, 2), numbers(rows * heads * width, 3));
    let dy_of_keys = tensor(&dy[..rows * width], (rows, 1, width));
    let (gradient, _) = KERNELS.rope_backward(&tensor(&dy, (rows, heads, width)), &dy_of_keys, &angles).unwrap();
    let rotated = |x: &[f64], scales: &[f64]| {
        let mut y = crate::exact::rope(x, heads, width, &angle);
        y.chunks_exact_mut(heads * width).zip(scales).for_each(|(row, scale)| row.iter_mut().for_each(|y| *y *= scale));
        y
    };
    assert_gradient("rotation", &gradient, &slopes(&x, |x| dot(&rotated(x, &[1.0; 5]), &dy)));
    let scaled = Angles { query_scale: Some(query_scale), ..angles };
    let (gradient, of_keys) = KERNELS.rope_backward(&tensor(&dy, (rows, heads, width)), &dy_of_keys, &scaled).unwrap();
    let scales = [1.0, 1.0, 1.25, 1.25, 1.5];
    assert_gradient("rotation of scaled queries", &gradient, &slopes(&x, |x| dot(&rotated(x, &scales), &dy)));
    let keys = &x[..rows * width];
    let of_keys_alone = |x: &[f64]| dot(&crate::exact::rope(x, 1, width, &angle), &dy[..rows * width]);
    assert_gradient("rotation of keys", &of_keys, &slopes(keys, of_keys_alone));
}

#[test]
fn of_the_activation() {
    let [gate, up, dy] = [1, 2, 3].map(|seed| numbers(13 * 11, seed));
    // Large values of both signs: the sigmoid is flat there.
    let gate: Vec<f64> = gate.into_iter().map(|gate| gate * 6.0).map(|gate| f64::from(gate as f32)).collect();
    let [gates, ups, dys] = [&gate, &up, &dy].map(|numbers| tensor(numbers, (13, 11)));
    for form in [Activation::Silu, Activation::GeluTanh] {
        let (dgate, dup) = KERNELS.gated_backward(form, &gates, &ups, &dys).unwrap();
        let gated = |gate: &[f64], up: &[f64]| dot(&crate::exact::gated(form, gate, up), &dy);
        assert_gradient("gate", &dgate, &slopes(&gate, |gate| gated(gate, &up)));
        assert_gradient("up", &dup, &slopes(&up, |up| gated(&gate, up)));
    }
}

/// One token alone, more than one tile of the kernel, and lengths between.
const SEQUENCES: [Range<usize>; 4] = [0..1, 1..70, 70..75, 75..91];

#[test]
fn of_attention() {
    let packed = PackedRows::new(&SEQUENCES, &KERNELS).unwrap();
    let plain = |window| AttentionForm::of_heads(8, window);
    let capped = |window| AttentionForm { scale: 0.6, cap: Some(1.2), ..plain(window) };
    for (queries, keys, form) in [
        (2, 2, plain(None)),
        (4, 2, plain(Some(1))),
        (4, 1, plain(Some(9))),
        (2, 1, plain(Some(66))),
        (4, 2, capped(None)),
        (2, 2, capped(Some(9))),
    ] {
        let (rows, width) = (91, 8);
        let heads = Heads { queries, keys, width, form };
        let [q, dout] = [1, 2].map(|seed| numbers(rows * queries * width, seed));
        let [k, v] = [3, 4].map(|seed| numbers(rows * keys * width, seed));
        let [tq, tdout] = [&q, &dout].map(|numbers| tensor(numbers, (rows, queries, width)));
        let [tk, tv] = [&k, &v].map(|numbers| tensor(numbers, (rows, keys, width)));
        let (out, sums) = KERNELS.packed_attention(&tq, &tk, &tv, &packed, form, None).unwrap();
        let state = AttentionState { q: &tq, k: &tk, v: &tv, out: &out, log_sum_exp: &sums };
        let (dq, dk, dv) = KERNELS.packed_attention_backward(state, &tdout, &packed, form, None).unwrap();
        let score = |q: &[f64], k: &[f64], v: &[f64]| dot(&crate::exact::attention(q, k, v, &SEQUENCES, heads), &dout);
        if form.window == Some(1) {
            // A row that sees only itself: neither query nor key changes anything.
            assert!(widened(&dq).iter().chain(&widened(&dk)).all(|number| number.abs() < 1e-6));
        } else {
            assert_gradient("query", &dq, &slopes(&q, |q| score(q, &k, &v)));
            assert_gradient("key", &dk, &slopes(&k, |k| score(&q, k, &v)));
        }
        assert_gradient("value", &dv, &slopes(&v, |v| score(&q, &k, v)));
    }
}

#[test]
fn of_attention_with_sinks() {
    let packed = PackedRows::new(&SEQUENCES, &KERNELS).unwrap();
    let (rows, width) = (91, 8);
    for (queries, keys, window) in [(4, 2, None), (2, 1, Some(9))] {
        let form = AttentionForm::of_heads(width, window);
        let heads = Heads { queries, keys, width, form };
        let [q, dout] = [1, 2].map(|seed| numbers(rows * queries * width, seed));
        let [k, v] = [3, 4].map(|seed| numbers(rows * keys * width, seed));
        let sinks: Vec<f64> = numbers(queries, 5).into_iter().map(|sink| sink * 2.0).collect();
        let [tq, tdout] = [&q, &dout].map(|numbers| tensor(numbers, (rows, queries, width)));
        let [tk, tv] = [&k, &v].map(|numbers| tensor(numbers, (rows, keys, width)));
        let (out, sums) = KERNELS.packed_attention(&tq, &tk, &tv, &packed, form, None).unwrap();
        let (out, sums) = KERNELS.add_sinks(&out, &sums, &tensor(&sinks, queries)).unwrap();
        let state = AttentionState { q: &tq, k: &tk, v: &tv, out: &out, log_sum_exp: &sums };
        let (dq, dk, dv) = KERNELS.packed_attention_backward(state, &tdout, &packed, form, None).unwrap();
        let score = |q: &[f64], k: &[f64], v: &[f64]| {
            dot(&crate::exact::attention_with_sinks(q, k, v, &SEQUENCES, heads, Some(&sinks)), &dout)
        };
        assert_gradient("query", &dq, &slopes(&q, |q| score(q, &k, &v)));
        assert_gradient("key", &dk, &slopes(&k, |k| score(&q, k, &v)));
        assert_gradient("value", &dv, &slopes(&v, |v| score(&q, &k, v)));
    }
}

#[test]
fn of_the_clamped_activation() {
    // Both sides of the limits, and numbers between them.
    let [gate, up, dy] = [1, 2, 3].map(|seed| numbers(13 * 11, seed));
    let limits = GluLimits { alpha: 1.702, limit: 0.7 };
    let [gates, ups, dys] = [&gate, &up, &dy].map(|numbers| tensor(numbers, (13, 11)));
    let (dgate, dup) = KERNELS.clamped_glu_backward(&gates, &ups, &dys, limits).unwrap();
    let (alpha, limit) = (f64::from(limits.alpha), f64::from(limits.limit));
    let score = |gate: &[f64], up: &[f64]| {
        let values = gate.iter().zip(up).map(|(gate, up)| crate::exact::experts::clamped_glu(*gate, *up, alpha, limit));
        dot(&values.collect::<Vec<f64>>(), &dy)
    };
    assert_gradient("gate", &dgate, &slopes(&gate, |gate| score(gate, &up)));
    assert_gradient("up", &dup, &slopes(&up, |up| score(&gate, up)));
    let ours = KERNELS.clamped_glu(&gates, &ups, limits).unwrap();
    let exact: Vec<f64> =
        gate.iter().zip(&up).map(|(gate, up)| crate::exact::experts::clamped_glu(*gate, *up, alpha, limit)).collect();
    assert_gradient("values", &ours, &exact);
}

#[test]
fn of_cross_entropy() {
    let (rows, classes) = (6, 50);
    let logits: Vec<f64> = numbers(rows * classes, 1).into_iter().map(|x| f64::from((x * 5.0) as f32)).collect();
    let targets: Vec<u32> = (0..rows as u32).map(|row| row * 17 % 50).collect();
    let weights = [1.0, 0.25, 0.0, 2.0, 1.0, -0.5];
    for form in [LogitForm::PLAIN, LogitForm { scale: 0.25, cap: None }, LogitForm { scale: 1.5, cap: Some(6.0) }] {
        let loss = |products: &[f64]| {
            let logits = crate::exact::to_logits(products, form);
            let rows = logits.chunks_exact(classes).zip(&targets).zip(weights);
            rows.map(|((logits, target), weight)| f64::from(weight) * crate::exact::cross_entropy(logits, *target))
                .sum()
        };
        let ours = KERNELS.cross_entropy(tensor(&logits, (rows, classes)), form, &targets, &weights).unwrap();
        assert_gradient("cross entropy", &ours.gradient, &slopes(&logits, loss));
    }
}

/// Checks the whole way through every A and every B: each is moved along a random direction.
#[test]
fn of_whole_models() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family, &CPU);
        let adapter = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &CPU);
        let batch = Reference::read(family, "peft/reference.safetensors").batch();
        let model = crate::exact::Model::read(&crate::fixtures::folder(family));
        let pairs: HashMap<(usize, Site), Pair> = adapter
            .layers
            .iter()
            .enumerate()
            .flat_map(|(layer, pairs)| {
                Site::ALL.into_iter().filter_map(move |site| Some(((layer, site), pairs.get(site)?)))
            })
            .map(|(place, pair)| {
                (place, Pair { a: widened(&pair.a), b: widened(&pair.b), scale: f64::from(pair.scale) })
            })
            .collect();
        let normalizer = batch.targets.len() as f64;
        let (report, gradients) = backward::loss_and_gradients(&decoder, &adapter, &batch, normalizer).unwrap();
        let exact_loss = model.loss(&pairs, &batch);
        assert!((report.loss_sum - exact_loss).abs() < 1e-5 * exact_loss, "{family}: {report:?}, exactly {exact_loss}");
        for ((layer, site), pair) in &pairs {
            let gradient = gradients[*layer].get(*site).unwrap();
            for (half, values, gradient) in [("A", &pair.a, &gradient.a), ("B", &pair.b, &gradient.b)] {
                let direction = numbers(values.len(), 7);
                let moved = |step: f64| {
                    let values: Vec<f64> = values.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
                    let pair = match half {
                        "A" => Pair { a: values, ..pair.clone() },
                        _ => Pair { b: values, ..pair.clone() },
                    };
                    let mut pairs = pairs.clone();
                    pairs.insert((*layer, *site), pair);
                    model.loss(&pairs, &batch) / normalizer
                };
                let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                let gradient = widened(gradient);
                let size = dot(&gradient, &gradient).sqrt();
                assert!(size > 0.0, "{family}: layer {layer}, {site:?}: {half} has no gradient");
                // Along numbers of about 1, a slope has the size of the gradient.
                let error = (slope - dot(&gradient, &direction)).abs() / size;
                assert!(error < 2.0 * TOLERANCE, "{family}: layer {layer}, {site:?}, {half}: off by {error:e}");
            }
        }
    }
}

/// Checks the same of the updates of experts, and of those of attention below them, whose gradients come through routers:
/// all experts of a block are moved together, each along its own random direction.
#[test]
fn of_experts() {
    for family in EXPERT_FAMILIES {
        let (config, decoder) = load(family, &CPU);
        let read = |file: &str| std::fs::read(crate::fixtures::folder(family).join("peft_experts").join(file)).unwrap();
        let files = (read("adapter_config.json"), read("adapter_model.safetensors"));
        let adapter = attune::adapters::peft::read(&files.0, &files.1, &config, &CPU).unwrap();
        let batch = Reference::read(family, "peft_experts/reference.safetensors").batch();
        let model = crate::exact::Model::read(&crate::fixtures::folder(family));
        let wide = |pair: &LoraPair| Pair { a: widened(&pair.a), b: widened(&pair.b), scale: f64::from(pair.scale) };
        let (mut linear, mut experts) = (HashMap::new(), HashMap::new());
        for (block, layer) in adapter.layers.iter().enumerate() {
            for site in Site::ALL {
                linear.extend(layer.get(site).map(|pair| ((block, site), wide(pair))));
                for expert in 0..layer.expert_count() {
                    experts.extend(layer.expert(expert, site).map(|pair| ((block, expert, site), wide(pair))));
                }
            }
        }
        let normalizer = batch.targets.len() as f64;
        let (report, gradients) = backward::loss_and_gradients(&decoder, &adapter, &batch, normalizer).unwrap();
        let exact_loss = model.loss_with_experts(&linear, &experts, &batch);
        assert!((report.loss_sum - exact_loss).abs() < 1e-5 * exact_loss, "{family}: {report:?}, exactly {exact_loss}");
        let check = |what: &str, moved: &dyn Fn(f64) -> f64, along: f64, size: f64| {
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let error = (slope - along).abs() / size;
            assert!(size > 0.0 && error < 2.0 * TOLERANCE, "{family}: {what}: off by {error:e}");
        };
        let add = |values: &[f64], seed: usize, step: f64| -> Vec<f64> {
            values.iter().zip(numbers(values.len(), seed as u64)).map(|(x, d)| x + step * d).collect()
        };
        for (block, layer) in adapter.layers.iter().enumerate() {
            for (site, of_a) in
                [Site::Gate, Site::Up, Site::Down].into_iter().flat_map(|site| [(site, true), (site, false)])
            {
                let moved = |step: f64| {
                    let mut experts = experts.clone();
                    for expert in 0..layer.expert_count() {
                        let pair = experts.get_mut(&(block, expert, site)).unwrap();
                        let half = if of_a { &mut pair.a } else { &mut pair.b };
                        *half = add(half, expert, step);
                    }
                    model.loss_with_experts(&linear, &experts, &batch) / normalizer
                };
                let (mut along, mut square) = (0.0, 0.0);
                for expert in 0..layer.expert_count() {
                    // An expert without a row has no gradient.
                    let Some(gradient) = gradients[block].expert(expert, site) else { continue };
                    let gradient = widened(if of_a { &gradient.a } else { &gradient.b });
                    along += dot(&gradient, &numbers(gradient.len(), expert as u64));
                    square += dot(&gradient, &gradient);
                }
                check(&format!("layer {block}, {site:?}, A: {of_a}"), &moved, along, square.sqrt());
            }
        }
        for place in linear.keys() {
            let moved = |step: f64| {
                let mut linear = linear.clone();
                let pair = linear.get_mut(place).unwrap();
                pair.b = add(&pair.b, 7, step);
                model.loss_with_experts(&linear, &experts, &batch) / normalizer
            };
            let gradient = widened(&gradients[place.0].get(place.1).unwrap().b);
            let along = dot(&gradient, &numbers(gradient.len(), 7));
            check(&format!("{place:?}"), &moved, along, dot(&gradient, &gradient).sqrt());
        }
    }
}
