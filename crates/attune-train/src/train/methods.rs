//! The methods of training, one file for each: data of a step, loss and gradients, evaluation on held-out examples,
//! cost in time and memory, and names of metrics. Called by the trainer, the estimate and the calibration.

mod answers;
mod labelled_pairs;
mod preferences;
mod scored_pairs;
mod text_pairs;
mod texts;

use std::ops::Range;

use crate::datasets::{DatasetReport, ExampleStore, TokenizedExample};
use crate::train::backward::{self, Gradients, Objective, PassOptions};
use crate::train::batch::{LossReport, PackedBatch};
use crate::train::batches::Batches;
use crate::train::dropout::Dropout;
use crate::train::loss_source::{Heads, LossSource};
use crate::train::packing::{Packed, pack};
use crate::train::parameters::add_gradients;
use crate::train::rate::{Clocks, RateSum, Watch};
use crate::train::recomputation::Recomputation;
use crate::train::settings::TrainSettings;
use crate::train::training_method::TrainingMethod;
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};
use crate::{Error, Result};
use attune_model::decoder::Decoder;
use attune_model::lora::Adapter;

/// Time of evaluating a token as a share of the time of training on it: the forward pass alone is two of the four
/// operations for each weight.
pub(crate) const EVALUATION_SHARE: f64 = 0.5;
/// Bytes of f32.
pub(crate) const FLOAT: u64 = 4;
/// Examples that one round of evaluation packs, so that packed copies never exceed a part of a large file.
const EVALUATION_EXAMPLES: usize = 256;

/// Log probabilities of the two answers of a pair under the reference model, in nats; `None` if not yet computed.
pub(crate) type ReferenceLogProbs = Option<[f64; 2]>;

/// Behaviour that differs between the methods of training.
pub(crate) trait Method: Send + Sync {
    /// Plans the batches of a run over `examples`.
    fn batches(&self, settings: &TrainSettings, examples: &ExampleStore) -> Result<Batches> {
        let TrainSettings { seed, epochs, batch_size, .. } = *settings;
        Ok(Batches::new(seed, epochs, examples.len() / self.width(), batch_size))
    }

    /// Computes loss and gradients of one optimizer step: sums over its micro-batches, divided by the weights of the
    /// whole step, so that the split into micro-batches changes nothing but rounding.
    fn gradients(&self, step: &StepInputs<'_>, before: BeforeMicroStep<'_>) -> Result<StepOutcome>;

    /// Sums over the held-out sequences or pairs of texts at `places`.
    fn evaluate(
        &self,
        run: &RunInputs<'_>,
        places: Range<usize>,
        notes: &mut EvaluationNotes<'_>,
        before: BeforeMicroStep<'_>,
    ) -> Result<LossReport>;

    /// Returns the number of sequences that are trained on together.
    fn width(&self) -> usize {
        1
    }

    /// Returns true if the model that training began with computes log probabilities of each example once.
    fn asks_reference(&self) -> bool {
        false
    }

    /// Returns the work per token, relative to a token that is trained on once.
    fn work(&self, _settings: &TrainSettings, _training: &DatasetReport) -> WorkFactors {
        WorkFactors { first_epoch: 1.0, later: 1.0 }
    }

    /// Returns the memory of the loss, in bytes.
    fn loss_bytes(&self, shape: &LossShape) -> u64 {
        let LossShape { element, rows, hidden, chunk, vocabulary, .. } = *shape;
        element * (2 * chunk * vocabulary + 3 * rows * hidden)
    }

    /// Reads the sequences of the example at `index`, for a calibration.
    fn samples(&self, examples: &ExampleStore, index: usize) -> Result<Vec<TokenizedExample>> {
        Ok(vec![examples.get(index)?])
    }

    /// Measures how fast `samples` are trained on, and adds that to `sum`. Calls `before` before each batch.
    fn calibrate(
        &self,
        probe: Probe<'_>,
        samples: &[TokenizedExample],
        before: BeforeMicroStep<'_>,
        sum: &mut RateSum,
    ) -> Result<()> {
        for Packed { batch, .. } in pack(samples, 1, probe.rows) {
            before()?;
            let watch = Watch::start(probe.clocks);
            let (objective, manner) = (Objective::Targets, PassOptions::recomputing(probe.recomputation));
            backward::objective_and_gradients(probe.decoder, probe.adapter, &batch, objective, 1.0, manner)?;
            // The last token of an example is predicted, not read.
            sum.add((batch.tokens.len() + batch.sequences.len()) as f64, watch.stop());
        }
        Ok(())
    }

    /// Measures how well vectors or scores under `adapter` put the run's examples in order: one figure for each of
    /// [`Labels::quality`], NaN if it is not defined.
    fn quality_of(
        &self,
        _run: &RunInputs<'_>,
        _adapter: Option<&Adapter>,
        _before: BeforeMicroStep<'_>,
    ) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }

    /// Returns the names of the method's examples and metrics.
    fn labels(&self) -> Labels;
}

/// Returns the implementation of `method`: the one place that distinguishes the methods.
pub(crate) fn method(method: TrainingMethod) -> Box<dyn Method> {
    match method {
        TrainingMethod::Answers => Box::new(answers::Answers),
        TrainingMethod::Preferences { beta } => Box::new(preferences::AnswerPairs { beta }),
        TrainingMethod::TextPairs { scale } => Box::new(text_pairs::TextPairs { scale }),
        TrainingMethod::ScoredPairs => Box::new(scored_pairs::ScoredPairs),
        TrainingMethod::LabelledPairs => Box::new(labelled_pairs::LabelledPairs),
    }
}

impl TrainingMethod {
    /// Returns the number of sequences that are trained on together: one, or the two answers of a preference.
    pub fn width(self) -> usize {
        method(self).width()
    }

    /// Returns the work per token of the first epoch and of the others, relative to a token that is trained on once.
    pub fn work(self, settings: &TrainSettings, training: &DatasetReport) -> WorkFactors {
        method(self).work(settings, training)
    }

    /// Returns the names of the method's examples and metrics.
    pub fn labels(self) -> Labels {
        method(self).labels()
    }
}

/// Names of examples and metrics, for people and for result files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labels {
    /// Plural name of the examples.
    pub examples: &'static str,
    /// Name of the targets' accuracy among the metrics.
    pub accuracy: &'static str,
    /// Sentence about examples from which nothing can be learned.
    pub left_out: &'static str,
    /// Whether the adapter learns vectors or scores of texts, not answers, so that there are no targets to count and no
    /// questions to ask.
    pub of_texts: bool,
    /// Whether there are rewards.
    pub rewards: bool,
    /// Figures of how well vectors or scores put the validation file in order; empty for answers.
    pub quality: &'static [Figure],
}

/// Name of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// Name for programs, behind `valid_`.
    pub name: &'static str,
    /// Name for people.
    pub words: &'static str,
}

/// Reason why an answer is left out.
const PROMPT_FILLS_CONTEXT: &str = "were left out, since the prompt fills the model's context";
/// Reason why two texts are left out.
const SAME_TEXTS: &str = "were left out, since the two texts are the same as far as they fit the model's context";

/// Work per token, relative to a token that is trained on once; more than 1 if it is read more than once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkFactors {
    /// Work in the first epoch.
    pub first_epoch: f64,
    /// Work in every other epoch.
    pub later: f64,
}

/// Sizes that the memory of a loss depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LossShape {
    /// Bytes per activation.
    pub element: u64,
    /// Rows of the largest batch.
    pub rows: u64,
    /// Width of a hidden state.
    pub hidden: u64,
    /// Targets whose logits are in memory at one time.
    pub chunk: u64,
    /// Tokens of the vocabulary.
    pub vocabulary: u64,
    /// Texts of a step; 0 if the examples have none.
    pub texts: u64,
    /// Numbers of a text's vector, or of what was pooled for it, if these are more.
    pub vector: u64,
}

/// Model and options of a calibration.
#[derive(Clone, Copy)]
pub(crate) struct Probe<'a> {
    pub decoder: &'a Decoder,
    pub heads: Heads<'a>,
    pub adapter: &'a Adapter,
    /// Most rows in a batch.
    pub rows: usize,
    pub recomputation: Recomputation,
    pub clocks: &'a dyn Clocks,
}

/// Model, settings and data of a run, for computing losses.
pub(crate) struct RunInputs<'a> {
    pub source: &'a dyn LossSource,
    pub settings: &'a TrainSettings,
    pub examples: &'a ExampleStore,
    pub adapter: &'a Adapter,
    /// Model that training began with; `None` if it is the base model.
    pub beginning: Option<&'a Adapter>,
}

impl RunInputs<'_> {
    /// Reads the sequences at `places` in rounds of as many units, of `width` sequences each, as are packed at once.
    fn rounds(&self, places: Range<usize>, width: usize) -> impl Iterator<Item = Result<Vec<TokenizedExample>>> {
        let at_once = EVALUATION_EXAMPLES * width;
        let end = places.end;
        places.step_by(at_once).map(move |start| self.examples.range(start..(start + at_once).min(end)))
    }

    /// Computes the log probability of each sequence of `batch` under the model that training began with, in nats.
    fn ask_reference(&self, batch: &PackedBatch, before: BeforeMicroStep<'_>) -> Result<Vec<f64>> {
        self.source.log_likelihoods(self.beginning, batch, YieldPolicy::asking(before))
    }

    fn loss(&self, batch: &PackedBatch, objective: Objective<'_>, before: BeforeMicroStep<'_>) -> Result<LossReport> {
        self.source.loss(self.adapter, batch, objective, YieldPolicy::asking(before))
    }
}

/// Inputs of one optimizer step.
pub(crate) struct StepInputs<'a> {
    pub run: RunInputs<'a>,
    /// Indices of the step's examples.
    pub units: &'a [usize],
    /// Number of steps before this one.
    pub step: usize,
    /// Log probabilities under the reference so far, by index of the example.
    pub reference: &'a [ReferenceLogProbs],
    pub recomputation: Recomputation,
}

impl StepInputs<'_> {
    /// Reads the sequences of the step and packs them, keeping each `width` neighbours together.
    fn packs(&self, width: usize) -> Result<Vec<Packed>> {
        let sequences = self.units.iter().flat_map(|unit| unit * width..(unit + 1) * width);
        let examples = sequences.map(|sequence| self.run.examples.get(sequence)).collect::<Result<Vec<_>>>()?;
        Ok(pack(&examples, width, self.run.settings.batch_rows))
    }

    /// Returns the dropout of the micro-batch `batch`; `None` if the settings have none.
    fn dropout(&self, batch: usize) -> Option<Dropout> {
        let TrainSettings { dropout: probability, seed, .. } = *self.run.settings;
        (probability > 0.0).then_some(Dropout { probability, seed, step: self.step, batch })
    }

    /// Computes loss and gradients of the micro-batch with the number `index`.
    fn micro_step(
        &self,
        index: usize,
        batch: &PackedBatch,
        objective: Objective<'_>,
        normalizer: f64,
        before: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Gradients)> {
        let dropout = self.dropout(index);
        let pace = YieldPolicy::asking(before);
        let manner = PassOptions { dropout: dropout.as_ref(), recomputation: self.recomputation, pace };
        self.run.source.loss_and_gradients(self.run.adapter, batch, objective, normalizer, manner)
    }
}

/// What evaluations of the same places note.
pub(crate) struct EvaluationNotes<'a> {
    /// The reference's log probabilities, batch by batch: those of earlier evaluations; receives new ones.
    pub reference: &'a mut Vec<Vec<f64>>,
    /// Receives the most probable token at each target of the sequences, by their place in the file; `None` if nobody
    /// asks.
    pub predicted: Option<&'a mut [Vec<u32>]>,
}

/// Result of one optimizer step.
pub(crate) struct StepOutcome {
    pub report: LossReport,
    pub gradients: Gradients,
    /// Newly computed log probabilities under the reference, with the index of the example.
    pub asked: Vec<(usize, [f64; 2])>,
}

/// Losses and gradients of micro-batches, added up.
#[derive(Default)]
struct StepSum(Option<(LossReport, Gradients)>);

impl StepSum {
    fn add(&mut self, (report, gradients): (LossReport, Gradients)) -> Result<()> {
        match &mut self.0 {
            None => self.0 = Some((report, gradients)),
            Some((total, accumulated)) => {
                total.add(report);
                add_gradients(accumulated, &gradients)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(LossReport, Gradients)> {
        self.0.ok_or_else(|| Error::Internal("a step without targets".into()))
    }
}
