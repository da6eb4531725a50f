//! Contents too large for rows, by key, in a folder of this machine: `files/{id}`,
//! `adapters/{sha256}/adapter_model.safetensors`, `checkpoints/{job}/…`, `uploads/{upload}/{part}`. A written blob is
//! complete or absent. Called by the rest of `store`, by the worker and by the adapter registry.
//!
//! `object_store` is kept for S3-compatible storage, which servers and workers on several machines will share. On a
//! folder, whole files go past it: [`durable`] puts them there, and they are opened where they lie. [`removal`] takes
//! blobs away.

mod durable;
pub(super) mod removal;

use std::fs::File;
use std::io::{self, ErrorKind, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::off_thread::{in_background, off_thread};
use crate::store::error::system_errors;
use crate::store::{Error, Result};

/// Pieces in which files travel to the store: few enough calls, little memory.
const CHUNK_BYTES: usize = 1 << 20;
/// Pieces in which files travel to clients.
const DOWNLOAD_BYTES: usize = 64 << 10;
/// Times that a deletion may take the folder away under a blob that is being written into it.
const PUT_ATTEMPTS: usize = 5;

/// The blob store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    /// The folder of `store` if it is one of this machine: whole files are renamed into it and read from it.
    folder: Option<Arc<Path>>,
}

/// A stored blob, as a listing shows it.
#[derive(Debug, Clone)]
pub struct BlobEntry {
    /// The key.
    pub key: String,
    /// Size of the content.
    pub bytes: u64,
    /// When it was written.
    pub modified: SystemTime,
}

impl Blobs {
    /// Opens (and makes) the folder.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(format!("create {}", folder.display())))?;
        // A row that names a blob is durable once committed, so the blob must be as well.
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true).with_automatic_cleanup(true);
        Ok(Self { store: Arc::new(store), folder: Some(folder.into()) })
    }

    /// Keeps blobs in any object store.
    pub fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, folder: None }
    }

    /// [`Blobs::put`], unless there is a blob under `key`: for keys that tell the content, so that what others rely on
    /// is not written again.
    pub(crate) async fn put_new(&self, key: &str, content: Bytes) -> Result<()> {
        if self.exists(key).await? { Ok(()) } else { self.put(key, content).await }
    }

    /// Stores `content` under `key`, whole or not at all.
    pub async fn put(&self, key: &str, content: Bytes) -> Result<()> {
        let key = checked(key)?;
        let mut attempt = 1;
        loop {
            match self.store.put(&key, PutPayload::from_bytes(content.clone())).await {
                // Deleting the last blob of a folder removes the folder, which may be the one that is written to.
                Err(error) if attempt < PUT_ATTEMPTS && is_missing_folder(&error) => attempt += 1,
                outcome => return Ok(outcome.map(drop)?),
            }
        }
    }

    /// [`Blobs::put`] for a large content, beside requests: on a thread that theirs go before, in pieces with a rest
    /// after each, so that a core is never taken for long.
    pub async fn put_with_rests(&self, key: &str, content: Bytes) -> Result<()> {
        let Some(folder) = self.folder.clone().filter(|_| content.len() > CHUNK_BYTES) else {
            return self.put(key, content).await;
        };
        let target = folder.join(checked(key)?.as_ref());
        let write = move || Ok::<_, Error>(durable::write_with_rests(&content, &target, &folder));
        let written: io::Result<()> = in_background("store a blob", write).await?;
        written.map_err(Error::io(format!("store {key}")))
    }

    /// Makes the complete file at `path` the blob `key`, whole or not at all: renamed if it is on the blobs' disk, else
    /// copied. The file at `path` is gone afterwards.
    pub async fn adopt(&self, key: &str, path: PathBuf) -> Result<()> {
        let Some(folder) = self.folder.clone() else { return self.copy_in(key, path).await };
        let (target, source) = (folder.join(checked(key)?.as_ref()), path.clone());
        let rename = move || Ok::<_, Error>(durable::rename(&source, &target, &folder));
        match off_thread("store a blob", rename).await? {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => self.copy_in(key, path).await,
            renamed => renamed.map_err(Error::io(format!("store {} as {key}", path.display()))),
        }
    }

    /// Copies the file at `path` into the store without reading it into memory, then removes it.
    async fn copy_in(&self, key: &str, path: PathBuf) -> Result<()> {
        let key = checked(key)?;
        let context = || format!("store {} as {key}", path.display());
        let mut source = tokio::fs::File::open(&path).await.map_err(Error::io(context()))?;
        let mut writer = BufWriter::with_capacity(Arc::clone(&self.store), key.clone(), CHUNK_BYTES);
        if let Err(error) = tokio::io::copy(&mut source, &mut writer).await {
            // Nothing was published; what was staged goes, and the failure that matters is the first one.
            let _ = writer.abort().await;
            return Err(Error::io(context())(error));
        }
        // It removes what was staged itself where it fails, and must not be asked to.
        writer.shutdown().await.map_err(Error::io(context()))?;
        tokio::fs::remove_file(&path).await.map_err(Error::io(format!("remove {}", path.display())))
    }

    /// Opens the content under `key` for reading; [`Error::BlobNotFound`] if there is none. Whoever holds the file can
    /// read all of it, also after the blob was deleted.
    pub async fn open(&self, key: &str) -> Result<File> {
        match &self.folder {
            Some(folder) => Ok(open_in(folder, key).await?.into_std().await),
            None => self.download(key).await,
        }
    }

    /// Copies the content under `key` from a store that is no folder into a temporary file.
    async fn download(&self, key: &str) -> Result<File> {
        let context = || Error::io(format!("copy the blob {key}"));
        let mut content = self.stream(key).await?;
        let mut local = tokio::fs::File::from_std(tempfile::tempfile().map_err(context())?);
        while let Some(chunk) = content.try_next().await? {
            local.write_all(&chunk).await.map_err(context())?;
        }
        local.flush().await.map_err(context())?;
        let mut local = local.into_std().await;
        local.rewind().map_err(context())?;
        Ok(local)
    }

    /// Returns the size of the content under `key` in bytes; [`Error::BlobNotFound`] if there is none.
    pub async fn size(&self, key: &str) -> Result<u64> {
        Ok(self.store.head(&checked(key)?).await?.size)
    }

    /// True if there is a blob under `key`.
    pub async fn exists(&self, key: &str) -> Result<bool> {
        match self.store.head(&checked(key)?).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the content under `key`; [`Error::BlobNotFound`] if there is none.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        Ok(self.store.get(&checked(key)?).await?.bytes().await?)
    }

    /// Streams the content in chunks, for downloads: little memory for each, since its client may be slow.
    pub async fn stream(&self, key: &str) -> Result<BoxStream<'static, Result<Bytes>>> {
        if let Some(folder) = &self.folder {
            let file = open_in(folder, key).await?;
            let context = format!("read the blob {key}");
            let pieces = ReaderStream::with_capacity(file, DOWNLOAD_BYTES);
            return Ok(pieces.map_err(move |error| Error::io(context.clone())(error)).boxed());
        }
        Ok(self.store.get(&checked(key)?).await?.into_stream().map_err(Error::from).boxed())
    }

    /// Lists the blobs whose key begins with the segments of `prefix`, in no particular order.
    pub fn list(&self, prefix: &str) -> Result<BoxStream<'static, Result<BlobEntry>>> {
        let entries = self.store.list(Some(&checked(prefix)?));
        Ok(entries
            .map_ok(|meta| BlobEntry {
                key: meta.location.to_string(),
                bytes: meta.size,
                modified: meta.last_modified.into(),
            })
            .map_err(Error::from)
            .boxed())
    }

    /// Removes everything whose key begins with `prefix` (whole segments); nothing there is no error. A prefix of one
    /// segment is refused: it would empty a whole kind.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<()> {
        let prefix = checked(prefix.trim_end_matches('/'))?;
        if prefix.parts_count() < 2 {
            return Err(Error::Internal(format!("refusing to delete every blob under `{prefix}`")));
        }
        let mut keys: Vec<Key> =
            self.store.list(Some(&prefix)).map_ok(|meta| meta.location).try_collect().await.or_else(absent_is_empty)?;
        if self.store.head(&prefix).await.is_ok() {
            keys.push(prefix);
        }
        for key in keys {
            match self.store.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

async fn open_in(folder: &Path, key: &str) -> Result<tokio::fs::File> {
    tokio::fs::File::open(folder.join(checked(key)?.as_ref())).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::BlobNotFound(key.into()),
        _ => Error::io(format!("open the blob {key}"))(error),
    })
}

/// True if the local disk says that a folder on the way to the blob is missing.
fn is_missing_folder(error: &object_store::Error) -> bool {
    system_errors(error).any(|cause| cause.kind() == ErrorKind::NotFound)
}

/// A folder that vanishes while it is listed holds nothing any more.
fn absent_is_empty(error: object_store::Error) -> Result<Vec<Key>> {
    match error {
        object_store::Error::NotFound { .. } => Ok(Vec::new()),
        error => Err(error.into()),
    }
}

/// Checks that `key` is plain words between slashes, so that none can leave the folder or hide from a listing.
fn checked(key: &str) -> Result<Key> {
    let plain = |part: &str| {
        (1..=255).contains(&part.len())
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    if key.split('/').all(plain) {
        Ok(Key::from(key))
    } else {
        Err(Error::Internal(format!("`{key}` is not a blob key")))
    }
}

#[cfg(test)]
mod tests {
    use super::checked;

    #[test]
    fn keys_cannot_leave_the_folder() {
        for bad in
            ["", "/", "files/", "/files/a", "files/../a", "..", "files/./a", "files/.a", "files/a b", "a\\b", "a\0"]
        {
            assert!(checked(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["files/file-abc", "adapters/0a/adapter_model.safetensors"] {
            assert_eq!(checked(good).expect("a plain key").as_ref(), good);
        }
    }
}
