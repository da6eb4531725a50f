//! Teachers: models of other servers that the operator names. `api` asks them for the answers that a job of
//! distillation trains on, and as graders. Requests go out through [`client`], at the pace of [`pace`]; [`money`] says
//! what they cost.
//!
//! A teacher's address and key come from the configuration alone: no request can make this server call another address.

pub mod client;
pub mod money;
mod pace;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::client::{Answer, Asked, Teacher};
use crate::config::{self, Config};

/// What stands before a teacher's name where a model's name is asked for.
const PREFIX: &str = "teacher:";

/// Returns the teacher's name in `model`; `None` if that is a model of this server.
pub fn named(model: &str) -> Option<&str> {
    model.strip_prefix(PREFIX)
}

/// All teachers, by name. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Teachers(Arc<BTreeMap<String, Teacher>>);

impl Teachers {
    /// Makes the clients of the configured teachers.
    pub fn of(config: &Config) -> config::Result<Self> {
        let fault = |name: &str, what: &str| config::Error(format!("teachers: `{name}`: {what}"));
        let make = |(name, settings): (&String, &config::Teacher)| {
            let teacher = Teacher::new(name, settings).map_err(|config::Error(what)| fault(name, &what))?;
            Ok((name.clone(), teacher))
        };
        Ok(Self(Arc::new(config.teachers.iter().map(make).collect::<config::Result<_>>()?)))
    }

    /// Returns the teacher; an error says what there is instead.
    pub fn get(&self, name: &str) -> Result<&Teacher, String> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<String> = self.0.keys().map(|name| format!("`{PREFIX}{name}`")).collect();
            let known = if known.is_empty() { "there is none".into() } else { known.join(", ") };
            format!("There is no teacher `{name}`. The server's operator names teachers in the configuration: {known}.")
        })
    }
}
