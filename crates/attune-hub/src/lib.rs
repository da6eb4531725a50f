//! Models by name: finds `owner/name` in the cache that Hugging Face's own programs use, and downloads what is missing,
//! resumed, checked and pinned to a commit. Called by `app` at the start and by the commands `pull` and `models`.
//!
//! A download goes through the modules in this order: [`name`] and [`settings`] say what and from where; `client` asks
//! the hub, `refusal` and `patience` deal with its answers; [`listing`] checks the list of the files, `choice` picks
//! from it; `download` fetches each under a `lock` with its `checksum`; `cache` shows them; [`found`] looks offline.

mod cache;
mod checksum;
mod choice;
mod client;
mod download;
pub mod error;
pub mod found;
pub mod listing;
mod lock;
pub mod name;
mod patience;
pub mod progress;
pub mod pull;
mod refusal;
pub mod settings;

pub use choice::Form;
pub use error::{Error, Result};
pub use found::{Cached, Found};
pub use name::ModelName;
pub use progress::{Plan, Progress, Tally};
pub use pull::Hub;
pub use settings::Settings;
