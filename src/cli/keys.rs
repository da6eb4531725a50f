//! `attune keys`: makes, lists, limits and revokes API keys in the database. Standard output is for scripts: `create`
//! prints the key alone on a line.

use crate::Result;
use crate::app::open_store_beside;
use crate::config::Config;
use crate::store::Store;
use crate::store::keys::{ApiKey, NewKey, expiry, normal_organization};
use clap::{Args, Subcommand};
use jiff::Timestamp;

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
    /// Change what a key may ask for in a minute, from its next request on.
    Limit {
        #[command(flatten)]
        place: DataDirArgs,
        /// The key's id, as `list` prints it: `key_…`.
        id: String,
        #[command(flatten)]
        limits: LimitArgs,
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
    #[command(flatten)]
    limits: LimitArgs,
    /// Expire the key after a time (30d, 12h, 45m, 10s) or at the start of a UTC day (2027-01-31) [default: never].
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
}

/// The limits of a key.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct LimitArgs {
    /// Allow this many requests per minute [default: `limits.requests_per_minute`].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rpm: Option<u64>,
    /// Allow this many tokens per minute [default: `limits.tokens_per_minute`].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tpm: Option<u64>,
}

impl KeysCommand {
    /// Returns the flags that say where the database is.
    pub(super) fn place(&self) -> &DataDirArgs {
        match self {
            Self::Create(CreateOptions { place, .. })
            | Self::List { place, .. }
            | Self::Limit { place, .. }
            | Self::Revoke { place, .. } => place,
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
            (Self::Limit { id, limits, .. }, _) => {
                let key = store.limit_key(&id, limits.rpm, limits.tpm).await?;
                let [rpm, tpm] = limits_of(&key);
                line(format_args!("{} of {}: {rpm} requests and {tpm} tokens per minute", key.id, key.organization))
            }
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
            requests_per_minute: self.limits.rpm,
            tokens_per_minute: self.limits.tpm,
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
    let [rpm, tpm] = limits_of(&key);
    let name = key.name.map(|name| name.replace(char::is_control, " "));
    [
        key.id,
        key.organization,
        key.masked,
        or_dash(name),
        if key.admin { "yes" } else { "no" }.into(),
        rpm,
        tpm,
        time(key.created_at),
        key.expires_at.map_or_else(|| "never".into(), time),
        or_dash(key.revoked_at.map(time)),
        or_dash(key.last_used_on),
    ]
}

/// Words a key's requests and tokens per minute.
fn limits_of(key: &ApiKey) -> [String; 2] {
    let word = |limit: Option<i64>| limit.map_or_else(|| "default".into(), |limit| limit.to_string());
    [key.requests_per_minute, key.tokens_per_minute].map(word)
}

/// Formats Unix seconds as UTC time.
fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}
