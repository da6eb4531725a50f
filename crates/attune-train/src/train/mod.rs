//! Fits a LoRA adapter to a dataset. `jobs/worker/training.rs` drives a [`Trainer`] step by step; the base model is the
//! one that is serving, shared and frozen.
//!
//! [`settings`] turns a client's hyperparameters into numbers, [`text_settings`] those of texts; [`mining`] finds hard
//! negatives; [`trainer`] is the loop; [`methods`] holds the code that
//! differs between kinds of training. `batches` and [`packing`] make the loop's batches; [`backward`], [`loss`],
//! [`preference`], [`contrastive`] with [`pair_loss`], [`cross_encoder`] and [`dropout`] compute its gradients;
//! `yielding` lets requests in between;
//! [`optimizer`] and [`schedule`] update the [`parameters`] in `state`. [`checkpoint`] makes a run resumable to the
//! bit; [`evaluation`] measures it and decides when it ends; [`classification`] measures how well it classifies
//! prompts, [`right_answers`] counts those of an [`answer_sheet`], [`quality`] tells how well vectors and scores order
//! texts, by the figures of [`ranking`]; [`records`] holds the record of each step.
//! [`estimate`] predicts the cost of a run, from the measurements of [`calibration`]; [`recomputation`] trades time for
//! memory if that is scarce, within [`memory_bounds`].

pub mod answer_sheet;
pub mod backward;
pub mod batch;
mod batches;
pub mod calibration;
pub mod checkpoint;
pub mod classification;
pub mod classification_metrics;
pub mod contrastive;
pub mod cross_encoder;
mod distinct_texts;
pub mod dropout;
pub mod estimate;
pub mod evaluation;
pub mod hyperparameters;
pub mod loss;
mod loss_source;
pub mod memory_bounds;
pub mod methods;
pub mod mining;
pub mod optimizer;
pub mod packing;
pub mod pair_loss;
pub mod parameters;
pub mod pooling;
pub mod preference;
pub mod quality;
pub mod ranking;
pub mod rate;
pub mod recomputation;
pub mod records;
pub mod right_answers;
pub mod schedule;
pub mod settings;
mod state;
pub mod text_settings;
pub mod trainer;
pub mod training_method;
mod yielding;

pub use evaluation::HeldOut;
pub use loss_source::Heads;
pub use memory_bounds::MemoryBounds;
pub use recomputation::Recomputation;
pub use records::{Beginning, Evaluation, Question, Rewards, RightAnswers, StepReport, Validation};
pub use settings::TrainSettings;
pub use trainer::Trainer;
pub use training_method::TrainingMethod;
pub use yielding::{BeforeMicroStep, YieldPolicy};
