//! Which local base model takes the place of which old one: `--base LOCAL` for all, `--base OLD=LOCAL` for some.

use std::str::FromStr;

use super::folder::OldJob;

/// A flag `--base`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseChoice {
    /// An old base, a job's id or an old model's name; `None` for all.
    old: Option<String>,
    local: String,
}

impl FromStr for BaseChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (old, local) = text.rsplit_once('=').map_or((None, text), |(old, local)| (Some(old.to_owned()), local));
        if local.is_empty() || old.as_ref().is_some_and(String::is_empty) {
            return Err("use LOCAL or OLD=LOCAL, such as gpt-4o-mini-2024-07-18=demo".into());
        }
        Ok(Self { old, local: local.to_owned() })
    }
}

/// All flags `--base` together.
#[derive(Debug)]
pub(super) struct Bases(Vec<BaseChoice>);

impl Bases {
    pub(super) fn new(choices: Vec<BaseChoice>) -> Self {
        Self(choices)
    }

    /// Returns the local base for a job: what was said for the job, else for its model, else for its base with its date
    /// or without, else for all. The last flag of each kind counts. `None` if nothing was said.
    pub(super) fn of(&self, job: &OldJob) -> Option<&str> {
        // A job may have trained a fine-tuned model further: `ft:BASE:…`.
        let base = job.base.strip_prefix("ft:").and_then(|rest| rest.split(':').next()).unwrap_or(&job.base);
        let names = [Some(job.id.as_str()), job.model.as_deref(), Some(&job.base), Some(base), Some(undated(base))];
        let said = |name: Option<&str>| self.0.iter().rfind(|choice| choice.old.as_deref() == name);
        let found = names.into_iter().flatten().find_map(|name| said(Some(name)));
        found.or_else(|| said(None)).map(|choice| choice.local.as_str())
    }
}

/// Returns a base's name without its date: `gpt-4o-mini` of `gpt-4o-mini-2024-07-18`.
fn undated(base: &str) -> &str {
    let form = b"-0000-00-00";
    let Some((name, date)) = base.len().checked_sub(form.len()).and_then(|at| base.split_at_checked(at)) else {
        return base;
    };
    let fits = |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    if !name.is_empty() && date.bytes().zip(form).all(fits) { name } else { base }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(base: &str) -> OldJob {
        let object = json!({"id": "ftjob-1", "model": base, "fine_tuned_model": "ft:gpt-4o-mini:acme::x"});
        OldJob::read(object, Vec::new()).expect("a job")
    }

    fn bases(flags: &[&str]) -> Bases {
        Bases::new(flags.iter().map(|flag| flag.parse().expect("a choice")).collect())
    }

    #[test]
    fn the_closest_choice_counts() {
        let dated = "gpt-4o-mini-2024-07-18";
        for (flags, base, expected) in [
            (&["all"] as &[&str], dated, Some("all")),
            (&["gpt-4o=other"], dated, None),
            (&["gpt-4o-mini=undated", "all"], dated, Some("undated")),
            (&["gpt-4o-mini-2024-07-18=dated", "gpt-4o-mini=undated"], dated, Some("dated")),
            (&["all", "ft:gpt-4o-mini:acme::x=model"], dated, Some("model")),
            (&["ftjob-1=job", "ft:gpt-4o-mini:acme::x=model"], dated, Some("job")),
            (&["gpt-4o-mini=undated"], "ft:gpt-4o-mini-2024-07-18:acme::x", Some("undated")),
            (&["first", "second"], dated, Some("second")),
        ] {
            assert_eq!(bases(flags).of(&job(base)), expected, "{flags:?}");
        }
    }

    #[test]
    fn an_empty_side_is_refused() {
        for flag in ["", "=local", "old="] {
            assert!(flag.parse::<BaseChoice>().is_err(), "{flag}");
        }
    }
}
