//! Uploaded and produced files: one row each, the content in the blob `files/{id}`.

use crate::Result;
use crate::store::Store;

/// A file as clients see it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct File {
    /// `file-…`
    pub id: String,
    /// The owner.
    pub organization: String,
    /// The name that the uploader gave.
    pub filename: String,
    /// `fine-tune`, `fine-tune-results`, …
    pub purpose: String,
    /// Size of the content.
    pub bytes: i64,
    /// Unix seconds.
    pub created_at: i64,
}

/// What a new file is called and for.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// The owner.
    pub organization: String,
    /// The name that the uploader gave.
    pub filename: String,
    /// `fine-tune`, `fine-tune-results`, …
    pub purpose: String,
}

/// One page of a list; `after` is the id of the last item of the previous page.
#[derive(Debug, Clone)]
pub struct Page {
    /// Id of the last item of the page before; none starts at the beginning.
    pub after: Option<String>,
    /// Items at the most.
    pub limit: i64,
    /// Oldest first instead of newest first.
    pub ascending: bool,
}

impl Store {
    /// Stores the content of `path` (moved into the blobs) and its row.
    pub async fn add_file(&self, new: NewFile, path: std::path::PathBuf) -> Result<File> {
        let _ = (new, path);
        todo!()
    }

    /// The organisation's file, or [`crate::Error::NotFound`].
    pub async fn file(&self, organization: &str, id: &str) -> Result<File> {
        let _ = (organization, id);
        todo!()
    }

    /// A page of the organisation's files, and whether there are more.
    pub async fn files(&self, organization: &str, purpose: Option<&str>, page: Page) -> Result<(Vec<File>, bool)> {
        let _ = (organization, purpose, page);
        todo!()
    }

    /// Deletes row and content, or [`crate::Error::NotFound`].
    pub async fn delete_file(&self, organization: &str, id: &str) -> Result<()> {
        let _ = (organization, id);
        todo!()
    }
}
