//! Replaces names of models on a hub, `hf:OWNER/NAME`, by where the models are in the cache, and downloads what is not
//! there: at the start, before anything else. A model that is complete is used as it is, and the network is not asked.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::Result;
use crate::hub::{self, Hub, ModelName, Plan, Progress, Tally};
use crate::model::ModelConfig;
use crate::model::entry::ModelEntry;
use crate::model::second_engine::SecondEngineModel;
use crate::model::static_model::is_model2vec;

/// How often the log says how far a download is.
const PAUSE: Duration = Duration::from_secs(10);

/// Replaces the names among the paths of `models`.
pub(crate) async fn resolve(models: &mut [ModelEntry], progress: &dyn Progress) -> Result<()> {
    for model in models {
        let Some(name) = ModelName::of_path(&model.path).transpose()? else { continue };
        let found = Hub::from_environment()?.find_or_pull(&name, progress).await?;
        tracing::info!(model = model.id, name = %name, commit = found.commit, "from the cache of models");
        if !found.is_listed {
            tracing::warn!(
                model = model.id,
                "another program downloaded this model, and which files it should have is not known; `{}` checks it",
                name.command()
            );
        }
        model.path = found.path;
    }
    Ok(())
}

/// Returns why the model with this `config.json` cannot be served; `None` if it can.
pub(crate) fn unsupported(config: &Path) -> Option<String> {
    if is_model2vec(config) || SecondEngineModel::has_family(config) {
        return None;
    }
    let said = ModelConfig::read_file(config).err()?.to_string();
    let reason = said.strip_prefix(&format!("{}: ", config.display())).unwrap_or(&said);
    Some(format!("config.json: {reason}"))
}

/// Tells a download to the log.
#[derive(Debug, Default)]
pub(crate) struct Log {
    tally: Mutex<Tally>,
}

impl Log {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Log {
    fn planned(&self, plan: &Plan) {
        self.tally().planned(plan);
        tracing::info!("downloading {}", plan.line());
    }

    fn reached(&self, file: &str, bytes: u64) {
        let mut tally = self.tally();
        tally.reached(file, bytes);
        if let Some(line) = tally.line(PAUSE) {
            tracing::info!("downloaded {line}");
        }
    }

    fn waiting(&self, file: &str) {
        tracing::info!("waiting for another process that downloads {file}");
    }

    fn retrying(&self, file: &str, error: &hub::Error, pause: Duration) {
        tracing::warn!(file, %error, ?pause, "asking again");
    }

    fn refuse(&self, config: &Path) -> Option<String> {
        unsupported(config)
    }
}
