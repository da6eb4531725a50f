//! `attune estimate`: estimates the time, memory and cost of fine-tuning on a file, before it runs. Without `--url` the
//! model is loaded and measured in this process; with it the server is asked, and the uploaded file is deleted
//! afterwards.

mod lines;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::app::{by_name, open_store_beside};
use crate::config::Config;
use crate::jobs::JobSpec;
use crate::jobs::cost::Pricing;
use crate::jobs::worker::estimate::{JobEstimate, estimate_files};
use crate::model::checkpoint::Checkpoint;
use crate::model::entry::ModelEntry;
use crate::model::{BaseModel, device};
use crate::off_thread::off_thread;
use crate::train::estimate::TrainingRate;
use crate::{Error, Result, api, system};
use clap::Args;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::client::{AccountArgs, Server};
use super::output::{self, note};
use super::pull::Display;
use crate::cli::DataDirArgs;

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
    /// Train this model: ID=PATH or an id of the configuration; with --url any model of the server [default: the only
    /// one of the configuration or of the server].
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
        let estimate = match &self.url {
            Some(url) => self.ask(&Server::new(url, &self.account)?).await?,
            None => self.measure(config).await?,
        };
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
        let model = match &self.model {
            Some(model) if model.parse::<ModelEntry>().is_ok() => {
                let message = format!(
                    "--model {model}: the server at --url (or ATTUNE_URL) is asked for a model by its id; to measure a \
                     folder here, leave the server out"
                );
                return Err(Error::Setup(message));
            }
            Some(model) => model.clone(),
            None => only_base(&server.get(&["models"], &[]).await?)?,
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
    async fn measure(&self, config: Config) -> Result<Value> {
        let (config, mut entry) = self.choose(config)?;
        by_name::resolve(std::slice::from_mut(&mut entry), &Display::new()).await?;
        Checkpoint::open(&entry.path)?;
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

    /// Returns the checked configuration and the model that is meant; refuses to guess between several, or to take the
    /// demo model for a model that nobody named.
    fn choose(&self, mut config: Config) -> Result<(Config, ModelEntry)> {
        if let Some(entry) = self.model.as_deref().and_then(|model| model.parse::<ModelEntry>().ok()) {
            config.models = vec![entry];
        } else if self.model.is_none() && config.models.is_empty() {
            let file = self.file.display();
            return Err(Error::Setup(format!(
                "no model is named. Ask the server that has yours:\n  \
                 attune estimate {file} --url http://127.0.0.1:8080\n\
                 or measure a model here:\n  attune estimate {file} --model ID=PATH\n\
                 (--config takes the model of a configuration, --model demo the one that comes with Attune)"
            )));
        }
        let config = config.check()?;
        let known = || config.models.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>().join(", ");
        let entry = match &self.model {
            Some(model) if !model.contains('=') => config.models.iter().find(|entry| entry.id == *model),
            None if config.models.len() > 1 => return Err(Error::Setup(several(&known()))),
            _ => config.models.first(),
        };
        let entry = entry.cloned().ok_or_else(|| {
            Error::Setup(format!("--model: no such model; use {}, ID=PATH, or --url for a server's", known()))
        })?;
        Ok((config, entry))
    }

    fn spec(&self, model: &str) -> Result<JobSpec> {
        let name = |path: &Path| path.display().to_string();
        let validation = self.validation.as_deref().map(name);
        let body = self.body(model, &name(&self.file), validation.as_deref())?;
        api::read_spec(body.to_string().as_bytes()).map_err(|problem| Error::Setup(problem.to_string()))
    }
}

/// Words the refusal to choose between models.
fn several(known: &str) -> String {
    format!("there are several models: say which one is to be trained with --model ({known})")
}

/// Returns the id of the only base model in a server's list of models.
fn only_base(models: &Value) -> Result<String> {
    let models = models["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_base = |model: &&Value| model["root"].is_null() && model["parent"].is_null();
    let bases: Vec<&str> = models.iter().filter(is_base).filter_map(|model| model["id"].as_str()).collect();
    match bases[..] {
        [] => Err(Error::Setup("the server has no models".into())),
        [only] => Ok(only.to_owned()),
        _ => Err(Error::Setup(several(&bases.join(", ")))),
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
        if !model.trains() {
            return Err(Error::Setup(format!("{}: fine-tuning cannot change this model", model.id)));
        }
        let (pricing, memory) = (Pricing::of(&config), config.training.memory(&config.limits));
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
    for (name, value) in lines::lines(file, estimate) {
        output::line(format_args!("{name:<10}  {value}"))?;
    }
    Ok(())
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

    fn config(models: &[&str]) -> Config {
        let models = models.iter().map(|model| model.parse().expect("ID=PATH")).collect();
        Config { models, ..Config::default() }
    }

    #[test]
    fn the_model_is_the_one_that_is_named_or_the_only_one_and_never_the_demo_by_default() {
        let chosen = |arguments: &[&str], models: &[&str]| {
            let chosen = options(arguments).choose(config(models));
            chosen.map(|(_, entry)| entry.id).map_err(|error| error.to_string())
        };
        assert_eq!(chosen(&[], &["mine=a"]), Ok("mine".into()));
        assert_eq!(chosen(&["--model", "b"], &["a=x", "b=y"]), Ok("b".into()));
        assert_eq!(chosen(&["--model", "c=z"], &["a=x", "b=y"]), Ok("c".into()));
        assert_eq!(chosen(&["--model", "c=z"], &[]), Ok("c".into()));
        assert_eq!(chosen(&["--model", "demo"], &[]), Ok("demo".into()), "whoever names it means it");
        for (arguments, models, says) in [
            (&[][..], &[][..], "--model ID=PATH"),
            (&[], &[], "--url http://127.0.0.1:8080"),
            (&[], &["a=x", "b=y"], "--model (a, b)"),
            (&["--model", "c"], &["a=x", "b=y"], "use a, b"),
            (&["--model", "demo"], &["mine=a"], "use mine"),
        ] {
            let said = chosen(arguments, models).expect_err(says);
            assert!(said.contains(says), "{arguments:?} {models:?}: {said}");
        }
    }

    #[test]
    fn a_server_with_one_base_model_leaves_no_choice_and_one_with_several_asks() {
        let base = |id: &str| json!({"id": id, "owned_by": "attune"});
        let tuned = json!({"id": "ft:a:acme::1", "owned_by": "acme", "root": "a", "parent": "a"});
        let alias = json!({"id": "gpt", "owned_by": "attune", "root": "a"});
        let only = |models: Vec<Value>| only_base(&json!({"data": models})).map_err(|error| error.to_string());
        assert_eq!(only(vec![base("a"), tuned.clone(), alias]), Ok("a".into()));
        assert!(only(vec![base("a"), base("b"), tuned]).is_err_and(|said| said.contains("--model (a, b)")));
        assert!(only(Vec::new()).is_err());
    }
}
