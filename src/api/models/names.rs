//! What a name of a model stands for, and which names may be given. Every route with a field `model` asks
//! [`real_name`]; `lora_adapters` and `aliases` check new names.

use crate::api::ApiState;
use crate::api::http::error::{Problem, Result};
use crate::store::names::{VISIBLE, is_job_name, is_visible};

/// Characters of a name at the most.
const MAX_NAME: usize = 256;

/// Returns the name of the model that `name` stands for: an alias of the configuration goes before one of the
/// organisation, and neither hides a base model or a fine-tuned one of its own.
pub(crate) async fn real_name(state: &ApiState, organization: &str, name: &str) -> Result<String> {
    let real = state.catalog.real_name(name);
    // Aliases have no names of this form.
    if real != name || state.catalog.get(name).is_ok() || is_job_name(name) {
        return Ok(real.to_owned());
    }
    Ok(state.store.alias_target(organization, name).await?.unwrap_or_else(|| name.to_owned()))
}

/// Checks a name that the field `param` gives an adapter or an alias: it must be visible, of no form that means
/// something else, and none that the server's configuration has given.
pub(crate) fn check_new(state: &ApiState, param: &'static str, name: &str) -> Result<()> {
    check_form(param, name)?;
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
    if is_job_name(name) {
        return fault(format!("'{name}' has the form of a fine-tune job's model: choose another name."));
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
    fn a_name_is_visible_and_not_of_a_form_that_means_something_else() {
        for name in ["sql", "team/My adapter:v2", "東京", &"x".repeat(256)] {
            assert!(check_form("lora_name", name).is_ok(), "{name}");
        }
        let long = "x".repeat(257);
        for name in [
            "",
            " ",
            " a",
            "a\n",
            "a\tb",
            "a\0b",
            "a\u{200b}",
            "a\u{202e}b",
            "ft:demo:a::b",
            "demo:ft-a",
            "a/adapter",
            &long,
        ] {
            assert!(check_form("alias", name).is_err(), "{name:?}");
        }
    }
}
