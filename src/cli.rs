//! The command line: parses arguments, sets up logging, and calls what a command needs. Called by `main`; larger
//! commands are in files of their own.

mod client;
mod costs;
mod embed;
mod estimate;
mod export;
mod health;
mod jobs;
mod keys;
mod log;
mod models;
mod move_in;
mod output;
mod progress;
mod pull;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use self::costs::CostsOptions;
use self::embed::EmbedOptions;
use self::estimate::EstimateOptions;
use self::export::ExportOptions;
use self::jobs::JobsCommand;
use self::keys::KeysCommand;
use self::models::ModelsOptions;
use self::move_in::MoveInCommand;
use self::pull::PullOptions;
use crate::app::{App, open_store};
use crate::config::{Config, Graders, Secret};
use crate::model::device::DeviceChoice;
use crate::model::entry::ModelEntry;
use crate::{Error, Result, api, descriptors, sandbox};
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const DEFAULT_LOG: &str = "info";

/// Serves language models and embeddings behind OpenAI's API, and fine-tunes them.
#[derive(Debug, Parser)]
#[command(name = "attune", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log this, for example `info`, `attune=debug` or `warn,attune::api=info`.
    #[arg(long, env = "ATTUNE_LOG", default_value = DEFAULT_LOG, global = true)]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve HTTP and run fine-tune jobs.
    Serve(ServeOptions),
    /// Run fine-tune jobs only.
    Worker(WorkerOptions),
    /// Ask the server with this configuration whether it is ready: 0 if it is, for health checks.
    Health(HealthOptions),
    /// Download a model of a hub, or what is missing of it, and print where it is.
    Pull(PullOptions),
    /// List the models that are there, what each takes in memory, and whether it serves and trains.
    Models(ModelsOptions),
    /// Bring the database up to date.
    Migrate(Options),
    /// Create, list and revoke API keys. The server may run meanwhile, on the same data folder or database.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Estimate what fine-tuning on a file takes: tokens, steps, time, memory and money.
    Estimate(Box<EstimateOptions>),
    /// List and follow the fine-tune jobs of a running server.
    Jobs {
        #[command(subcommand)]
        command: JobsCommand,
    },
    /// Make vectors of the texts of a file on a running server. A run that was ended goes on where it was.
    Embed(EmbedOptions),
    /// Write a fine-tuned model as a model of its own, its adapter added to the weights. The server may run meanwhile.
    Export(ExportOptions),
    /// Bring what you have elsewhere over to a running server.
    MoveIn {
        #[command(subcommand)]
        command: MoveInCommand,
    },
    /// Compare the cost of your own machine with per-token prices and print the break-even requests per day.
    Costs(CostsOptions),
    /// Become the interpreter of graders, in a sandbox; servers start it.
    #[command(hide = true)]
    GraderSandbox {
        /// What the sandbox leaves, as JSON.
        plan: String,
    },
    /// Print the OpenAPI document.
    Openapi {
        /// Compare the document with this file instead, and fail if they differ.
        #[arg(long)]
        check: Option<PathBuf>,
    },
}

/// Flags that say where the configuration and the database are.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDirArgs {
    /// Read the configuration from this file.
    #[arg(long, env = "ATTUNE_CONFIG")]
    config: Option<PathBuf>,
    /// Keep files, adapters, checkpoints and the private database in this folder [default: data].
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Use this Postgres instead of a private one inside the data folder.
    #[arg(long)]
    database_url: Option<Secret>,
}

/// Flags for settings that the configuration file and the environment (`ATTUNE_DATA_DIR`, …) can hold too.
#[derive(Debug, Args)]
struct Options {
    #[command(flatten)]
    place: DataDirArgs,
    /// Serve this base model; may be given more than once [default: demo=models/demo].
    #[arg(long = "model", value_name = "ID=PATH|ID=hf:OWNER/NAME")]
    models: Vec<ModelEntry>,
    /// Run models on this device: auto, cpu or cuda:N [default: auto].
    #[arg(long)]
    device: Option<DeviceChoice>,
}

#[derive(Debug, Args)]
struct ServeOptions {
    #[command(flatten)]
    options: Options,
    /// Listen on this address; port 0 picks a free one [default: 127.0.0.1:8080].
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Do not run fine-tune jobs in this process.
    #[arg(long)]
    no_worker: bool,
}

#[derive(Debug, Args)]
struct WorkerOptions {
    #[command(flatten)]
    options: Options,
    /// Answer /health, /ready and /metrics at this address, and nothing else [default: listen nowhere].
    #[arg(long)]
    listen: Option<SocketAddr>,
}

impl WorkerOptions {
    fn load(self) -> Result<Config> {
        let mut config = self.options.load()?;
        config.worker_listen = self.listen.or(config.worker_listen);
        config.worker = true;
        // A worker serves nobody, so the check must not ask for an API key.
        config.listen = Config::default().listen;
        // Servers alone run graders.
        config.graders = Graders::default();
        Ok(config.check()?)
    }
}

#[derive(Debug, Args)]
struct HealthOptions {
    #[command(flatten)]
    place: DataDirArgs,
    /// Ask at this address, as given to `serve` or `worker` [default: 127.0.0.1:8080].
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Ask the worker, at `worker_listen`, instead of the server.
    #[arg(long)]
    worker: bool,
}

impl HealthOptions {
    /// Returns the address to ask.
    fn address(self) -> Result<SocketAddr> {
        let config = self.place.load()?;
        let configured = if self.worker { config.worker_listen } else { Some(config.listen) };
        self.listen.or(configured).ok_or_else(|| {
            Error::Setup("the worker listens nowhere: set worker_listen (ATTUNE_WORKER_LISTEN=127.0.0.1:8081)".into())
        })
    }
}

impl DataDirArgs {
    /// Loads the configuration: defaults, file, environment, then these flags.
    fn load(&self) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(data_dir) = &self.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        if self.database_url.is_some() {
            config.database_url.clone_from(&self.database_url);
        }
        Ok(config)
    }
}

impl Options {
    /// Loads the configuration: defaults, file, environment, then these flags.
    fn load(self) -> Result<Config> {
        let mut config = self.place.load()?;
        if !self.models.is_empty() {
            config.models = self.models;
        }
        if let Some(device) = self.device {
            config.device = device;
        }
        Ok(config)
    }
}

/// Runs the command that the program's arguments ask for, and returns its exit status.
pub fn run() -> ExitCode {
    match start(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            if !output::is_reader_gone(&error) {
                output::note(format_args!("attune: {error}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    // The log of the database's start would hide the few lines that a short command prints.
    let quiet = if cli.log == DEFAULT_LOG { "warn" } else { &cli.log };
    match cli.command {
        Command::GraderSandbox { plan } => {
            sandbox::child::enter(&plan).map(|never| match never {}).map_err(Error::Setup)
        }
        Command::Openapi { check } => openapi(check),
        Command::Jobs { command } => return block_on(quiet, false, command.run()),
        Command::Costs(options) => options.run(),
        Command::Pull(options) => block_on(quiet, false, options.run()),
        Command::Embed(options) => block_on(quiet, false, options.run()),
        Command::MoveIn { command } => block_on(quiet, false, command.run()),
        Command::Models(options) => options.run(),
        Command::Estimate(options) => {
            let config = options.place().load()?;
            block_on(quiet, config.log_json, options.run(config))
        }
        Command::Export(options) => {
            let config = options.place().load()?;
            block_on(quiet, config.log_json, options.run(config))
        }
        Command::Serve(ServeOptions { options, listen, no_worker }) => {
            let mut config = options.load()?;
            config.listen = listen.unwrap_or(config.listen);
            config.worker &= !no_worker;
            let config = config.check()?;
            block_on(&cli.log, config.log_json, serve(config))
        }
        Command::Worker(options) => {
            let config = options.load()?;
            block_on(&cli.log, config.log_json, work(config))
        }
        Command::Health(options) => {
            let address = options.address()?;
            block_on(quiet, false, health::ask(address))
        }
        Command::Migrate(options) => {
            let config = options.load()?;
            block_on(&cli.log, config.log_json, migrate(config))
        }
        Command::Keys { command } => {
            let config = command.place().load()?;
            block_on(quiet, config.log_json, command.run(config))
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

fn block_on<T>(log: &str, json: bool, work: impl Future<Output = Result<T>>) -> Result<T> {
    let _log = log::start(log, json)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("start the async runtime"))?;
    let result = runtime.block_on(work);
    // Blocking work that has not ended by then must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

async fn serve(config: Config) -> Result<()> {
    let shutdown = stop_on_signals()?;
    descriptors::raise_limit();
    let listener = bind(config.listen).await?;
    let Some(app) = until(&shutdown, Box::pin(App::build(config))).await? else { return Ok(()) };
    app.run(listener, shutdown).await
}

async fn work(config: Config) -> Result<()> {
    let shutdown = stop_on_signals()?;
    descriptors::raise_limit();
    let listener = match config.worker_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let Some(app) = until(&shutdown, Box::pin(App::build(config))).await? else { return Ok(()) };
    app.work(listener, shutdown).await
}

/// Listens on `address`, before models are loaded, so that an address in use is reported at once.
async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(Error::io(format!("listen on {address}")))
}

async fn migrate(config: Config) -> Result<()> {
    open_store(&config).await?;
    output::line("the database is up to date")
}

/// Returns the outcome of `work`; `None` if a signal came first.
async fn until<T>(shutdown: &CancellationToken, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    tokio::select! {
        result = work => result.map(Some),
        () = shutdown.cancelled() => Ok(None),
    }
}

fn stop_on_signals() -> Result<CancellationToken> {
    let listen = |kind| signal(kind).map_err(Error::io("listen to signals"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        tracing::info!("stopping");
    });
    Ok(shutdown)
}

fn openapi(check: Option<PathBuf>) -> Result<()> {
    let document = api::document_text()?;
    let Some(file) = check else {
        return output::line(document.trim_end());
    };
    let committed = std::fs::read_to_string(&file).map_err(Error::io(format!("read {}", file.display())))?;
    if committed == document {
        return Ok(());
    }
    let file = file.display();
    Err(Error::Setup(format!("{file} differs from the routes: write it anew with `attune openapi > {file}`")))
}
