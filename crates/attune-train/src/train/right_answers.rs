//! Counts the held-out answers that the model gives exactly as they stand in the file. Called by
//! `jobs/worker/training.rs` before the first step and after evaluations of the whole file.
//!
//! No answer is generated. If the most probable token at each place of the expected answer is the expected one, greedy
//! decoding writes that answer, and one forward pass over prompt and answer shows it. Where the two part, the answer is
//! wrong unless its text may still become the same, written with other tokens or with blanks at its ends; only such
//! answers are read again, from the place where they part ([`Trainer::settle`]).
//!
//! An answer is all that the model must write in one turn: reasoning, text and calls of tools, up to the end token. It
//! is right if its text, without blanks at the ends, is the expected one, and it then ends. Each answer of a chat that
//! is trained on counts, after the file's own words before it.

use std::ops::Range;

use crate::Result;
use crate::datasets::{ExampleStore, TokenizedExample};
use crate::train::answer_sheet::{AnswerSheet, Expected, Verdict};
use crate::train::batch::LossReport;
use crate::train::evaluation::HeldOut;
use crate::train::packing::{Packed, pack};
use crate::train::records::{Beginning, Evaluation, RightAnswers};
use crate::train::trainer::Trainer;
use crate::train::yielding::{BeforeMicroStep, YieldPolicy};
use attune_model::BaseModel;
use attune_model::lora::Adapter;

/// Most times that an answer is read again because its text may still become the expected one. What is left then has
/// written as many unusual tokens, mostly blanks without an end, and counts as wrong.
const MAX_ROUNDS: usize = 8;
/// Examples that are packed at once.
const AT_ONCE: usize = 256;

/// Answer that is not judged yet.
struct Open {
    /// Index in the sheet.
    index: usize,
    prompt: Vec<u32>,
    expected: Expected,
    written: Vec<u32>,
    rest: String,
}

impl Open {
    /// Returns the tokens that would complete the answer in the usual way.
    fn guess(&self, model: &BaseModel) -> Result<Vec<u32>> {
        let mut tokens = model.tokenizer.encode(&self.rest, false)?;
        tokens.extend(model.end_tokens.first());
        Ok(tokens)
    }

    fn example(&self, guess: &[u32]) -> TokenizedExample {
        let tokens = [self.prompt.as_slice(), &self.written, guess].concat();
        let mut weights = vec![0.0; tokens.len() - guess.len()];
        weights.resize(tokens.len(), 1.0);
        TokenizedExample { tokens, weights }
    }
}

impl Trainer {
    /// Counts the right answers of the model that training begins with, and measures it on the same sequences. Does
    /// nothing if an earlier attempt has, or if no answers are counted.
    pub fn count_before(
        &mut self,
        held_out: &HeldOut,
        model: &BaseModel,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<()> {
        let Some(sheet) = held_out.answers.as_ref().filter(|_| self.before.is_none()) else { return Ok(()) };
        let adapter = self.beginning.as_ref();
        let (report, predicted) = self.predict(&held_out.examples, sheet.sequences, adapter, before_micro_step)?;
        let right = self.settle(held_out, sheet, &predicted, adapter, model, before_micro_step)?;
        let evaluation = Evaluation::of(&report);
        self.before = evaluation.map(|evaluation| Beginning { answers: sheet.sum(&right), evaluation });
        Ok(())
    }

    /// Counts the right answers of the current adapter, right after all examples were measured, and records them with
    /// the last step; `None` if no answers are counted.
    pub fn count_right(
        &mut self,
        held_out: &HeldOut,
        model: &BaseModel,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<RightAnswers>> {
        let Some(sheet) = &held_out.answers else { return Ok(None) };
        let adapter = self.state.adapter(self.source.device())?;
        let right = self.settle(held_out, sheet, &held_out.predicted, Some(&adapter), model, before_micro_step)?;
        let answers = sheet.sum(&right);
        if let Some(record) = self.history.last_mut() {
            record.right_answers = Some(answers.clone());
        }
        Ok(Some(answers))
    }

    /// Counts the right answers of `adapter`; `None` if no answers are counted.
    pub fn count_right_of(
        &self,
        adapter: &Adapter,
        held_out: &HeldOut,
        model: &BaseModel,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Option<RightAnswers>> {
        let Some(sheet) = &held_out.answers else { return Ok(None) };
        let adapter = adapter.to_device(self.source.device())?;
        let (_, predicted) = self.predict(&held_out.examples, sheet.sequences, Some(&adapter), before_micro_step)?;
        let right = self.settle(held_out, sheet, &predicted, Some(&adapter), model, before_micro_step)?;
        Ok(Some(sheet.sum(&right)))
    }

    /// Returns the figures of the model that training began with; `None` if they were not measured.
    pub fn before(&self) -> Option<&Beginning> {
        self.before.as_ref()
    }

    /// Returns the most probable tokens at the targets of the first `sequences` examples, and the sums over these.
    fn predict(
        &self,
        examples: &ExampleStore,
        sequences: usize,
        adapter: Option<&Adapter>,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Vec<Vec<u32>>)> {
        let (mut total, mut predicted) = (LossReport::default(), Vec::new());
        for start in (0..sequences).step_by(AT_ONCE) {
            let part = examples.range(start..(start + AT_ONCE).min(sequences))?;
            let (report, tokens) = self.predict_all(&part, adapter, before_micro_step)?;
            total.add(report);
            predicted.extend(tokens);
        }
        Ok((total, predicted))
    }

    fn predict_all(
        &self,
        examples: &[TokenizedExample],
        adapter: Option<&Adapter>,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<(LossReport, Vec<Vec<u32>>)> {
        let (mut total, mut predicted) = (LossReport::default(), vec![Vec::new(); examples.len()]);
        for Packed { batch, units } in pack(examples, 1, self.settings.batch_rows) {
            before_micro_step()?;
            let (report, best) = self.source.predictions(adapter, &batch, YieldPolicy::asking(before_micro_step))?;
            total.add(report);
            for (unit, tokens) in units.into_iter().zip(batch.by_sequence(&best)) {
                predicted[unit] = tokens;
            }
        }
        Ok((total, predicted))
    }

    /// Decides for each answer of the sheet whether the model gives it, from the most probable tokens at the targets of
    /// its sequences.
    fn settle(
        &self,
        held_out: &HeldOut,
        sheet: &AnswerSheet,
        predicted: &[Vec<u32>],
        adapter: Option<&Adapter>,
        model: &BaseModel,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Vec<bool>> {
        let mut right = vec![false; sheet.answers.len()];
        let mut open = Vec::new();
        for (index, answer) in sheet.answers.iter().enumerate() {
            let example = held_out.examples.get(answer.sequence)?;
            let Range { start, end } = answer.tokens;
            let earlier = example.weights[1..start].iter().filter(|weight| **weight > 0.0).count();
            let drawn = predicted.get(answer.sequence).and_then(|tokens| tokens.get(earlier..earlier + end - start));
            let (target, drawn) = (&example.tokens[start..end], drawn.unwrap_or_default());
            let expected = Expected::of(target, model)?;
            match expected.judge(Vec::new(), target, drawn, model)? {
                Verdict::Right => right[index] = true,
                Verdict::Wrong => {}
                Verdict::Open { written, rest } => {
                    open.push(Open { index, prompt: example.tokens[..start].to_vec(), expected, written, rest });
                }
            }
        }
        for _ in 0..MAX_ROUNDS {
            if open.is_empty() {
                break;
            }
            open = self.read_again(open, &mut right, adapter, model, before_micro_step)?;
        }
        Ok(right)
    }

    /// Reads answers again from the place where their tokens are not the expected ones. Returns those that are still
    /// not judged.
    fn read_again(
        &self,
        open: Vec<Open>,
        right: &mut [bool],
        adapter: Option<&Adapter>,
        model: &BaseModel,
        before_micro_step: BeforeMicroStep<'_>,
    ) -> Result<Vec<Open>> {
        let guesses = open.iter().map(|answer| answer.guess(model)).collect::<Result<Vec<_>>>()?;
        let examples: Vec<_> = open.iter().zip(&guesses).map(|(answer, guess)| answer.example(guess)).collect();
        let (_, predicted) = self.predict_all(&examples, adapter, before_micro_step)?;
        let mut left = Vec::new();
        for ((mut answer, guess), drawn) in open.into_iter().zip(guesses).zip(predicted) {
            match answer.expected.judge(std::mem::take(&mut answer.written), &guess, &drawn, model)? {
                Verdict::Right => right[answer.index] = true,
                Verdict::Wrong => {}
                Verdict::Open { written, rest } => left.push(Open { written, rest, ..answer }),
            }
        }
        Ok(left)
    }
}
