//! All SQL but the job queue's: uploaded files, fine-tuned models; the private Postgres; blobs on disk. Called by `api`
//! and `jobs`.

pub mod blobs;
pub mod files;
pub mod models;
pub mod postgres;

use sqlx::PgPool;

use crate::Result;

/// The database pool and the blobs: the handle that everything else asks for stored things. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) pool: PgPool,
    /// Contents of files, adapters and checkpoints.
    pub blobs: blobs::Blobs,
}

impl Store {
    /// Connects, applies pending migrations, and opens the blob folder below `data_dir`.
    pub async fn connect(database_url: &str, data_dir: &std::path::Path) -> Result<Self> {
        let _ = (database_url, data_dir);
        todo!()
    }

    /// True while the database answers.
    pub async fn is_ready(&self) -> bool {
        todo!()
    }
}
