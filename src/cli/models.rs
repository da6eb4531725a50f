//! `attune models`: lists the models of the configuration and of the cache, what each takes in memory, and whether it
//! serves and trains, from headers and small files alone.

mod census;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use self::census::Census;
use super::output::line;
use super::table;
use crate::config::Config;
use crate::hub::{Form, Found, Hub, ModelName};
use crate::model::checkpoint::Checkpoint;
use crate::{Result, format};

/// Digits of a commit in the table.
const SHORT_COMMIT: usize = 8;

/// The flags of `attune models`.
#[derive(Debug, Args)]
pub(super) struct ModelsOptions {
    /// Read the configuration from this file.
    #[arg(long, env = "ATTUNE_CONFIG")]
    config: Option<PathBuf>,
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

/// One line of the list.
struct Row {
    /// The id of the configuration, or the name that finds it in the cache.
    name: String,
    commit: Option<String>,
    path: Option<PathBuf>,
    bytes: Option<u64>,
    census: Option<Census>,
    /// What it makes; `None` if it cannot be read.
    makes: Option<Makes>,
    /// Why it does not serve and train.
    fault: Option<String>,
}

/// What a model makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Makes {
    /// Text, and vectors too.
    Text,
    /// Vectors, which is what it was made for.
    Vectors,
    /// Vectors of a table, in which nothing can be trained.
    TableOfVectors,
    /// Text, by another engine, which does not train.
    TextElsewhere,
}

impl Makes {
    /// Looks at the model that was opened at `path`.
    fn of(checkpoint: &Checkpoint, path: &Path) -> Self {
        match checkpoint {
            Checkpoint::Static(_) => Self::TableOfVectors,
            Checkpoint::SecondEngine(_) => Self::TextElsewhere,
            _ if checkpoint.is_for_vectors(path) || checkpoint.config().is_ok_and(|config| config.is_encoder) => {
                Self::Vectors
            }
            _ => Self::Text,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::TextElsewhere => "text (second engine)",
            Self::Vectors | Self::TableOfVectors => "vectors",
        }
    }
}

impl ModelsOptions {
    /// Prints the list.
    pub(super) fn run(self) -> Result<()> {
        let hub = Hub::from_environment()?;
        let mut rows: Vec<Row> = Vec::new();
        for entry in Config::load(self.config.as_deref())?.models {
            let row = match ModelName::of_path(&entry.path).transpose()? {
                None => Row::of(entry.id, &entry.path),
                Some(name) => match hub.find(&name) {
                    Some(found) => Row::found(entry.id, &found),
                    None => Row::missing(entry.id, format!("not downloaded: run `{}`", name.command())),
                },
            };
            rows.push(row);
        }
        rows.extend(hub.models().into_iter().map(|cached| match cached.found {
            Ok(found) => Row::found(cached.name.to_string(), &found),
            Err(reason) => Row { commit: Some(cached.commit), ..Row::missing(cached.name.to_string(), reason) },
        }));
        if self.json {
            let rows: Vec<Value> = rows.iter().map(Row::json).collect();
            return line(format_args!("{:#}", Value::Array(rows)));
        }
        if rows.is_empty() {
            let cache = hub.cache().display();
            return line(format_args!("no models are in {cache}; `attune pull OWNER/NAME` downloads one"));
        }
        let head = [
            "MODEL",
            "COMMIT",
            "ON DISK",
            "PARAMETERS",
            "F32",
            "BF16",
            "Q8_0",
            "Q4_0",
            "SERVES",
            "TRAINS",
            "MAKES",
            "",
        ];
        let mut cells = vec![head.map(str::to_owned).to_vec()];
        cells.extend(rows.iter().map(Row::cells));
        table::print(&cells)
    }
}

impl Row {
    /// Looks at the model at `path`.
    fn of(name: String, path: &Path) -> Self {
        let read = Checkpoint::open(path).and_then(|checkpoint| checkpoint.config().map(|_| checkpoint));
        let files = read.as_ref().ok().and_then(Checkpoint::folder).unwrap_or(path).to_owned();
        let makes = read.as_ref().ok().map(|checkpoint| Makes::of(checkpoint, path));
        let fault = read.err().map(|error| {
            let said = error.to_string();
            said.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&said).to_owned()
        });
        let (bytes, census) = (Census::bytes(&files), Census::of(&files));
        Self { name, commit: None, path: Some(path.to_owned()), bytes, census, makes, fault }
    }

    fn found(name: String, found: &Found) -> Self {
        let mut row = Self::of(name, &found.path);
        if found.form == Form::Adapter {
            row.fault = Some("an adapter: serve its base model, and load it with POST /v1/load_lora_adapter".into());
        }
        Self { commit: Some(found.commit.clone()), bytes: Some(found.bytes), ..row }
    }

    fn missing(name: String, reason: String) -> Self {
        Self { name, commit: None, path: None, bytes: None, census: None, makes: None, fault: Some(reason) }
    }

    fn serves(&self) -> bool {
        self.fault.is_none()
    }

    fn trains(&self) -> bool {
        self.fault.is_none() && !matches!(self.makes, Some(Makes::TableOfVectors | Makes::TextElsewhere))
    }

    fn cells(&self) -> Vec<String> {
        let none = || "-".to_owned();
        let size = |bytes: Option<u64>| bytes.map_or_else(none, format::bytes);
        let memory = |of: fn(&Census) -> Option<u64>| size(self.census.as_ref().and_then(of));
        let word = |is: bool| if is { "yes" } else { "no" }.to_owned();
        vec![
            self.name.clone(),
            self.commit.as_ref().map_or_else(none, |commit| commit.chars().take(SHORT_COMMIT).collect()),
            size(self.bytes),
            self.census.as_ref().and_then(Census::parameters).map_or_else(none, |count| format::count(count as f64)),
            memory(Census::f32),
            memory(Census::bf16),
            memory(Census::q8_0),
            memory(Census::q4_0),
            word(self.serves()),
            word(self.trains()),
            self.makes.map_or_else(none, |makes| makes.name().to_owned()),
            self.fault.clone().unwrap_or_default(),
        ]
    }

    fn json(&self) -> Value {
        let census = self.census.as_ref();
        json!({
            "name": self.name,
            "commit": self.commit,
            "path": self.path,
            "bytes_on_disk": self.bytes,
            "parameters": census.and_then(Census::parameters),
            "memory_bytes": {
                "f32": census.and_then(Census::f32),
                "bf16": census.and_then(Census::bf16),
                "q8_0": census.and_then(Census::q8_0),
                "q4_0": census.and_then(Census::q4_0),
            },
            "serves": self.serves(),
            "trains": self.trains(),
            "makes": self.makes.map(Makes::name),
            "reason": self.fault,
        })
    }
}
