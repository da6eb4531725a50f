//! Claims jobs whose answers are to be collected, and takes each to the workers or to its end. What stops a job, stops
//! it here as it does while it trains: cancel, pause, the end of the server.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::collecting::{Collection, Halt};
use super::files;
use super::sources::{self, Unread};
use super::teacher::{Prices, Who};
use crate::api::ApiState;
use crate::api::access::auth::{Caller, Gate};
use crate::api::access::inside::Inside;
use crate::api::graders::ask::Asker;
use crate::api::graders::check::still_allowed;
use crate::api::graders::judge::Judge;
use crate::format::count;
use crate::graders::spec::{Grader, Purpose};
use crate::jobs::collections::Distillation;
use crate::jobs::queue::Outcome;
use crate::jobs::{Job, JobFault};
use crate::store::work_changes::WorkKind;
use crate::teachers;
use crate::teachers::money::Money;

/// Jobs that a process collects for at a time.
const JOBS: usize = 4;
/// A lease without a sign of life, and the time between two signs, when a stop is heard as well.
const LEASE: Duration = Duration::from_secs(30);
const SIGN: Duration = Duration::from_secs(1);
/// Time without a sign after which the lease may be another's.
const LOST: Duration = Duration::from_secs(25);
/// Time after a failure of the database.
const PAUSE: Duration = Duration::from_secs(5);
/// Time that questions under way have to be answered once the job is to stop: their answers are paid for.
const GRACE: Duration = Duration::from_secs(3);

/// What a job is told while it is worked on.
enum Told {
    Stop,
    Lost,
}

/// Collects until the server stops.
pub(crate) async fn run(state: ApiState, inside: Inside) {
    let gate = Gate::new(&state.config, state.keys.clone(), state.usage.clone());
    let owner: Arc<str> = uuid::Uuid::new_v4().to_string().into();
    let collectors = (0..JOBS).map(|_| Collector { state: &state, inside: &inside, gate: &gate, owner: &owner }.work());
    futures::future::join_all(collectors).await;
}

struct Collector<'a> {
    state: &'a ApiState,
    inside: &'a Inside,
    gate: &'a Gate,
    owner: &'a str,
}

impl Collector<'_> {
    async fn work(self) {
        let mut waiting = self.state.work.watch(WorkKind::Collections);
        while !self.state.shutdown.is_cancelled() {
            waiting.look();
            match self.state.queue.claim_collection(self.owner, LEASE).await {
                Ok(Some((job, key))) => self.attempt(job, &key).await,
                Ok(None) => {
                    self.state.shutdown.run_until_cancelled(waiting.rest()).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "jobs whose answers are to be collected wait for the database");
                    self.state.shutdown.run_until_cancelled(sleep(PAUSE)).await;
                }
            }
        }
    }

    /// Does what is left of a job's collection, and writes down how the attempt ends.
    async fn attempt(&self, job: Job, key: &str) {
        let stop = CancellationToken::new();
        let mut collect = std::pin::pin!(self.collect(&job, key, stop.clone()));
        let told = tokio::select! {
            ended = &mut collect => return self.end(&job, ended).await,
            told = self.keep(&job) => Some(told),
            () = self.state.shutdown.cancelled() => None,
        };
        if matches!(told, Some(Told::Lost)) {
            return;
        }
        stop.cancel();
        // What is under way may end by itself, and has its own end then.
        let outcome = match timeout(GRACE, &mut collect).await {
            Ok(Ok(Some(fault))) => Outcome::Failed(fault),
            Ok(Err(Halt::Lost)) => return,
            _ if told.is_some() => Outcome::Stopped,
            _ => Outcome::Released,
        };
        self.finish(&job, outcome).await;
    }

    /// Keeps the lease; returns once the job is to stop, or the lease is lost.
    async fn keep(&self, job: &Job) -> Told {
        let mut last = Instant::now();
        loop {
            sleep(SIGN).await;
            let asked = Instant::now();
            match self.state.queue.heartbeat(job, LEASE, None).await {
                Ok(Some(answer)) if answer.stop.is_some() => return Told::Stop,
                Ok(Some(_)) => last = asked,
                Ok(None) => return Told::Lost,
                Err(_) if last.elapsed() > LOST => return Told::Lost,
                Err(_) => {}
            }
        }
    }

    async fn end(&self, job: &Job, ended: Result<Option<JobFault>, Halt>) {
        let outcome = match ended {
            Ok(None) | Err(Halt::Lost) => return,
            Ok(Some(fault)) => Outcome::Failed(fault),
            Err(Halt::Broken(fault)) => Outcome::Broken(fault),
            Err(Halt::Store(error)) => {
                tracing::warn!(job = job.id, %error, "the collection of answers is tried again");
                let message = "The server could not go on collecting answers.".into();
                let fault = JobFault { code: "server_error".into(), message, param: None };
                if error.storage_trouble().is_some() { Outcome::Storage(fault) } else { Outcome::Retry(fault) }
            }
        };
        self.finish(job, outcome).await;
    }

    async fn finish(&self, job: &Job, outcome: Outcome) {
        if let Err(error) = self.state.queue.finish(job, outcome).await {
            tracing::warn!(job = job.id, %error, "the collection begins again when its lease has run out");
        }
    }

    /// Collects and makes the files; a fault is the request's. Without one the job has gone to the workers, or it was
    /// to stop.
    async fn collect(&self, job: &Job, key: &str, stop: CancellationToken) -> Result<Option<JobFault>, Halt> {
        let Some(plan) = job.spec.distillation.clone() else {
            return Ok(Some(fault("server_error", "The job has nothing to collect.".into(), None)));
        };
        let caller = match self.caller(job, key).await? {
            Ok(caller) => caller,
            Err(fault) => return Ok(Some(fault)),
        };
        let collection = match self.prepare(job, plan, caller, stop.clone()).await? {
            Ok(collection) => collection,
            Err(fault) => return Ok(Some(fault)),
        };
        self.tell_beginning(&collection).await?;
        collection.run().await?;
        if stop.is_cancelled() {
            return Ok(None);
        }
        Ok(files::make(&collection).await?.err())
    }

    /// Returns the caller who created the job.
    async fn caller(&self, job: &Job, key: &str) -> Result<Result<Caller, JobFault>, Halt> {
        let holder = self.gate.holder_of_id(&self.state.store, key).await?;
        let holder = holder.filter(|caller| *caller.organization == *job.organization);
        Ok(holder.ok_or_else(|| {
            fault("invalid_api_key", "The API key that created the job does not count any more.".into(), None)
        }))
    }

    /// Reads all that the collection needs. The configuration may have changed since the job was created.
    async fn prepare(
        &self,
        job: &Job,
        plan: Distillation,
        caller: Caller,
        stop: CancellationToken,
    ) -> Result<Result<Collection, JobFault>, Halt> {
        let state = self.state;
        let asker = Asker::patient(self.inside.clone(), state.teachers.clone(), caller);
        let who = match plan.teacher.as_deref().map(|teacher| (teacher, teachers::named(teacher))) {
            None => None,
            Some((_, Some(name))) => match state.teachers.get(name) {
                Ok(teacher) => Some(Who::Teacher(teacher.clone())),
                // The operator may name it again.
                Err(message) => {
                    let param = Some("method.distillation.teacher");
                    return Err(Halt::Broken(fault("teacher_unavailable", message, param)));
                }
            },
            Some((model, None)) => Some(Who::Model { asker: asker.clone(), name: model.to_owned() }),
        };
        let mut graders = Vec::new();
        for grader in &plan.graders {
            match Grader::parse(grader, Purpose::Reward) {
                Ok(grader) => graders.push(grader),
                Err(wrong) => {
                    return Ok(Err(fault("invalid_grader", wrong.message, Some("method.distillation.graders"))));
                }
            }
        }
        if let Err(message) = still_allowed(state, &graders) {
            // The operator may allow it again.
            let param = Some("method.distillation.graders");
            return Err(Halt::Broken(fault("invalid_grader", message, param)));
        }
        let source = match sources::of_job(state, job).await {
            Ok(source) => source,
            Err(Unread::Request(message)) => {
                return Ok(Err(fault("invalid_training_file", message, Some("method.distillation.prompts"))));
            }
            Err(Unread::Store(problem)) => return Err(problem.into()),
        };
        let of_graders = graders.iter().flat_map(Grader::models).map(|(_, model)| model);
        let models: Vec<&str> = of_graders.chain(plan.teacher.as_deref()).collect();
        let prices = Prices::of(state, &job.organization, &models).await;
        if plan.max_teacher_cost.is_none() && models.iter().any(|model| !prices.get(model).is_free()) {
            let message = "There is a price for the teacher or a grader now, and the job has no 'max_teacher_cost': \
                           create it again with one.";
            return Ok(Err(fault("missing_budget", message.into(), Some("method.distillation.max_teacher_cost"))));
        }
        let judge = Judge::new(state, asker);
        let known = state.queue.teacher_answers(job).await?;
        let parts = (graders, judge);
        Ok(Ok(Collection::new(state.clone(), job.clone(), plan, who, parts, prices, source, known, stop)))
    }

    async fn tell_beginning(&self, collection: &Collection) -> Result<(), Halt> {
        let (source, plan) = (&collection.source, &collection.plan);
        let prompts = count(source.prompts.len() as f64);
        let mut words = match &plan.teacher {
            Some(teacher) => format!("Collecting answers of `{teacher}` to {prompts} prompts"),
            None => format!("Judging the stored answers to {prompts} prompts"),
        };
        if let Some(most) = plan.max_teacher_cost.filter(|most| *most > Money::NONE) {
            words = format!("{words}, for {most} {} at the most", self.state.config.currency);
        }
        let left_out = [(source.duplicates, "that stand there twice"), (source.unusable, "that cannot be asked")];
        for (number, why) in left_out.into_iter().filter(|(number, _)| *number > 0) {
            words = format!("{words}; without {} {why}", count(number as f64));
        }
        Ok(self.state.queue.add_event(&collection.job, "info", "message", &words, None).await?)
    }
}

fn fault(code: &str, message: String, param: Option<&str>) -> JobFault {
    JobFault { code: code.into(), message, param: param.map(str::to_owned) }
}
