//! Starts the second engine for the models that it runs: finds its program, says what it will take, and waits until it has
//! loaded. Called by [`App::build`](super::App::build).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use candle_core::safetensors::MmapedSafetensors;

use crate::config::{Config, DeviceChoice};
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
    let on_cpu = device::select(config.device)?.is_cpu();
    if let Some(how) = model.fails_on_cpu.filter(|_| on_cpu) {
        return Err(Error::Setup(format!(
            "model `{}`: mistralrs 0.8.1 cannot compute models of this family on a CPU: {how}",
            entry.id
        )));
    }
    if model.is_unproven {
        tracing::warn!(
            model = entry.id,
            "nobody has compared the second engine's answers for this family with others'"
        );
    } else if !on_cpu {
        tracing::warn!(
            model = entry.id,
            "the second engine's answers for this family were compared with others' on a CPU alone"
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
    device: &Device,
    limits: &EngineLimits,
    priority: &Arc<Priority>,
) -> Result<Arc<dyn Backend>> {
    let program = find_program(config.second_engine.as_deref())
        .ok_or_else(|| Error::Internal(format!("{PROGRAM} was there and is gone")))?;
    let settings = ChildSettings {
        program,
        dtype: dtype(entry, device).map(str::to_owned),
        quantize: entry.quantize.clone(),
        adapter: entry.adapter.clone(),
        gpu: (!device.is_cpu()).then_some(match config.device {
            DeviceChoice::Cuda(index) => index,
            DeviceChoice::Auto | DeviceChoice::Cpu => 0,
        }),
        weights_bytes: weights_bytes(&model.path),
    };
    let needed = needed_bytes(entry, &model.path, device);
    let free = device::free_memory(device).map(|memory| memory.free);
    tracing::info!(
        model = model.id,
        program = %settings.program.display(),
        files_mib = settings.weights_bytes >> 20,
        memory_mib = needed >> 20,
        free_mib = free.map(|free| free >> 20),
        dtype = settings.dtype.as_deref().unwrap_or("the device's own"),
        quantize = settings.quantize.as_deref().unwrap_or("no"),
        adapter = entry.adapter.as_ref().map(|adapter| adapter.display().to_string()),
        "the second engine loads this model into a process of its own; it serves it and does not train it"
    );
    if let Some(free) = free.filter(|free| *free < needed) {
        tracing::warn!(
            model = model.id,
            memory_mib = needed >> 20,
            free_mib = free >> 20,
            "less memory is free than the weights take before they are quantized"
        );
    }
    // Not those of a step of Attune's own engine on a GPU.
    let limits = EngineLimits { max_sequences: config.limits.engine().max_sequences, ..limits.clone() };
    let (model, priority) = (model.clone(), priority.clone());
    let engine = off_thread("start the second engine", move || -> Result<_> {
        Ok(ChildEngine::start(model, settings, &limits, priority)?)
    });
    Ok(Arc::new(engine.await?))
}

/// Returns the type of the weights in memory; `None` for the device's usual one.
fn dtype(entry: &ModelEntry, device: &Device) -> Option<&'static str> {
    match entry.dtype {
        Some(Dtype::F32) => Some("f32"),
        Some(Dtype::Bf16) => Some("bf16"),
        Some(Dtype::F16) => Some("f16"),
        // The usual one on a CPU is f16, which rounds what bf16 holds.
        None => (device.is_cpu() && entry.quantize.is_none()).then_some("f32"),
    }
}

/// Returns the bytes that the weights in `folder` will take, before they are quantized.
pub(super) fn needed_bytes(entry: &ModelEntry, folder: &Path, device: &Device) -> u64 {
    memory_bytes(folder, dtype(entry, device)).unwrap_or_else(|| weights_bytes(folder))
}

/// Returns the weights' files in `folder`.
fn weight_files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
}

/// Returns the bytes of the weights' files in `folder`.
fn weights_bytes(folder: &Path) -> u64 {
    weight_files(folder).filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Returns the bytes of memory that the weights in `folder` take as `dtype`, before they are quantized; `None` if it is not
/// said, or a file cannot be read, which is told when it is loaded.
fn memory_bytes(folder: &Path, dtype: Option<&str>) -> Option<u64> {
    let width = if dtype? == "f32" { 4 } else { 2 };
    let files: Vec<PathBuf> = weight_files(folder).collect();
    // SAFETY: only the headers are read; nothing changes the files meanwhile, as with the weights themselves.
    let tensors = unsafe { MmapedSafetensors::multi(&files) }.ok()?;
    let counts = tensors.tensors().into_iter().map(|(_, view)| view.shape().iter().product::<usize>() as u64);
    Some(counts.sum::<u64>() * width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_model_is_known_before_it_is_loaded() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let (stored, wide) = (weights_bytes(&demo), memory_bytes(&demo, Some("f32")));
        let narrow = memory_bytes(&demo, Some("bf16"));
        assert_eq!(wide, narrow.map(|bytes| bytes * 2));
        // The demo model is stored as f16, beside a small header.
        assert!(narrow.is_some_and(|bytes| bytes < stored && bytes + (64 << 10) > stored), "{stored} {narrow:?}");
        assert_eq!((memory_bytes(&demo, None), weights_bytes(Path::new("/no/such"))), (None, 0));
    }
}
