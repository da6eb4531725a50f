//! `POST /load_lora_adapter` and `POST /unload_lora_adapter`: adapters that were trained elsewhere, brought into the running
//! server and out of it. Extensions in vLLM's form; what is loaded is a fine-tuned model like any other, also after a
//! restart.
//! `GET /lora_adapters` shows the adapters in memory, trained here or elsewhere.

use std::path::Path;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::adapters::peft::{self, PeftFiles};
use crate::adapters::pieces::Pieces;
use crate::adapters::{self, import};
use crate::api::ApiState;
use crate::api::access::auth::{Admin, Caller};
use crate::api::http::error::{ErrorBody, Problem, Result};
use crate::api::http::extract::Body;
use crate::api::models::adapter_list::AdapterList;
use crate::api::models::names::check_new;
use crate::api::operations::checks::no_longer_than;
use crate::engine;
use crate::off_thread::off_thread;
use crate::store;

/// Bytes of a path, and of the names of what exists.
const MAX_TEXT: usize = 4096;
/// What an archive with an adapter may have been uploaded for.
const PURPOSES: [&str; 2] = ["user_data", "assistants"];

/// An adapter to load.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct LoadAdapter {
    /// The name that requests will give as their `model`.
    #[schema(min_length = 1, max_length = 256)]
    pub lora_name: String,
    /// A PEFT folder below the server's data folder, or the id of an uploaded tar archive (purpose `user_data` or
    /// `assistants`).
    pub lora_path: String,
    /// Replace the adapter that has this name; requests in flight end on the one that they began with.
    #[schema(default = false)]
    pub load_inplace: Option<bool>,
    /// The base model; by default the one that the adapter names, else the only one.
    pub base_model_name: Option<String>,
}

/// An adapter to unload; vLLM's `lora_int_id` has no meaning here and is ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct UnloadAdapter {
    /// Its name.
    pub lora_name: String,
}

/// Load an adapter
///
/// Stores the adapter as a fine-tuned model of the caller's organisation. An extension of this server.
#[utoipa::path(
    post, path = "/load_lora_adapter", operation_id = "loadAdapter", tag = "Models", request_body = LoadAdapter,
    responses((status = 200, body = String), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn load(
    State(state): State<ApiState>,
    Admin(caller): Admin,
    Body(request): Body<LoadAdapter>,
) -> Result<String, Problem> {
    check_name(&state, &caller, &request.lora_name).await?;
    no_longer_than("lora_path", Some(&request.lora_path), MAX_TEXT)?;
    no_longer_than("base_model_name", request.base_model_name.as_deref(), MAX_TEXT)?;
    let name = request.lora_name.clone();
    // A client that hangs up must not leave half of it.
    let loading = tokio::spawn(async move { Box::pin(bring_in(&state, &caller, request)).await });
    loading.await.map_err(|error| Problem::defect(format_args!("load an adapter: {error}")))??;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// Unload an adapter
///
/// Deletes an adapter that was loaded; requests in flight end undisturbed. An extension of this server.
#[utoipa::path(
    post, path = "/unload_lora_adapter", operation_id = "unloadAdapter", tag = "Models", request_body = UnloadAdapter,
    responses((status = 200, body = String), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn unload(
    State(state): State<ApiState>,
    Admin(caller): Admin,
    Body(request): Body<UnloadAdapter>,
) -> Result<String, Problem> {
    let name = request.lora_name;
    no_longer_than("lora_name", Some(&name), MAX_TEXT)?;
    let found = state.store.fine_tuned_model(&caller.organization, &name).await;
    let model = found.map_err(|error| Problem::from(error).param("lora_name"))?;
    if model.job.is_some() {
        let message = format!("A fine-tune job made the model '{name}': delete it with DELETE /v1/models instead.");
        return Err(Problem::invalid_code("lora_name", "invalid_value", message));
    }
    let deleted = state.store.delete_fine_tuned_model(&caller.organization, &name).await;
    deleted.map_err(|error| Problem::from(error).param("lora_name"))?;
    state.registry.forget(&caller.organization, &name);
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

/// List the adapters in memory
///
/// What operators need to know of memory: each adapter generation that is there, and the budgets. Generations of every
/// organisation are counted, with their names only where they are the caller's. An extension of this server.
#[utoipa::path(
    get, path = "/lora_adapters", operation_id = "listAdapters", tag = "Models",
    responses((status = 200, body = AdapterList), (status = "4XX", body = ErrorBody)),
)]
pub(crate) async fn list(State(state): State<ApiState>, Admin(caller): Admin) -> Json<AdapterList> {
    let status = state.registry.status();
    Json(AdapterList::new(&status, &state.config.limits, &caller.organization))
}

/// Names must be visible and must not be taken for anything else.
async fn check_name(state: &ApiState, caller: &Caller, name: &str) -> Result<()> {
    check_new(state, "lora_name", name)?;
    if state.store.alias_target(&caller.organization, name).await?.is_some() {
        let message = format!("'{name}' is an alias of your organization: choose another name.");
        return Err(Problem::invalid_code("lora_name", "invalid_value", message));
    }
    Ok(())
}

async fn bring_in(state: &ApiState, caller: &Caller, request: LoadAdapter) -> Result<()> {
    let source = Source::open(state, caller, &request.lora_path).await?;
    // Until the adapter is stored its files lie in memory.
    let _share = state.registry.share(source.bytes()).await?;
    let files = source.read(state).await?;
    let base = choose_base(state, request.base_model_name.as_deref(), &files.config)?;
    let replace = request.load_inplace == Some(true);
    let install = state.registry.install(&caller.organization, &request.lora_name, &base, files, replace);
    Box::pin(install).await.map_err(blame_path)
}

/// What is not there, or is no adapter that fits, is the path's fault.
fn blame_path(error: adapters::Error) -> Problem {
    use adapters::Error as Adapters;
    let at_fault = matches!(
        error,
        Adapters::Invalid(_)
            | Adapters::TooLarge { .. }
            | Adapters::FolderNotFound(_)
            | Adapters::Store(store::Error::NotFound { .. })
    );
    let is_elsewhere = matches!(error, Adapters::Engine(engine::Error::NotOnThisEngine { .. }));
    let problem = Problem::from(error);
    match (at_fault, is_elsewhere) {
        (true, _) => problem.param("lora_path"),
        (_, true) => problem.param("base_model_name"),
        _ => problem,
    }
}

/// Where an adapter comes from, open and not yet read.
enum Source {
    Folder(import::Folder),
    Archive { content: std::fs::File, bytes: u64 },
}

impl Source {
    /// A folder, or an uploaded archive.
    async fn open(state: &ApiState, caller: &Caller, path: &str) -> Result<Self> {
        if path.starts_with("file-") {
            let (content, bytes) = fetch(state, caller, path).await?;
            return Ok(Self::Archive { content, bytes });
        }
        let (data_dir, path) = (state.config.data_dir.clone(), path.to_owned());
        let limit = state.config.limits.max_adapter_bytes;
        let open = move || import::Folder::open(&data_dir, Path::new(&path), limit);
        off_thread("read an adapter", open).await.map(Self::Folder).map_err(blame_path)
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Folder(folder) => folder.bytes(),
            Self::Archive { bytes, .. } => *bytes,
        }
    }

    async fn read(self, state: &ApiState) -> Result<PeftFiles> {
        let limit = state.config.limits.max_adapter_bytes;
        let read = move |pieces: &mut Pieces<'_>| match self {
            Self::Folder(folder) => folder.read(pieces),
            Self::Archive { content, .. } => import::read_archive(content, limit, pieces),
        };
        state.registry.in_pieces(read).await.map_err(blame_path)
    }
}

/// Opens an uploaded file; also returns its bytes.
async fn fetch(state: &ApiState, caller: &Caller, id: &str) -> Result<(std::fs::File, u64)> {
    let file = state.store.file(&caller.organization, id).await.map_err(|error| blame_path(error.into()))?;
    if !PURPOSES.contains(&file.purpose.as_str()) {
        let message = format!("The file '{id}' has the purpose '{}': upload it again as 'user_data'.", file.purpose);
        return Err(Problem::invalid_code("lora_path", "invalid_value", message));
    }
    let limit = import::max_archive_bytes(state.config.limits.max_adapter_bytes);
    if file.bytes as u64 > limit {
        let message = format!("The file '{id}' is too large for an adapter: the limit is {limit} bytes.");
        return Err(Problem::invalid_code("lora_path", "invalid_value", message));
    }
    Ok((state.store.open_file(&file).await?, file.bytes as u64))
}

/// Id of the base model: what the caller says, else what the adapter says where that is served, else the only one.
fn choose_base(state: &ApiState, asked: Option<&str>, config: &[u8]) -> Result<String> {
    let served = |name: &str| state.catalog.get(state.catalog.real_name(name)).ok().map(|entry| entry.model.id.clone());
    if let Some(asked) = asked {
        return served(asked).ok_or_else(|| {
            let message = format!("'base_model_name' is '{asked}', which is not a base model of this server.");
            Problem::invalid_code("base_model_name", "invalid_value", message)
        });
    }
    if let Some(base) = peft::base_name(config).as_deref().and_then(served) {
        return Ok(base);
    }
    if let [only] = state.catalog.entries() {
        return Ok(only.model.id.clone());
    }
    let message = "The adapter names no base model of this server: say which one in 'base_model_name'.";
    Err(Problem::invalid_code("base_model_name", "missing_required_parameter", message))
}
