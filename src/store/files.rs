//! Uploaded and produced files: one row each, the content in the blob `files/{id}`. Called by `api` and by the worker,
//! which adds result files.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::store::{Error, Result};
use crate::store::{MAX_PAGE, Store, new_id};

/// Expired files that one statement removes.
const EXPIRED: i64 = 100;

/// A file as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
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
    /// Unix seconds from which on it may be removed; `None`: never.
    pub expires_at: Option<i64>,
    /// The uploader's own notes, an object; `None`: none.
    pub metadata: Option<Value>,
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

/// One page of a list; `after` is the id of the last item of the previous page. Nothing follows an item that is not (or
/// no longer) in the list: such a page is empty, so that a reader of pages comes to an end.
#[derive(Debug, Clone)]
pub struct Page {
    /// Id of the last item of the page before; `None` starts at the beginning.
    pub after: Option<String>,
    /// Items at the most.
    pub limit: i64,
    /// Oldest first instead of newest first.
    pub ascending: bool,
}

impl Page {
    /// Returns the limit, cut to the items that one answer may hold.
    pub(crate) fn bounded_limit(&self) -> i64 {
        self.limit.clamp(0, MAX_PAGE)
    }
}

/// Drops the item that was read beyond `limit` only to learn whether there are more.
pub(crate) fn cut_page<T>(mut items: Vec<T>, limit: i64) -> (Vec<T>, bool) {
    let limit = usize::try_from(limit).unwrap_or(0);
    let more = items.len() > limit;
    items.truncate(limit);
    (items, more)
}

/// A query's text around the columns of [`File`].
macro_rules! file_query {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, organization, filename, purpose, bytes, extract(epoch from created_at)::bigint as created_at, \
             extract(epoch from expires_at)::bigint as expires_at, metadata ",
            $after
        )
    };
}

impl Store {
    /// Makes the file at `path` the content of a new file; nothing is left at `path`.
    pub async fn add_file(&self, new: NewFile, path: PathBuf) -> Result<File> {
        self.add_uploaded_file(new, path, None, None).await
    }

    /// [`Self::add_file`] with notes; it is removed once it is older than `lifetime` seconds and no unfinished job needs it.
    pub async fn add_uploaded_file(
        &self,
        new: NewFile,
        path: PathBuf,
        lifetime: Option<i64>,
        metadata: Option<Value>,
    ) -> Result<File> {
        let store = self.clone();
        Self::to_the_end(async move {
            let id = new_file_id();
            let context = format!("read {}", path.display());
            let bytes = tokio::fs::metadata(&path).await.map_err(Error::io(context))?.len();
            store.blobs.adopt(&blob_key(&id), path).await?;
            store.add_file_row(&id, new, bytes, lifetime, metadata).await
        })
        .await
    }

    /// Stores `content` for the file `id`, whose row the caller's own statement writes; the caller looks for it again
    /// with [`Self::has_content`] once that is done.
    pub(crate) async fn put_content(&self, id: &str, content: Bytes) -> Result<()> {
        self.blobs.put_new(&blob_key(id), content).await
    }

    /// Makes a temporary file that is to become the content of a file: with the permissions of any new file.
    pub(crate) fn new_content(&self) -> std::io::Result<NamedTempFile> {
        tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(&self.scratch)
    }

    /// Makes the file at `path` the content of the file `id`, as [`Self::put_content`] does; nothing is left at `path`.
    pub(crate) async fn put_file(&self, id: &str, path: PathBuf) -> Result<()> {
        self.blobs.adopt(&blob_key(id), path).await
    }

    /// True if the content of the file is stored.
    pub(crate) async fn has_content(&self, id: &str) -> Result<bool> {
        self.blobs.exists(&blob_key(id)).await
    }

    /// Removes the content of a file that has no row and will never have one.
    pub(crate) async fn remove_content(&self, id: &str) -> Result<()> {
        self.blobs.remove(&blob_key(id)).await
    }

    /// Writes the row of a file whose content is stored. Content first: a row without content would be a file that
    /// cannot be read; the other way round is swept up.
    async fn add_file_row(
        &self,
        id: &str,
        new: NewFile,
        bytes: u64,
        lifetime: Option<i64>,
        metadata: Option<Value>,
    ) -> Result<File> {
        // After a failure nobody knows whether the row is there; if it is not, the sweep removes the content.
        let added: File = sqlx::query_as(file_query!(
            "insert into files (id, organization, filename, purpose, bytes, expires_at, metadata)
             values ($1, $2, $3, $4, $5, now() + make_interval(secs => $6), $7) returning",
            ""
        ))
        .bind(id)
        .bind(new.organization)
        .bind(new.filename)
        .bind(new.purpose)
        .bind(bytes as i64)
        .bind(lifetime.map(|seconds| seconds as f64))
        .bind(metadata)
        .fetch_one(&self.pool)
        .await?;
        // Whoever took the content for one without a row has looked for the row after it was away.
        if self.has_content(id).await? {
            return Ok(added);
        }
        sqlx::query("delete from files where id = $1").bind(id).execute(&self.pool).await?;
        Err(Error::Unavailable("The file was swept up before it was complete. Please send it again.".into()))
    }

    /// Reads the organisation's file, or [`Error::NotFound`].
    pub async fn file(&self, organization: &str, id: &str) -> Result<File> {
        sqlx::query_as(file_query!("select", "from files where organization = $1 and id = $2"))
            .bind(organization)
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| no_such_file(id))
    }

    /// Reads those of the organisation's files that have the `ids`, in no particular order.
    pub async fn files_of(&self, organization: &str, ids: &[String]) -> Result<Vec<File>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        Ok(sqlx::query_as(file_query!("select", "from files where organization = $1 and id = any($2)"))
            .bind(organization)
            .bind(ids)
            .fetch_all(&self.pool)
            .await?)
    }

    /// Streams a file's content in chunks.
    pub async fn file_content(&self, file: &File) -> Result<BoxStream<'static, Result<Bytes>>> {
        self.blobs.stream(&blob_key(&file.id)).await
    }

    /// Opens a file's content for reading; it can be read to its end even if the file is deleted meanwhile.
    pub async fn open_file(&self, file: &File) -> Result<std::fs::File> {
        self.blobs.open(&blob_key(&file.id)).await
    }

    /// Lists a page of the organisation's files, and tells whether there are more.
    pub async fn files(&self, organization: &str, purpose: Option<&str>, page: Page) -> Result<(Vec<File>, bool)> {
        let query = if page.ascending {
            file_query!(
                "select",
                "from files where organization = $1 and ($2::text is null or purpose = $2) and (created_at, id) > (
                     select created_at, id from files where organization = $1 and id = $3
                     union all select '-infinity', '' where $3::text is null)
                 order by files.created_at, id limit $4"
            )
        } else {
            file_query!(
                "select",
                "from files where organization = $1 and ($2::text is null or purpose = $2) and (created_at, id) < (
                     select created_at, id from files where organization = $1 and id = $3
                     union all select 'infinity', '' where $3::text is null)
                 order by files.created_at desc, id desc limit $4"
            )
        };
        let limit = page.bounded_limit();
        let files = sqlx::query_as(query)
            .bind(organization)
            .bind(purpose)
            .bind(page.after)
            .bind(limit + 1)
            .fetch_all(&self.pool)
            .await?;
        Ok(cut_page(files, limit))
    }

    /// Deletes row and content, or [`Error::NotFound`]; [`Error::FileInUse`] while a job needs the file.
    pub async fn delete_file(&self, organization: &str, id: &str) -> Result<()> {
        let (store, organization, id) = (self.clone(), organization.to_owned(), id.to_owned());
        Self::to_the_end(async move {
            let job: Option<Option<String>> = sqlx::query_scalar(
                // Locked first and asked for its job then, which reads anew: a job that was being added is seen.
                "with held as materialized (
                     select organization, id from files where organization = $1 and id = $2 for update
                 ), used as materialized (
                     select id, job_with_file(organization, id) as job from held
                 ), gone as (
                     delete from files using used where files.id = used.id and used.job is null
                 )
                 select job from used",
            )
            .bind(&organization)
            .bind(&id)
            .fetch_optional(&store.pool)
            .await?;
            match job {
                None => Err(no_such_file(&id)),
                Some(Some(job)) => Err(Error::FileInUse { file: id, job }),
                Some(None) => {
                    store.remove_content_of_deleted(&id).await;
                    Ok(())
                }
            }
        })
        .await
    }

    /// Removes some of the files that have expired and that no unfinished job needs; returns how many.
    pub(crate) async fn remove_expired_files(&self) -> Result<u64> {
        let gone: Vec<String> = sqlx::query_scalar(
            "with held as materialized (
                 select organization, id from files where expires_at < now()
                  order by expires_at limit $1 for update skip locked
             ), used as materialized (
                 select id, job_with_file(organization, id) as job from held
             )
             delete from files using used where files.id = used.id and used.job is null returning files.id",
        )
        .bind(EXPIRED)
        .fetch_all(&self.pool)
        .await?;
        for id in &gone {
            self.remove_content_of_deleted(id).await;
        }
        Ok(gone.len() as u64)
    }

    /// Removes the content of a file whose row is gone. The file is gone for everybody: the sweep removes what stays on
    /// a disk that takes no writes.
    pub(crate) async fn remove_content_of_deleted(&self, id: &str) {
        if let Err(error) = self.remove_content(id).await {
            tracing::warn!(file = id, %error, "the content of a deleted file stays until it is swept");
        }
    }
}

/// Makes the id of a file.
pub(crate) fn new_file_id() -> String {
    new_id("file-")
}

/// Returns the key of a file's content in the blobs.
fn blob_key(id: &str) -> String {
    format!("files/{id}")
}

fn no_such_file(id: &str) -> Error {
    Error::NotFound { kind: "File", id: id.into() }
}
