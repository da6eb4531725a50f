//! The one table from each layer's error to status, type, code and parameter.

use axum::http::StatusCode;

use super::{Problem, RateLimit, SERVER_ERROR};
use crate::datasets::Purpose;
use crate::off_thread::Lost;
use crate::store::StorageFault;
use crate::{adapters, engine, jobs, model, store};

impl From<Lost> for Problem {
    fn from(lost: Lost) -> Self {
        Self::defect(lost)
    }
}

impl From<model::Error> for Problem {
    fn from(error: model::Error) -> Self {
        use model::Error as Model;
        let message = error.to_string();
        match error {
            Model::Template(_) => Self::invalid("messages", message),
            Model::NotEncodable(_) => Self::bad_request(message),
            Model::OutOfMemory | Model::DeviceLost => Self::unavailable(message),
            Model::Io { source, .. } => Self::of_disk(StorageFault::of(&*source), message),
            Model::Setup(_) | Model::Tensor(_) | Model::Internal(_) => Self::defect(message),
        }
    }
}

impl From<engine::Error> for Problem {
    fn from(error: engine::Error) -> Self {
        use engine::Error as Engine;
        let message = error.to_string();
        match error {
            Engine::Model(error) => error.into(),
            Engine::ContextLength { .. } => Self::bad_request(message).code("context_length_exceeded"),
            Engine::EmptyPrompt => Self::bad_request(message),
            Engine::UnknownToken { .. } => Self::invalid("prompt", message),
            Engine::Grammar { message, field } => Self::invalid(field, message),
            Engine::UnknownModel(name) => Self::model_not_found(&name),
            Engine::Overloaded { retry_after, .. } => Self::overloaded(message, retry_after),
            Engine::TimedOut { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER_ERROR, message).code("request_timeout")
            }
            Engine::NoClassifier(_) | Engine::NoVectors(_) | Engine::NoText(_) => Self::invalid("model", message),
            Engine::NotOnThisEngine { .. } => Self::invalid_code("model", "unsupported_value", message),
            Engine::PromptTooLongToScore { .. } | Engine::MediaToken { .. } => {
                Self::invalid_code("prompt", "unsupported_value", message)
            }
            Engine::Unavailable(_) => Self::unavailable(message),
            Engine::Io { source, .. } => Self::of_disk(StorageFault::of(&*source), message),
            Engine::Setup(_) | Engine::Internal(_) => Self::defect(message),
        }
    }
}

impl From<attune_train::Error> for Problem {
    fn from(error: attune_train::Error) -> Self {
        use attune_train::{ClassFault, Error as Train, FileFault};
        let message = error.to_string();
        match error {
            Train::Model(error) => error.into(),
            Train::File { purpose, fault, .. } => {
                let code = match fault {
                    FileFault::Content => "invalid_training_file",
                    FileFault::TooFewExamples => "invalid_n_examples",
                };
                Self::invalid_code(file_param(purpose), code, message)
            }
            Train::Classes { fault, .. } => {
                let param = match fault {
                    ClassFault::File(purpose) => file_param(purpose),
                    ClassFault::Number => "classification_n_classes",
                    ClassFault::PositiveClass => "classification_positive_class",
                };
                Self::invalid_code(param, "invalid_classes", message)
            }
            // The trainer's settings have the names of the request's fields.
            Train::Setting { name, .. } => Self::invalid(name, message),
            Train::SequenceTooLong { .. } => Self::invalid_code("max_seq_length", "invalid_value", message),
            Train::InsufficientMemory(_) => Self::invalid_code("max_seq_length", "insufficient_memory", message),
            Train::NonFiniteLoss(_) => Self::invalid_code("learning_rate_multiplier", "non_finite_loss", message),
            Train::Cancelled => Self::stopping(),
            Train::Io { source, .. } => Self::of_disk(StorageFault::of(&*source), message),
            Train::Checkpoint(_) | Train::Internal(_) => Self::defect(message),
        }
    }
}

/// The field that names the file.
fn file_param(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Training => "training_file",
        Purpose::Validation => "validation_file",
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        use store::Error as Store;
        let (message, fault) = (error.to_string(), error.storage_fault());
        match error {
            Store::NotFound { .. } => Self::not_found(message),
            Store::ModelNotFound(name) => Self::model_not_found(&name),
            Store::FileInUse { .. } => Self::invalid("file_id", message),
            Store::ModelInUse { .. } | Store::ModelHasAlias { .. } => Self::invalid("model", message),
            Store::NameOfJob(_) => Self::invalid_code("lora_name", "invalid_value", message),
            Store::NameTaken(name) => {
                let message = format!(
                    "The lora adapter '{name}' has already been loaded. Set 'load_inplace' to true to replace it, or \
                     choose another name."
                );
                Self::invalid_code("lora_name", "invalid_value", message)
            }
            Store::NulInText | Store::KeySetting(_) | Store::TooManyAliases => Self::bad_request(message),
            Store::Unavailable(_) => Self::unavailable(message),
            Store::Tls(_) => {
                tracing::error!("{message}");
                Self::unavailable("The database does not answer. Please try again.")
            }
            Store::BlobNotFound(_) => Self::not_found("The content is no longer stored."),
            Store::Database(_) | Store::Blob(_) | Store::Io { .. } => Self::of_disk(fault, message),
            Store::Setup(_) | Store::FolderInUse(_) | Store::Internal(_) => Self::defect(message),
        }
    }
}

impl From<adapters::Error> for Problem {
    fn from(error: adapters::Error) -> Self {
        use adapters::Error as Adapters;
        let message = error.to_string();
        match error {
            Adapters::Store(error) => error.into(),
            Adapters::Model(error) => error.into(),
            Adapters::Engine(error) => error.into(),
            Adapters::Invalid(_) => Self::invalid_code("adapter", "invalid_adapter", message),
            Adapters::TooLarge { .. } => Self::invalid_code("model", "invalid_adapter", message),
            Adapters::Source(why) => {
                Self::invalid_code("lora_path", "invalid_value", format!("'lora_path' cannot be used: {why}."))
            }
            Adapters::FolderNotFound(_) => Self::not_found(message),
            Adapters::Overloaded { retry_after, .. } => Self::overloaded(message, retry_after),
            Adapters::Unavailable(_) => Self::unavailable(message),
            Adapters::Io { source, .. } => Self::of_disk(StorageFault::of(&*source), message),
            Adapters::Internal(_) => Self::defect(message),
        }
    }
}

impl From<jobs::Error> for Problem {
    fn from(error: jobs::Error) -> Self {
        use jobs::Error as Jobs;
        let message = error.to_string();
        match error {
            Jobs::Store(error) => error.into(),
            Jobs::Adapters(error) => error.into(),
            Jobs::Engine(error) => error.into(),
            Jobs::Model(error) => error.into(),
            Jobs::Train(error) => error.into(),
            Jobs::NotFound { .. } => Self::not_found(message).code("fine_tune_not_found").param("fine_tune_id"),
            // Not 409: clients retry that on their own, and a job that has ended stays so.
            Jobs::Conflict { .. } => Self::bad_request(message),
            // Without a time to wait, so that clients do not try again on their own: a job may take hours to end.
            Jobs::TooManyJobs { .. } => Self::rate_limited(RateLimit::Requests, message, None),
            Jobs::FileGone { param, .. } => Self::invalid_code(param, "invalid_training_file", message),
            Jobs::ModelGone(name) => Self::model_not_found(&name).param("model"),
            Jobs::ClassesOfPairs => Self::invalid("compute_classification_metrics", message),
            Jobs::Overloaded { retry_after, .. } => Self::overloaded(message, retry_after),
            Jobs::Unavailable(_) => Self::unavailable(message),
            Jobs::Cancelled => Self::stopping(),
            Jobs::Io { source, .. } => Self::of_disk(StorageFault::of(&*source), message),
            Jobs::Internal(_) => Self::defect(message),
        }
    }
}
