//! The one typed configuration, from defaults, a file, the environment and flags, checked once at start.
//!
//! Called by `main`; everything else receives the values it needs. Nothing else in the crate reads the environment,
//! but for the variables of Hugging Face's programs, which `attune-hub` reads.
//! [`limits`] has the limits on requests, `retention` how long things are kept, `secrets` what no message may show,
//! `webhooks` who is told of what happens, `teachers` models of other servers, `graders` who runs the code of graders.

mod graders;
pub mod limits;
mod retention;
mod secrets;
mod teachers;
mod webhooks;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use candle_core::Device;
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format as _, Serialized, Toml};
use regex::Regex;
use serde::{Deserialize, Serialize};

pub use self::graders::Graders;
pub use self::limits::Limits;
pub use self::retention::Retention;
pub use self::secrets::Secret;
pub use self::teachers::{MaxTokensField, Teacher, TeacherPrice};
pub use self::webhooks::{EVENTS as WEBHOOK_EVENTS, Webhook};
use crate::datasets::spelling::nearest;
use crate::hub::ModelName;
pub use crate::model::device::DeviceChoice;
pub use crate::model::entry::ModelEntry;
pub use crate::model::linear::Dtype;
use crate::store::names::{VISIBLE, is_job_name, is_visible};
use crate::train::{MemoryBounds, Recomputation};

/// Silence of a worker that is longer than any piece of work, on a slow processor and with a large model.
const STUCK_AFTER: Duration = Duration::from_mins(10);
/// Fewer and a job's heartbeat would wait for its own reports.
const LEAST_CONNECTIONS: u32 = 4;
/// An idle worker looks for jobs every five seconds.
const LEAST_STUCK_AFTER: Duration = Duration::from_secs(10);

/// More than anyone waits for, and few enough to look through all of them.
const MAX_UNFINISHED_JOBS: u32 = 1_000;

/// The result of everything that reads or checks the configuration.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A setting that cannot be used; the message names it and says what to write instead.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Everything that an operator can set. Field names are the keys of `attune.toml`; `ATTUNE_` and the upper-case name
/// set the same from the environment (`ATTUNE_LISTEN`, `ATTUNE_DATA_DIR`, …); flags win over both.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the HTTP server; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address where `attune worker` tells whether it is well; `None`: nowhere. Port 0 picks a free one.
    pub worker_listen: Option<SocketAddr>,
    /// Folder for files, adapters, checkpoints and the private database.
    pub data_dir: PathBuf,
    /// Postgres to use; without it a private one runs inside `data_dir`.
    pub database_url: Option<Secret>,
    /// File with `database_url`, as secrets of containers are.
    pub database_url_file: Option<PathBuf>,
    /// Most connections of this process to the database.
    pub database_connections: u32,
    /// Base models to serve.
    pub models: Vec<ModelEntry>,
    /// Other names for models, each with the base model or the fine-tuned one that it stands for.
    pub aliases: BTreeMap<String, String>,
    /// The program that runs models of the second engine; `None`: `attune-mistralrs` beside this program or in `PATH`.
    pub second_engine: Option<PathBuf>,
    /// Where models run.
    pub device: DeviceChoice,
    /// Run fine-tune jobs inside `serve`.
    pub worker: bool,
    /// Serve the page for people at `/ui`.
    pub ui: bool,
    /// Keys that clients must send as `Authorization: Bearer …`, beside those of the database: admin keys of
    /// `organization`. With none at all the server is open, which only a loopback address allows.
    #[serde(deserialize_with = "secrets::keys")]
    pub api_keys: Vec<Secret>,
    /// File with `api_keys`, one in a line.
    pub api_keys_file: Option<PathBuf>,
    /// Organisation of callers with one of `api_keys`, or without a key on an open server: it owns files, jobs and
    /// adapters, and appears in the names of fine-tuned models.
    pub organization: String,
    /// Limits that keep one client from exhausting the server.
    pub limits: Limits,
    /// Token prices of a base model and of the models fine-tuned from it, by the base's id.
    pub prices: BTreeMap<String, Price>,
    /// Settings of training: the price of the machine, and memory.
    pub training: TrainingOptions,
    /// How long what has ended is kept.
    pub retention: Retention,
    /// Who is told of what happens.
    pub webhooks: Vec<Webhook>,
    /// Models of other servers that jobs and graders may ask, by their names.
    pub teachers: BTreeMap<String, Teacher>,
    /// Who runs the code of graders of the type `python`.
    pub graders: Graders,
    /// The currency of `prices`, `training` and `teachers`.
    pub currency: String,
    /// Log lines as JSON instead of text.
    pub log_json: bool,
}

/// Token prices, in money per million tokens.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Price {
    /// Tokens of prompts, and of inputs to embed.
    pub prompt: f64,
    /// Tokens of prompts that were found in the cache; `None`: the same as `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_prompt: Option<f64>,
    /// Tokens drawn.
    pub completion: f64,
    /// Tokens trained on.
    pub training: f64,
    /// Factor of the prices of prompts and tokens drawn for lines of batches; `None`: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<f64>,
}

impl Price {
    /// Returns the cost of a request: `cached` of its `prompt` tokens were found in the cache.
    pub(crate) fn of_request(&self, prompt: u64, cached: u64, completion: u64) -> f64 {
        let computed = prompt.saturating_sub(cached) as f64 * self.prompt;
        let cached = cached as f64 * self.cached_prompt.unwrap_or(self.prompt);
        (computed + cached + completion as f64 * self.completion) / 1e6
    }
}

/// An operator's settings for training.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingOptions {
    /// Price of an hour of the machine: estimates and jobs state their duration in money too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<f64>,
    /// Memory of the whole process, in MiB, that no job may exceed; `None`: what the machine or the container has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_mib: Option<u64>,
    /// What every job computes again in the backward pass, to need less memory; `None`: `selective`, or `full` if
    /// memory is scarce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recomputation: Option<Recomputation>,
    /// Seconds without a sign of life after which a worker counts as stuck; `None`: 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stuck_after_seconds: Option<u64>,
    /// Most jobs of an organisation that have not ended; `None`: 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unfinished_jobs: Option<u32>,
}

impl TrainingOptions {
    /// Returns the most jobs of an organisation that have not ended.
    pub fn max_unfinished_jobs(&self) -> u32 {
        self.max_unfinished_jobs.unwrap_or(MAX_UNFINISHED_JOBS)
    }

    /// Returns the time without a sign of life after which a worker counts as stuck.
    pub fn stuck_after(&self) -> Duration {
        self.stuck_after_seconds.map_or(STUCK_AFTER, Duration::from_secs)
    }

    /// Returns the settings of memory, in bytes; `limits` are those of serving, for which jobs train.
    pub fn memory(&self, limits: &Limits) -> MemoryBounds {
        let limit = self.memory_limit_mib.map(|mib| mib.saturating_mul(1 << 20));
        MemoryBounds { recomputation: self.recomputation, limit, adapter: Some(limits.adapter_device_mib << 20) }
    }
}

/// Returns the settings of the environment: the variables that begin with `ATTUNE_`, but for those that Kubernetes puts
/// into every pod of a namespace with a Service whose name begins with `attune`.
fn environment() -> Env {
    let links: Vec<String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| is_service_link(name, value))
        .map(|(name, _)| name["ATTUNE_".len()..].to_owned())
        .collect();
    Env::prefixed("ATTUNE_").filter(move |key| !links.iter().any(|link| *key == link.as_str()))
}

/// Returns `true` for a variable that tells the address of a Kubernetes Service. No setting has such a name.
fn is_service_link(name: &str, value: &str) -> bool {
    const FORM: &str = r"^ATTUNE_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$";
    static LINK: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(FORM).ok());
    let is_port = name.starts_with("ATTUNE_") && name.ends_with("_PORT");
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    is_port && is_address || LINK.as_ref().is_some_and(|link| link.is_match(name))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            worker_listen: None,
            data_dir: "data".into(),
            database_url: None,
            database_url_file: None,
            database_connections: 16,
            models: Vec::new(),
            aliases: BTreeMap::new(),
            second_engine: None,
            device: DeviceChoice::Auto,
            worker: true,
            ui: true,
            api_keys: Vec::new(),
            api_keys_file: None,
            organization: "local".into(),
            limits: Limits::default(),
            prices: BTreeMap::new(),
            training: TrainingOptions::default(),
            retention: Retention::default(),
            webhooks: Vec::new(),
            teachers: BTreeMap::new(),
            graders: Graders::default(),
            currency: "USD".into(),
            log_json: false,
        }
    }
}

impl Config {
    /// Merges defaults, `file` and the environment; flags are laid over the result by `main`, then [`Config::check`]
    /// runs.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            if !file.is_file() {
                return Err(Error(format!("configuration file {} does not exist", file.display())));
            }
            figment = figment.merge(Toml::file(file));
        }
        let mut config = figment
            .merge(environment().ignore(&["config", "log", "url", "api_key"]).split("__"))
            .extract::<Self>()
            .map_err(|error| Error(format!("configuration: {}", describe(error))))?
            .with_secrets()?;
        teachers::read_keys(&mut config.teachers)?;
        Ok(config)
    }

    /// Refuses what cannot work or is not safe, and fills in the demo model if no model is named.
    pub fn check(mut self) -> Result<Self> {
        if self.models.is_empty() {
            self.models.push(ModelEntry::new("demo", demo_model_path()?));
        }
        for (index, model) in self.models.iter().enumerate() {
            if !is_visible(&model.id) {
                return Err(Error(format!("model id {:?}: it must have {VISIBLE}", model.id)));
            }
            if is_job_name(&model.id) {
                return Err(Error(format!("model id `{}`: it must not begin with `ft:` or hold `:ft-`", model.id)));
            }
            if self.models[..index].iter().any(|other| other.id == model.id) {
                return Err(Error(format!("model id `{}` is given twice", model.id)));
            }
            let fault = |what: String| Error(format!("model `{}`: {what}", model.id));
            model.storage(&Device::Cpu).check().map_err(|error| fault(error.to_string()))?;
            model.check_answers().map_err(fault)?;
            if let Some(name) = ModelName::of_path(&model.path) {
                name.map_err(|error| fault(error.to_string()))?;
            }
        }
        self.check_aliases()?;
        if !is_visible(&self.organization) {
            return Err(Error(format!("organization {:?}: it must have {VISIBLE}", self.organization)));
        }
        if self.api_keys.iter().any(|key| key.as_str().trim().is_empty()) {
            return Err(Error("api_keys: a key is empty".into()));
        }
        self.limits.check()?;
        if self.database_connections < LEAST_CONNECTIONS {
            return Err(Error(format!("database_connections must be at least {LEAST_CONNECTIONS}")));
        }
        self.check_prices()?;
        if self.training.memory_limit_mib == Some(0) {
            return Err(Error("training: memory_limit_mib must be at least 1".into()));
        }
        if self.training.stuck_after() < LEAST_STUCK_AFTER {
            let least = LEAST_STUCK_AFTER.as_secs();
            return Err(Error(format!("training: stuck_after_seconds must be at least {least}")));
        }
        if self.training.max_unfinished_jobs == Some(0) {
            return Err(Error("training: max_unfinished_jobs must be at least 1".into()));
        }
        self.retention.check()?;
        webhooks::check(&self.webhooks)?;
        teachers::check(&self.teachers)?;
        self.graders.check()?;
        Ok(self)
    }

    /// Rejects negative or non-finite prices.
    pub fn check_prices(&self) -> Result<()> {
        for (model, price) in &self.prices {
            let (cached, batch) = (price.cached_prompt.unwrap_or_default(), price.batch.unwrap_or_default());
            let prices = [price.prompt, cached, price.completion, price.training, batch];
            if !prices.iter().all(|price| price.is_finite() && *price >= 0.0) {
                return Err(Error(format!("prices of `{model}`: every price must be a number of at least 0")));
            }
        }
        if self.training.price_per_hour.is_some_and(|price| !price.is_finite() || price < 0.0) {
            return Err(Error("training: price_per_hour must be a number of at least 0".into()));
        }
        Ok(())
    }

    /// Refuses an address that others can reach if there is no API key; `database_has_keys` says whether one was ever
    /// made.
    pub fn check_closed(&self, database_has_keys: bool) -> Result<()> {
        if !self.listen.ip().is_loopback() && self.api_keys.is_empty() && !database_has_keys {
            return Err(Error(format!(
                "refusing to listen on {} without an API key: make one (attune keys create --org ORG), set api_keys \
                 (ATTUNE_API_KEYS=…) or listen on 127.0.0.1",
                self.listen
            )));
        }
        Ok(())
    }

    fn check_aliases(&self) -> Result<()> {
        let is_base = |name: &str| self.models.iter().any(|model| model.id == name);
        for (alias, name) in &self.aliases {
            let fault = |what: &str| Error(format!("aliases: `{alias}` = `{name}`: {what}"));
            if !is_visible(alias) {
                return Err(fault(&format!("an alias must have {VISIBLE}")));
            }
            if is_base(alias) {
                return Err(fault("this is the id of a base model already"));
            }
            if self.aliases.contains_key(name) {
                return Err(fault("an alias cannot lead to another alias: name the model itself"));
            }
            if !is_base(name) && !is_job_name(name) {
                return Err(fault(
                    "an alias must lead to the id of a base model or the name of a fine-tuned one (ft:…)",
                ));
            }
        }
        Ok(())
    }
}

/// Says what is wrong with the settings, in words of the configuration, with the name that was probably meant, and
/// without a secret.
fn describe(errors: figment::Error) -> String {
    let describe = |mut error: figment::Error| {
        if let Some(text) = secrets::describe(&error) {
            return text;
        }
        error.kind = match error.kind {
            Kind::Message(message) => Kind::Message(secrets::without_quotes(&message)),
            Kind::InvalidType(found, expected) => Kind::InvalidType(found, plain_type(expected)),
            Kind::InvalidValue(found, expected) => Kind::InvalidValue(found, plain_type(expected)),
            kind => kind,
        };
        match &error.kind {
            Kind::UnknownField(name, known) => match nearest(name, known.iter().copied()) {
                Some(meant) => format!("{error}. Did you mean `{meant}`?"),
                None => error.to_string(),
            },
            _ => error.to_string(),
        }
    };
    errors.into_iter().map(describe).collect::<Vec<_>>().join("\n")
}

/// Returns the words for a type that Rust's own names stand for.
fn plain_type(expected: String) -> String {
    match expected.as_str() {
        "f32" | "f64" => "a number".into(),
        "i64" => "a whole number".into(),
        "usize" | "u64" | "u32" => "a whole number of at least 0".into(),
        _ => expected,
    }
}

/// Returns the path of the demo model: in the working directory, beside the binary, installed, or in the source tree.
fn demo_model_path() -> Result<PathBuf> {
    let beside_binary = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join("models/demo")));
    let candidates = [
        Some(PathBuf::from("models/demo")),
        beside_binary,
        Some(PathBuf::from("/usr/share/attune/models/demo")),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")),
    ];
    candidates
        .into_iter()
        .flatten()
        .find(|path| path.join("config.json").is_file())
        .ok_or_else(|| Error("no model is configured and models/demo was not found: give --model ID=PATH".into()))
}

#[cfg(test)]
mod tests;
