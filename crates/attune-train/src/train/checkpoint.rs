//! Writes and reads the state of a run as one safetensors blob: A and B, both moments, A and B of the lowest validation
//! loss if they are kept, the reference's log probabilities of pairs of answers, and the record of every step. The
//! run's position needs nothing more: data order, warmup and dropout are functions of the settings and the number of
//! steps. Called by the trainer.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest as _, Sha256};

use crate::train::methods::ReferenceLogProbs;
use crate::train::mining::HardNegatives;
use crate::train::optimizer::{AdamW, Moments};
use crate::train::records::{Beginning, Evaluation, Rewards, RightAnswers, StepRecord, Validation};
use crate::train::settings::TrainSettings;
use crate::{Error, Result};

/// Key of the blob's only metadata entry.
const FINGERPRINT: &str = "attune_run";
/// Numbers of a [`StepRecord`] in the tensor `history`; classification metrics have a tensor of their own.
const RECORD: usize = 17;
/// Tensor with A and B of the lowest validation loss.
const BEST: &str = "best";
/// Tensor with the reference's log probabilities of pairs of answers.
const REFERENCE: &str = "reference";
/// Tensor with the classification metrics.
const CLASSES: &str = "classification";
/// Tensor with the counts of right answers; older blobs have none.
const ANSWERS: &str = "answers";
/// Tensor with the metrics of the model that training begins with; older blobs have none.
const BEFORE: &str = "before";
/// Tensor with the figures of how well vectors or scores put the validation file in order; only blobs of such runs have
/// one.
const QUALITY: &str = "quality";
/// Tensor with the hard negatives that were found for each pair of texts; only blobs of such runs have one.
const NEGATIVES: &str = "hard_negatives";
/// Version of the blob's format; it enters the fingerprint, so a blob of another version is refused like one of another
/// run.
const FORM: &[u8] = b"attune checkpoint 3";

/// Contents of a checkpoint.
pub(super) struct SavedState {
    pub values: Vec<Vec<f32>>,
    pub moments: Vec<Moments>,
    pub history: Vec<StepRecord>,
    pub best: Option<Vec<Vec<f32>>>,
    pub reference: Vec<ReferenceLogProbs>,
    pub before: Option<Beginning>,
    pub quality_before: Vec<f64>,
}

/// Records of a run.
pub(super) struct RunRecords<'a> {
    pub history: &'a [StepRecord],
    pub before: Option<&'a Beginning>,
    pub quality_before: &'a [f64],
    pub hard_negatives: Option<&'a HardNegatives>,
    pub reference: &'a [ReferenceLogProbs],
}

/// Hashes everything that determines a run: settings, examples (by their hash), and the adapter it begins from.
pub(super) fn fingerprint(settings: &TrainSettings, examples: &[u8], beginning: Option<&str>) -> Result<String> {
    let settings = serde_json::to_vec(settings).map_err(|error| Error::Internal(format!("settings: {error}")))?;
    let mut hash = Sha256::new();
    // Lengths before contents, so that no two inputs give the same bytes.
    for part in [FORM, settings.as_slice(), beginning.unwrap_or_default().as_bytes(), examples] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(format!("{:x}", hash.finalize()))
}

pub(super) fn write(
    fingerprint: &str,
    values: &[Vec<f32>],
    optimizer: &AdamW,
    best: Option<&[Vec<f32>]>,
    run: &RunRecords<'_>,
) -> Result<Vec<u8>> {
    let RunRecords { history, before, quality_before, hard_negatives, reference } = *run;
    let mut tensors = Vec::with_capacity(4 * values.len() + 2);
    let mut add = |kind: &str, index: usize, numbers: &[f32]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        tensors.push((name(kind, index), Dtype::F32, numbers.len(), bytes));
    };
    for (index, (values, moments)) in values.iter().zip(&optimizer.moments).enumerate() {
        add("value", index, values);
        add("first", index, &moments.first);
        add("second", index, &moments.second);
    }
    for (index, values) in best.unwrap_or_default().iter().enumerate() {
        add(BEST, index, values);
    }
    let records: Vec<u8> = history.iter().flat_map(numbers).flat_map(f64::to_le_bytes).collect();
    tensors.push(("history".to_string(), Dtype::F64, history.len() * RECORD, records));
    let mut add = |name: &str, numbers: &[f64]| {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        tensors.push((name.to_string(), Dtype::F64, numbers.len(), bytes));
    };
    let classes = history.iter().enumerate().map(|(index, record)| numbered(index, &record.classification));
    add(CLASSES, &classes.collect::<Vec<_>>().concat());
    // The first is the model that training begins with.
    let quality = std::iter::once(quality_before).chain(history.iter().map(|record| record.quality.as_slice()));
    let quality = quality.enumerate().map(|(index, figures)| numbered(index, figures)).collect::<Vec<_>>().concat();
    if !quality.is_empty() {
        add(QUALITY, &quality);
    }
    // NaN stands for "not computed yet".
    let known = reference.iter().flat_map(|known| known.unwrap_or([f64::NAN; 2]));
    add(REFERENCE, &known.collect::<Vec<f64>>());
    if let Some(negatives) = hard_negatives {
        let of_pair = |negatives: &Vec<u32>| {
            std::iter::once(negatives.len() as f64).chain(negatives.iter().map(|pair| f64::from(*pair))).collect()
        };
        add(NEGATIVES, &negatives.numbers().iter().map(of_pair).collect::<Vec<Vec<f64>>>().concat());
    }
    add(ANSWERS, &answer_numbers(history, before));
    if let Some(before) = before {
        add(BEFORE, &evaluation_numbers(Some(before.evaluation)));
    }
    let mut views = Vec::with_capacity(tensors.len());
    for (name, dtype, length, bytes) in &tensors {
        views.push((name, TensorView::new(*dtype, vec![*length], bytes).map_err(unwritable)?));
    }
    let metadata = [(FINGERPRINT.to_string(), fingerprint.to_string())].into();
    safetensors::serialize(views, Some(metadata)).map_err(unwritable)
}

/// Reads a checkpoint of the run `expected`, with parameters of the sizes of `shapes` and log probabilities of at most
/// `pairs` pairs of answers.
pub(super) fn read(bytes: &[u8], expected: &str, shapes: &[Vec<f32>], pairs: usize) -> Result<SavedState> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let found = header.metadata().as_ref().and_then(|metadata| metadata.get(FINGERPRINT));
    if found.is_none_or(|found| found != expected) {
        return Err(unreadable("it belongs to a run with other settings or examples"));
    }
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let floats = |kind: &str, index: usize, length: usize| -> Result<Vec<f32>> {
        let view = file.tensor(&name(kind, index)).map_err(unreadable)?;
        if view.dtype() != Dtype::F32 || view.shape() != [length] {
            return Err(unreadable(format_args!("{} has another shape", name(kind, index))));
        }
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let (mut values, mut moments) = (Vec::new(), Vec::new());
    for (index, shape) in shapes.iter().enumerate() {
        values.push(floats("value", index, shape.len())?);
        let (first, second) = (floats("first", index, shape.len())?, floats("second", index, shape.len())?);
        moments.push(Moments { first, second });
    }
    let has_best = file.tensor(&name(BEST, 0)).is_ok();
    let best = || shapes.iter().enumerate().map(|(index, shape)| floats(BEST, index, shape.len())).collect();
    let best = has_best.then(best).transpose()?;
    let doubles = |name: &str| -> Result<Vec<f64>> {
        let view = file.tensor(name).map_err(unreadable)?;
        if view.dtype() != Dtype::F64 {
            return Err(unreadable(format_args!("its {name} has another type")));
        }
        Ok(view.data().chunks_exact(8).filter_map(|bytes| Some(f64::from_le_bytes(bytes.try_into().ok()?))).collect())
    };
    let mut history: Vec<StepRecord> = doubles("history")?.chunks_exact(RECORD).map(record).collect();
    for (index, figures) in read_numbered(&doubles(CLASSES)?)? {
        history.get_mut(index).ok_or_else(damaged)?.classification = figures;
    }
    let known = |pair: &[f64]| (!pair[0].is_nan() && !pair[1].is_nan()).then(|| [pair[0], pair[1]]);
    let reference: Vec<ReferenceLogProbs> = doubles(REFERENCE)?.chunks_exact(2).map(known).collect();
    if reference.len() != pairs {
        return Err(unreadable("it is about other pairs of answers"));
    }
    let has = |name: &str| file.tensor(name).is_ok();
    let counts = if has(ANSWERS) { doubles(ANSWERS)? } else { Vec::new() };
    let answers = read_answers(&counts, &mut history)?;
    let mut quality_before = Vec::new();
    for (index, figures) in read_numbered(&if has(QUALITY) { doubles(QUALITY)? } else { Vec::new() })? {
        match index.checked_sub(1) {
            None => quality_before = figures,
            Some(step) => history.get_mut(step).ok_or_else(damaged)?.quality = figures,
        }
    }
    let metrics = if has(BEFORE) { doubles(BEFORE)? } else { Vec::new() };
    let metrics = if metrics.len() == 5 { evaluation(&metrics) } else { None };
    let before = answers.zip(metrics).map(|(answers, evaluation)| Beginning { answers, evaluation });
    Ok(SavedState { values, moments, history, best, reference, before, quality_before })
}

/// Reads the hard negatives that an earlier attempt has found; `None` if the blob has none. The examples of the run
/// depend on them, so that the blob cannot be read as a whole before.
pub fn hard_negatives(bytes: &[u8]) -> Result<Option<HardNegatives>> {
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let Ok(view) = file.tensor(NEGATIVES) else { return Ok(None) };
    if view.dtype() != Dtype::F64 {
        return Err(damaged());
    }
    let number = |bytes: &[u8]| bytes.try_into().ok().map(f64::from_le_bytes).map(|number| number as u32);
    let numbers: Vec<u32> = view.data().chunks_exact(8).filter_map(number).collect();
    let (mut negatives, mut rest) = (Vec::new(), numbers.as_slice());
    while let [count, others @ ..] = rest {
        let (found, others) = others.split_at_checked(*count as usize).ok_or_else(damaged)?;
        negatives.push(found.to_vec());
        rest = others;
    }
    let pairs = negatives.len();
    HardNegatives::of(negatives, pairs).map(Some)
}

fn name(kind: &str, index: usize) -> String {
    format!("{kind}.{index:05}")
}

/// Converts a record to numbers. Counts stay exact up to 2⁵³; NaN stands for "not measured".
fn numbers(record: &StepRecord) -> Vec<f64> {
    let StepRecord { elapsed_tokens, elapsed_examples, loss, token_accuracy, sequence_accuracy, rewards, .. } = *record;
    let mut numbers = vec![elapsed_tokens as f64, elapsed_examples as f64, loss, token_accuracy, sequence_accuracy];
    numbers.extend(reward_numbers(rewards));
    numbers.extend(evaluation_numbers(record.validation.map(|validation| validation.sample)));
    numbers.extend(evaluation_numbers(record.validation.and_then(|validation| validation.full)));
    numbers
}

fn record(numbers: &[f64]) -> StepRecord {
    StepRecord {
        elapsed_tokens: numbers[0] as u64,
        elapsed_examples: numbers[1] as u64,
        loss: numbers[2],
        token_accuracy: numbers[3],
        sequence_accuracy: numbers[4],
        rewards: rewards(&numbers[5..7]),
        validation: evaluation(&numbers[7..12]).map(|sample| Validation { sample, full: evaluation(&numbers[12..17]) }),
        classification: Vec::new(),
        right_answers: None,
        quality: Vec::new(),
    }
}

fn evaluation_numbers(evaluation: Option<Evaluation>) -> [f64; 5] {
    let Some(Evaluation { loss, token_accuracy, sequence_accuracy, rewards }) = evaluation else {
        return [f64::NAN; 5];
    };
    let [margin, accuracy] = reward_numbers(rewards);
    [loss, token_accuracy, sequence_accuracy, margin, accuracy]
}

/// Reads an evaluation; `None` if the accuracy is NaN, which stands for "not measured" (a loss may be NaN).
fn evaluation(numbers: &[f64]) -> Option<Evaluation> {
    let (loss, token_accuracy, sequence_accuracy) = (numbers[0], numbers[1], numbers[2]);
    let rewards = rewards(&numbers[3..5]);
    (!token_accuracy.is_nan()).then_some(Evaluation { loss, token_accuracy, sequence_accuracy, rewards })
}

fn reward_numbers(rewards: Option<Rewards>) -> [f64; 2] {
    rewards.map_or([f64::NAN; 2], |Rewards { margin, accuracy }| [margin, accuracy])
}

fn rewards(numbers: &[f64]) -> Option<Rewards> {
    let (margin, accuracy) = (numbers[0], numbers[1]);
    (!accuracy.is_nan()).then_some(Rewards { margin, accuracy })
}

/// Returns an index, the number of the figures, and the figures; nothing if there are none.
fn numbered(index: usize, figures: &[f64]) -> Vec<f64> {
    if figures.is_empty() {
        return Vec::new();
    }
    [index as f64, figures.len() as f64].into_iter().chain(figures.iter().copied()).collect()
}

/// Reads lists of figures with their indices, as [`numbered`] makes them.
fn read_numbered(numbers: &[f64]) -> Result<Vec<(usize, Vec<f64>)>> {
    let (mut lists, mut rest) = (Vec::new(), numbers);
    while let [index, width, figures @ ..] = rest {
        let (figures, others) = figures.split_at_checked(*width as usize).ok_or_else(damaged)?;
        lists.push((*index as usize, figures.to_vec()));
        rest = others;
    }
    Ok(lists)
}

fn damaged() -> Error {
    unreadable("its figures are damaged")
}

/// Returns for each count of right answers the number of its step (0 for the model that training begins with), the
/// number of its classes, the right answers, all answers, and the right answers of each class.
fn answer_numbers(history: &[StepRecord], before: Option<&Beginning>) -> Vec<f64> {
    let before = before.map(|before| (0, &before.answers));
    let steps = history.iter().zip(1..).filter_map(|(record, step)| Some((step, record.right_answers.as_ref()?)));
    let numbers = |(step, answers): (usize, &RightAnswers)| {
        let by_class = answers.by_class.iter().copied();
        [step, answers.by_class.len(), answers.right, answers.of].into_iter().chain(by_class).collect::<Vec<_>>()
    };
    before.into_iter().chain(steps).flat_map(numbers).map(|number| number as f64).collect()
}

/// Puts counts of right answers into the records of their steps. Returns those of the model that training begins with.
fn read_answers(numbers: &[f64], history: &mut [StepRecord]) -> Result<Option<RightAnswers>> {
    let mut before = None;
    let mut rest = numbers;
    while let [step, classes, right, of, counts @ ..] = rest {
        let damaged = || unreadable("its counts of right answers are damaged");
        let (by_class, others) = counts.split_at_checked(*classes as usize).ok_or_else(damaged)?;
        let by_class = by_class.iter().map(|count| *count as usize).collect();
        let answers = Some(RightAnswers { right: *right as usize, of: *of as usize, by_class });
        match (*step as usize).checked_sub(1) {
            None => before = answers,
            Some(index) => history.get_mut(index).ok_or_else(damaged)?.right_answers = answers,
        }
        rest = others;
    }
    Ok(before)
}

fn unreadable(why: impl std::fmt::Display) -> Error {
    Error::Checkpoint(format!("the checkpoint cannot be used: {why}"))
}

fn unwritable(why: impl std::fmt::Display) -> Error {
    Error::Internal(format!("write a checkpoint: {why}"))
}
