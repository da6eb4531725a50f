//! The private Postgres: a cluster inside the data folder, on a unix socket only, started from the installed binaries when
//! no `database_url` is given, and stopped with the server.

use std::path::Path;

use crate::Result;

/// A running private cluster; dropping it stops the server process.
#[derive(Debug)]
pub struct PrivatePostgres {}

impl PrivatePostgres {
    /// Initialises the cluster where needed and starts it; says so in the log.
    pub async fn start(data_dir: &Path) -> Result<Self> {
        let _ = data_dir;
        todo!()
    }

    /// The URL to connect to.
    pub fn url(&self) -> &str {
        todo!()
    }
}
