//! `attune jobs`: follows fine-tune jobs of a running server. `list` prints a table; [`watch`] shows one job until it
//! ends.

mod watch;

use std::process::ExitCode;

use crate::{Error, Result, format};
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::Value;

use super::client::{Server, ServerPlace};
use super::output::note;
use super::table;
use watch::WatchOptions;

/// The subcommands of `attune jobs`.
#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// List the jobs, newest first.
    List {
        #[command(flatten)]
        place: ServerPlace,
        /// Print at most this many jobs, 1 to 100.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
        /// Print the jobs that follow this one in the list: the last id of the page before.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Follow a job's progress until it ends. Exit status: 0 succeeded, 3 failed, 4 cancelled, 1 unknown.
    Watch(WatchOptions),
}

impl JobsCommand {
    /// Runs the subcommand.
    pub(super) async fn run(self) -> Result<ExitCode> {
        match self {
            Self::List { place, limit, after } => {
                list(&place.server()?, limit, after.as_deref()).await?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Watch(options) => options.run().await,
        }
    }
}

async fn list(server: &Server, limit: u32, after: Option<&str>) -> Result<()> {
    let limit = limit.to_string();
    let mut query = vec![("limit", limit.as_str())];
    query.extend(after.map(|after| ("after", after)));
    let answer = server.get(&["fine_tuning", "jobs"], &query).await?;
    let jobs = answer["data"].as_array().ok_or_else(|| Error::Setup("the server's answer has no jobs".into()))?;
    let now = Timestamp::now().as_second();
    let head = ["ID", "STATUS", "MODEL", "CREATED", "ENDS", "TOKENS", "FINE-TUNED MODEL"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(jobs.iter().map(|job| row(job, now))).collect();
    table::print(&rows)?;
    if answer["has_more"] == true
        && let Some(last) = rows.last().and_then(|row| row.first())
    {
        note(format_args!("There are more: --after {last}"));
    }
    Ok(())
}

/// Returns a job's row: when it ended, or how long it should still take.
fn row(job: &Value, now: i64) -> Vec<String> {
    let text = |name: &str| job[name].as_str().unwrap_or("-").replace(char::is_control, " ");
    let time =
        |seconds: i64| Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string());
    let ends = match (job["finished_at"].as_i64(), job["estimated_finish"].as_i64()) {
        (Some(ended), _) => time(ended),
        (None, Some(end)) if job["status"] == "running" => {
            format!("in {}", format::duration((end - now).max(0) as f64))
        }
        _ => "-".into(),
    };
    vec![
        text("id"),
        text("status"),
        text("model"),
        job["created_at"].as_i64().map_or_else(|| "-".into(), time),
        ends,
        job["trained_tokens"].as_f64().map_or_else(|| "-".into(), format::count),
        text("fine_tuned_model"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_says_when_a_job_ended_or_how_long_it_still_takes() {
        let running =
            json!({"id": "ftjob-1", "status": "running", "model": "demo", "created_at": 0, "estimated_finish": 190});
        assert_eq!(row(&running, 100)[4..], ["in 1 min 30 s", "-", "-"]);
        let done = json!({"id": "ftjob-1", "status": "succeeded", "model": "demo", "created_at": 0, "estimated_finish": 9,
            "finished_at": 60, "trained_tokens": 1234, "fine_tuned_model": "ft:demo"});
        assert_eq!(row(&done, 100)[3..], ["1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z", "1,234", "ft:demo"]);
    }
}
