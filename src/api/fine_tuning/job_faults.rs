//! What a failed job tells its owner: the table of HTTP errors, in a job's words. The worker is handed
//! [`describe_fault`], so that it knows no fields of requests.

use crate::api::http::error::Problem;
use crate::jobs::{self, Blame, JobFault, JobSpec};
use crate::{adapters, store};

/// Words an error that ended an attempt at the job of `spec` and says who is to blame for it, but not what comes next: that
/// is for the queue to decide, and the job's status tells it.
pub fn describe_fault(error: &jobs::Error, spec: &JobSpec) -> (JobFault, Blame) {
    use jobs::Error as Jobs;
    if error.is_out_of_memory() {
        let message = "The device had no memory left for the job beside the requests that it served. A shorter \
                       max_seq_length or a smaller rank takes less.";
        return (fault("insufficient_memory", Some("max_seq_length"), message), Blame::Request);
    }
    if let Some(trouble) = error.storage_trouble() {
        let message = format!("The server cannot store or read the job's files: {trouble}.");
        return of_server(&message);
    }
    if error.is_transient() {
        return of_server("A part of the server did not answer.");
    }
    if let Jobs::Store(store::Error::NotFound { id, .. })
    | Jobs::Adapters(adapters::Error::Store(store::Error::NotFound { id, .. })) = error
    {
        let param = if *id == spec.training_file { "training_file" } else { "validation_file" };
        return (fault("file_not_found", Some(param), &error.to_string()), Blame::Request);
    }
    let problem = Problem::from(error.clone());
    if problem.status.is_server_error() {
        return of_server("The job failed because of an error in the server; its log has the details.");
    }
    let problem = if problem.is_model_not_found() { problem.param("model") } else { problem };
    let object = problem.error;
    (fault(object.code.unwrap_or("invalid_request"), object.param.as_deref(), &object.message), Blame::Request)
}

fn of_server(message: &str) -> (JobFault, Blame) {
    (fault("server_error", None, message), Blame::Server)
}

fn fault(code: &str, param: Option<&str>, message: &str) -> JobFault {
    JobFault { code: code.into(), message: message.into(), param: param.map(str::to_owned) }
}
