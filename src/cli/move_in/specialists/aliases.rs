//! What keeps the old names: lines of the configuration, and aliases on the server. Called by [`super::report`].

use serde_json::json;

use super::retrain::name;
use crate::cli::client::Failure;
use crate::cli::move_in::Move;
use crate::cli::move_in::folder::OldJob;
use crate::cli::output::note;
use crate::{Error, Result};

/// Names before and now.
pub(super) type Names = Vec<(String, String)>;

/// Returns the names of a job's model and its checkpoints. The last checkpoint of one side takes the place of the last
/// one of the other, and so on backwards: one stands for each of the last epochs.
pub(super) async fn names(work: &Move<'_>, job: &OldJob, new_job: Option<&str>, new_model: &str) -> Result<Names> {
    let mut names = vec![(name(job).to_owned(), new_model.to_owned())];
    let Some(new_job) = new_job.filter(|_| !job.checkpoints.is_empty()) else { return Ok(names) };
    let listed = work.local.list(&["fine_tuning", "jobs", new_job, "checkpoints"]).await.map_err(Error::from)?;
    let model = |checkpoint: &serde_json::Value| checkpoint["fine_tuned_model_checkpoint"].as_str().map(str::to_owned);
    let pairs = job.checkpoints.iter().map(model).zip(listed.iter().map(model));
    for (old, new) in pairs.filter_map(|(old, new)| Some((old?, new?))) {
        if names.iter().all(|(known, _)| *known != old) {
            names.push((old, new));
        }
    }
    Ok(names)
}

/// Lets the old names stand for the new models on the server. A name that the server refuses is told with its reason.
pub(super) async fn set(work: &mut Move<'_>, names: &Names) -> Result<()> {
    let mut refused = 0;
    for (old, new) in names {
        let reason = match work.local.put(&["aliases", old], &json!({"model": new})).await {
            Ok(_) => None,
            // The configuration may have it already.
            Err(Failure::Refused { message, .. }) => (!stands_for(work, old, new).await?).then_some(message),
            Err(away) => return Err(away.into()),
        };
        match reason {
            Some(reason) => {
                refused += 1;
                work.ledger.problem(old, format!("it does not stand for `{new}` on the server: {reason}"))?;
            }
            None if work.ledger.carried().problems.contains_key(old) => {
                work.ledger.change(|carried| drop(carried.problems.remove(old)))?;
            }
            None => {}
        }
    }
    let stand = names.len() - refused;
    note(format_args!("{stand} of {} old names stand for the new models on the server, from now on", names.len()));
    Ok(())
}

/// True if requests that name `old` reach `new`.
async fn stands_for(work: &Move<'_>, old: &str, new: &str) -> Result<bool> {
    match work.local.get(&["models", old], &[]).await {
        Ok(model) => Ok(model["root"] == new),
        Err(Failure::Refused { .. }) => Ok(false),
        Err(away) => Err(away.into()),
    }
}

/// Writes the names as the configuration has them.
pub(super) fn as_toml<'a>(names: impl IntoIterator<Item = &'a (String, String)>) -> String {
    // A text of JSON is one of TOML, too, but for this character.
    let text = |name: &str| serde_json::Value::from(name).to_string().replace('\u{7f}', "\\u007f");
    let lines = names.into_iter().map(|(old, new)| format!("{} = {}\n", text(old), text(new)));
    format!("[aliases]\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use figment::Figment;
    use figment::providers::{Format as _, Toml};

    use super::*;

    #[test]
    fn the_lines_are_a_configuration() {
        let names = vec![
            ("ft:gpt-4o-mini-2024-07-18:acme::9aB".to_owned(), "ft:demo:local::1234abcd".to_owned()),
            ("ft:a\"b\\c:x::\u{7f}ü".to_owned(), "demo".to_owned()),
        ];
        let read: std::collections::BTreeMap<String, String> =
            Figment::from(Toml::string(&as_toml(&names))).extract_inner("aliases").expect("TOML");
        assert_eq!(read, names.into_iter().collect());
    }
}
