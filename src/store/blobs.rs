//! Contents too large for rows, by key, through `object_store` on the local disk: `files/{id}`,
//! `adapters/{sha256}/adapter_model.safetensors`, `checkpoints/{job}/…`. A written blob is complete or absent.

use std::path::PathBuf;

use bytes::Bytes;

use crate::Result;

/// The blob store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {}

impl Blobs {
    /// Opens (and makes) the folder.
    pub fn open(folder: &std::path::Path) -> Result<Self> {
        let _ = folder;
        todo!()
    }

    /// Stores `content` under `key`, whole or not at all.
    pub async fn put(&self, key: &str, content: Bytes) -> Result<()> {
        let _ = (key, content);
        todo!()
    }

    /// Moves a complete local file into the store under `key`, without reading it into memory.
    pub async fn put_file(&self, key: &str, path: PathBuf) -> Result<()> {
        let _ = (key, path);
        todo!()
    }

    /// The content under `key`; an [`crate::Error::Blob`] of kind `NotFound` where there is none.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        let _ = key;
        todo!()
    }

    /// The content as a stream of chunks, for downloads.
    pub async fn stream(&self, key: &str) -> Result<futures::stream::BoxStream<'static, Result<Bytes>>> {
        let _ = key;
        todo!()
    }

    /// Removes everything whose key begins with `prefix`; nothing there is no error.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<()> {
        let _ = prefix;
        todo!()
    }
}
