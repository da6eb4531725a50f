//! The private Postgres: a cluster inside the data folder, on a unix socket only, started from the installed binaries
//! when no `database_url` is given, and stopped with the server. Called by `app` and by the tests.
//!
//! - [`install`] finds the binaries and the system user that runs them (Postgres refuses to run as root).
//! - [`layout`] decides where the cluster lives, and locks it; [`socket`] where its socket is.
//! - [`server`] initialises, starts, watches and stops the server process.

mod install;
mod layout;
mod server;
mod socket;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::off_thread::off_thread;
use crate::store::{Error, Result};
use install::Installation;
use layout::DataLayout;
use server::Server;

/// The role and the database; the socket's folder protects them.
const NAME: &str = "attune";
/// How long a command waits for a server that is just starting or stopping on the same folder.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between its attempts.
const ATTACH_PAUSE: Duration = Duration::from_millis(100);

/// A running private cluster; dropping it stops the server process.
#[derive(Debug)]
pub struct PrivatePostgres {
    url: String,
    // The order matters: the server stops before the locks are given up.
    _server: Server,
    place: DataLayout,
}

impl PrivatePostgres {
    /// Initialises the cluster if there is none and starts it; says so in the log.
    pub async fn start(data_dir: &Path) -> Result<Self> {
        let data_dir = data_dir.to_owned();
        let (place, server) = off_thread("starting the private Postgres", move || start(&data_dir)).await?;
        let url = url(&place.socket_dir);
        server.wait_until_ready(&place).await?;
        make_database(&place).await?;
        tracing::info!(
            "the private PostgreSQL {} is running in {} (socket in {})",
            server.major(),
            place.cluster.display(),
            place.socket_dir.display()
        );
        Ok(Self { url, _server: server, place })
    }

    /// For commands beside a server: the URL of the cluster that runs on the folder, else the cluster, started for as
    /// long as the value lives.
    pub async fn attach_or_start(data_dir: &Path) -> Result<(String, Option<Self>)> {
        let deadline = tokio::time::Instant::now() + ATTACH_TIMEOUT;
        loop {
            if let Some(socket_dir) = layout::socket_of_running(data_dir)
                && let Ok(connection) = connect_options(&socket_dir, NAME).connect().await
            {
                // The answer is no more than a hint: the server may stop at any time.
                let _ = connection.close().await;
                return Ok((url(&socket_dir), None));
            }
            match Self::start(data_dir).await {
                Ok(started) => return Ok((started.url.clone(), Some(started))),
                // A server that holds the folder is about to answer, or to let it go.
                Err(Error::FolderInUse(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(ATTACH_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the URL to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the folder of the cluster's files: inside the data folder, or in a state folder where the database's
    /// user cannot reach that.
    pub fn cluster(&self) -> &Path {
        &self.place.cluster
    }
}

/// Everything up to the start of the process, which needs no runtime.
fn start(data_dir: &Path) -> Result<(DataLayout, Server)> {
    let user = install::service_user()?;
    let place = DataLayout::choose(data_dir, &user)?;
    let installation = match place.existing_major()? {
        Some(major) => Installation::of_major(&user, &major, &place.cluster)?,
        None => Installation::newest(&user)?,
    };
    server::stop_leftover(&place.cluster)?;
    server::initialise(&place, &installation)?;
    let server = Server::spawn(&place, installation)?;
    Ok((place, server))
}

/// No URL crate is needed: the folder's name is chosen here and holds no character that a URL escapes.
fn url(socket_dir: &Path) -> String {
    format!("postgres://{NAME}@localhost/{NAME}?host={}", socket_dir.display())
}

/// Returns the options to connect as the cluster's owner to `database`.
fn connect_options(socket_dir: &Path, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass().socket(socket_dir).port(server::PORT).username(NAME).database(database)
}

/// Creates the database at the first start.
async fn make_database(place: &DataLayout) -> Result<()> {
    let mut connection = connect_options(&place.socket_dir, "postgres").connect().await?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(NAME)
        .fetch_one(&mut connection)
        .await?;
    if !exists {
        sqlx::query("create database attune").execute(&mut connection).await?;
    }
    Ok(connection.close().await?)
}

/// Makes an [`Error::Setup`] about `path`.
fn setup_error(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::Setup(format!("private PostgreSQL: cannot {what} {}: {error}", path.display()))
}

/// Returns `path` with `suffix` added to its last part.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Writes a file whole or not at all: half a path would point elsewhere.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let draft = beside(path, ".new");
    std::fs::write(&draft, content)
        .and_then(|()| std::fs::rename(&draft, path))
        .map_err(|error| setup_error("write", path, &error))
}
