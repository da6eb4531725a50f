//! Shows what the folder holds, what of it could not be fetched, and what stops when; and, at the end, what could not
//! be carried over.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::{Timestamp, Unit};

use super::fetch::Progress;
use super::folder::{COMPLETIONS, Content, Folder, OldFile, OldJob, OldModel};
use super::ledger::Carried;
use crate::cli::output::{line, note};
use crate::cli::table;
use crate::{Result, format};

/// The day on which the last ones can create jobs.
const LAST_JOBS: &str = "2027-01-06";
/// The days on which models stop, where the account's list does not say; the first name that fits counts.
const STOPS: [(&str, &str); 8] = [
    ("gpt-4.1-nano", "2026-10-23"),
    ("gpt-4.1", "2027-01-14"),
    ("gpt-4o", "2027-01-14"),
    ("gpt-3.5-turbo", "2026-10-23"),
    ("babbage-002", "2026-10-23"),
    ("davinci-002", "2026-10-23"),
    ("o4-mini", "2026-10-23"),
    ("gpt-4", "2026-10-23"),
];

/// Prints what is there: a table of the models with their jobs, those that stop first in front, on standard output if
/// it is asked for (`whole`), and a summary for people in any case.
pub(super) fn show(folder: &Folder, whole: bool) -> Result<()> {
    let (models, jobs, files) = (folder.models()?, folder.jobs()?, folder.files()?);
    let today = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    if whole {
        specialists(folder, &models, &jobs, today)?;
        others(&jobs)?;
    }
    let say = |text: String| {
        if whole {
            return line(text);
        }
        note(text);
        Ok(())
    };
    let progress = Progress::read(folder)?;
    if let Some(begun) = progress.begun() {
        say(format!("As of {begun}:"))?;
    }
    say(format!("  models       {}", summary_of_models(&models, &jobs, today)))?;
    say(format!("  jobs         {}", summary_of_jobs(&jobs)))?;
    say(format!("  files        {}", summary_of_files(&files)))?;
    let evals = folder.evals()?;
    let runs: usize = evals.iter().map(|eval| eval.runs.len()).sum();
    say(format!("  evals        {}, {} runs", count(evals.len()), count(runs)))?;
    say(format!("  stored chats {}", count(folder.number_of(COMPLETIONS)?)))?;
    for (list, reason) in progress.refused() {
        say(format!("Cannot be fetched: {list}: {reason}"))?;
    }
    for (reason, files) in missing(folder, &jobs, &files)? {
        say(format!("Cannot be fetched: {}: {reason}", files.join(", ")))?;
    }
    if whole {
        say(format!(
            "Not to be had: weights and adapters of models. New jobs end on {}.",
            with_days(LAST_JOBS, today)
        ))?;
    }
    Ok(())
}

/// Prints what could not be carried over, or was so in part only.
pub(super) fn problems(carried: &Carried) {
    for (id, reason) in &carried.problems {
        note(format_args!("{id}: {reason}"));
    }
}

/// Prints a row for each model that a job made.
fn specialists(folder: &Folder, models: &[OldModel], jobs: &[OldJob], today: Date) -> Result<()> {
    let mut made: Vec<(&OldJob, &str, Option<String>)> =
        jobs.iter().filter_map(|job| Some((job, job.model.as_deref()?, stop(models, job)))).collect();
    if made.is_empty() {
        return Ok(());
    }
    made.sort_by_key(|(job, _, stop)| (stop.is_none(), stop.clone(), job.created_at));
    let mut rows =
        vec![["MODEL", "STOPS", "JOB", "METHOD", "TRAINING FILE", "VALIDATION FILE"].map(str::to_owned).to_vec()];
    for (job, model, stop) in made {
        rows.push(vec![
            model.replace(char::is_control, " "),
            stop.map_or_else(|| "-".into(), |day| with_days(&day, today)),
            job.id.clone(),
            job.method.clone(),
            state(folder, job.training_file.as_deref())?,
            state(folder, job.validation_file.as_deref())?,
        ]);
    }
    table::print(&rows)?;
    line("")
}

/// Prints a row for each job that made no model: these are kept as history.
fn others(jobs: &[OldJob]) -> Result<()> {
    let others = jobs.iter().filter(|job| job.model.is_none());
    let mut rows = vec![["OTHER JOB", "STATUS", "BASE", "WHY"].map(str::to_owned).to_vec()];
    rows.extend(others.map(|job| {
        let fault = job.fault.as_deref().unwrap_or("-");
        [&job.id, &job.status, &job.base, fault].map(|text| text.replace(char::is_control, " ")).to_vec()
    }));
    if rows.len() == 1 {
        return Ok(());
    }
    table::print(&rows)?;
    line("")
}

/// Says whether a job's file can be had.
fn state(folder: &Folder, file: Option<&str>) -> Result<String> {
    let Some(file) = file else { return Ok("none".into()) };
    Ok(match folder.content_of(file)? {
        Content::Here(_) => "fetched".into(),
        Content::Missing(_) => "gone".into(),
        Content::NotFetched if folder.has_file(file) => "can be fetched".into(),
        Content::NotFetched => "not in the list of files".into(),
    })
}

/// Returns the day on which a job's model stops.
fn stop(models: &[OldModel], job: &OldJob) -> Option<String> {
    let listed = models.iter().find(|model| Some(&model.id) == job.model.as_ref());
    if let Some(day) = listed.and_then(|model| model.shutdown_date.clone()) {
        return Some(day);
    }
    let base = job.base.strip_prefix("ft:").unwrap_or(&job.base);
    STOPS.iter().find(|(name, _)| base.starts_with(name)).map(|(_, day)| (*day).to_owned())
}

/// Writes a day with how far away it is: `2027-01-14 (in 44 days)`.
fn with_days(day: &str, today: Date) -> String {
    let days =
        day.parse::<Date>().ok().and_then(|date| date.since((Unit::Day, today)).ok()).map(|span| span.get_days());
    match days {
        None => day.replace(char::is_control, " "),
        Some(0) => format!("{day} (today)"),
        Some(1) => format!("{day} (tomorrow)"),
        Some(days) if days > 0 => format!("{day} (in {days} days)"),
        Some(_) => format!("{day} (over)"),
    }
}

fn summary_of_models(models: &[OldModel], jobs: &[OldJob], today: Date) -> String {
    let stops: Vec<String> =
        jobs.iter().filter(|job| job.model.is_some()).filter_map(|job| stop(models, job)).collect();
    let made = jobs.iter().filter(|job| job.model.is_some()).count();
    let first = stops.iter().min();
    first.map_or_else(|| count(made), |day| format!("{}; the first stops on {}", count(made), with_days(day, today)))
}

fn summary_of_jobs(jobs: &[OldJob]) -> String {
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    for job in jobs {
        *statuses.entry(&job.status).or_default() += 1;
    }
    let parts: Vec<String> = statuses.iter().map(|(status, number)| format!("{} {status}", count(*number))).collect();
    let parts = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
    format!("{}{parts}", count(jobs.len()))
}

fn summary_of_files(files: &[OldFile]) -> String {
    let number = |fits: fn(&Content) -> bool| files.iter().filter(|file| fits(&file.content)).count();
    let here = number(|content| matches!(content, Content::Here(_)));
    let missing = number(|content| matches!(content, Content::Missing(_)));
    format!("{}: {} fetched, {} not to be had", count(files.len()), count(here), count(missing))
}

/// Returns the files that cannot be had by their reasons, those that only jobs name included.
fn missing(folder: &Folder, jobs: &[OldJob], files: &[OldFile]) -> Result<BTreeMap<String, Vec<String>>> {
    let of_jobs =
        jobs.iter().flat_map(|job| job.training_file.iter().chain(&job.validation_file).chain(&job.result_files));
    let mut ids: Vec<&String> = files.iter().map(|file| &file.id).chain(of_jobs).collect();
    ids.sort();
    ids.dedup();
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in ids {
        if let Content::Missing(reason) = folder.content_of(id)? {
            missing.entry(reason).or_default().push(id.clone());
        }
    }
    Ok(missing)
}

fn count(number: usize) -> String {
    format::count(number as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_day_comes_with_how_far_away_it_is() {
        let today: Date = "2026-12-01".parse().expect("a day");
        for (day, expected) in [
            ("2027-01-14", "2027-01-14 (in 44 days)"),
            ("2026-12-01", "2026-12-01 (today)"),
            ("2026-12-02", "2026-12-02 (tomorrow)"),
            ("2026-10-23", "2026-10-23 (over)"),
            ("some day", "some day"),
        ] {
            assert_eq!(with_days(day, today), expected);
        }
    }

    #[test]
    fn a_model_stops_when_the_account_says_else_with_its_base() {
        let job = |base: &str| {
            let object = json!({"id": "ftjob-1", "model": base, "fine_tuned_model": "ft:x"});
            OldJob::read(object, Vec::new()).expect("a job")
        };
        let listed = [OldModel { id: "ft:x".into(), shutdown_date: Some("2026-12-24".into()) }];
        assert_eq!(stop(&listed, &job("gpt-4o")).as_deref(), Some("2026-12-24"));
        for (base, day) in [
            ("gpt-4o-mini-2024-07-18", Some("2027-01-14")),
            ("gpt-4.1-nano-2025-04-14", Some("2026-10-23")),
            ("gpt-4.1-2025-04-14", Some("2027-01-14")),
            ("ft:gpt-3.5-turbo-0125:acme::x", Some("2026-10-23")),
            ("gpt-4-0613", Some("2026-10-23")),
            ("other", None),
        ] {
            assert_eq!(stop(&[], &job(base)).as_deref(), day, "{base}");
        }
    }
}
