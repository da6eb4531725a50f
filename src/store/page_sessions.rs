//! Sessions of the page: which key a browser signed in with. `api::access::sessions` makes the tokens and asks the key
//! directory anew at each request whether the key still counts, so that a revoked key ends its sessions.
//!
//! Stored are the SHA-256 of a session's token and what finds the key again: for a key of the database its hash, which
//! `api_keys` holds, too; for a key of the configuration, which may be short enough to be guessed from a hash, the hash
//! of the token and the key's hash, which nobody can try without the token.

use std::time::Duration;

use crate::store::keys::KeyHash;
use crate::store::{Result, Store};

/// Sessions of one key; the oldest ends for one more.
const MAX_SESSIONS: i64 = 100;

/// What finds a session's key again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKey {
    /// The hash of a key of the database.
    Stored(KeyHash),
    /// A hash of the session's token and the hash of a key of the configuration.
    Configured(KeyHash),
}

impl SessionKey {
    const fn parts(&self) -> (&KeyHash, bool) {
        match self {
            Self::Stored(hash) => (hash, false),
            Self::Configured(hash) => (hash, true),
        }
    }
}

impl Store {
    /// Begins a session for `lifetime`, and removes those that have ended.
    pub async fn begin_session(&self, hash: &KeyHash, key: &SessionKey, lifetime: Duration) -> Result<()> {
        let (key, configured) = key.parts();
        sqlx::query(
            "with ended as (
                 delete from page_sessions where expires_at <= now()
             ), surplus as (
                 delete from page_sessions where hash in (
                     select hash from page_sessions where key = $2 order by created_at desc offset ($5 - 1))
             )
             insert into page_sessions (hash, key, configured, expires_at)
             values ($1, $2, $3, now() + make_interval(secs => $4))",
        )
        .bind(hash.as_slice())
        .bind(key.as_slice())
        .bind(configured)
        .bind(lifetime.as_secs_f64())
        .bind(MAX_SESSIONS)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Finds the key of the session whose token has this hash; `None` if it has ended.
    pub async fn session(&self, hash: &KeyHash) -> Result<Option<SessionKey>> {
        let row: Option<(Vec<u8>, bool)> =
            sqlx::query_as("select key, configured from page_sessions where hash = $1 and expires_at > now()")
                .bind(hash.as_slice())
                .fetch_optional(&self.pool)
                .await?;
        Ok(row.and_then(|(key, configured)| {
            let key = key.try_into().ok()?;
            Some(if configured { SessionKey::Configured(key) } else { SessionKey::Stored(key) })
        }))
    }

    /// Ends a session.
    pub async fn end_session(&self, hash: &KeyHash) -> Result<()> {
        sqlx::query("delete from page_sessions where hash = $1").bind(hash.as_slice()).execute(&self.pool).await?;
        Ok(())
    }
}
