//! `attune keys`: makes, lists and revokes API keys in the database. Standard output is for scripts: `create` prints
//! the key alone on a line.

use crate::app::open_store_beside;
use crate::config::Config;
use crate::store::Store;
use crate::store::keys::{ApiKey, NewKey, normal_organization};
use crate::{Error, Result};
use clap::{Args, Subcommand};
use jiff::{Timestamp, tz::TimeZone};

use super::output::{line, note};
use crate::cli::DataDirArgs;

/// The subcommands of `attune keys`.
#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Create a key and print it: it cannot be shown again.
    Create(CreateOptions),
    /// List keys, including revoked and expired ones.
    List {
        #[command(flatten)]
        place: DataDirArgs,
        /// List only the keys of this organisation.
        #[arg(long)]
        org: Option<String>,
    },
    /// Revoke a key: the server refuses it from now on.
    Revoke {
        #[command(flatten)]
        place: DataDirArgs,
        /// The key's id, as `list` prints it: `key_…`.
        id: String,
    },
}

/// The flags of `attune keys create`.
#[derive(Debug, Args)]
pub(super) struct CreateOptions {
    #[command(flatten)]
    place: DataDirArgs,
    /// Give the key to this organisation, which will own everything made with it: letters, digits, `-` and `_`.
    #[arg(long)]
    org: String,
    /// Note a name for people to recognise the key by.
    #[arg(long)]
    name: Option<String>,
    /// Allow requests that concern the whole server, such as reading every organisation's usage.
    #[arg(long)]
    admin: bool,
    /// Allow this many requests per minute [default: `limits.requests_per_minute`].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rpm: Option<u64>,
    /// Allow this many tokens per minute [default: `limits.tokens_per_minute`].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tpm: Option<u64>,
    /// Expire the key after a time (30d, 12h, 45m, 10s) or at the start of a UTC day (2027-01-31) [default: never].
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
}

impl KeysCommand {
    /// Returns the flags that say where the database is.
    pub(super) fn place(&self) -> &DataDirArgs {
        match self {
            Self::Create(CreateOptions { place, .. }) | Self::List { place, .. } | Self::Revoke { place, .. } => place,
        }
    }

    /// Runs the subcommand.
    pub(super) async fn run(self, config: Config) -> Result<()> {
        // Arguments are checked before a database is started for them.
        let new = match &self {
            Self::Create(options) => Some(options.new_key()?),
            _ => None,
        };
        let (store, _postgres) = open_store_beside(&config).await?;
        match (self, new) {
            (Self::List { org, .. }, _) => list(&store, org.as_deref()).await,
            (Self::Revoke { id, .. }, _) => {
                let key = store.revoke_key(&id).await?;
                line(format_args!("{} of {} is revoked", key.id, key.organization))
            }
            (Self::Create(_), new) => create(&store, new.unwrap_or_default()).await,
        }
    }
}

impl CreateOptions {
    fn new_key(&self) -> Result<NewKey> {
        Ok(NewKey {
            organization: normal_organization(&self.org)?,
            name: self.name.clone(),
            admin: self.admin,
            requests_per_minute: self.rpm,
            tokens_per_minute: self.tpm,
            expires_at: self.expires.as_deref().map(|text| expiry(text, Timestamp::now())).transpose()?,
        })
    }
}

async fn create(store: &Store, new: NewKey) -> Result<()> {
    let (key, text) = store.create_key(new).await?;
    if let Err(error) = line(text) {
        // Nobody knows the key, so nobody may use it.
        store.revoke_key(&key.id).await?;
        return Err(error);
    }
    let ApiKey { id, organization, .. } = &key;
    let admin = if key.admin { "admin " } else { "" };
    let end = key.expires_at.map_or_else(|| "does not expire".into(), |end| format!("expires {}", time(end)));
    note(format_args!(
        "{admin}key {id} of the organisation {organization}: {end}. Keep it now, it is not shown again."
    ));
    Ok(())
}

async fn list(store: &Store, organization: Option<&str>) -> Result<()> {
    let organization = organization.map(normal_organization).transpose()?;
    let head = ["ID", "ORG", "KEY", "NAME", "ADMIN", "RPM", "TPM", "CREATED", "EXPIRES", "REVOKED", "LAST USED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut last: Option<String> = None;
    loop {
        let (keys, more) = store.keys(organization.as_deref(), last.as_deref()).await?;
        last = keys.last().map(|key| key.id.clone());
        rows.extend(keys.into_iter().map(|key| row(key).to_vec()));
        if !more {
            return super::table::print(&rows);
        }
    }
}

fn row(key: ApiKey) -> [String; 11] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    // A name is free text: a line break in it must not look like another key.
    let name = key.name.map(|name| name.replace(char::is_control, " "));
    [
        key.id,
        key.organization,
        key.masked,
        or_dash(name),
        if key.admin { "yes" } else { "no" }.into(),
        key.requests_per_minute.map_or_else(|| "default".into(), |limit| limit.to_string()),
        key.tokens_per_minute.map_or_else(|| "default".into(), |limit| limit.to_string()),
        time(key.created_at),
        key.expires_at.map_or_else(|| "never".into(), time),
        or_dash(key.revoked_at.map(time)),
        or_dash(key.last_used_on),
    ]
}

/// Formats Unix seconds as UTC time.
fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// Parses `30d`, `12h`, `45m` or `10s` from `now`, or a UTC day (its start), to Unix seconds; the past is refused.
fn expiry(text: &str, now: Timestamp) -> Result<i64> {
    let fault = || {
        Error::Setup(format!("--expires {text}: use a time such as 30d, 12h, 45m, 10s, or a day such as 2027-01-31"))
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
        return Err(Error::Setup(format!("--expires {text}: that is in the past")));
    }
    Ok(end)
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
}
