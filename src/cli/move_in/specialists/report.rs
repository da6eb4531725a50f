//! Writes `reports/NAME.md` for each model that takes an old one's place, `reports/index.md`, and the aliases for the
//! configuration.

use std::path::PathBuf;

use super::aliases::{Names, as_toml, names, set};
use super::compare::{Comparison, silence};
use super::figures::{Difference, Figures, Share};
use super::prices::{Priced, Prices};
use super::retrain::{Plan, name, plan};
use super::specialists;
use super::traffic::{Traffic, UNIT};
use crate::cli::client::Failure;
use crate::cli::move_in::Move;
use crate::cli::move_in::folder::OldJob;
use crate::cli::output::{line, note};
use crate::costs::{self, DAYS_PER_MONTH};
use crate::{Result, format};

const REPORTS: &str = "reports";
const HOURS_PER_DAY: f64 = 24.0;
/// Characters of a text in a table.
const CELL: usize = 160;

/// Everything that a report is made of.
struct Page<'a> {
    job: &'a OldJob,
    comparison: &'a Comparison,
    plan: Plan,
    figures: Figures,
    silence: Option<String>,
    /// Tokens that the local job trained on.
    trained_tokens: Option<u64>,
    shutdown: Option<String>,
    traffic: Traffic,
    cost: Cost,
    names: Names,
}

/// What the answers cost.
struct Cost {
    currency: String,
    /// By the token, over there; `None` if the price or the tokens are not known.
    by_token: Option<ByToken>,
    price: Option<Priced>,
    /// An hour of the machine.
    hour: Option<f64>,
}

struct ByToken {
    request: f64,
    /// Requests per month from which on the machine is cheaper.
    break_even: Option<f64>,
    /// All machines, for a month.
    machines: Option<f64>,
}

/// Writes a report for each specialist, and prints the aliases for the configuration; puts them on the server, too, if
/// `set_aliases`.
pub(in crate::cli::move_in) async fn report(work: &mut Move<'_>, set_aliases: bool) -> Result<()> {
    let all = Comparison::all(work)?;
    let prices = Prices::read(work.options)?;
    let models = work.folder.models()?;
    let mut rows = Vec::new();
    let mut every: Names = Vec::new();
    for comparison in &all {
        let job = &comparison.job;
        let entry = work.ledger.carried().specialists.get(&job.id).cloned().unwrap_or_default();
        let names = names(work, job, entry.new_job.as_deref(), &comparison.new_model).await?;
        every.extend(names.iter().cloned());
        let (old, new) = (name(job), &comparison.new_model);
        let traffic = Traffic::of(work.options, work.folder, old, new, &comparison.questions, &comparison.answers)?;
        let page = Page {
            job,
            comparison,
            plan: plan(work, job)?.unwrap_or_default(),
            figures: Figures::of(comparison),
            silence: silence(work, job)?,
            trained_tokens: trained_tokens(work, entry.new_job.as_deref()).await?,
            shutdown: models.iter().find(|model| model.id == old).and_then(|model| model.shutdown_date.clone()),
            cost: Cost::of(&prices, job, &traffic, work.options.tokens_per_second),
            traffic,
            names,
        };
        let file = PathBuf::from(REPORTS).join(format!("{}.md", report_name(job, &all)));
        work.folder.write_bytes(&work.folder.root().join(&file), page.text().as_bytes())?;
        rows.push(page.row(&file));
        work.ledger.change(|carried| {
            if let Some(entry) = carried.specialists.get_mut(&job.id) {
                entry.report = Some(file);
            }
        })?;
    }
    let index = index(work, &rows, &every)?;
    let reports = work.folder.root().join(REPORTS);
    work.folder.write_bytes(&reports.join("index.md"), index.as_bytes())?;
    if every.is_empty() {
        return Ok(());
    }
    let aliases = as_toml(&every);
    work.folder.write_bytes(&reports.join("aliases.toml"), aliases.as_bytes())?;
    note(format_args!("the reports are in {}", reports.display()));
    if set_aliases {
        set(work, &every).await?;
    }
    note("with these lines in the server's configuration, and a restart, applications keep the names that they have:");
    line(aliases.trim_end())
}

/// Returns the tokens that a local job trained on; `None` if the server does not know the job any more.
async fn trained_tokens(work: &Move<'_>, job: Option<&str>) -> Result<Option<u64>> {
    let Some(job) = job else { return Ok(None) };
    match work.local.get(&["fine_tuning", "jobs", job], &[]).await {
        Ok(job) => Ok(job["trained_tokens"].as_u64()),
        Err(Failure::Refused { .. }) => Ok(None),
        Err(away) => Err(away.into()),
    }
}

/// Returns the name of a report: the job's suffix, with the job's id where another has the same.
fn report_name(job: &OldJob, all: &[Comparison]) -> String {
    let plain = |job: &OldJob| -> String {
        let suffix = job.suffix.as_deref().unwrap_or(&job.id).to_lowercase();
        suffix
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '-' })
            .collect()
    };
    let name = plain(job);
    let is_taken = all.iter().any(|other| other.job.id != job.id && plain(&other.job) == name);
    if is_taken || name == "index" { format!("{name}-{}", job.id) } else { name }
}

fn index(work: &Move<'_>, rows: &[String], names: &Names) -> Result<String> {
    let mut text = vec!["# The models that moved in\n\n".to_owned()];
    if !rows.is_empty() {
        let head = "| old model | report | accuracy of the old one | of the local base | of the new one \
                    | old and new agree | a month over there |\n|---|---|---|---|---|---|---|\n";
        text.push(head.to_owned());
        text.push(rows.concat());
    }
    let carried = work.ledger.carried();
    let mut skipped = Vec::new();
    for job in specialists(work.folder)? {
        if let Some(reason) = carried.problems.get(&job.id) {
            skipped.push(format!("- `{}`: {}\n", name(&job), cell(reason, 2000)));
        }
    }
    if !skipped.is_empty() {
        text.push(format!("\n## Not here\n\n{}", skipped.concat()));
    }
    if !names.is_empty() {
        text.push(format!(
            "\n## The old names\n\nIn the server's configuration (`attune.toml`), before its next start:\n\n\
             ```toml\n{}```\n",
            as_toml(names)
        ));
    }
    Ok(text.concat())
}

impl Cost {
    fn of(prices: &Prices, job: &OldJob, traffic: &Traffic, tokens_per_second: Option<f64>) -> Self {
        let (price, hour) = (prices.of(job), prices.hour);
        let tokens = traffic.prompt_tokens.zip(traffic.completion_tokens);
        let by_token = price.as_ref().zip(tokens).map(|(priced, (prompt_tokens, completion_tokens))| {
            let plan = costs::Plan {
                requests_per_day: traffic.requests_per_month.unwrap_or(UNIT) / DAYS_PER_MONTH,
                prompt_tokens,
                completion_tokens,
                price_per_hour: hour.unwrap_or_default(),
                hours_per_day: HOURS_PER_DAY,
                tokens_per_second,
                training_tokens_per_month: 0.0,
            };
            let costs = plan.compare(&priced.price);
            ByToken {
                request: costs.request,
                break_even: costs.break_even.filter(|_| hour.is_some()).map(|requests| requests * DAYS_PER_MONTH),
                machines: hour.map(|_| costs.own() * DAYS_PER_MONTH),
            }
        });
        Self { currency: prices.currency.clone(), by_token, price, hour }
    }

    fn money(&self, amount: f64) -> String {
        format::money(amount, &self.currency)
    }
}

impl Page<'_> {
    fn text(&self) -> String {
        let (old, new) = (name(self.job), &self.comparison.new_model);
        let mut text = vec![format!("# {}\n\n", cell(self.job.suffix.as_deref().unwrap_or(old), CELL))];
        text.push(format!("| | before | now |\n|---|---|---|\n| model | `{old}` | `{new}` |\n"));
        text.push(format!(
            "| base | `{}` | `{}` |\n| job | `{}` | trained here |\n",
            self.job.base, self.plan.base, self.job.id
        ));
        if let Some(date) = &self.shutdown {
            text.push(format!("| stops | {} | - |\n", cell(date, CELL)));
        }
        text.push(self.settings());
        text.push(self.accuracy());
        text.push(self.money());
        text.push(self.worst());
        text.push(format!("\n## The old names\n\n```toml\n{}```\n", as_toml(&self.names)));
        text.concat()
    }

    fn settings(&self) -> String {
        let plan = &self.plan;
        let mut text = vec!["\n## Training\n\n| setting | before | now | |\n|---|---|---|---|\n".to_owned()];
        text.push(format!("| method | {0} | {0} | |\n", cell(&self.job.method, CELL)));
        for row in &plan.settings {
            let cells = [&row.name, &row.before, &row.now, &row.why].map(|text| cell(text, CELL));
            text.push(format!("| {} |\n", cells.join(" | ")));
        }
        let count =
            |tokens: Option<u64>| tokens.map_or_else(|| "not known".into(), |tokens| format::count(tokens as f64));
        let (before, now) = (count(self.job.trained_tokens), count(self.trained_tokens));
        text.push(format!("| trained tokens | {before} | {now} | counted in the tokens of each base |\n"));
        text.push(format!("\n{} lines were trained on here", format::count(plan.training_lines as f64)));
        if plan.validation_lines > 0 {
            text.push(format!(", {} were held for validation", format::count(plan.validation_lines as f64)));
        }
        text.push(".\n".to_owned());
        for note in &plan.notes {
            text.push(format!("\n{}\n", cell(note, 4000)));
        }
        text.concat()
    }

    fn accuracy(&self) -> String {
        let figures = &self.figures;
        let mut text = vec!["\n## Accuracy\n\n".to_owned()];
        if figures.prompts == 0 {
            text.push("Not compared: run with `--compare`, on a job that has validation prompts.\n".to_owned());
            return text.concat();
        }
        let from = if self.plan.held_out > 0 { "held back from the training file" } else { "of the validation file" };
        text.push(format!(
            "{} prompts {from}, temperature 0. An answer passes if it is {}.\n\n\
             | model | share of answers that pass |\n|---|---|\n",
            figures.prompts,
            figures.rule.describe()
        ));
        let shown = |share: Option<Share>| share.map_or_else(|| "not asked".to_owned(), |share| share.shown());
        text.push(format!("| the old model | {} |\n", shown(figures.old)));
        text.push(format!("| the local base, before | {} |\n", shown(figures.base)));
        text.push(format!("| the new model, after | {} |\n", shown(figures.new)));
        text.push(format!("| old and new agree | {} |\n", shown(figures.agreement)));
        if figures.old.is_none() {
            let reason = self.silence.as_deref().unwrap_or("it was not asked (`--ask-old` does)");
            text.push(format!("\nOf the old model: {}. The answers of its file stand alone.\n", cell(reason, 400)));
        } else if let Some(reason) = &self.silence {
            text.push(format!("\nThe old model answered some prompts only: {}.\n", cell(reason, 400)));
        }
        let tell = |text: &mut Vec<String>, first: &str, difference: Option<Difference>| {
            if let Some(Difference { only_first, only_second, p_value }) = difference {
                text.push(format!(
                    "\n{first} alone was right on {only_first} prompts, the new model alone on {only_second} \
                     (McNemar's exact test, two-sided: p {}).\n",
                    probability(p_value)
                ));
            }
        };
        tell(&mut text, "The local base", figures.base_and_new);
        tell(&mut text, "The old model", figures.old_and_new);
        text.push(format!("\nThe grader, for an eval whose items have `expected`: `{}`\n", figures.rule.grader()));
        text.concat()
    }

    fn money(&self) -> String {
        let (cost, traffic) = (&self.cost, &self.traffic);
        let mut text = vec!["\n## Cost\n\n".to_owned()];
        let requests = traffic.requests_per_month;
        text.push(match requests {
            Some(requests) => format!("{} requests per month", format::count(requests)),
            None => format!("For every {} requests", format::count(UNIT)),
        });
        if let Some((prompt, completion)) = traffic.prompt_tokens.zip(traffic.completion_tokens) {
            text.push(format!(
                ", {} tokens of prompt and {} of answer each",
                format::count(prompt),
                format::count(completion)
            ));
        }
        text.push(format!(" ({}).\n\n", cell(&traffic.source, 400)));
        let month = if requests.is_some() { "a month" } else { "these requests" };
        text.push(match (&cost.by_token, &cost.price) {
            (Some(by_token), Some(priced)) => format!(
                "- Over there: {} {month}, {} a request (prices of {})\n",
                cost.money(by_token.request * requests.unwrap_or(UNIT)),
                cost.money(by_token.request),
                cell(&priced.source, 400)
            ),
            (None, Some(_)) => "- Over there: not known, since no answer has told its tokens\n".into(),
            (_, None) => format!("- Over there: not known; {}\n", Prices::hint(self.job)),
        });
        if let (Some(tokens), Some(priced)) = (self.job.trained_tokens, &cost.price) {
            let training = tokens as f64 * priced.price.training / 1e6;
            text.push(format!("- Training over there, at the time: {}\n", cost.money(training)));
        }
        let Some(hour) = cost.hour else {
            text.push(
                "- A machine of one's own: not known; set --price-per-hour, or price_per_hour in [training]\n"
                    .to_owned(),
            );
            return text.concat();
        };
        if let Some(machines) = cost.by_token.as_ref().and_then(|by_token| by_token.machines) {
            text.push(format!(
                "- A machine of one's own at {} an hour, all day: {} a month, whatever else it serves\n",
                cost.money(hour),
                cost.money(machines)
            ));
        }
        if let Some(by_token) = &cost.by_token {
            text.push(match by_token.break_even {
                Some(requests) => format!("- Break-even: {} requests per month\n", format::count(requests)),
                None => "- Break-even: none, by the token is cheaper at any number that the machine answers\n".into(),
            });
        }
        text.concat()
    }

    fn worst(&self) -> String {
        if self.figures.worst.is_empty() {
            return String::new();
        }
        let mut text = vec![
            "\n## Where the new model is wrong\n\n\
             | line | prompt | expected | old | base | new |\n|---|---|---|---|---|---|\n"
                .to_owned(),
        ];
        for worst in &self.figures.worst {
            let old = worst.old.as_deref().unwrap_or("-");
            let texts =
                [worst.prompt.as_str(), &worst.expected, old, &worst.base, &worst.new].map(|text| cell(text, CELL));
            text.push(format!("| {} | {} |\n", worst.line, texts.join(" | ")));
        }
        text.concat()
    }

    /// The row of the index.
    fn row(&self, file: &std::path::Path) -> String {
        let share = |share: Option<Share>| share.map_or_else(|| "-".to_owned(), |share| share.shown());
        let file = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let figures = &self.figures;
        let month = match (&self.cost.by_token, self.traffic.requests_per_month) {
            (Some(by_token), Some(requests)) => self.cost.money(by_token.request * requests),
            (Some(by_token), None) => {
                format!("{} per {}", self.cost.money(by_token.request * UNIT), format::count(UNIT))
            }
            (None, _) => "-".into(),
        };
        let [old, base, new, agreement] = [figures.old, figures.base, figures.new, figures.agreement].map(share);
        format!("| `{}` | [{file}]({file}) | {old} | {base} | {new} | {agreement} | {month} |\n", name(self.job))
    }
}

/// Formats `= 0.031`, or `< 0.001`.
fn probability(p_value: f64) -> String {
    if p_value < 0.001 { "< 0.001".into() } else { format!("= {p_value:.3}") }
}

/// Writes a text into a cell of a table, shortened to `most` characters, so that it cannot be taken for markup.
fn cell(text: &str, most: usize) -> String {
    let text = text.trim();
    let mut shown: String =
        text.chars().take(most).map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if text.chars().count() > most {
        shown.push('…');
    }
    ["\\", "|", "<", "`", "*", "_", "["].iter().fold(shown, |text, mark| text.replace(mark, &format!("\\{mark}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_holds_no_markup_of_others() {
        assert_eq!(cell("a|b\n<script> `x` *y*", 160), "a\\|b \\<script> \\`x\\` \\*y\\*");
        assert_eq!(cell("abcdef", 3), "abc…");
    }
}
