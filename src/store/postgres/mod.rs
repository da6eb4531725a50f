//! The private Postgres: a cluster inside the data folder, on a unix socket only, started from the installed binaries when
//! no `database_url` is given, and stopped with the server. Called by `app` and by the tests.
//!
//! - [`install`] finds the binaries and the system user that runs them (Postgres refuses to run as root).
//! - [`place`] decides where the cluster and its socket live, and locks them.
//! - [`server`] initialises, starts, watches and stops the server process.

mod install;
mod place;
mod server;

use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::{Error, Result};
use install::Installation;
use place::Place;
use server::Server;

/// The role and the database; the socket's folder is what protects them.
const NAME: &str = "attune";

/// A running private cluster; dropping it stops the server process.
#[derive(Debug)]
pub struct PrivatePostgres {
    url: String,
    // The order matters: the server stops before the locks are given up.
    _server: Server,
    place: Place,
}

impl PrivatePostgres {
    /// Initialises the cluster where needed and starts it; says so in the log.
    pub async fn start(data_dir: &Path) -> Result<Self> {
        let data_dir = data_dir.to_owned();
        let (place, server) = tokio::task::spawn_blocking(move || start(&data_dir))
            .await
            .map_err(|error| Error::Internal(format!("starting the private Postgres: {error}")))??;
        // No URL crate is needed: both folders' names are chosen here and hold no character that a URL escapes.
        let url = format!("postgres://{NAME}@localhost/{NAME}?host={}", place.socket_dir.display());
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

    /// The URL to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the cluster's files are: inside the data folder, or in a state folder where the database's user cannot reach
    /// that.
    pub fn cluster(&self) -> &Path {
        &self.place.cluster
    }
}

/// Everything up to the start of the process, which needs no runtime.
fn start(data_dir: &Path) -> Result<(Place, Server)> {
    let user = install::service_user()?;
    let place = Place::choose(data_dir, &user)?;
    let installation = match place.existing_major()? {
        Some(major) => Installation::of_major(&user, &major, &place.cluster)?,
        None => Installation::newest(&user)?,
    };
    server::stop_leftover(&place.cluster)?;
    server::initialise(&place, &installation)?;
    let server = Server::spawn(&place, installation)?;
    Ok((place, server))
}

/// Connects as the cluster's owner to `database`.
fn connect_options(socket_dir: &Path, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass().socket(socket_dir).port(server::PORT).username(NAME).database(database)
}

/// Creates the database at the first start.
async fn make_database(place: &Place) -> Result<()> {
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

/// An [`Error::Setup`] about `path`.
fn setup_error(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::Setup(format!("private PostgreSQL: cannot {what} {}: {error}", path.display()))
}

/// `path` with `suffix` added to its last part.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
