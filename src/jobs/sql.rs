//! The statements on jobs, their events, checkpoints and evals, and on batches: a file each in `sql/`.
//! `tests/jobs/statements.rs` lets the database prepare them all.
//!
//! A statement that changes a job's state also adds the event of the change (`said`): the new status, or the stop that
//! the client asked for; `api` words it. Each locks the job's row before an event takes its number, so that the events
//! of one job become visible in the order of their numbers and a reader's cursor misses none.

pub(super) const ADD_CHECKPOINT: &str = include_str!("sql/add_checkpoint.sql");
pub(super) const ADD_EVENT: &str = include_str!("sql/add_event.sql");
pub(super) const ADD_TRAINING_RATE: &str = include_str!("sql/add_training_rate.sql");
pub(super) const BATCH_CANCEL: &str = include_str!("sql/batch_cancel.sql");
pub(super) const BATCH_CLAIM: &str = include_str!("sql/batch_claim.sql");
pub(super) const BATCH_CREATE: &str = include_str!("sql/batch_create.sql");
pub(super) const BATCH_DONE: &str = include_str!("sql/batch_done.sql");
pub(super) const BATCH_FAIL: &str = include_str!("sql/batch_fail.sql");
pub(super) const BATCH_FINALIZE: &str = include_str!("sql/batch_finalize.sql");
pub(super) const BATCH_FIND: &str = include_str!("sql/batch_find.sql");
pub(super) const BATCH_FINISH: &str = include_str!("sql/batch_finish.sql");
pub(super) const BATCH_HEARTBEAT: &str = include_str!("sql/batch_heartbeat.sql");
pub(super) const BATCH_LIST: &str = include_str!("sql/batch_list.sql");
pub(super) const BATCH_RECORD: &str = include_str!("sql/batch_record.sql");
pub(super) const BATCH_RELEASE: &str = include_str!("sql/batch_release.sql");
pub(super) const BATCH_RELEASE_ALL: &str = include_str!("sql/batch_release_all.sql");
pub(super) const BATCH_RESULTS: &str = include_str!("sql/batch_results.sql");
pub(super) const BATCH_START: &str = include_str!("sql/batch_start.sql");
pub(super) const CHECKPOINTS: &str = include_str!("sql/checkpoints.sql");
pub(super) const CLAIM: &str = include_str!("sql/claim.sql");
pub(super) const COLLECTION_ANSWER: &str = include_str!("sql/collection_answer.sql");
pub(super) const COLLECTION_ANSWERS: &str = include_str!("sql/collection_answers.sql");
pub(super) const COLLECTION_CHARGE: &str = include_str!("sql/collection_charge.sql");
pub(super) const COLLECTION_CLAIM: &str = include_str!("sql/collection_claim.sql");
pub(super) const COLLECTION_END: &str = include_str!("sql/collection_end.sql");
pub(super) const COLLECTION_JUDGE: &str = include_str!("sql/collection_judge.sql");
pub(super) const COLLECTION_TOLD: &str = include_str!("sql/collection_told.sql");
pub(super) const END_ATTEMPT: &str = include_str!("sql/end_attempt.sql");
pub(super) const ENQUEUE: &str = include_str!("sql/enqueue.sql");
pub(super) const EVAL_BEGIN: &str = include_str!("sql/eval_begin.sql");
pub(super) const EVAL_ENDED: &str = include_str!("sql/eval_ended.sql");
pub(super) const EVAL_TELL: &str = include_str!("sql/eval_tell.sql");
pub(super) const EVAL_WAITING: &str = include_str!("sql/eval_waiting.sql");
pub(super) const EVENTS_AFTER: &str = include_str!("sql/events_after.sql");
pub(super) const EVENTS_BEFORE: &str = include_str!("sql/events_before.sql");
pub(super) const FIND: &str = include_str!("sql/find.sql");
pub(super) const HEARTBEAT: &str = include_str!("sql/heartbeat.sql");
pub(super) const HOLD_ADAPTER: &str = include_str!("sql/hold_adapter.sql");
pub(super) const LIST_ALL: &str = include_str!("sql/list_all.sql");
pub(super) const LIST_ASCENDING: &str = include_str!("sql/list_ascending.sql");
pub(super) const LIST_DESCENDING: &str = include_str!("sql/list_descending.sql");
pub(super) const MESSAGES: &str = include_str!("sql/messages.sql");
pub(super) const METRICS: &str = include_str!("sql/metrics.sql");
pub(super) const NEEDS_STATES: &str = include_str!("sql/needs_states.sql");
pub(super) const POINTS: &str = include_str!("sql/points.sql");
pub(super) const PROGRESS: &str = include_str!("sql/progress.sql");
pub(super) const PRUNE_BATCHES: &str = include_str!("sql/prune_batches.sql");
pub(super) const PRUNE_EVENTS: &str = include_str!("sql/prune_events.sql");
pub(super) const PRUNE_JOBS: &str = include_str!("sql/prune_jobs.sql");
pub(super) const PRUNE_RESPONSES: &str = include_str!("sql/prune_responses.sql");
pub(super) const PRUNE_USAGE: &str = include_str!("sql/prune_usage.sql");
pub(super) const REAP: &str = include_str!("sql/reap.sql");
pub(super) const RECORD_PLAN: &str = include_str!("sql/record_plan.sql");
pub(super) const RESUME: &str = include_str!("sql/resume.sql");
pub(super) const STANDING: &str = include_str!("sql/standing.sql");
pub(super) const STOP: &str = include_str!("sql/stop.sql");
pub(super) const SUCCEED: &str = include_str!("sql/succeed.sql");
pub(super) const TRAINING_RATES: &str = include_str!("sql/training_rates.sql");
pub(super) const VALIDATIONS: &str = include_str!("sql/validations.sql");
pub(super) const WAIT_FOR_STORAGE: &str = include_str!("sql/wait_for_storage.sql");
