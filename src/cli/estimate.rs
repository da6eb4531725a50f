//! `attune estimate`: estimates the time, memory and cost of fine-tuning on a file, before it runs. Without `--url` the
//! model is loaded and measured in this process; with it the server is asked, and the uploaded file is deleted
//! afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::app::open_store_beside;
use crate::config::Config;
use crate::jobs::JobSpec;
use crate::jobs::cost::Pricing;
use crate::jobs::worker::estimate::{JobEstimate, estimate_files};
use crate::model::entry::ModelEntry;
use crate::model::{BaseModel, device, folder};
use crate::off_thread::off_thread;
use crate::train::Recomputation;
use crate::train::estimate::TrainingRate;
use crate::{Error, Result, api, format, system};
use clap::Args;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::client::{AccountArgs, Server};
use super::output::{self, note};
use crate::cli::DataDirArgs;

/// The warning of an estimate that nobody has named a model for.
const DEMO_MODEL: &str = "no server and no model was named, so these figures are for the demo model and not for yours: ask \
                          your server with --url (or ATTUNE_URL), or name the model with --model ID=PATH (or --config)";

/// The flags of `attune estimate`.
#[derive(Debug, Args)]
pub(super) struct EstimateOptions {
    #[command(flatten)]
    place: DataDirArgs,
    /// The training file (JSON Lines).
    file: PathBuf,
    /// Validate on this file at the end of each epoch.
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// Train this base model: an id of the configuration or ID=PATH; with --url any model of the server [default: the
    /// first].
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Set a hyperparameter, such as `n_epochs=3` or `rank=32`; may be given more than once.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// Train with this method.
    #[arg(long, default_value = "supervised")]
    method: String,
    /// Ask this server instead of loading the model here.
    #[arg(long, env = "ATTUNE_URL")]
    url: Option<String>,
    #[command(flatten)]
    account: AccountArgs,
    /// Print the estimate as JSON.
    #[arg(long)]
    json: bool,
}

impl EstimateOptions {
    /// Returns the flags that say where configuration and database are.
    pub(super) fn place(&self) -> &DataDirArgs {
        &self.place
    }

    /// Prints the estimate.
    pub(super) async fn run(self, config: Config) -> Result<()> {
        let by_default = self.url.is_none() && self.model.is_none() && config.models.is_empty();
        let mut estimate = match &self.url {
            Some(url) => self.ask(&Server::new(url, &self.account)?).await?,
            None => self.measure(config).await?,
        };
        if by_default {
            note(format_args!("attune: {DEMO_MODEL}"));
            if let Some(warnings) = estimate["warnings"].as_array_mut() {
                warnings.insert(0, DEMO_MODEL.into());
            }
        }
        if self.json {
            output::line(format_args!("{estimate:#}"))?;
        } else {
            print(&self.file, &estimate)?;
        }
        Ok(())
    }

    /// Returns the body of the request that would create the job.
    fn body(&self, model: &str, training_file: &str, validation_file: Option<&str>) -> Result<Value> {
        let mut settings = Map::new();
        for setting in &self.settings {
            let (name, value) = setting
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| Error::Setup(format!("--set {setting}: use NAME=VALUE, for example n_epochs=3")))?;
            // A value that is not JSON, such as `auto`, is text.
            settings.insert(name.into(), serde_json::from_str(value).unwrap_or_else(|_| value.into()));
        }
        let method = &self.method;
        Ok(json!({
            "model": model,
            "training_file": training_file,
            "validation_file": validation_file,
            "method": {"type": method, method: {"hyperparameters": settings}},
        }))
    }

    /// Uploads the files, asks the server for the estimate, and deletes the files again.
    async fn ask(&self, server: &Server) -> Result<Value> {
        let model = if let Some(model) = &self.model {
            model.clone()
        } else {
            let models = server.get(&["models"], &[]).await?;
            let first = models["data"][0]["id"].as_str();
            first.ok_or_else(|| Error::Setup("the server has no models".into()))?.to_owned()
        };
        let mut files = Vec::new();
        for file in std::iter::once(&self.file).chain(&self.validation) {
            match upload(server, file).await {
                Ok(id) => files.push(id),
                Err(error) => {
                    forget(server, &files).await;
                    return Err(error);
                }
            }
        }
        let body = self.body(&model, &files[0], files.get(1).map(String::as_str));
        let asked = match body {
            Ok(body) => {
                let request = server.request(Method::POST, &["fine_tuning", "jobs", "estimate"], &[]).json(&body);
                server.answer(request).await.map_err(Error::from)
            }
            Err(error) => Err(error),
        };
        forget(server, &files).await;
        asked
    }

    /// Loads the model and estimates on this machine.
    async fn measure(&self, mut config: Config) -> Result<Value> {
        if let Some(entry) = self.model.as_deref().and_then(|model| model.parse::<ModelEntry>().ok()) {
            config.models = vec![entry];
        }
        let config = config.check()?;
        let entry = match &self.model {
            Some(model) if !model.contains('=') => config.models.iter().find(|entry| entry.id == *model),
            _ => config.models.first(),
        };
        let entry = entry.cloned().ok_or_else(|| {
            let known: Vec<&str> = config.models.iter().map(|entry| entry.id.as_str()).collect();
            Error::Setup(format!("--model: no such model; use {}, ID=PATH, or --url for a server's", known.join(", ")))
        })?;
        folder::check(&entry.path)?;
        let spec = self.spec(&entry.id)?;
        let training = open(&self.file)?;
        let validation = self.validation.as_deref().map(open).transpose()?;
        let store = match open_store_beside(&config).await {
            Ok(store) => Some(store),
            Err(error) => {
                note(format_args!("attune: the machine is measured anew, without what is known of it: {error}"));
                None
            }
        };
        let (machine, id) = (system::name(), entry.id.clone());
        let rates = match &store {
            Some((store, _)) => store.training_rates(&machine, &id).await?,
            None => BTreeMap::new(),
        };
        note(format_args!("loading {} and reading {} …", entry.id, self.file.display()));
        let work = WorkAnswer { entry, config, spec, training, validation, rates };
        let (spec, estimate, measured) = off_thread("the estimating thread", move || work.estimate()).await?;
        if let (Some((store, _)), Some((setup, rate))) = (&store, measured) {
            store.add_training_rate(&machine, &id, &setup, rate).await?;
        }
        api::show_estimate(spec, estimate).map_err(|problem| Error::Setup(problem.to_string()))
    }

    fn spec(&self, model: &str) -> Result<JobSpec> {
        let name = |path: &Path| path.display().to_string();
        let validation = self.validation.as_deref().map(name);
        let body = self.body(model, &name(&self.file), validation.as_deref())?;
        api::read_spec(body.to_string().as_bytes()).map_err(|problem| Error::Setup(problem.to_string()))
    }
}

/// The inputs of the estimate, for the thread that computes it.
struct WorkAnswer {
    entry: ModelEntry,
    config: Config,
    spec: JobSpec,
    training: std::fs::File,
    validation: Option<std::fs::File>,
    rates: BTreeMap<String, TrainingRate>,
}

/// A measured training rate with the name of its setup; `None` if nothing was measured.
type Measured = Option<(String, TrainingRate)>;

impl WorkAnswer {
    fn estimate(self) -> Result<(JobSpec, JobEstimate, Measured)> {
        let Self { entry, config, spec, training, validation, rates } = self;
        let model = Arc::new(BaseModel::load(&entry, &device::select(config.device)?)?);
        let (pricing, memory) = (Pricing::of(&config), config.training.memory());
        let below_data = config.data_dir.join("tmp");
        let scratch = if below_data.is_dir() { below_data } else { std::env::temp_dir() };
        let (estimate, measured) =
            estimate_files(model, &spec, (training, validation), rates, &pricing, memory, scratch)?;
        Ok((spec, estimate, measured))
    }
}

fn open(path: &Path) -> Result<std::fs::File> {
    std::fs::File::open(path).map_err(Error::io(format!("read {}", path.display())))
}

/// Uploads a file for training and returns its id.
async fn upload(server: &Server, path: &Path) -> Result<String> {
    let fault = || Error::io(format!("read {}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(fault())?;
    let length = file.metadata().await.map_err(fault())?.len();
    // A file that grows meanwhile is cut where it ended: the length is announced first.
    let content = reqwest::Body::wrap_stream(ReaderStream::new(file.take(length)));
    // The file's own name does not matter: it is gone after the estimate.
    let content = Part::stream_with_length(content, length).file_name("estimate.jsonl");
    let form = Form::new().text("purpose", "fine-tune").part("file", content);
    let file = server.answer(server.request(Method::POST, &["files"], &[]).multipart(form)).await?;
    let id = file["id"].as_str().ok_or_else(|| Error::Setup("the server's answer to the upload has no id".into()))?;
    Ok(id.to_owned())
}

/// Deletes uploaded files; a failure is printed, not returned.
async fn forget(server: &Server, files: &[String]) {
    for id in files {
        if let Err(error) = server.answer(server.request(Method::DELETE, &["files", id], &[])).await {
            note(format_args!("attune: the uploaded file {id} could not be deleted: {}", Error::from(error)));
        }
    }
}

fn print(file: &Path, estimate: &Value) -> Result<()> {
    for (name, value) in lines(file, estimate) {
        output::line(format_args!("{name:<10}  {value}"))?;
    }
    Ok(())
}

/// Returns the estimate as lines of name and value.
fn lines(file: &Path, estimate: &Value) -> Vec<(&'static str, String)> {
    let mut lines = training_lines(file, estimate);
    lines.push(("memory", memory_line(estimate)));
    let cost = &estimate["cost"];
    let currency = cost["currency"].as_str().unwrap_or_default();
    for (name, what) in [("machine", "machine time"), ("tokens", "tokens")] {
        if let Some(amount) = cost[name].as_f64() {
            lines.push(("cost", format!("{} for {what}", format::money(amount, currency))));
        }
    }
    for warning in estimate["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        lines.push(("warning", warning.to_owned()));
    }
    lines
}

/// Returns the lines about what is trained, how, and for how long.
fn training_lines(file: &Path, estimate: &Value) -> Vec<(&'static str, String)> {
    let number = |name: &str| estimate[name].as_f64().unwrap_or_default();
    let count = |name: &str| format::count(number(name));
    let settings = &estimate["hyperparameters"];
    let setting = |name: &str| settings[name].as_f64().unwrap_or_default();
    let rate = setting("learning_rate") * settings["learning_rate_multiplier"].as_f64().unwrap_or(1.0);
    vec![
        ("model", estimate["model"].as_str().unwrap_or_default().to_owned()),
        ("file", format!("{}: {} examples", file.display(), count("examples"))),
        (
            "tokens",
            format!("{} an epoch, {} of them learned", count("tokens_per_epoch"), count("target_tokens_per_epoch")),
        ),
        (
            "training",
            format!(
                "{} epochs, {} tokens, {} steps of {} examples",
                count("epochs"),
                count("trained_tokens"),
                count("steps"),
                setting("batch_size")
            ),
        ),
        ("settings", format!("learning rate {rate:.2e}, rank {}, alpha {}", setting("rank"), setting("alpha"))),
        (
            "duration",
            format!(
                "{} at {} tokens per second",
                format::duration(number("duration_seconds")),
                count("tokens_per_second")
            ),
        ),
    ]
}

/// Describes the memory at the peak of training, and what is computed again to need less.
fn memory_line(estimate: &Value) -> String {
    let memory = |name: &str| format::bytes(estimate["memory_bytes"][name].as_u64().unwrap_or_default());
    // A server that does not know the word yet computes nothing again.
    let recomputation = Recomputation::deserialize(&estimate["recomputation"]).unwrap_or_default();
    format!(
        "{} at the peak: {} of the process, {} of the adapter, {} of activations, {} of the loss, \
         {} of the allocator; {}",
        memory("peak"),
        memory("process"),
        memory("adapter"),
        memory("activations"),
        memory("loss"),
        memory("allocator"),
        recomputation.in_words()
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: EstimateOptions,
    }

    fn options(arguments: &[&str]) -> EstimateOptions {
        Line::try_parse_from([&["estimate", "train.jsonl"], arguments].concat()).expect("arguments").options
    }

    #[test]
    fn settings_become_the_body_of_a_job_with_its_rules() {
        let spec = options(&["--set", "n_epochs=2", "--set", "rank=auto"]).spec("demo").expect("fine");
        assert_eq!((spec.hyperparameters.n_epochs, spec.hyperparameters.rank), (Some(2), None));
        for (setting, says) in [("n_epochs=99", "between 1 and 50"), ("n_epochs", "NAME=VALUE"), ("rank=many", "auto")]
        {
            let said = options(&["--set", setting]).spec("demo").expect_err(setting).to_string();
            assert!(said.contains(says), "{setting}: {said}");
        }
        assert!(options(&["--method", "sorcery"]).spec("demo").is_err());
    }
}
