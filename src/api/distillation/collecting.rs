//! Collects the answers of one job: asks for those that are not there yet, a few at a time, and lets the graders judge
//! them.
//!
//! What a request may cost is taken from the purse and written down before it is sent. A request that was not taken,
//! since the teacher is busy, costs nothing and is sent again; one of which nobody knows what became of it counts as
//! paid for.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use rand::Rng as _;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::filters::{GRADER_FAILED, LOW_SCORE, UNANSWERED, flaw};
use super::purse::Purse;
use super::sources::{Prompt, Source};
use super::teacher::{Outcome, Prices, Reply, Who, grading_at_most};
use crate::api::ApiState;
use crate::api::graders::judge::Judge;
use crate::api::graders::outcome::Failure;
use crate::format::count;
use crate::graders::spec::Grader;
use crate::graders::template::Sample;
use crate::jobs::collections::{Distillation, PASSED, Place, TeacherAnswer};
use crate::jobs::{self, Job, JobFault};
use crate::teachers::Asked;
use crate::teachers::money::Money;

/// Questions of a job that are under way at a time.
const QUESTIONS: usize = 8;
/// Times that a question is sent to a teacher that fails, and times that it may be lost; then it stays unanswered.
const MAX_FAILURES: u32 = 12;
const MAX_LOST: u32 = 3;
/// Pauses before a question is sent again: they double.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Time without any answer after which a job fails; it can be resumed.
const PATIENCE: Duration = Duration::from_mins(10);
/// Time between two events that tell how far a job is.
const TOLD: Duration = Duration::from_secs(5);

/// Why a job is left before its answers are there.
#[derive(Debug)]
pub(super) enum Halt {
    /// Another process has it.
    Lost,
    /// The teacher cannot be asked; the job may be resumed.
    Broken(JobFault),
    /// The store failed.
    Store(jobs::Error),
}

impl From<jobs::Error> for Halt {
    fn from(error: jobs::Error) -> Self {
        Self::Store(error)
    }
}

/// What is needed to collect.
pub(super) struct Collection {
    pub state: ApiState,
    pub job: Job,
    pub plan: Distillation,
    /// `None` if the answers are given.
    pub who: Option<Who>,
    pub graders: Vec<Grader>,
    pub judge: Judge,
    pub prices: Prices,
    pub source: Source,
    pub purse: Purse,
    /// Cancelled when no further question is to be sent.
    pub stop: CancellationToken,
    answers: Mutex<HashMap<Place, TeacherAnswer>>,
    /// When the teacher last gave an answer, and when it was last told how far the job is.
    heard: Mutex<Instant>,
    told: Mutex<Instant>,
}

impl Collection {
    #[expect(clippy::too_many_arguments, reason = "the parts of a job, each made elsewhere")]
    pub(super) fn new(
        state: ApiState,
        job: Job,
        plan: Distillation,
        who: Option<Who>,
        (graders, judge): (Vec<Grader>, Judge),
        prices: Prices,
        source: Source,
        known: Vec<TeacherAnswer>,
        stop: CancellationToken,
    ) -> Self {
        let is_elsewhere = who.as_ref().is_some_and(Who::is_elsewhere);
        let mut answers = HashMap::new();
        for mut answer in known {
            // A model of this server was not paid for what it did not finish.
            if answer.answer.is_none() && answer.verdict.is_none() && !is_elsewhere {
                answer.cost = 0;
            }
            answers.insert(answer.place(), answer);
        }
        let spent: Money = answers.values().map(|answer| Money::of_millionths(answer.cost)).sum();
        let budget = plan.max_teacher_cost.unwrap_or(Money::of_millionths(i64::MAX));
        let (answers, heard, told) = (Mutex::new(answers), Mutex::new(Instant::now()), Mutex::new(Instant::now()));
        let purse = Purse::new(budget - spent);
        Self { state, job, plan, who, graders, judge, prices, source, purse, stop, answers, heard, told }
    }

    /// Collects until everything is asked and judged, the budget is used, or it is to stop.
    pub(super) async fn run(&self) -> Result<(), Halt> {
        let mut questions: Vec<(usize, i32)> = Vec::with_capacity(self.total());
        for (index, prompt) in self.source.prompts.iter().enumerate() {
            let samples = if self.who.is_some() { self.plan.samples as usize } else { prompt.given.len() };
            questions.extend((0..samples as i32).map(|sample| (index, sample)));
        }
        let work = |(index, sample): (usize, i32)| self.answer(index, sample);
        let mut done = futures::stream::iter(questions).map(work).buffer_unordered(QUESTIONS);
        while let Some(ended) = done.next().await {
            ended?;
            self.tell().await?;
        }
        Ok(())
    }

    /// Returns what is there now.
    pub(super) fn answers(&self) -> HashMap<Place, TeacherAnswer> {
        self.answers.lock().clone()
    }

    /// Says how far the job is, in words and numbers.
    pub(super) fn progress(&self) -> (String, Value) {
        let answers = self.answers.lock();
        let decided = answers.values().filter(|answer| answer.verdict.is_some()).count();
        let kept = answers.values().filter(|answer| answer.verdict.as_deref() == Some(PASSED)).count();
        let cost: Money = answers.values().map(|answer| Money::of_millionths(answer.cost)).sum();
        let all = self.total();
        let currency = &self.state.config.currency;
        let shown = |number: usize| count(number as f64);
        let words = format!("Collected {} of {}, kept {}, {cost} {currency}", shown(decided), shown(all), shown(kept));
        (words, json!({"collected": decided, "of": all, "kept": kept, "cost": cost.units(), "currency": currency}))
    }

    /// Returns the answers that there are to be.
    pub(super) fn total(&self) -> usize {
        match self.who {
            Some(_) => self.source.prompts.len() * self.plan.samples as usize,
            None => self.source.prompts.iter().map(|prompt| prompt.given.len()).sum(),
        }
    }

    async fn tell(&self) -> Result<(), Halt> {
        let is_due = {
            let mut told = self.told.lock();
            let is_due = told.elapsed() >= TOLD;
            if is_due {
                *told = Instant::now();
            }
            is_due
        };
        if is_due {
            let (words, data) = self.progress();
            self.state.queue.add_event(&self.job, "info", "message", &words, Some(data)).await?;
        }
        Ok(())
    }

    /// Takes one answer as far as it gets.
    async fn answer(&self, index: usize, sample: i32) -> Result<(), Halt> {
        let Some(prompt) = self.source.prompts.get(index) else { return Ok(()) };
        let place = (prompt.digest.clone(), sample);
        let known = self.answers.lock().get(&place).cloned();
        let mut answer =
            known.unwrap_or_else(|| TeacherAnswer { prompt: place.0.clone(), sample, ..TeacherAnswer::default() });
        if answer.answer.is_none() && answer.verdict.is_none() {
            let is_there = match &self.who {
                None => self.take(prompt, &mut answer).await.map(|()| true)?,
                Some(who) => self.ask(who, prompt, &mut answer).await?,
            };
            // Also one that was only paid for.
            self.answers.lock().insert(place.clone(), answer.clone());
            if !is_there {
                return Ok(());
            }
        }
        if answer.verdict.is_none() && self.grade(prompt, &mut answer).await? {
            self.answers.lock().insert(place, answer);
        }
        Ok(())
    }

    /// Takes an answer that is given.
    async fn take(&self, prompt: &Prompt, answer: &mut TeacherAnswer) -> Result<(), Halt> {
        let given = usize::try_from(answer.sample).ok().and_then(|sample| prompt.given.get(sample));
        let (text, finish_reason) = given.cloned().unwrap_or_default();
        self.receive(answer, Reply { text, finish_reason, refuses: false, tokens: None }).await
    }

    /// Asks for an answer; false if it was not asked for, or if it is to stop.
    async fn ask(&self, who: &Who, prompt: &Prompt, answer: &mut TeacherAnswer) -> Result<bool, Halt> {
        let (queue, place) = (&self.state.queue, answer.place());
        let most = who.max_tokens(self.plan.max_tokens);
        let price = self.plan.teacher.as_deref().map(|teacher| self.prices.get(teacher)).unwrap_or_default();
        let worst = price.of(who.prompt_tokens_at_most(&prompt.messages), most.into());
        let (mut spent, mut lost) = (Money::of_millionths(answer.cost), 0);
        loop {
            // Before it is charged: nothing is sent meanwhile.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(false),
                () = who.turn() => {}
            }
            if !self.purse.take(worst).await {
                return Ok(false);
            }
            if !queue.charge_answer(&self.job, &place, spent + worst).await? {
                return Err(Halt::Lost);
            }
            let asked = self.ask_until_taken(who, prompt, answer.sample, most).await;
            let cost = match &asked {
                Some(Outcome::Reply(reply)) => reply.tokens.map_or(worst, |(prompt, answer)| price.of(prompt, answer)),
                Some(Outcome::Not(Asked::Lost(_))) => worst,
                _ => Money::NONE,
            };
            self.purse.settle(worst, cost);
            if cost > worst {
                tracing::warn!(job = self.job.id, %cost, %worst, "a teacher counts more tokens than expected");
            }
            let is_late = self.heard.lock().elapsed() > PATIENCE;
            spent = spent + cost;
            answer.cost = spent.millionths();
            let why = match asked {
                Some(Outcome::Reply(reply)) => {
                    *self.heard.lock() = Instant::now();
                    if let Some((prompt, tokens)) = reply.tokens {
                        answer.prompt_tokens = i64::try_from(prompt).unwrap_or(i64::MAX);
                        answer.completion_tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
                    }
                    self.receive(answer, reply).await?;
                    return Ok(true);
                }
                Some(Outcome::Not(Asked::Lost(why))) => {
                    lost += 1;
                    if lost < MAX_LOST {
                        continue;
                    }
                    why
                }
                Some(Outcome::Not(Asked::Denied(message))) => {
                    self.note_cost(&place, spent).await?;
                    let code = "teacher_unavailable".into();
                    return Err(Halt::Broken(JobFault { code, message, param: None }));
                }
                Some(Outcome::Not(Asked::Busy(_, why))) if is_late => {
                    self.note_cost(&place, spent).await?;
                    let message = format!("There was no answer for {} minutes. {why}", PATIENCE.as_secs() / 60);
                    return Err(Halt::Broken(JobFault { code: "teacher_unavailable".into(), message, param: None }));
                }
                // Cut short by the end of the server, or by a stop.
                None => {
                    self.note_cost(&place, spent).await?;
                    return Ok(false);
                }
                Some(Outcome::Not(Asked::Refused(_))) if self.state.shutdown.is_cancelled() => {
                    self.note_cost(&place, spent).await?;
                    return Ok(false);
                }
                Some(Outcome::Not(Asked::Refused(why) | Asked::Busy(_, why))) => why,
                Some(Outcome::Not(Asked::Answered(_))) => String::new(),
            };
            tracing::debug!(job = self.job.id, "a question stays unanswered: {why}");
            answer.verdict = Some(UNANSWERED.into());
            answer.finish_reason = Some(why);
            return if queue.keep_answer(&self.job, answer).await? { Ok(true) } else { Err(Halt::Lost) };
        }
    }

    /// Sends a question until the teacher takes it; `None` if it is to stop meanwhile.
    async fn ask_until_taken(&self, who: &Who, prompt: &Prompt, sample: i32, most: u32) -> Option<Outcome> {
        let mut fields = Map::new();
        fields.insert("messages".into(), prompt.messages.clone().into());
        fields.insert("max_completion_tokens".into(), most.into());
        if let Some(temperature) = self.plan.temperature {
            fields.insert("temperature".into(), temperature.into());
        }
        let id = format!("{}-{}-{sample}", self.job.id, prompt.digest);
        let seed = Sha256::digest(format!("{} {id}", self.job.spec.seed));
        let seed = u64::from_le_bytes(seed[..8].try_into().unwrap_or_default());
        let (mut failures, mut pause) = (0, FIRST_PAUSE);
        loop {
            let outcome = who.ask(fields.clone(), seed, &id).await;
            let Outcome::Not(Asked::Busy(wait, _)) = &outcome else { return Some(outcome) };
            // A teacher that says when to come back is not failing.
            failures += u32::from(wait.is_none());
            if failures == MAX_FAILURES || self.heard.lock().elapsed() > PATIENCE {
                return Some(outcome);
            }
            let wait = wait.unwrap_or_else(|| pause.mul_f64(rand::rng().random_range(0.5..=1.0)));
            pause = (pause * 2).min(LONGEST_PAUSE);
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(wait) => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = who.turn() => {}
            }
        }
    }

    /// Keeps an answer, with the verdict on it as far as that needs no grader.
    async fn receive(&self, answer: &mut TeacherAnswer, reply: Reply) -> Result<(), Halt> {
        // Texts in the database cannot hold it.
        let text = reply.text.replace('\0', "");
        let flaw = flaw(&text, &reply.finish_reason, reply.refuses);
        answer.verdict = flaw.or_else(|| self.graders.is_empty().then_some(PASSED)).map(str::to_owned);
        answer.answer = Some(text);
        answer.finish_reason = Some(reply.finish_reason.replace('\0', ""));
        if self.state.queue.keep_answer(&self.job, answer).await? { Ok(()) } else { Err(Halt::Lost) }
    }

    /// Lets the graders judge; false if there is no money for them, or if it is to stop.
    async fn grade(&self, prompt: &Prompt, answer: &mut TeacherAnswer) -> Result<bool, Halt> {
        let (queue, place) = (&self.state.queue, answer.place());
        let sample = Sample { text: answer.answer.clone(), ..Sample::default() };
        let worst = grading_at_most(&self.state, &self.graders, &prompt.item, &sample, &self.prices);
        let costs = worst > Money::NONE;
        if self.stop.is_cancelled() || (costs && !self.purse.take(worst).await) {
            return Ok(false);
        }
        let spent = Money::of_millionths(answer.cost);
        if costs && !queue.charge_answer(&self.job, &place, spent + worst).await? {
            return Err(Halt::Lost);
        }
        let (mut score, mut passes, mut failed, mut lost, mut cost) = (0.0, true, false, false, Money::NONE);
        for grader in &self.graders {
            let judged = self.judge.judge(grader, &prompt.item, &sample).await;
            for call in &judged.calls {
                cost = cost + self.prices.get(&call.model).of(call.tokens.prompt, call.tokens.completion);
            }
            failed |= !judged.failures.is_empty();
            lost |= judged.failures.iter().any(|failure| matches!(failure, Failure::ModelUnavailable(_)));
            passes &= judged.score >= self.plan.min_score;
            score += judged.score;
        }
        // Nobody knows what a model that could not be asked was paid.
        let cost = if lost { worst.max(cost) } else { cost };
        if costs {
            self.purse.settle(worst, cost);
        }
        answer.cost = (spent + cost).millionths();
        if lost && self.state.shutdown.is_cancelled() {
            self.note_cost(&place, spent + cost).await?;
            return Ok(false);
        }
        let verdict = if failed {
            GRADER_FAILED
        } else if passes {
            PASSED
        } else {
            LOW_SCORE
        };
        (answer.verdict, answer.score) = (Some(verdict.into()), Some(score));
        if queue.judge_answer(&self.job, answer).await? { Ok(true) } else { Err(Halt::Lost) }
    }

    /// Writes down what the requests for an answer did cost in the end.
    async fn note_cost(&self, place: &Place, cost: Money) -> Result<(), Halt> {
        if self.state.queue.charge_answer(&self.job, place, cost).await? { Ok(()) } else { Err(Halt::Lost) }
    }
}
