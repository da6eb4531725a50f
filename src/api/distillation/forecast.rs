//! What a job of distillation may cost, before it is created.

use super::sources::{self, Source, Unread};
use super::teacher::{Prices, Who, grading_at_most};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::access::inside::Inside;
use crate::api::graders::ask::Asker;
use crate::api::http::error::{Problem, Result};
use crate::graders::spec::{Grader, Purpose};
use crate::graders::template::Sample;
use crate::jobs::JobSpec;
use crate::jobs::collections::Distillation;
use crate::teachers;
use crate::teachers::money::Money;

/// The most that a job may take of its teacher.
#[derive(Debug)]
pub(crate) struct Forecast {
    pub prompts: usize,
    pub duplicate_prompts: usize,
    pub requests: usize,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// If every answer is as long as it may be.
    pub cost: Money,
}

/// Forecasts what the collection of a job would take.
pub(crate) async fn forecast(state: &ApiState, caller: &Caller, inside: Inside, spec: &JobSpec) -> Result<Forecast> {
    let Some(plan) = &spec.distillation else {
        return Err(Problem::defect("a forecast of a job that collects nothing"));
    };
    let now = jiff::Timestamp::now().as_second();
    let source = sources::read(state, &caller.organization, &plan.prompts, now, plan.teacher.is_none()).await;
    let source = source.map_err(|unread| match unread {
        Unread::Request(message) => {
            Problem::invalid_code("method.distillation.prompts", "invalid_training_file", message)
        }
        Unread::Store(problem) => problem,
    })?;
    let asker = Asker::new(inside, state.teachers.clone(), caller.clone());
    of_source(state, &caller.organization, asker, plan, &source).await
}

async fn of_source(
    state: &ApiState,
    organization: &str,
    asker: Asker,
    plan: &Distillation,
    source: &Source,
) -> Result<Forecast> {
    let graders = plan.graders.iter().map(|grader| Grader::parse(grader, Purpose::Reward));
    let graders: Vec<Grader> = graders
        .collect::<Result<_, _>>()
        .map_err(|fault| Problem::invalid("method.distillation.graders", fault.message))?;
    let models: Vec<&str> =
        graders.iter().flat_map(Grader::models).map(|(_, model)| model).chain(plan.teacher.as_deref()).collect();
    let prices = Prices::of(state, organization, &models).await;
    let who = match &plan.teacher {
        None => None,
        Some(teacher) => Some(match teachers::named(teacher).map(|name| state.teachers.get(name)) {
            Some(Ok(teacher)) => Who::Teacher(teacher.clone()),
            Some(Err(message)) => return Err(Problem::invalid("method.distillation.teacher", message)),
            None => Who::Model { asker, name: teacher.clone() },
        }),
    };
    let price = plan.teacher.as_deref().map(|teacher| prices.get(teacher)).unwrap_or_default();
    let mut made = Forecast {
        prompts: source.prompts.len(),
        duplicate_prompts: source.duplicates,
        requests: 0,
        prompt_tokens: 0,
        completion_tokens: 0,
        cost: Money::NONE,
    };
    let text_of = |text: String| Sample { text: Some(text), ..Sample::default() };
    // As many bytes as the tokens of an answer have in most texts.
    let longest = who.as_ref().map(|who| text_of("x".repeat(who.max_tokens(plan.max_tokens).min(4096) as usize * 4)));
    for prompt in &source.prompts {
        let (answers, each) = if let (Some(who), Some(longest)) = (&who, &longest) {
            let (tokens, most) = (who.prompt_tokens_at_most(&prompt.messages), who.max_tokens(plan.max_tokens));
            made.requests += plan.samples as usize;
            made.prompt_tokens += tokens * u64::from(plan.samples);
            made.completion_tokens += u64::from(most) * u64::from(plan.samples);
            let grading = grading_at_most(state, &graders, &prompt.item, longest, &prices);
            (plan.samples as usize, price.of(tokens, most.into()) + grading)
        } else {
            let longest = prompt.given.iter().map(|(text, _)| text).max_by_key(|text| text.len());
            let longest = text_of(longest.cloned().unwrap_or_default());
            (prompt.given.len(), grading_at_most(state, &graders, &prompt.item, &longest, &prices))
        };
        made.cost = (0..answers).fold(made.cost, |sum, _| sum + each);
    }
    Ok(made)
}
