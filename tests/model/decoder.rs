//! The decoder equals transformers, with and without an adapter, in training and in serving. Part of several programs:
//! each runs it over its own kernels, those of the CPU, of a GPU, or of an emulated GPU.

use crate::fixtures::{
    FAMILIES, Reference, TRAINED_FAMILIES, bears_rounding, convolves, device, floats, load_on, max_difference,
    one_sequence, relative_difference,
};
use attune::model::ModelConfig;
use attune::model::decoder::{Decoder, SequenceRows};
use attune::model::kv_cache::{BLOCK_TOKENS, KvCache};
use attune::model::linear::Storage;
use attune::model::lora::Adapter;
use attune::train::YieldPolicy;
use attune::train::backward::{self, Objective, PassOptions, hidden_states};
use attune::train::preference::Preferences;
use candle_core::{DType, Tensor};

/// Loads the fixture over the kernels under test, in f32.
fn load(family: &str) -> (ModelConfig, Decoder) {
    load_on(family, &crate::kernels(), &Storage::default())
}

/// Largest absolute difference of a logit, in f32.
const LOGIT_TOLERANCE: f32 = 1e-4;

#[test]
fn logits_and_hidden_states_equal_transformers_for_every_family() {
    for family in FAMILIES {
        let (_, decoder) = load(family);
        let reference = Reference::read(family, "reference.safetensors");
        let hidden = hidden_states(&decoder, None, &one_sequence(&reference.ids("input_ids"))).unwrap();
        let logits = decoder.logits(&hidden).unwrap();
        let difference = max_difference(&floats(&logits), &reference.floats("logits"));
        assert!(difference <= LOGIT_TOLERANCE, "{family}: logits differ by {difference:e}");
        let difference = max_difference(&floats(&hidden), &reference.floats("hidden"));
        assert!(difference <= LOGIT_TOLERANCE, "{family}: hidden states differ by {difference:e}");
    }
}

/// Computes the logits of every row of `tokens`, in steps of the given sizes over a paged cache whose blocks are out of
/// order.
fn stepwise_logits(
    family: &str,
    decoder: &Decoder,
    tokens: &[u32],
    steps: &[usize],
    adapter: Option<&Adapter>,
) -> Tensor {
    let config = load(family).0;
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).rev().map(|block| block * 2 + 1).collect();
    let cache = KvCache::new(&config, blocks.len() * 2 + 2, DType::F32, decoder.device()).unwrap();
    let mut start = 0;
    let mut hidden = Vec::new();
    for &count in steps {
        let rope = decoder.rope_table(tokens.len());
        let rows = SequenceRows { rows: 0..count, start, blocks: &blocks, adapter, rope };
        hidden.push(decoder.step(&tokens[start..start + count], &[rows], &cache).unwrap());
        start += count;
    }
    assert_eq!(start, tokens.len());
    decoder.logits(&Tensor::cat(&hidden, 0).unwrap()).unwrap()
}

#[test]
fn serving_in_chunks_over_the_paged_cache_gives_the_logits_of_transformers() {
    for family in FAMILIES {
        let (_, decoder) = load(family);
        let reference = Reference::read(family, "reference.safetensors");
        let tokens = reference.ids("input_ids");
        let rest = tokens.len() - 7 - 1 - 1 - 20 - 1;
        let logits = stepwise_logits(family, &decoder, &tokens, &[7, 1, 1, 20, 1, rest], None);
        let difference = max_difference(&floats(&logits), &reference.floats("logits"));
        assert!(difference <= LOGIT_TOLERANCE, "{family}: logits differ by {difference:e}");
    }
}

#[test]
fn a_sequence_with_convolutions_may_be_cut_at_every_position() {
    for family in FAMILIES.into_iter().filter(|family| convolves(family)) {
        let (_, decoder) = load(family);
        let reference = Reference::read(family, "reference.safetensors");
        let (tokens, expected) = (reference.ids("input_ids"), reference.floats("logits"));
        let one_by_one = vec![1; tokens.len()];
        let cuts = (1..tokens.len()).map(|cut| vec![cut, tokens.len() - cut]);
        let thrice = (1..tokens.len() - 1).map(|cut| vec![cut, 1, tokens.len() - cut - 1]);
        for steps in cuts.chain(thrice).chain([one_by_one]) {
            let difference =
                max_difference(&floats(&stepwise_logits(family, &decoder, &tokens, &steps, None)), &expected);
            assert!(difference <= LOGIT_TOLERANCE, "{family}, steps {steps:?}: logits differ by {difference:e}");
        }
    }
}

/// The blocks of another sequence's beginning have all that a convolution needs behind them, and neighbours in a step have
/// no part in each other's.
#[test]
fn sequences_with_convolutions_share_the_blocks_of_their_beginning_alone() {
    for family in FAMILIES.into_iter().filter(|family| convolves(family)) {
        let (config, decoder) = load(family);
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let (first, mut second) = (tokens.clone(), tokens.clone());
        second[2 * BLOCK_TOKENS..].reverse();
        let alone = stepwise_logits(family, &decoder, &second, &[second.len()], None);
        let cache = KvCache::new(&config, 8, DType::F32, decoder.device()).unwrap();
        let rope = decoder.rope_table(tokens.len());
        let part = |rows, start, blocks| SequenceRows { rows, start, blocks, adapter: None, rope };
        let end = 2 * BLOCK_TOKENS;
        // The first sequence has gone on within its third block before the second one begins.
        decoder.step(&first[..end + 5], &[part(0..end + 5, 0, &[6, 1, 3])], &cache).unwrap();
        let both = [&first[end + 5..end + 9], &second[end..end + 4]].concat();
        let parts = [part(0..4, end + 5, &[6, 1, 3]), part(4..8, end, &[6, 1, 0])];
        let hidden = decoder.step(&both, &parts, &cache).unwrap();
        let rest = decoder.step(&second[end + 4..], &[part(0..second.len() - end - 4, end + 4, &[6, 1, 0])], &cache);
        let hidden = Tensor::cat(&[hidden.narrow(0, 4, 4).unwrap(), rest.unwrap()], 0).unwrap();
        let found = floats(&decoder.logits(&hidden).unwrap());
        let expected = floats(&alone.narrow(0, end, second.len() - end).unwrap());
        let difference = max_difference(&found, &expected);
        assert!(difference <= LOGIT_TOLERANCE, "{family}: logits differ by {difference:e}");
    }
}

#[test]
fn an_adapter_gives_the_logits_of_peft_in_training_and_in_serving() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family);
        let adapter = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
        let reference = Reference::read(family, "peft/reference.safetensors");
        let tokens = reference.ids("input_ids");
        let hidden = hidden_states(&decoder, Some(&adapter), &one_sequence(&tokens)).unwrap();
        let difference = max_difference(&floats(&decoder.logits(&hidden).unwrap()), &reference.floats("logits"));
        assert!(difference <= LOGIT_TOLERANCE, "{family}, training: logits differ by {difference:e}");
        let logits = stepwise_logits(family, &decoder, &tokens, &[11, 1, tokens.len() - 12], Some(&adapter));
        let difference = max_difference(&floats(&logits), &reference.floats("logits"));
        assert!(difference <= LOGIT_TOLERANCE, "{family}, serving: logits differ by {difference:e}");
    }
}

#[test]
fn an_adapter_whose_b_is_zero_changes_no_bit() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family);
        let zero = Reference::read(family, "peft/curve.safetensors").adapter("init.", &config, 2.0, &device());
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let bits = |logits: Tensor| floats(&logits).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for steps in [vec![tokens.len()], vec![5, 1, tokens.len() - 6]] {
            let base = bits(stepwise_logits(family, &decoder, &tokens, &steps, None));
            let adapted = bits(stepwise_logits(family, &decoder, &tokens, &steps, Some(&zero)));
            assert_eq!(base, adapted, "{family}");
        }
    }
}

#[test]
fn loss_and_gradients_equal_peft() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family);
        let adapter = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
        let reference = Reference::read(family, "peft/reference.safetensors");
        let batch = reference.batch();
        let (report, gradients) =
            backward::loss_and_gradients(&decoder, &adapter, &batch, batch.targets.len() as f64).unwrap();
        let loss = report.loss_sum / report.weight_sum;
        let expected = f64::from(reference.scalar("loss"));
        assert!((loss - expected).abs() / expected <= 1e-5, "{family}: loss {loss} instead of {expected}");
        for (index, layer) in gradients.iter().enumerate() {
            for module in config.modules_of(index) {
                let pair = layer.whole_gradient(module).unwrap().unwrap();
                let name = crate::fixtures::tensor_name(index, module);
                for (tensor, part) in [(&pair.a, "lora_A"), (&pair.b, "lora_B")] {
                    let expected = reference.floats(&format!("grad.{name}.{part}.weight"));
                    let difference = relative_difference(&floats(tensor), &expected);
                    assert!(difference <= 1e-4, "{family}: gradient of {name}.{part} differs by {difference:e}");
                }
            }
        }
    }
}

#[test]
fn packed_sequences_have_the_loss_and_gradients_of_separate_ones() {
    let (config, decoder) = load("qwen2");
    let adapter = Reference::read("qwen2", "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
    let batch = Reference::read("qwen2", "peft/reference.safetensors").batch();
    let normalizer = batch.targets.len() as f64;
    let (packed, packed_gradients) = backward::loss_and_gradients(&decoder, &adapter, &batch, normalizer).unwrap();
    let mut loss_sum = 0.0;
    let mut sum: Option<Vec<f32>> = None;
    for rows in &batch.sequences {
        let mut single = one_sequence(&batch.tokens[rows.clone()]);
        single.targets = batch
            .targets
            .iter()
            .filter(|target| rows.contains(&target.row))
            .map(|target| backward::Target { row: target.row - rows.start, ..*target })
            .collect();
        let (report, gradients) = backward::loss_and_gradients(&decoder, &adapter, &single, normalizer).unwrap();
        loss_sum += report.loss_sum;
        let flat = flatten(&gradients);
        sum = Some(match sum {
            Some(sum) => sum.iter().zip(&flat).map(|(a, b)| a + b).collect(),
            None => flat,
        });
    }
    assert!((packed.loss_sum - loss_sum).abs() / loss_sum < 1e-6);
    let difference = relative_difference(&flatten(&packed_gradients), &sum.unwrap());
    assert!(difference < 1e-5, "gradients differ by {difference:e}");
}

/// Checks the gradient with dropout against central differences of the loss along random directions.
#[test]
fn gradients_with_dropout_are_those_of_the_loss() {
    use attune::train::dropout::Dropout;
    let (config, decoder) = load("qwen3");
    let adapter = Reference::read("qwen3", "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
    let batch = Reference::read("qwen3", "peft/reference.safetensors").batch();
    let normalizer = batch.targets.len() as f64;
    let dropout = Dropout { probability: 0.3, seed: 5, step: 2, batch: 0 };
    let run = |adapter: &attune::model::lora::Adapter| {
        backward::objective_and_gradients(
            &decoder,
            adapter,
            &batch,
            Objective::Targets,
            normalizer,
            PassOptions { dropout: Some(&dropout), ..PassOptions::default() },
        )
        .unwrap()
    };
    let (dropped, gradients) = run(&adapter);
    let (whole, others) = backward::loss_and_gradients(&decoder, &adapter, &batch, normalizer).unwrap();
    assert!((dropped.loss_sum - whole.loss_sum).abs() > 1e-3, "dropout changes nothing");
    assert!(relative_difference(&flatten(&gradients), &flatten(&others)) > 1e-2);
    crate::fixtures::assert_gradient(&adapter, &gradients, |adapter| run(adapter).0.loss_sum / normalizer);
}

/// Uses two pairs of answers: the loss of a model that is its own reference is ln 2, and the gradient is that of the
/// loss.
#[test]
fn preferences_have_the_gradient_of_their_loss() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family);
        let adapter = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
        let batch = Reference::read(family, "peft/reference.safetensors").batch();
        assert_eq!(batch.sequences.len(), 4);
        let own = backward::log_likelihoods(&decoder, Some(&adapter), &batch, YieldPolicy::default()).unwrap();
        let base = backward::log_likelihoods(&decoder, None, &batch, YieldPolicy::default()).unwrap();
        let run = |adapter: &attune::model::lora::Adapter, reference: &[f64]| {
            let objective = Objective::Preferences(Preferences { beta: 0.5, reference });
            backward::objective_and_gradients(&decoder, adapter, &batch, objective, 2.0, PassOptions::default())
                .unwrap()
        };
        let (start, _) = run(&adapter, &own);
        assert!((start.loss_sum / 2.0 - std::f64::consts::LN_2).abs() < 1e-12, "{family}: {start:?}");

        let (report, gradients) = run(&adapter, &base);
        let reward = |sequence: usize| 0.5 * (own[sequence] - base[sequence]);
        let margins = [reward(0) - reward(1), reward(2) - reward(3)];
        let expected: f64 = margins.iter().map(|margin| (1.0 + (-margin).exp()).ln()).sum();
        assert!((report.loss_sum - expected).abs() < 1e-9, "{family}: {report:?}");
        assert!((report.margin_sum - margins.iter().sum::<f64>()).abs() < 1e-9);
        // It is the gradient of cross entropies whose weights are the slopes; those of the rejected answers are below
        // 0.
        let mut weighted = batch.clone();
        for target in &mut weighted.targets {
            let sequence = batch.sequence_of(target);
            let slope = 0.5 / (1.0 + margins[sequence / 2].exp());
            target.weight = if sequence.is_multiple_of(2) { slope as f32 } else { -slope as f32 };
        }
        let (_, expected) = backward::loss_and_gradients(&decoder, &adapter, &weighted, 2.0).unwrap();
        let difference = relative_difference(&flatten(&gradients), &flatten(&expected));
        assert!(difference < 1e-5, "{family}: gradients differ by {difference:e}");
        // Where the choice of experts changes, the loss has a step.
        if bears_rounding(&family) {
            crate::fixtures::assert_gradient(&adapter, &gradients, |adapter| run(adapter, &base).0.loss_sum / 2.0);
        }
    }
}

fn flatten(gradients: &backward::Gradients) -> Vec<f32> {
    let pairs = gradients
        .iter()
        .flat_map(|layer| attune::model::lora::Site::ALL.into_iter().filter_map(|site| layer.get(site)));
    pairs.flat_map(|pair| [floats(&pair.a), floats(&pair.b)].concat()).collect()
}

/// Continues several prompts greedily, each with its own adapter or the base, all rows in the same steps.
fn greedy_together(
    family: &str,
    decoder: &Decoder,
    requests: &[(&[u32], Option<&Adapter>)],
    count: usize,
) -> Vec<Vec<u32>> {
    let config = load(family).0;
    let blocks_each = 5;
    let cache = KvCache::new(&config, blocks_each * requests.len(), DType::F32, decoder.device()).unwrap();
    let blocks: Vec<Vec<u32>> = (0..requests.len())
        .map(|index| (0..blocks_each).map(|block| (block * requests.len() + index) as u32).collect())
        .collect();
    let mut texts: Vec<Vec<u32>> = requests.iter().map(|(prompt, _)| prompt.to_vec()).collect();
    let mut cached = vec![0; requests.len()];
    for _ in 0..count {
        let mut tokens = Vec::new();
        let mut sequences = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let start = tokens.len();
            tokens.extend(&text[cached[index]..]);
            let (blocks, (prompt, adapter)) = (&blocks[index], requests[index]);
            let rope = decoder.rope_table(prompt.len() + count - 1);
            sequences.push(SequenceRows { rows: start..tokens.len(), start: cached[index], blocks, adapter, rope });
        }
        let last_rows: Vec<u32> = sequences.iter().map(|sequence| sequence.rows.end as u32 - 1).collect();
        let hidden = decoder.step(&tokens, &sequences, &cache).unwrap();
        let last = hidden.index_select(&Tensor::new(last_rows, decoder.device()).unwrap(), 0).unwrap();
        let next: Vec<u32> = decoder.logits(&last).unwrap().argmax(1).unwrap().to_vec1().unwrap();
        for (index, token) in next.into_iter().enumerate() {
            cached[index] = texts[index].len();
            texts[index].push(token);
        }
    }
    texts.iter().zip(requests).map(|(text, (prompt, _))| text[prompt.len()..].to_vec()).collect()
}

#[test]
fn greedy_tokens_equal_transformers() {
    for family in FAMILIES {
        let (_, decoder) = load(family);
        let reference = Reference::read(family, "reference.safetensors");
        let prompt = &reference.ids("input_ids")[..12];
        let tokens = greedy_together(family, &decoder, &[(prompt, None)], 24);
        assert_eq!(tokens[0], reference.ids("greedy"), "{family}");
    }
}

#[test]
fn a_batch_of_mixed_adapters_gives_the_greedy_tokens_of_each_request_alone() {
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family);
        let first = Reference::read(family, "peft/adapter_model.safetensors").adapter("", &config, 2.0, &device());
        let second = Reference::read(family, "peft/curve.safetensors").adapter("final.", &config, 2.0, &device());
        let ids = Reference::read(family, "reference.safetensors").ids("input_ids");
        let requests: [(&[u32], Option<&Adapter>); 6] = [
            (&ids[..12], None),
            (&ids[3..20], Some(&first)),
            (&ids[..5], Some(&first)),
            (&ids[7..8], Some(&second)),
            (&ids[..12], Some(&second)),
            (&ids[..30], None),
        ];
        let together = greedy_together(family, &decoder, &requests, 24);
        for (index, request) in requests.iter().enumerate() {
            let alone = greedy_together(family, &decoder, std::slice::from_ref(request), 24);
            assert_eq!(together[index], alone[0], "{family}, request {index}");
        }
        assert_ne!(together[0], together[4], "{family}: the adapter has no effect");
    }
}

/// Writes adapters with our own writer, and our logits with them, for `make parity` to load with PEFT.
#[test]
#[ignore = "writes files for the Python side of `make parity`"]
fn write_adapters_for_peft() {
    let out = std::path::PathBuf::from(std::env::var("PARITY_OUT").expect("PARITY_OUT names the folder to write to"));
    for family in TRAINED_FAMILIES {
        let (config, decoder) = load(family);
        let adapter = Reference::read(family, "peft/curve.safetensors").adapter("final.", &config, 2.0, &device());
        let files = attune::adapters::peft::write(&adapter, family).unwrap();
        let reread = attune::adapters::peft::read(&files.config, &files.weights, &config, &device()).unwrap();
        let tokens = Reference::read(family, "reference.safetensors").ids("input_ids");
        let logits = stepwise_logits(family, &decoder, &tokens, &[9, 1, tokens.len() - 10], Some(&reread));
        let folder = out.join(family);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), &files.config).unwrap();
        std::fs::write(folder.join("adapter_model.safetensors"), &files.weights).unwrap();
        let ids: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::new(ids, &candle_core::Device::Cpu).unwrap();
        let logits = logits.to_device(&candle_core::Device::Cpu).unwrap();
        let tensors = std::collections::HashMap::from([("input_ids".to_owned(), ids), ("logits".to_owned(), logits)]);
        candle_core::safetensors::save(&tensors, out.join(format!("{family}.safetensors"))).unwrap();
    }
}
