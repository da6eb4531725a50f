//! Estimates a training run before it runs: its work, its time, its memory. Used by the worker when a job begins and by
//! `POST /fine_tuning/jobs/estimate` before that.
//!
//! Time is tokens ÷ rate, with a rate measured on this machine ([`super::calibration`], finished jobs). Its bounds are
//! the machine with nothing else to do and the machine at its present load, each widened by the rate's spread. Memory
//! is that of the process (including the weights) and the additions of training, each by its formula; see
//! [`TrainingMemory`].

use serde::Serialize;

use crate::datasets::DatasetReport;
use crate::train::TrainSettings;
use crate::train::loss::chunk_targets;
use crate::train::methods::{EVALUATION_SHARE, FLOAT, LossShape, WorkFactors, method};
pub use crate::train::rate::{Pace, TrainingRate};
use crate::train::recomputation::Recomputation;
use attune_model::config::NormNames;
use attune_model::{BaseModel, ModelConfig};

/// Bytes that the allocator keeps with small models, whose blocks are small and many.
const ALLOCATOR_BYTES: u64 = 48 << 20;
/// Divisor of the share that the allocator keeps with any model.
const ALLOCATOR_SHARE: u64 = 8;

/// Tokens that a run reads without training on them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evaluated {
    /// Tokens of one evaluation of the whole validation file.
    pub once: usize,
    /// Tokens of all evaluations together, and of all other forward passes.
    pub in_all: usize,
}

/// Forward passes of a run beside its training and its evaluations, such as those that sort examples into classes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForwardPasses {
    /// Tokens that each of them reads.
    pub tokens: usize,
    /// Number of passes in a run.
    pub times: usize,
}

impl Evaluated {
    /// Adds other forward passes.
    #[must_use]
    pub fn and(mut self, passes: &[ForwardPasses]) -> Self {
        self.in_all += passes.iter().map(|pass| pass.tokens * pass.times).sum::<usize>();
        self
    }
}

/// Estimate of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Examples in the training file.
    pub examples: usize,
    /// Tokens that an epoch reads.
    pub tokens_per_epoch: usize,
    /// Tokens of an epoch that are targets.
    pub target_tokens_per_epoch: usize,
    /// Passes over the file.
    pub epochs: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens read in all, as a finished job's `trained_tokens` count them.
    pub trained_tokens: u64,
    /// Tokens read that are targets.
    pub target_tokens: u64,
    /// Tokens that one evaluation of the validation file reads.
    pub validation_tokens: usize,
    /// Training speed of this machine with nothing else to do.
    pub tokens_per_second: f64,
    /// Seconds from the first step to the last, evaluations included, on a machine with nothing else to do.
    #[serde(rename = "duration_seconds")]
    pub seconds: f64,
    /// Fewest seconds that this should take.
    #[serde(rename = "duration_low_seconds")]
    pub low: f64,
    /// Most seconds that this should take at the present load.
    #[serde(rename = "duration_high_seconds")]
    pub high: f64,
    /// Seconds at the present load, as far as it is known.
    #[serde(skip)]
    pub present: f64,
    /// Reason why the duration is uncertain.
    pub uncertainty: Uncertainty,
    /// Activations that the backward pass computes again, to need less memory.
    pub recomputation: Recomputation,
    /// Memory of the process.
    #[serde(rename = "memory_bytes")]
    pub memory: TrainingMemory,
}

/// Reason why a duration is uncertain: the most important one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uncertainty {
    /// Other work takes processors.
    Busy,
    /// The speed was measured for this estimate.
    Measured,
    /// The speed is known from before.
    Known,
}

impl Serialize for Uncertainty {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.in_words())
    }
}

impl Uncertainty {
    /// Returns the reason in words.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Busy => "the machine is busy",
            Self::Measured => "the speed was measured for a few seconds only",
            Self::Known => "the speed of the machine changes a little",
        }
    }

    fn of(pace: &Pace) -> Self {
        match (pace.is_busy(), pace.measured_now) {
            (true, _) => Self::Busy,
            (false, true) => Self::Measured,
            (false, false) => Self::Known,
        }
    }
}

impl Estimate {
    /// Estimates a run of `steps` with these files, at `pace`.
    pub fn new(
        settings: &TrainSettings,
        steps: usize,
        training: &DatasetReport,
        evaluated: Evaluated,
        pace: Pace,
        memory: TrainingMemory,
    ) -> Self {
        let epochs = settings.epochs;
        let trained_tokens = (training.tokens * epochs) as f64;
        let WorkFactors { first_epoch: first, later } = settings.method.work(settings, training);
        let training_work = trained_tokens * later + training.tokens as f64 * (first - later);
        let evaluation_work = EVALUATION_SHARE * evaluated.in_all as f64;
        let rate = pace.rate.tokens_per_second().max(1e-9);
        let seconds = (training_work + evaluation_work) / rate;
        let present = seconds * pace.slowdown.max(1.0);
        Self {
            examples: training.examples,
            tokens_per_epoch: training.tokens,
            target_tokens_per_epoch: training.target_tokens,
            epochs,
            steps,
            trained_tokens: trained_tokens as u64,
            target_tokens: (training.target_tokens * epochs) as u64,
            validation_tokens: evaluated.once,
            tokens_per_second: rate * trained_tokens / training_work.max(1.0),
            seconds,
            low: seconds * (1.0 - pace.rate.spread),
            high: present * (1.0 + pace.rate.spread),
            present,
            uncertainty: Uncertainty::of(&pace),
            recomputation: memory.recomputation,
            memory,
        }
    }
}

/// Most memory that a run should take, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TrainingMemory {
    /// Memory of the process without the run: programs, caches, the weights of all models.
    pub process: u64,
    /// Weight matrices of the base model, a part of `process`.
    pub weights: u64,
    /// A and B twice (in host memory and as the model uses them), their gradients (three times: those of the batch,
    /// their sum and their copy in host memory), and the optimizer's two moments: seven times 4 bytes for each
    /// parameter, eight if the best adapter is kept.
    pub adapter: u64,
    /// Activations that the forward pass keeps of the largest batch for the backward pass, and the additions of one
    /// block's backward pass, including recomputed activations.
    pub activations: u64,
    /// Logits and their gradient of one chunk of targets, over the whole vocabulary, and the gradients of the batch's
    /// hidden states.
    pub loss: u64,
    /// Extra memory that the allocator holds: blocks of changing sizes leave gaps between them.
    pub allocator: u64,
    /// Sum of all, including the process.
    pub peak: u64,
    /// Memory that the run may add to the process: free or allowed memory, less a reserve; `None` if unknown.
    pub available: Option<u64>,
    /// Recomputation that this estimate assumes.
    #[serde(skip)]
    pub recomputation: Recomputation,
}

impl TrainingMemory {
    /// Computes the memory of a run on `model` with an adapter of `parameters` numbers, on top of the process's memory
    /// now.
    pub fn new(
        model: &BaseModel,
        parameters: usize,
        settings: &TrainSettings,
        training: &DatasetReport,
        process_bytes: Option<u64>,
        recomputation: Recomputation,
    ) -> Self {
        let config = &model.config;
        let rows = largest_batch(settings, training) as u64;
        let hidden = config.hidden_size as u64;
        let element = model.decoder.activation_dtype().size_in_bytes() as u64;
        let blocks: Vec<_> = (0..config.num_hidden_layers)
            .map(|block| {
                let convolves = config.convolution_of(block).is_some();
                ActivationSizes::of(config, settings, convolves, recomputation)
            })
            .collect();
        let kept: u64 = blocks.iter().map(|block| block.kept).sum();
        let at_once = blocks.iter().map(|block| block.again + block.backward).max().unwrap_or(0);
        let activations_bytes = element * rows * (kept + at_once);
        let loss_bytes = method(settings.method).loss_bytes(&LossShape {
            element,
            rows,
            hidden,
            chunk: rows.min(chunk_targets(model.decoder.kernels()) as u64),
            vocabulary: config.vocab_size as u64,
            texts: (settings.batch_size * texts_of(training)) as u64,
            vector: model.vectors.width().max(config.hidden_size * model.vectors.poolings.len()) as u64,
        });
        let adapter_bytes = (7 + u64::from(settings.keep_best)) * FLOAT * parameters as u64;
        let parts = adapter_bytes + activations_bytes + loss_bytes;
        let allocator_bytes = ALLOCATOR_BYTES + parts / ALLOCATOR_SHARE;
        let weights_bytes = model.decoder.weight_bytes() as u64;
        let process_bytes = process_bytes.unwrap_or(0).max(weights_bytes);
        Self {
            process: process_bytes,
            weights: weights_bytes,
            adapter: adapter_bytes,
            activations: activations_bytes,
            loss: loss_bytes,
            allocator: allocator_bytes,
            peak: process_bytes + parts + allocator_bytes,
            available: None,
            recomputation,
        }
    }

    /// Returns the bytes that the run adds to the process.
    pub fn added(&self) -> u64 {
        self.peak - self.process
    }
}

/// Numbers per row that a block's activations take.
struct ActivationSizes {
    /// Kept until the block's backward pass.
    kept: u64,
    /// Computed again for it.
    again: u64,
    /// Gradients that it makes.
    backward: u64,
}

impl ActivationSizes {
    /// Counts them as listed in `decoder::Activations`.
    fn of(config: &ModelConfig, settings: &TrainSettings, convolves: bool, recomputation: Recomputation) -> Self {
        let hidden = config.hidden_size as u64;
        let mlp = MlpSizes::of(config, settings);
        let mixer = if convolves { MixerSizes::of_convolution(hidden) } else { MixerSizes::of_attention(config) };
        // Both normed inputs; both branches before the norms behind them.
        let norms = [true, false].map(|of_attention| config.norm_places.names(of_attention));
        let count = |has: fn(&NormNames) -> bool| hidden * norms.iter().filter(|names| has(names)).count() as u64;
        let normed = count(|names| names.before.is_some());
        let branches = count(|names| names.after.is_some() || names.behind.is_some());
        // input, middle; those of mixer and MLP.
        let everything = 2 * hidden + mixer.products + mixer.cheap + mlp.products + mlp.cheap + normed + branches;
        let (kept, again) = match recomputation {
            Recomputation::None => (everything, 0),
            // Both normed inputs, those of mixer and MLP.
            Recomputation::Selective => {
                let cheap = normed + mlp.cheap + mixer.cheap;
                (everything - cheap, cheap)
            }
            Recomputation::Full => (hidden, everything - hidden),
        };
        // Gradients of one block: those of mixer and MLP; those of the four residual streams and of the branches.
        let backward = mlp.backward + 4 * hidden + branches + mixer.backward;
        Self { kept, again, backward }
    }
}

/// Numbers per row that the activations of a block's mixer take.
struct MixerSizes {
    /// Results of products and of attention.
    products: u64,
    /// What selective recomputation computes again.
    cheap: u64,
    /// Gradients that the backward pass makes.
    backward: u64,
}

impl MixerSizes {
    fn of_attention(config: &ModelConfig) -> Self {
        let queries = (config.num_attention_heads * config.head_dim) as u64;
        let keys = (config.num_key_value_heads * config.head_dim) as u64;
        // If query and key are normed, both are there before and after their norms.
        let normed = if config.query_key_norm.is_some() { queries + keys } else { 0 };
        // q, attended; k, v; log_sum_exp. dq, dk, dv and attention's.
        let (products, backward) = (2 * queries + 2 * keys + config.num_attention_heads as u64, 2 * queries + 2 * keys);
        Self { products, cheap: normed, backward }
    }

    fn of_convolution(hidden: u64) -> Self {
        // B, C and x; convolved. Their gradients.
        Self { products: 3 * hidden, cheap: hidden, backward: 4 * hidden }
    }
}

/// Numbers per row that the activations of a block's MLP take.
struct MlpSizes {
    /// Results of products and routers.
    products: u64,
    /// What selective recomputation computes again.
    cheap: u64,
    /// Gradients and copies that the backward pass makes.
    backward: u64,
}

impl MlpSizes {
    fn of(config: &ModelConfig, settings: &TrainSettings) -> Self {
        let Some(experts) = &config.experts else {
            // gate, up; gated; dgated, dgate, dup.
            let intermediate = config.intermediate_size as u64;
            return Self { products: 2 * intermediate, cheap: intermediate, backward: 3 * intermediate };
        };
        let (count, chosen) = (experts.count as u64, experts.chosen as u64);
        let (width, hidden) = (experts.intermediate_size as u64, config.hidden_size as u64);
        // x of each expert; products of x and dy with A and B, and these with their weights.
        let of_updates = if settings.adapts_experts() { hidden + 12 * settings.rank as u64 } else { 0 };
        Self {
            // gate, up; probabilities; weights, and four tables of indices.
            products: 2 * chosen * width + count + 5 * chosen,
            cheap: 0,
            // gated, its gradient twice, dgate, dup; dy and dx of each expert, and these once more, sorted by expert.
            backward: chosen * (5 * width + 3 * hidden + of_updates) + count,
        }
    }
}

/// Counts the texts per pair, rounded up; 1 if the file has no pairs of texts.
fn texts_of(training: &DatasetReport) -> usize {
    training.texts.div_ceil(training.sequences.max(1)).max(1)
}

/// Counts the rows of the largest batch. Examples are packed up to `batch_rows`, a longer one has a batch to itself,
/// and a batch never exceeds its step.
fn largest_batch(settings: &TrainSettings, training: &DatasetReport) -> usize {
    let step = settings.batch_size.saturating_mul(training.longest).saturating_mul(texts_of(training));
    settings.batch_rows.min(step).min(training.tokens).max(training.longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::hyperparameters::Hyperparameters;
    use crate::train::packing::BATCH_ROWS;
    use crate::train::training_method::TrainingMethod;

    fn settings(epochs: u32, batch_size: u32) -> TrainSettings {
        let resolved =
            Hyperparameters { n_epochs: Some(epochs), batch_size: Some(batch_size), ..Hyperparameters::default() };
        TrainSettings::new(&resolved, 1)
    }

    /// A hundred tokens a second on an idle machine.
    const PACE: Pace = Pace {
        rate: TrainingRate { tokens: 300.0, seconds: 3.0, idle_seconds: 3.0, spread: 0.1 },
        slowdown: 1.0,
        measured_now: false,
    };

    #[test]
    fn a_duration_lies_between_the_idle_machine_and_the_present_load() {
        let training = DatasetReport { examples: 10, tokens: 26_000, ..DatasetReport::default() };
        let estimate =
            |pace| Estimate::new(&settings(3, 5), 6, &training, Evaluated::default(), pace, TrainingMemory::default());
        // 780 seconds of work, and a machine on which it takes four times as long now.
        let idle = estimate(PACE);
        let near = |left: f64, right: f64| assert!((left - right).abs() < 1e-6, "{left} is not {right}");
        near(idle.low, 702.0);
        near(idle.seconds, 780.0);
        near(idle.high, 858.0);
        assert_eq!(idle.uncertainty, Uncertainty::Known);
        let busy = estimate(Pace { slowdown: 4.0, ..PACE });
        near(busy.low, 702.0);
        near(busy.seconds, 780.0);
        near(busy.present, 3120.0);
        near(busy.high, 3432.0);
        near(busy.tokens_per_second, 100.0);
        assert_eq!(busy.uncertainty.in_words(), "the machine is busy");
        let short = estimate(Pace { measured_now: true, rate: TrainingRate { spread: 0.25, ..PACE.rate }, ..PACE });
        near(short.low, 585.0);
        near(short.high, 975.0);
        assert_eq!(short.uncertainty, Uncertainty::Measured);
        let told = serde_json::to_value(&busy).expect("figures");
        assert_eq!(told["uncertainty"], "the machine is busy");
        assert!(told["duration_low_seconds"].as_f64() < told["duration_high_seconds"].as_f64());
    }

    #[test]
    fn time_is_tokens_by_rate_and_evaluations_count_half() {
        let training = DatasetReport { examples: 10, tokens: 1000, target_tokens: 400, ..DatasetReport::default() };
        let rate = PACE;
        let estimate = |settings: &TrainSettings, evaluated| {
            Estimate::new(settings, 6, &training, evaluated, rate, TrainingMemory::default())
        };
        let alone = estimate(&settings(3, 5), Evaluated::default());
        assert_eq!((alone.trained_tokens, alone.target_tokens, alone.steps), (3000, 1200, 6));
        assert!((alone.tokens_per_second - 100.0).abs() < 1e-9 && (alone.seconds - 30.0).abs() < 1e-9);
        let measured = estimate(&settings(3, 5), Evaluated { once: 500, in_all: 1500 });
        assert!((measured.seconds - 37.5).abs() < 1e-9, "{}", measured.seconds);
        // So do other forward passes: three of 100 tokens, two of 50.
        let passes = [ForwardPasses { tokens: 100, times: 3 }, ForwardPasses { tokens: 50, times: 2 }];
        let sorted = estimate(&settings(3, 5), Evaluated { once: 500, in_all: 1500 }.and(&passes));
        assert!((sorted.seconds - 39.5).abs() < 1e-9 && sorted.validation_tokens == 500, "{}", sorted.seconds);
        // The texts of a step that exceed a batch are read once more.
        let training = DatasetReport { sequences: 10, texts: 20, ..training.clone() };
        for (batch_size, seconds) in [(5, 30.0), (6, 45.0)] {
            let settings =
                TrainSettings { method: TrainingMethod::TextPairs { scale: 20.0 }, ..settings(3, batch_size) };
            let texts = Estimate::new(&settings, 6, &training, Evaluated::default(), rate, TrainingMemory::default());
            assert!((texts.seconds - seconds).abs() < 1e-9 && texts.trained_tokens == 3000, "{}", texts.seconds);
        }
        // With pairs of answers, the reference reads each token once.
        let pairs = estimate(
            &TrainSettings { method: TrainingMethod::Preferences { beta: 0.1 }, ..settings(3, 5) },
            Evaluated::default(),
        );
        assert!((pairs.seconds - 35.0).abs() < 1e-9, "{}", pairs.seconds);
        assert!((pairs.tokens_per_second - 3000.0 / 35.0).abs() < 1e-9, "{}", pairs.tokens_per_second);
    }

    #[test]
    fn the_largest_batch_is_bounded_by_the_budget_the_step_and_the_longest_example() {
        let report = |tokens, longest| DatasetReport { tokens, longest, ..DatasetReport::default() };
        for (batch_size, tokens, longest, rows) in [
            (8, 100_000, 200, BATCH_ROWS),
            (1, 100_000, 200, 200),
            (4, 100_000, 20, 80),
            (8, 100_000, 3000, 3000),
            (8, 60, 20, 60),
        ] {
            assert_eq!(largest_batch(&settings(1, batch_size), &report(tokens, longest)), rows);
        }
        let pairs = DatasetReport { sequences: 100, texts: 250, ..report(100_000, 20) };
        assert_eq!(largest_batch(&settings(1, 4), &pairs), 240, "three texts each, rounded up");
    }
}
