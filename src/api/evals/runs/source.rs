//! What a run is about: the models that are asked, and where its items come from, checked before the run is made.

use serde_json::Value;

use crate::api::ApiState;
use crate::api::evals::data_source::{DataSource, Items, MAX_FILE, SOURCE};
use crate::api::evals::form::{item_schema, required_notes};
use crate::api::graders::check::refusal;
use crate::api::http::error::{Problem, Result};
use crate::store;

/// Purpose of files with items.
const PURPOSE: &str = "evals";
/// Most models of a run.
const MAX_MODELS: usize = 8;

/// Checks the models of a request: a few, each once.
pub(super) fn models_of(models: Option<Vec<String>>) -> Result<Vec<String>> {
    let Some(models) = models else { return Ok(Vec::new()) };
    let fault = |message: String| Err(Problem::invalid_code("models", "invalid_value", message));
    if !(1..=MAX_MODELS).contains(&models.len()) {
        return fault(format!("'models' must name 1 to {MAX_MODELS} models."));
    }
    let twice = models.iter().enumerate().find(|(index, model)| models[..*index].contains(model));
    match twice {
        Some((_, model)) => fault(format!("'models' names `{model}` twice.")),
        None => Ok(models),
    }
}

/// The data source of a run that may be made.
pub(in crate::api::evals) struct Source {
    /// The models that are asked.
    pub models: Vec<String>,
    /// Ids of the stored answers that are the items.
    pub inputs: Option<Vec<String>>,
    /// The file with the items.
    pub file: Option<String>,
}

impl Source {
    /// Reads the data source of a run of `eval` that asks `models`, if it names any beside it. Given items must
    /// follow the eval's schema, a file must be there, and stored answers are chosen.
    pub(in crate::api::evals) async fn read(
        state: &ApiState,
        organization: &str,
        eval: &store::evals::Eval,
        data_source: &Value,
        models: &[String],
    ) -> Result<Self> {
        let DataSource { items, models, .. } = parsed(eval, data_source, models)?;
        check_items(state, organization, &items, item_schema(&eval.config)).await?;
        let (inputs, file) = match items {
            Items::Given(_) => (None, None),
            Items::File(id) => (None, Some(id)),
            Items::Stored(selection) => (Some(selection.ids(state, organization).await?), None),
        };
        Ok(Self { models, inputs, file })
    }

    /// Does the checks of [`Self::read`] that can be done before the time of the run has come.
    pub(in crate::api::evals) async fn check(
        state: &ApiState,
        organization: &str,
        eval: &store::evals::Eval,
        data_source: &Value,
        models: &[String],
    ) -> Result<()> {
        let source = parsed(eval, data_source, models)?;
        check_items(state, organization, &source.items, item_schema(&eval.config)).await
    }
}

/// Reads a data source; stored answers must have the notes that the eval asks for, too.
fn parsed(eval: &store::evals::Eval, data_source: &Value, models: &[String]) -> Result<DataSource> {
    let mut source = DataSource::parse(data_source, models).map_err(|fault| refusal(SOURCE, &fault))?;
    if let (Items::Stored(selection), Some(notes)) = (&mut source.items, required_notes(&eval.config)) {
        selection.require(notes).map_err(|fault| refusal(SOURCE, &fault))?;
    }
    Ok(source)
}

/// Checks that given items follow the eval's schema, or that the file is there.
async fn check_items(state: &ApiState, organization: &str, items: &Items, schema: &Value) -> Result<()> {
    match items {
        Items::Stored(_) => Ok(()),
        Items::Given(lines) => {
            for (index, line) in lines.iter().enumerate() {
                line.check(schema).map_err(|message| {
                    Problem::invalid_code(format!("{SOURCE}.source.content[{index}].item"), "invalid_value", message)
                })?;
            }
            Ok(())
        }
        Items::File(id) => {
            let param = format!("{SOURCE}.source.id");
            match state.store.file(organization, id).await {
                Ok(file) if file.purpose != PURPOSE => {
                    let message = format!("The file '{id}' was not uploaded with the purpose '{PURPOSE}'.");
                    Err(Problem::invalid_code(param, "invalid_value", message))
                }
                Ok(file) if u64::try_from(file.bytes).is_ok_and(|bytes| bytes <= MAX_FILE) => Ok(()),
                Ok(_) => {
                    let message = format!("A file of items has {MAX_FILE} bytes at the most.");
                    Err(Problem::invalid_code(param, "invalid_value", message))
                }
                // The route exists: what is missing is a part of the body.
                Err(error @ store::Error::NotFound { .. }) => Err(Problem::invalid(param, error.to_string())),
                Err(error) => Err(error.into()),
            }
        }
    }
}
