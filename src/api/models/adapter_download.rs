//! `GET /models/{model}/adapter`: the adapter of a fine-tuned model, as a PEFT folder or as llama.cpp's file.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, stream};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::adapters;
use crate::adapters::registry::{config_key, weights_key};
use crate::api::ApiState;
use crate::api::access::auth::Caller;
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Path;
use crate::api::http::query::Query;
use crate::api::models::model_resource::{self, blame_model};
use crate::api::models::names::real_name;
use crate::model::{self, gguf};
use crate::off_thread::off_thread;
use crate::store;
use crate::store::models::FineTunedModel;

/// Bytes of a block of a tar archive.
const BLOCK: usize = 512;

/// The form of a download.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AdapterFormat {
    /// A tar archive with `adapter_config.json` and `adapter_model.safetensors`: a folder that PEFT loads.
    #[default]
    Peft,
    /// A GGUF file, which llama.cpp loads with `--lora` beside a GGUF file of the base model.
    Gguf,
}

/// The query of a download.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DownloadQuery {
    /// The form; `peft` if absent.
    #[param(inline)]
    pub format: Option<AdapterFormat>,
}

/// Reads a model or downloads its adapter: model names may contain slashes, so one route takes everything after
/// `/models/`.
pub(crate) async fn get(
    state: State<ApiState>,
    caller: Caller,
    Path(path): Path<String>,
    query: Result<Query<DownloadQuery>, Problem>,
) -> Result<Response, Problem> {
    match path.strip_suffix("/adapter") {
        Some(name) if state.catalog.get(&path).is_err() => download(state, caller, Path(name.to_owned()), query?).await,
        _ => Ok(model_resource::retrieve(state, caller, Path(path)).await?.into_response()),
    }
}

/// Download the adapter of a fine-tuned model
///
/// A tar archive with `adapter_config.json` and `adapter_model.safetensors`, a folder that PEFT loads; or, with
/// `format=gguf`, a GGUF file for llama.cpp. An extension of this server.
#[utoipa::path(
    get, path = "/models/{model}/adapter", operation_id = "downloadAdapter", tag = "Models",
    params(("model" = String, Path, description = "The name of a fine-tuned model."), DownloadQuery),
    responses(
        (status = 200, description = "The archive.", content_type = "application/x-tar", body = Vec<u8>),
        (status = "4XX", body = ErrorBody),
    ),
)]
pub(crate) async fn download(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<DownloadQuery>,
) -> Result<Response, Problem> {
    let real = real_name(&state, &caller.organization, &name).await?;
    if state.catalog.get(&real).is_ok() {
        let message = format!("The model `{name}` is a base model and has no adapter.");
        return Err(Problem::invalid("model", message));
    }
    // For the owner only: the permission to use a model does not include its weights.
    let row = state.store.fine_tuned_model(&caller.organization, &real).await;
    let model = row.map_err(|error| blame_model(Problem::from(error).about_model(&name)))?;
    match query.format.unwrap_or_default() {
        AdapterFormat::Peft => peft(&state, &model).await,
        AdapterFormat::Gguf => llama_cpp(&state, &caller, &model).await,
    }
}

/// Streams the stored files in a tar archive.
async fn peft(state: &ApiState, model: &FineTunedModel) -> Result<Response, Problem> {
    let blobs = &state.store.blobs;
    let (config, weights) = (config_key(&model.adapter), weights_key(&model.adapter));
    let (config, bytes) = (blobs.get(&config).await?, blobs.size(&weights).await?);
    let [begin, end] = archive(&config, bytes, model.created_at)?;
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_LENGTH, (begin.len() as u64 + bytes + end.len() as u64).to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"adapter-{:.12}.tar\"", model.adapter)),
    ];
    let around = |part| stream::once(async move { Ok::<_, store::Error>(part) });
    let archive = around(begin).chain(blobs.stream(&weights).await?).chain(around(end));
    Ok((headers, Body::from_stream(archive)).into_response())
}

/// Writes the adapter anew as llama.cpp's file.
async fn llama_cpp(state: &ApiState, caller: &Caller, model: &FineTunedModel) -> Result<Response, Problem> {
    let (base, adapter) = state.registry.original(&caller.organization, &model.name).await?;
    let base = Arc::clone(&state.catalog.get(&base)?.model);
    // Its values once more, and the file.
    let _share = state.registry.share(2 * adapter.bytes() as u64).await?;
    let file = off_thread("writing a GGUF file", move || {
        let names = gguf::lora::names(&base.path, &base.config)?;
        Ok::<_, adapters::Error>(gguf::lora::write(&adapter, &names)?)
    });
    let file = file.await.map_err(blame_format)?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"adapter-{:.12}.gguf\"", model.adapter)),
    ];
    Ok((headers, file).into_response())
}

/// Names the field `format` in an error about an adapter that has no such form.
fn blame_format(error: adapters::Error) -> Problem {
    match error {
        adapters::Error::Model(model::Error::Setup(message)) => Problem::invalid("format", message),
        other => other.into(),
    }
}

/// Returns what stands before and after the content of the weights, of which there are `bytes`, in a tar archive with
/// the config.
fn archive(config: &[u8], bytes: u64, modified: i64) -> Result<[Bytes; 2]> {
    let (mut begin, mut end) = (entry("adapter_config.json", config.len() as u64, modified)?, Vec::new());
    begin.extend_from_slice(config);
    begin.resize(begin.len().next_multiple_of(BLOCK), 0);
    begin.extend(entry("adapter_model.safetensors", bytes, modified)?);
    end.resize((bytes.next_multiple_of(BLOCK as u64) - bytes) as usize + 2 * BLOCK, 0);
    Ok([begin.into(), end.into()])
}

/// Returns the head of a file in a tar archive.
fn entry(name: &str, bytes: u64, modified: i64) -> Result<Vec<u8>> {
    let mut head = tar::Header::new_ustar();
    head.set_path(name).map_err(Problem::io(format!("archive {name}")))?;
    head.set_size(bytes);
    head.set_mode(0o644);
    head.set_mtime(modified.max(0) as u64);
    head.set_cksum();
    Ok(head.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_archive_holds_both_files_unchanged() {
        let weights = vec![7_u8; 1000];
        let [begin, end] = archive(b"{}", weights.len() as u64, 12).expect("an archive");
        let bytes = [&begin[..], &weights, &end].concat();
        let mut read = tar::Archive::new(bytes.as_slice());
        let contents: Vec<(String, Vec<u8>)> = read
            .entries()
            .expect("entries")
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let name = entry.path().expect("a path").to_string_lossy().into_owned();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("its content");
                (name, content)
            })
            .collect();
        assert_eq!(
            contents,
            [("adapter_config.json".into(), b"{}".to_vec()), ("adapter_model.safetensors".into(), weights)]
        );
    }
}
