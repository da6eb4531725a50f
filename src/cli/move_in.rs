//! `attune move-in openai`: brings what an account at OpenAI holds over to a running server. [`fetch`] copies the
//! account into a folder, [`carry`] copies the folder into the server, and [`specialists`] trains the jobs anew and
//! compares. Every stage writes down what is done, in the folder, and goes on where it was when it is started again.
//!
//! [`account`] is the client of the account, which only reads; [`local`] that of the server; [`folder`] what is in the
//! folder; [`ledger`] what became of it; [`listing`] shows it to people.

mod account;
mod bases;
mod carry;
mod fetch;
mod folder;
mod ledger;
mod listing;
mod local;
mod specialists;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use self::account::{Account, AccountOptions};
use self::bases::{BaseChoice, Bases};
use self::fetch::Extent;
use self::folder::Folder;
use self::ledger::Ledger;
use self::local::Local;
use self::specialists::SpecialistOptions;
use super::client::ServerPlace;
use super::output::note;
use crate::{Error, Result};

/// The subcommands of `attune move-in`.
#[derive(Debug, Subcommand)]
pub(super) enum MoveInCommand {
    /// Bring files, jobs, evals and stored chats of an account at OpenAI over to a running server, and train its models
    /// anew.
    Openai(Box<OpenaiOptions>),
}

impl MoveInCommand {
    /// Runs the subcommand.
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Openai(options) => options.run().await,
        }
    }
}

/// The flags of `attune move-in openai`.
#[derive(Debug, Args)]
#[command(
    after_help = "The key of the account is read from OPENAI_API_KEY, or from --key-file. It is not stored. Nothing is \
                        changed or deleted in the account: it is only read, and with --compare its models are asked."
)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags")]
pub(super) struct OpenaiOptions {
    #[command(flatten)]
    place: ServerPlace,
    #[command(flatten)]
    account: AccountOptions,
    /// Copy the account into this folder; a run that was ended goes on there.
    #[arg(long, value_name = "FOLDER", default_value = "move-in", conflicts_with = "from")]
    folder: PathBuf,
    /// Start from this folder, which an earlier run filled, without asking the account.
    #[arg(long, value_name = "FOLDER", conflicts_with = "refresh")]
    from: Option<PathBuf>,
    /// List what is there, what of it can still be fetched, and what stops when; copy nothing.
    #[arg(long, conflicts_with_all = ["fetch_only", "retrain", "compare", "set_aliases"])]
    list: bool,
    /// Copy the account into the folder and end; no server is asked.
    #[arg(long, conflicts_with_all = ["from", "retrain", "compare", "set_aliases"])]
    fetch_only: bool,
    /// Look for what is new in the account, although the folder was filled before.
    #[arg(long)]
    refresh: bool,
    /// Leave out the stored chats, of which there may be very many.
    #[arg(long)]
    no_completions: bool,
    /// Train each job that made a model anew on a local base model; see --base.
    #[arg(long)]
    retrain: bool,
    /// Ask the new models and their bases the prompts of the validation files, with --ask-old the old models too, and
    /// write a report for each.
    #[arg(long)]
    compare: bool,
    /// Let the old names stand for the new models on the server, as aliases of the key's organisation; they work at once.
    #[arg(long)]
    set_aliases: bool,
    /// Train on this base model of the server; with OLD= only the jobs on that old base, the job of that id, or the one
    /// that made the model of that name.
    #[arg(long = "base", value_name = "[OLD=]LOCAL")]
    bases: Vec<BaseChoice>,
    #[command(flatten)]
    specialists: SpecialistOptions,
    /// Give up after this many seconds without an answer from the account or the server.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    patience: u64,
}

/// What all stages after the fetch work with.
struct Move<'a> {
    /// What was fetched.
    folder: &'a Folder,
    /// What became of it.
    ledger: &'a mut Ledger,
    /// The server that it is brought to.
    local: &'a Local,
    /// The account, to ask its models; `None` with `--from`, or without a key.
    account: Option<&'a Account>,
    /// Which local base takes the place of which old one.
    bases: &'a Bases,
    /// How models are trained anew and compared.
    options: &'a SpecialistOptions,
}

impl OpenaiOptions {
    async fn run(self) -> Result<()> {
        let patience = Duration::from_secs(self.patience);
        let root = self.from.as_ref().unwrap_or(&self.folder);
        let folder = Folder::open(root, self.from.is_none())?;
        let account = if self.from.is_some() { None } else { self.account.account(patience)? };
        self.fetch(&folder, account.as_ref()).await?;
        listing::show(&folder, self.list)?;
        if self.list || self.fetch_only {
            return Ok(());
        }
        let local = Local::new(self.place.server()?, patience);
        let mut ledger = Ledger::open(&folder)?;
        carry::carry(&folder, &mut ledger, &local).await?;
        let bases = Bases::new(self.bases);
        let account = account.as_ref();
        let (bases, options) = (&bases, &self.specialists);
        let mut work = Move { folder: &folder, ledger: &mut ledger, local: &local, account, bases, options };
        if self.retrain {
            specialists::retrain(&mut work).await?;
        }
        if self.compare {
            specialists::compare(&mut work).await?;
        }
        if self.retrain || self.compare || self.set_aliases {
            specialists::report(&mut work, self.set_aliases).await?;
        }
        listing::problems(ledger.carried());
        Ok(())
    }

    /// Fills the folder, unless that was done before.
    async fn fetch(&self, folder: &Folder, account: Option<&Account>) -> Result<()> {
        if self.from.is_some() {
            return Ok(());
        }
        if fetch::is_complete(folder)? && !self.refresh {
            note("the folder was filled before: --refresh looks for what is new in the account");
            return Ok(());
        }
        let Some(account) = account else {
            let message = "the key of the account is not known: set OPENAI_API_KEY, or name a file with --key-file";
            return Err(Error::Setup(message.into()));
        };
        let extent = Extent { contents: !self.list, completions: !self.no_completions, afresh: self.refresh };
        fetch::fetch(folder, account, extent).await
    }
}
