//! Sessions of the page: a browser signs in once with an API key and then sends a token that stands for it. `ui` calls
//! it; the routes under `/v1` know nothing of sessions.
//!
//! The key is asked for anew at each request, so a session ends with its key. The database holds only hashes; see
//! [`crate::store::page_sessions`].

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;

use crate::api::access::auth::{Caller, Gate, KnownKey};
use crate::api::http::error::{Problem, Result};
use crate::store::keys::{KeyHash, hash};
use crate::store::page_sessions::SessionKey;
use crate::store::{Store, with_random_letters};

/// Time after which a browser signs in anew.
pub(crate) const LIFETIME: Duration = Duration::from_hours(24);
/// Letters and digits of a token: 238 random bits, as a key has.
const RANDOM: usize = 40;
/// Lookups at a time: made-up tokens must leave most of the pool's connections to others.
const LOOKUPS: usize = 4;

/// The sessions of the page. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions {
    gate: Gate,
    store: Store,
    lookups: Arc<Semaphore>,
}

impl Sessions {
    /// Creates the sessions of a server with the keys of `gate`.
    pub(crate) fn new(gate: Gate, store: Store) -> Self {
        Self { gate, store, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }

    /// Begins a session for the holder of `key` and returns its token; `None` if there is no such key.
    pub(crate) async fn begin(&self, key: &str) -> Result<Option<String>, Problem> {
        let token = with_random_letters("", RANDOM);
        let key = match self.gate.known(key.trim()).await? {
            None => return Ok(None),
            Some(KnownKey::Stored(hash)) => SessionKey::Stored(hash),
            Some(KnownKey::Configured(hash)) => SessionKey::Configured(bound(&token, &hash)),
        };
        self.store.begin_session(&hash(&token), &key, LIFETIME).await?;
        Ok(Some(token))
    }

    /// Returns the caller whom `token` stands for; `None` if the session or its key has ended.
    pub(crate) async fn holder(&self, token: &str) -> Result<Option<Caller>, Problem> {
        if token.len() != RANDOM {
            return Ok(None);
        }
        let turn = self.lookups.acquire().await;
        let session = self.store.session(&hash(token)).await?;
        drop(turn);
        match session {
            None => Ok(None),
            Some(SessionKey::Stored(hash)) => self.gate.holder_of_stored(hash).await,
            Some(SessionKey::Configured(found)) => {
                Ok(self.gate.holder_of_configured(|hash| bound(token, hash).ct_eq(&found).into()))
            }
        }
    }

    /// Ends the session of `token`.
    pub(crate) async fn end(&self, token: &str) -> Result<(), Problem> {
        Ok(self.store.end_session(&hash(token)).await?)
    }
}

/// Hashes a token and the hash of a key together: who reads the result can try no key without the token.
fn bound(token: &str, key: &KeyHash) -> KeyHash {
    Sha256::new().chain_update(token).chain_update(key).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_a_configured_key_again_depends_on_the_token() {
        let key = hash("short");
        assert_ne!(bound("one", &key), bound("two", &key));
        assert_ne!(bound("one", &key), key);
        assert_eq!(bound("one", &key), bound("one", &key));
    }
}
