//! Files that arrive in parts: a row for each upload and each part, the content of a part in the blob
//! `uploads/{upload}/{part}` until the parts become a file. Called by `api`; the sweep removes what is left.

use std::path::PathBuf;

use futures::TryStreamExt as _;
use md5::{Digest as _, Md5};
use tempfile::TempPath;
use tokio::io::AsyncWriteExt as _;

use crate::store::files::{File, NewFile, new_file_id};
use crate::store::{Error, Result, Store, new_id};

/// Parts of one upload: each takes a row.
const MAX_PARTS: i64 = 10_000;

/// An upload as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Upload {
    /// `upload_…`
    pub id: String,
    /// The owner.
    pub organization: String,
    /// Name of the file.
    pub filename: String,
    /// Purpose of the file.
    pub purpose: String,
    /// Size of the whole file, as announced.
    pub bytes: i64,
    /// `pending`, `completed`, `cancelled` or `expired`
    pub status: String,
    /// Id of the file; only of a completed upload.
    pub file: Option<String>,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub expires_at: i64,
}

/// A part as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct UploadPart {
    /// `part_…`
    pub id: String,
    /// Unix seconds.
    pub created_at: i64,
}

/// The parts of an upload, put together.
#[derive(Debug)]
pub struct Assembled {
    /// Where the content lies; removed when this drops, unless it became a file.
    pub path: TempPath,
    /// MD5 of the content, as lower-case hexadecimal digits.
    pub md5: String,
    bytes: i64,
}

/// A query's text around the columns of [`Upload`].
macro_rules! upload_query {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, organization, filename, purpose, bytes, file,
              case when status = 'pending' and expires_at <= now() then 'expired' else status end as status,
              extract(epoch from created_at)::bigint as created_at,
              extract(epoch from expires_at)::bigint as expires_at ",
            $after
        )
    };
}

impl Store {
    /// Begins an upload of `bytes` bytes, whose file is to be removed once it is older than `lifetime` seconds.
    pub async fn add_upload(&self, new: NewFile, bytes: i64, lifetime: Option<i64>) -> Result<Upload> {
        Ok(sqlx::query_as(upload_query!(
            "insert into uploads (id, organization, filename, purpose, bytes, file_lifetime)
             values ($1, $2, $3, $4, $5, $6) returning",
            ""
        ))
        .bind(new_id("upload_"))
        .bind(new.organization)
        .bind(new.filename)
        .bind(new.purpose)
        .bind(bytes)
        .bind(lifetime)
        .fetch_one(&self.pool)
        .await?)
    }

    /// Reads the organisation's upload, or [`Error::NotFound`].
    pub async fn upload(&self, organization: &str, id: &str) -> Result<Upload> {
        sqlx::query_as(upload_query!("select", "from uploads where organization = $1 and id = $2"))
            .bind(organization)
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| Error::NotFound { kind: "Upload", id: id.into() })
    }

    /// Makes the file at `path`, of `bytes` bytes, a part of the upload; nothing is left at `path`. `None` if the upload
    /// is no longer pending, or has too many parts already: parts that were sent twice may take as much again as the
    /// file, and no more.
    pub async fn add_upload_part(&self, upload: &Upload, path: PathBuf, bytes: i64) -> Result<Option<UploadPart>> {
        let (store, upload) = (self.clone(), upload.id.clone());
        Self::to_the_end(async move {
            let id = new_id("part_");
            let key = part_key(&upload, &id);
            store.blobs.adopt(&key, path).await?;
            // The row of the upload is locked, so that parts that arrive together are counted one after the other.
            let added = sqlx::query_as(
                "with held as materialized (
                     select id, bytes from uploads
                      where id = $1 and status = 'pending' and expires_at > now() for update
                 )
                 insert into upload_parts (id, upload, bytes)
                 select $2, id, $3 from held
                  where room_for_part(id, $4, 2 * bytes - $3)
                 returning id, extract(epoch from created_at)::bigint as created_at",
            )
            .bind(&upload)
            .bind(&id)
            .bind(bytes)
            .bind(MAX_PARTS)
            .fetch_optional(&store.pool)
            .await?;
            if added.is_none() {
                store.blobs.remove(&key).await?;
            }
            Ok(added)
        })
        .await
    }

    /// Returns the sizes of those of the upload's parts that have the `ids`, in their order; an error is the first id
    /// that is none.
    pub async fn upload_parts(&self, upload: &Upload, ids: &[String]) -> Result<Result<Vec<i64>, String>> {
        let found: Vec<Option<i64>> = sqlx::query_scalar(
            "select bytes from unnest($2::text[]) with ordinality as wanted (id, position)
               left join upload_parts on upload_parts.id = wanted.id and upload = $1 order by position",
        )
        .bind(&upload.id)
        .bind(ids)
        .fetch_all(&self.pool)
        .await?;
        Ok(found.into_iter().zip(ids).map(|(bytes, id)| bytes.ok_or_else(|| id.clone())).collect())
    }

    /// Puts the upload's parts with the `ids` together, in their order.
    pub async fn assemble(&self, upload: &Upload, ids: &[String]) -> Result<Assembled> {
        let context = || Error::io(format!("put the parts of {} together", upload.id));
        let (file, path) = self.new_content().map_err(context())?.into_parts();
        let mut file = tokio::fs::File::from_std(file);
        let (mut hash, mut bytes) = (Md5::new(), 0);
        for id in ids {
            let mut content = self.blobs.stream(&part_key(&upload.id, id)).await?;
            while let Some(piece) = content.try_next().await? {
                hash.update(&piece);
                bytes += piece.len() as i64;
                file.write_all(&piece).await.map_err(context())?;
            }
        }
        file.flush().await.map_err(context())?;
        let digest: [u8; 16] = hash.finalize().into();
        let md5 = format!("{:032x}", u128::from_be_bytes(digest));
        Ok(Assembled { path, md5, bytes })
    }

    /// Makes what was put together a file, and completes the upload; `None` if the upload is no longer pending.
    pub async fn complete_upload(&self, upload: &Upload, assembled: Assembled) -> Result<Option<(Upload, File)>> {
        let (store, upload) = (self.clone(), upload.clone());
        Self::to_the_end(async move {
            let id = new_file_id();
            store.put_file(&id, assembled.path.to_path_buf()).await?;
            let completed: Option<Upload> = sqlx::query_as(upload_query!(
                "with completed as (
                     update uploads set status = 'completed', file = $2
                      where id = $1 and status = 'pending' and expires_at > now() returning *
                 ), filed as (
                     insert into files (id, organization, filename, purpose, bytes, expires_at)
                     select file, organization, filename, purpose, $3, now() + make_interval(secs => file_lifetime)
                       from completed
                 ), gone as (
                     delete from upload_parts using completed where upload = completed.id
                 )
                 select",
                "from completed"
            ))
            .bind(&upload.id)
            .bind(&id)
            .bind(assembled.bytes)
            .fetch_optional(&store.pool)
            .await?;
            let Some(completed) = completed else {
                store.remove_content(&id).await?;
                return Ok(None);
            };
            store.remove_parts(&upload.id).await;
            // Whoever took the content for one without a row has looked for the row after it was away.
            if !store.has_content(&id).await? {
                return Err(Error::Unavailable(
                    "The file was swept up before it was complete. Please send it again.".into(),
                ));
            }
            let file = store.file(&upload.organization, &id).await?;
            Ok(Some((completed, file)))
        })
        .await
    }

    /// Cancels the upload; `None` if it is no longer pending.
    pub async fn cancel_upload(&self, upload: &Upload) -> Result<Option<Upload>> {
        let (store, id) = (self.clone(), upload.id.clone());
        Self::to_the_end(async move {
            let cancelled: Option<Upload> = sqlx::query_as(upload_query!(
                "with cancelled as (
                     update uploads set status = 'cancelled'
                      where id = $1 and status = 'pending' and expires_at > now() returning *
                 ), gone as (
                     delete from upload_parts using cancelled where upload = cancelled.id
                 )
                 select",
                "from cancelled"
            ))
            .bind(&id)
            .fetch_optional(&store.pool)
            .await?;
            if cancelled.is_some() {
                store.remove_parts(&id).await;
            }
            Ok(cancelled)
        })
        .await
    }

    /// Removes the contents of all parts of an upload that has ended: the sweep removes what stays.
    async fn remove_parts(&self, upload: &str) {
        if let Err(error) = self.blobs.remove(&format!("uploads/{upload}")).await {
            tracing::warn!(upload, %error, "the parts of an upload that has ended stay until they are swept");
        }
    }
}

fn part_key(upload: &str, part: &str) -> String {
    format!("uploads/{upload}/{part}")
}
