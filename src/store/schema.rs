//! Brings the database's schema up to date with the program's migrations. Called by [`Store`](super::Store) when it
//! connects, so by every command that uses the database.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::store::{Error, Result};

/// The program's migrations.
static MIGRATIONS: Migrator = sqlx::migrate!();

/// Applies the pending migrations, on a connection of its own: one may take longer than a request's statement.
pub(super) async fn bring_up_to_date(options: &PgConnectOptions) -> Result<()> {
    let unreachable = |error: sqlx::Error| {
        let place =
            options.get_socket().map_or_else(|| options.get_host().into(), |socket| socket.display().to_string());
        Error::Setup(format!("cannot connect to the database at {place}: {error}"))
    };
    let mut connection = options.connect().await.map_err(unreachable)?;
    match MIGRATIONS.run(&mut connection).await {
        Ok(()) => Ok(connection.close().await?),
        Err(MigrateError::VersionMissing(_)) => Err(newer(&mut connection).await?),
        Err(error) => Err(Error::Setup(format!("cannot bring the database's schema up to date: {error}"))),
    }
}

/// Names the migrations that the database has and the program does not know.
async fn newer(connection: &mut PgConnection) -> Result<Error> {
    let known: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    let unknown: Vec<String> = sqlx::query_scalar(
        "select lpad(version::text, greatest(4, length(version::text)), '0') || ' (' || description || ')'
           from _sqlx_migrations where version <> all($1) order by version",
    )
    .bind(known)
    .fetch_all(connection)
    .await?;
    Ok(Error::Setup(format!(
        "the database is newer than this program, attune {}, which does not know its migrations {}. Use the program that \
         made them or a later one; to go back to this one, restore a backup of the database from before the upgrade",
        env!("CARGO_PKG_VERSION"),
        unknown.join(", ")
    )))
}
