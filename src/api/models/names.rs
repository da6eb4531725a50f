//! What a name of a model stands for, and which names may be given. Every route with a field `model` asks
//! [`real_name`]; `lora_adapters` and `aliases` check new names.

use crate::api::ApiState;
use crate::api::http::error::{Problem, Result};
use crate::store::names::{VISIBLE, base_in_job_name, is_job_name, is_job_name_of, is_visible};

/// Characters of a name at the most.
const MAX_NAME: usize = 256;

/// Returns the name of the model that `name` stands for: an alias of the configuration goes before one of the
/// organisation, and neither hides a base model or a fine-tuned one that it uses.
pub(crate) async fn real_name(state: &ApiState, organization: &str, name: &str) -> Result<String> {
    let real = state.catalog.real_name(name);
    // No alias of an organisation has a name of the last two kinds.
    if real != name || state.catalog.get(name).is_ok() || maker_of(state, name).is_some() {
        return Ok(real.to_owned());
    }
    Ok(state.store.alias_target(organization, name).await?.unwrap_or_else(|| name.to_owned()))
}

/// Returns the base model, or the alias of the configuration, of whose jobs' models `name` has the form.
pub(crate) fn maker_of<'a>(state: &'a ApiState, name: &str) -> Option<&'a str> {
    if !is_job_name(name) {
        return None;
    }
    let bases = state.catalog.entries().iter().map(|entry| entry.model.id.as_str());
    let aliases = state.catalog.aliases().map(|(alias, _)| alias);
    bases.chain(aliases).find(|base| is_job_name_of(name, base))
}

/// Checks a name that the field `param` gives an adapter: it must be visible, of no form that means something else, and
/// none that the server's configuration has given.
pub(crate) fn check_new(state: &ApiState, param: &'static str, name: &str) -> Result<()> {
    check_form(param, name)?;
    if is_job_name(name) {
        return Err(job_form(param, name));
    }
    check_free(state, param, name)
}

/// Checks a name that the field `param` gives an alias of the organisation, as [`check_new`] does. It may be that of a
/// fine-tuned model of another service: one whose base is no model or alias here.
pub(crate) async fn check_alias(state: &ApiState, organization: &str, param: &'static str, name: &str) -> Result<()> {
    check_form(param, name)?;
    check_free(state, param, name)?;
    if !is_job_name(name) {
        return Ok(());
    }
    if base_in_job_name(name).is_none_or(str::is_empty) || maker_of(state, name).is_some() {
        return Err(job_form(param, name));
    }
    let own = state.store.aliases(organization).await?;
    match own.iter().find(|alias| is_job_name_of(name, &alias.name)) {
        Some(alias) => {
            let message = format!(
                "'{name}' has the form of the models that jobs on your alias '{}' make: choose another name.",
                alias.name
            );
            Err(Problem::invalid_code(param, "invalid_value", message))
        }
        None => Ok(()),
    }
}

fn job_form(param: &'static str, name: &str) -> Problem {
    let message = format!("'{name}' has the form of a fine-tune job's model: choose another name.");
    Problem::invalid_code(param, "invalid_value", message)
}

fn check_free(state: &ApiState, param: &'static str, name: &str) -> Result<()> {
    if state.catalog.get(name).is_ok() || state.catalog.is_alias(name) {
        let message = format!("'{name}' is a base model or an alias on this server: choose another name.");
        return Err(Problem::invalid_code(param, "invalid_value", message));
    }
    Ok(())
}

fn check_form(param: &'static str, name: &str) -> Result<()> {
    let fault = |message: String| Err(Problem::invalid_code(param, "invalid_value", message));
    if !(1..=MAX_NAME).contains(&name.chars().count()) || !is_visible(name) {
        return fault(format!("'{param}' must have 1 to {MAX_NAME} characters: {VISIBLE}."));
    }
    if name.ends_with("/adapter") {
        return fault(format!("'{param}' must not end with '/adapter', where the downloads of adapters are."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_visible_and_no_place_of_a_download() {
        for name in ["sql", "team/My adapter:v2", "東京", &"x".repeat(256)] {
            assert!(check_form("lora_name", name).is_ok(), "{name}");
        }
        let long = "x".repeat(257);
        for name in ["", " ", " a", "a\n", "a\tb", "a\0b", "a\u{200b}", "a\u{202e}b", "a/adapter", &long] {
            assert!(check_form("alias", name).is_err(), "{name:?}");
        }
    }
}
