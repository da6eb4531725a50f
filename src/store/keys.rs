//! API keys: who may call, for which organisation, within which limits. The command line and the page make, list, limit
//! and revoke them; the [directory](super::key_directory) looks them up for the server.
//!
//! A key's text is shown once, when it is made. Stored are its SHA-256, which finds it again, and a masked form for
//! people. A plain hash is enough: the text has 238 random bits, so there is nothing to guess.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use sha2::{Digest as _, Sha256};

use crate::store::files::cut_page;
use crate::store::names::{VISIBLE, is_visible};
use crate::store::{Error, Result};
use crate::store::{MAX_PAGE, Store, new_id, with_random_letters};

/// Where the text of every key begins.
const PREFIX: &str = "sk-attune-";
/// Random letters and digits after it.
const RANDOM: usize = 40;
/// Characters of an organisation's name at the most: it is a part of the names of fine-tuned models.
const MAX_ORGANIZATION: usize = 64;
/// Characters of a key's name at the most.
const MAX_NAME: usize = 200;

/// SHA-256 of a key's text.
pub type KeyHash = [u8; 32];

/// What a new key may do.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// Owner of everything that is made with the key; see [`normal_organization`].
    pub organization: String,
    /// A note for people.
    pub name: Option<String>,
    /// True if it may manage the whole server and other organisations.
    pub admin: bool,
    /// Requests per minute; `None` takes the configuration's.
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute; `None` takes the configuration's.
    pub tokens_per_minute: Option<u64>,
    /// Unix seconds; `None` never expires.
    pub expires_at: Option<i64>,
}

/// A key as people see it. Times are unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ApiKey {
    /// `key_…`
    pub id: String,
    /// Owner of everything that is made with it.
    pub organization: String,
    /// A note for people.
    pub name: Option<String>,
    /// The ends of its text.
    pub masked: String,
    /// True if it may manage the whole server and other organisations.
    pub admin: bool,
    /// Requests per minute; `None` takes the configuration's.
    pub requests_per_minute: Option<i64>,
    /// Tokens per minute; `None` takes the configuration's.
    pub tokens_per_minute: Option<i64>,
    /// When it was made.
    pub created_at: i64,
    /// From when on it is refused.
    pub expires_at: Option<i64>,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
    /// The last UTC day on which a request came with it, `2026-01-31`.
    pub last_used_on: Option<String>,
}

impl ApiKey {
    /// True if `now`, in unix seconds, is past its end.
    pub fn has_expired(&self, now: i64) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// A query's text around the columns of [`ApiKey`].
macro_rules! key_query {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " id, organization, name, masked, admin, requests_per_minute, tokens_per_minute,
              extract(epoch from created_at)::bigint as created_at, extract(epoch from expires_at)::bigint as expires_at,
              extract(epoch from revoked_at)::bigint as revoked_at, to_char(last_used_on, 'YYYY-MM-DD') as last_used_on ",
            $after
        )
    };
}

/// A live key, with the hash that it was found by.
#[derive(sqlx::FromRow)]
struct Hashed {
    hash: Vec<u8>,
    #[sqlx(flatten)]
    key: ApiKey,
}

/// True for the text of a key, be it known or not.
pub fn is_key(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// Hashes a key's text; the hash finds the key.
pub fn hash(text: &str) -> KeyHash {
    Sha256::digest(text).into()
}

/// The name as it is stored, lower case: letters, digits, `-` and `_`, since it stands between colons in the names of
/// fine-tuned models.
pub fn normal_organization(name: &str) -> Result<String> {
    let normal = name.trim().to_ascii_lowercase();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if normal.is_empty() || normal.chars().count() > MAX_ORGANIZATION || !normal.chars().all(fits) {
        let message = format!(
            "organisation `{name}`: use 1 to {MAX_ORGANIZATION} letters (a to z), digits, `-` and `_`; it becomes a part \
             of the names of fine-tuned models"
        );
        return Err(Error::KeySetting(message));
    }
    Ok(normal)
}

/// Parses the end of a key, `30d`, `12h`, `45m` or `10s` from `now`, or a UTC day (its start), to Unix seconds; the
/// past is refused.
pub fn expiry(text: &str, now: Timestamp) -> Result<i64> {
    let fault = || {
        let message = format!("the end `{text}`: use a time such as 30d, 12h, 45m, 10s, or a day such as 2027-01-31");
        Error::KeySetting(message)
    };
    let end = if let Ok(day) = text.parse::<jiff::civil::Date>() {
        day.to_zoned(TimeZone::UTC).map_err(|_| fault())?.timestamp().as_second()
    } else {
        let unit = match text.chars().last() {
            Some('d') => 86_400,
            Some('h') => 3_600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(fault()),
        };
        let count: i64 = text[..text.len() - 1].parse().map_err(|_| fault())?;
        let seconds = count.checked_mul(unit).filter(|seconds| *seconds > 0).ok_or_else(fault)?;
        now.as_second().checked_add(seconds).ok_or_else(fault)?
    };
    if Timestamp::from_second(end).is_err() {
        return Err(fault());
    }
    if end <= now.as_second() {
        return Err(Error::KeySetting(format!("the end `{text}` is in the past")));
    }
    Ok(end)
}

/// Checks a limit per minute and makes it a value of the database.
fn limit(name: &str, limit: Option<u64>) -> Result<Option<i64>> {
    match limit.map(i64::try_from) {
        None => Ok(None),
        Some(Ok(limit @ 1..)) => Ok(Some(limit)),
        Some(_) => Err(Error::KeySetting(format!("{name} must be at least 1, and no more than {}", i64::MAX))),
    }
}

impl Store {
    /// Makes a key; also returns its text, which nobody can read again.
    pub async fn create_key(&self, new: NewKey) -> Result<(ApiKey, String)> {
        let organization = normal_organization(&new.organization)?;
        if new.name.as_ref().is_some_and(|name| name.chars().count() > MAX_NAME) {
            return Err(Error::KeySetting(format!("the name of a key has at most {MAX_NAME} characters")));
        }
        if new.name.as_ref().is_some_and(|name| !is_visible(name)) {
            return Err(Error::KeySetting(format!("the name of a key must have {VISIBLE}")));
        }
        let text = with_random_letters(PREFIX, RANDOM);
        let key = sqlx::query_as(key_query!(
            "insert into api_keys (id, organization, name, hash, masked, admin, requests_per_minute, tokens_per_minute,
                                   expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, to_timestamp($9::double precision)) returning",
            ""
        ))
        .bind(new_id("key_"))
        .bind(organization)
        .bind(new.name)
        .bind(hash(&text))
        .bind(format!("{PREFIX}…{}", &text[text.len() - 4..]))
        .bind(new.admin)
        .bind(limit("requests_per_minute", new.requests_per_minute)?)
        .bind(limit("tokens_per_minute", new.tokens_per_minute)?)
        .bind(new.expires_at.map(|end| end as f64))
        .fetch_one(&self.pool)
        .await?;
        Ok((key, text))
    }

    /// Lists a page of all keys, or of those of one organisation, oldest first, and tells whether there are more. It
    /// begins after the key with the id `after`, and is empty if there is no such key.
    pub async fn keys(&self, organization: Option<&str>, after: Option<&str>) -> Result<(Vec<ApiKey>, bool)> {
        self.some_keys(organization, after, MAX_PAGE).await
    }

    /// Does as [`Store::keys`], for a page of at most `limit` keys.
    pub async fn some_keys(
        &self,
        organization: Option<&str>,
        after: Option<&str>,
        limit: i64,
    ) -> Result<(Vec<ApiKey>, bool)> {
        let limit = limit.clamp(0, MAX_PAGE);
        let keys = sqlx::query_as(key_query!(
            "select",
            "from api_keys where ($1::text is null or organization = $1) and (created_at, id) > (
                 select created_at, id from api_keys where id = $2
                 union all select '-infinity', '' where $2::text is null)
              order by api_keys.created_at, id limit $3"
        ));
        let keys = keys.bind(organization).bind(after).bind(limit + 1).fetch_all(&self.pool).await?;
        Ok(cut_page(keys, limit))
    }

    /// Finds those of the keys with these ids that there are, revoked ones included.
    pub async fn keys_named(&self, ids: &[&str]) -> Result<Vec<ApiKey>> {
        let keys = sqlx::query_as(key_query!("select", "from api_keys where id = any($1) limit $2"));
        Ok(keys.bind(ids).bind(MAX_PAGE).fetch_all(&self.pool).await?)
    }

    /// Sets what a key may ask for in a minute, or [`Error::NotFound`]; `None` takes the configuration's.
    pub async fn limit_key(&self, id: &str, requests: Option<u64>, tokens: Option<u64>) -> Result<ApiKey> {
        sqlx::query_as(key_query!(
            "update api_keys set requests_per_minute = $2, tokens_per_minute = $3 where id = $1 returning",
            ""
        ))
        .bind(id)
        .bind(limit("requests_per_minute", requests)?)
        .bind(limit("tokens_per_minute", tokens)?)
        .fetch_optional(&self.pool)
        .await?
        .ok_or_else(|| Error::NotFound { kind: "key", id: id.into() })
    }

    /// Ends a key for good, or [`Error::NotFound`]. Revoking it again changes nothing.
    pub async fn revoke_key(&self, id: &str) -> Result<ApiKey> {
        sqlx::query_as(key_query!(
            "update api_keys set revoked_at = coalesce(revoked_at, now()) where id = $1 returning",
            ""
        ))
        .bind(id)
        .fetch_optional(&self.pool)
        .await?
        .ok_or_else(|| Error::NotFound { kind: "key", id: id.into() })
    }

    /// Finds the key with this hash, unless it is revoked or has expired.
    pub async fn live_key(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        Ok(sqlx::query_as(key_query!(
            "select",
            "from api_keys where hash = $1 and revoked_at is null and (expires_at is null or expires_at > now())"
        ))
        .bind(hash.as_slice())
        .fetch_optional(&self.pool)
        .await?)
    }

    /// Finds the key with this id, unless it is revoked or has expired.
    pub async fn live_key_named(&self, id: &str) -> Result<Option<ApiKey>> {
        Ok(sqlx::query_as(key_query!(
            "select",
            "from api_keys where id = $1 and revoked_at is null and (expires_at is null or expires_at > now())"
        ))
        .bind(id)
        .fetch_optional(&self.pool)
        .await?)
    }

    /// Finds those of the keys with these hashes that are neither revoked nor expired.
    pub(super) async fn live_keys(&self, hashes: &[KeyHash]) -> Result<HashMap<KeyHash, Arc<ApiKey>>> {
        let hashes: Vec<&[u8]> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
        let found: Vec<Hashed> = sqlx::query_as(key_query!(
            "select hash,",
            "from api_keys
              where hash = any($1) and revoked_at is null and (expires_at is null or expires_at > now())"
        ))
        .bind(hashes)
        .fetch_all(&self.pool)
        .await?;
        let entry = |found: Hashed| Some((found.hash.try_into().ok()?, Arc::new(found.key)));
        Ok(found.into_iter().filter_map(entry).collect())
    }

    /// True if a key was ever made, live or not: a server is not opened again by revoking its last key.
    pub async fn has_keys(&self) -> Result<bool> {
        Ok(sqlx::query_scalar("select exists (select from api_keys)").fetch_one(&self.pool).await?)
    }

    /// Writes down that the keys were used on the UTC day, `2026-01-31`.
    pub async fn touch_keys(&self, ids: &[&str], day: &str) -> Result<()> {
        sqlx::query(
            "update api_keys set last_used_on = $2::text::date
              where id = any($1) and (last_used_on is null or last_used_on < $2::text::date)",
        )
        .bind(ids)
        .bind(day)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_time_from_now_or_a_day() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().expect("a time");
        let end = |text: &str| expiry(text, now).map(|end| end - now.as_second());
        assert_eq!(end("30d").expect("days"), 30 * 86_400);
        assert_eq!(end("12h").expect("hours"), 12 * 3_600);
        assert_eq!(end("45m").expect("minutes"), 45 * 60);
        assert_eq!(end("10s").expect("seconds"), 10);
        assert_eq!(end("2026-11-24").expect("a day"), 12 * 3_600);
        for text in
            ["", "d", "0d", "-1d", "1w", "30", "2026-11-23", "2020-01-01", "2026-13-01", "99999999999999d", "3é"]
        {
            assert!(end(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_organisation_is_made_fit_for_a_models_name() {
        assert_eq!(normal_organization(" Acme-2_x ").expect("fine"), "acme-2_x");
        for name in ["", "  ", "a b", "a:b", "ä", "a/b", &"x".repeat(65)] {
            assert!(normal_organization(name).is_err(), "{name:?}");
        }
        assert!(normal_organization(&"x".repeat(64)).is_ok());
    }
}
