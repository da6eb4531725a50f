//! Refuses graders that could not be run: of a wrong form, or with a model that this server does not have.

use serde_json::Value;

use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::generation::target::{makes_vectors, writes_texts};
use crate::api::graders::outcome::Failure;
use crate::api::http::error::{Problem, Result};
use crate::api::models::model_resource;
use crate::graders::spec::{Fault, Grader, Purpose, python_field};
use crate::teachers;

const NO_CODE: &str = "Graders of type 'python' are not supported: this server runs no code of its callers. Its operator can \
                       allow them by the setting `python` of `[graders]`, the interpreter that runs such code in a sandbox. \
                       Use string_check, text_similarity, score_model, label_model or multi.";

/// What a model is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Write texts.
    Texts,
    /// Make vectors of texts.
    Vectors,
}

/// Reads the grader in the field `param` and checks that the caller may use its models, and the server its code.
pub(crate) async fn grader(
    state: &ApiState,
    caller: &Caller,
    value: &Value,
    param: &str,
    purpose: Purpose,
) -> Result<Grader> {
    if let Some(field) = python_field(value).filter(|_| !state.python_graders.are_allowed()) {
        return Err(Problem::invalid_code(format!("{param}.{field}"), "invalid_grader", NO_CODE));
    }
    let grader = Grader::parse(value, purpose).map_err(|fault| refusal(param, &fault))?;
    for (field, model) in grader.models() {
        if teachers::named(model).is_some() && grader.embeds_with(&field) {
            let message = format!("`{model}` answers chats and makes no embeddings: name a model of this server.");
            return Err(Problem::invalid_code(format!("{param}.{field}"), "invalid_grader", message));
        }
        let task = if grader.embeds_with(&field) { Task::Vectors } else { Task::Texts };
        model_of(state, caller, model, task, format!("{param}.{field}")).await?;
    }
    if grader.needs_embeddings() && embedding_model(state).is_none() {
        // Then each grader must name its own; this looks at the whole, so that a part with a model passes.
        check_named(value, param)?;
    }
    Ok(grader)
}

/// Reads the grader in the field `param` as [`grader`] does, and loads its code, if it has any, to see whether it can be.
pub(crate) async fn whole(
    state: &ApiState,
    caller: &Caller,
    value: &Value,
    param: &str,
    purpose: Purpose,
) -> Result<Grader> {
    let grader = grader(state, caller, value, param, purpose).await?;
    for (field, source) in grader.sources() {
        let checked = state.python_graders.session(&caller.organization).check(source).await;
        checked.map_err(|failure| match failure {
            Failure::CodeUnavailable(_, message) => Problem::unavailable(message),
            failure => {
                let message = format!("The source cannot be loaded. {}", failure.message());
                Problem::invalid_code(format!("{param}.{field}"), "invalid_grader", message)
            }
        })?;
    }
    Ok(grader)
}

/// Refuses graders that were taken while the operator allowed their code.
pub(crate) fn still_allowed<'a>(state: &ApiState, graders: impl IntoIterator<Item = &'a Grader>) -> Result<(), String> {
    let has_code = graders.into_iter().any(|grader| !grader.sources().is_empty());
    if has_code && !state.python_graders.are_allowed() { Err(NO_CODE.to_owned()) } else { Ok(()) }
}

/// Makes the error for a grader, or another part of an eval, in the field `param`.
pub(crate) fn refusal(param: &str, fault: &Fault) -> Problem {
    let dot = if fault.param.is_empty() || fault.param.starts_with(['.', '[']) { "" } else { "." };
    Problem::invalid_code(format!("{param}{dot}{}", fault.param), "invalid_grader", fault.message.clone())
}

/// Checks that the caller may use the model, or that there is such a teacher, and that it does what it is to do; an error names
/// the field `param`.
pub(crate) async fn model_of(state: &ApiState, caller: &Caller, model: &str, task: Task, param: String) -> Result<()> {
    if let Some(name) = teachers::named(model) {
        let known = state.teachers.get(name).map(|_| ());
        return known.map_err(|message| Problem::invalid_code(param, "invalid_grader", message));
    }
    let found = match model_resource::find(state, caller, model).await {
        Ok(found) => found,
        // The route exists: what is missing is a part of the body.
        Err(problem) if problem.is_model_not_found() => {
            return Err(Problem::invalid_code(param, "invalid_grader", problem.error.message));
        }
        Err(problem) => return Err(problem),
    };
    let base = found.parent.or(found.root).unwrap_or(found.id);
    // The base of a fine-tuned model may be with another server: whoever asks it is told.
    let Ok(base) = state.catalog.get(&base) else { return Ok(()) };
    let (does, what) = match task {
        Task::Texts => (writes_texts(&base.model), "writes no texts"),
        Task::Vectors => (makes_vectors(&base.model), "makes no vectors of texts"),
    };
    if does {
        return Ok(());
    }
    let message = format!("The model `{model}` {what}: name one of this server that does.");
    Err(Problem::invalid_code(param, "invalid_grader", message))
}

/// Returns the one model of the server that makes embeddings and nothing else; `None` if there is none, or a choice.
pub(crate) fn embedding_model(state: &ApiState) -> Option<&str> {
    let entries = state.catalog.entries().iter();
    let mut models = entries
        .map(|entry| &entry.model)
        .filter(|model| model.classifier.is_none() && (model.config.is_encoder || model.is_static()));
    let first = models.next()?;
    models.next().is_none().then_some(first.id.as_str())
}

fn check_named(value: &Value, param: &str) -> Result<()> {
    let lacks_model = |grader: &Value| {
        grader.get("evaluation_metric").is_some_and(|metric| metric == "cosine")
            && grader.get("model").is_none_or(Value::is_null)
    };
    let parts: Vec<&Value> = match value.get("graders") {
        Some(Value::Array(parts)) => parts.iter().collect(),
        Some(Value::Object(parts)) if !parts.contains_key("evaluation_metric") => parts.values().collect(),
        Some(part) => vec![part],
        None => vec![value],
    };
    if parts.into_iter().any(lacks_model) {
        let message = "This server has no embedding model, or several: name the one for 'cosine' in 'model'.";
        return Err(Problem::invalid_code(format!("{param}.model"), "invalid_grader", message));
    }
    Ok(())
}
