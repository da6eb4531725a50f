//! The bodies of answers about batches.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::jobs::batches::Batch;

/// A batch. Times are Unix seconds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchObject {
    /// `batch_…`
    pub id: String,
    /// Always `batch`.
    pub object: &'static str,
    /// Route that every line asks.
    pub endpoint: String,
    /// Model that every line asks; null until they are checked.
    pub model: Option<String>,
    /// Why the batch failed.
    pub errors: Option<BatchErrors>,
    /// File with the requests.
    pub input_file_id: String,
    /// Always `24h`.
    pub completion_window: &'static str,
    /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`, `cancelling` or `cancelled`.
    pub status: String,
    /// File with the answers; null until the batch has ended, and where no line was answered.
    pub output_file_id: Option<String>,
    /// File with the lines that failed or were not answered; null until the batch has ended, and where there are none.
    pub error_file_id: Option<String>,
    /// When it was created.
    pub created_at: i64,
    /// When its lines were found to be right.
    pub in_progress_at: Option<i64>,
    /// End of the completion window.
    pub expires_at: i64,
    /// When every line had a result.
    pub finalizing_at: Option<i64>,
    /// When its files were there.
    pub completed_at: Option<i64>,
    /// When its lines were found to be wrong.
    pub failed_at: Option<i64>,
    /// When it ended since its window had passed.
    pub expired_at: Option<i64>,
    /// When it was asked to end.
    pub cancelling_at: Option<i64>,
    /// When it did.
    pub cancelled_at: Option<i64>,
    /// Lines so far.
    pub request_counts: RequestCounts,
    /// Tokens of the lines so far.
    pub usage: BatchUsage,
    /// The client's own notes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// Why a batch failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchErrors {
    /// Always `list`.
    pub object: &'static str,
    /// What is wrong, the first hundred.
    pub data: Vec<BatchError>,
}

/// What is wrong with a line of the input file, or with the file.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchError {
    /// A stable word for programs.
    pub code: String,
    /// For people: what is wrong.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Number of the line, from 1.
    pub line: Option<i64>,
}

/// Lines of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RequestCounts {
    /// All; 0 until they are checked.
    pub total: i64,
    /// Those that were answered.
    pub completed: i64,
    /// Those that failed; at the end also those that were not answered.
    pub failed: i64,
}

/// Tokens of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchUsage {
    /// Tokens of prompts.
    pub input_tokens: i64,
    /// Where they came from.
    pub input_tokens_details: InputTokensDetails,
    /// Tokens drawn.
    pub output_tokens: i64,
    /// What they were for.
    pub output_tokens_details: OutputTokensDetails,
    /// Both together.
    pub total_tokens: i64,
}

/// A part of [`BatchUsage`].
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InputTokensDetails {
    /// Tokens that needed no computing.
    pub cached_tokens: i64,
}

/// A part of [`BatchUsage`].
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OutputTokensDetails {
    /// Always 0: what a model writes while it thinks is part of its answer here.
    pub reasoning_tokens: i64,
}

impl From<Batch> for BatchObject {
    fn from(batch: Batch) -> Self {
        let errors = batch.errors.map(|faults| {
            let one = |fault: crate::jobs::batches::LineFault| BatchError {
                code: fault.code,
                message: fault.message,
                param: fault.param,
                line: fault.line,
            };
            BatchErrors { object: "list", data: faults.0.into_iter().map(one).collect() }
        });
        Self {
            id: batch.id,
            object: "batch",
            endpoint: batch.endpoint,
            model: batch.model,
            errors,
            input_file_id: batch.input_file,
            completion_window: "24h",
            status: batch.status,
            output_file_id: batch.output_file,
            error_file_id: batch.error_file,
            created_at: batch.created_at,
            in_progress_at: batch.in_progress_at,
            expires_at: batch.expires_at,
            finalizing_at: batch.finalizing_at,
            completed_at: batch.completed_at,
            failed_at: batch.failed_at,
            expired_at: batch.expired_at,
            cancelling_at: batch.cancelling_at,
            cancelled_at: batch.cancelled_at,
            request_counts: RequestCounts { total: batch.total, completed: batch.completed, failed: batch.failed },
            usage: BatchUsage {
                input_tokens: batch.input_tokens,
                input_tokens_details: InputTokensDetails { cached_tokens: batch.cached_tokens },
                output_tokens: batch.output_tokens,
                output_tokens_details: OutputTokensDetails { reasoning_tokens: 0 },
                total_tokens: batch.input_tokens + batch.output_tokens,
            },
            metadata: batch.metadata.map(|notes| notes.0),
        }
    }
}
