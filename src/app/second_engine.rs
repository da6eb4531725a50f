//! Starts the second engine for the models that it runs: finds its program, says what it will take, and waits until it has
//! loaded. Called by [`App::build`](super::App::build).

use std::path::Path;
use std::sync::Arc;

use crate::config::Config;
use crate::engine::child::{ChildEngine, ChildSettings, PROGRAM, find_program};
use crate::engine::priority::Priority;
use crate::engine::{Backend, EngineLimits};
use crate::model::checkpoint::Checkpoint;
use crate::model::entry::ModelEntry;
use crate::model::linear::Dtype;
use crate::model::{BaseModel, device};
use crate::off_thread::off_thread;
use crate::{Error, Result};

/// Refuses a model that the second engine is to run and whose program is missing, and settings that only it has for a model
/// that it does not run.
pub(super) fn check(entry: &ModelEntry, checkpoint: &Checkpoint, config: &Config) -> Result<()> {
    let Checkpoint::SecondEngine(model) = checkpoint else {
        return match &entry.adapter {
            None => Ok(()),
            Some(_) => Err(Error::Setup(format!(
                "model `{}`: `adapter` is for the second engine; Attune's own engine loads adapters while it runs, with POST \
                 /v1/load_lora_adapter",
                entry.id
            ))),
        };
    };
    let program = config.second_engine.as_deref();
    if model.needs_gpu && device::select(config.device)?.is_cpu() {
        return Err(Error::Setup(format!(
            "model `{}`: mistralrs 0.8.1 cannot compute models of this family on a CPU",
            entry.id
        )));
    }
    if model.is_unproven {
        tracing::warn!(
            model = entry.id,
            "nobody has compared the second engine's answers for this family with others'"
        );
    }
    match (find_program(program), program) {
        (Some(_), _) => Ok(()),
        (None, Some(program)) => Err(Error::Setup(format!("second_engine: there is no program {}", program.display()))),
        (None, None) => Err(Error::Setup(format!(
            "model `{}` runs on the second engine, whose program {PROGRAM} is neither beside attune nor in PATH: build it with \
             `make mistralrs`, or name it with second_engine = \"…/{PROGRAM}\"",
            entry.id
        ))),
    }
}

/// Starts the process for `model` and waits until it has loaded it.
pub(super) async fn start(
    config: &Config,
    entry: &ModelEntry,
    model: &Arc<BaseModel>,
    on_cpu: bool,
    limits: &EngineLimits,
    priority: &Arc<Priority>,
) -> Result<Arc<dyn Backend>> {
    let program = find_program(config.second_engine.as_deref())
        .ok_or_else(|| Error::Internal(format!("{PROGRAM} was there and is gone")))?;
    let name = |dtype| match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "f16",
    };
    let dtype = entry.dtype.map(|dtype| name(dtype).to_owned());
    let settings = ChildSettings {
        program,
        // Its usual type on a CPU is f16, which rounds what bf16 holds.
        dtype: dtype.or_else(|| (on_cpu && entry.quantize.is_none()).then(|| "f32".to_owned())),
        quantize: entry.quantize.clone(),
        adapter: entry.adapter.clone(),
        on_cpu,
    };
    let mib = weights_bytes(&model.path) >> 20;
    tracing::info!(
        model = model.id,
        program = %settings.program.display(),
        files_mib = mib,
        dtype = settings.dtype.as_deref().unwrap_or("the device's own"),
        quantize = settings.quantize.as_deref().unwrap_or("no"),
        adapter = entry.adapter.as_ref().map(|adapter| adapter.display().to_string()),
        "the second engine loads this model into a process of its own; it serves it and does not train it"
    );
    let (model, limits, priority) = (model.clone(), limits.clone(), priority.clone());
    let engine = off_thread("start the second engine", move || -> Result<_> {
        Ok(ChildEngine::start(model, settings, &limits, priority)?)
    });
    Ok(Arc::new(engine.await?))
}

/// Returns the bytes of the weights' files in `folder`.
fn weights_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let weights = files.filter(|file| file.path().extension().is_some_and(|end| end == "safetensors"));
    weights.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}
