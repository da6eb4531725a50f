//! Distillation: a job whose training file is made of a teacher's answers. [`runner`] claims such jobs with a lease, as
//! `batches` does, and takes each through the stage before training: it reads the prompts ([`sources`]), asks for the
//! answers that are not there yet ([`collecting`], [`teacher`]) within the budget ([`purse`]), leaves out what is not
//! fit ([`filters`]), and makes the files with which the job goes to the workers ([`files`]). [`forecast`] tells before
//! what it may cost.
//!
//! Every answer is in the database before it counts, and what a request may cost before it is sent. So a job can be
//! left at any moment and by any process: whoever goes on pays for nothing twice, and never spends more than the
//! budget.

mod collecting;
mod files;
mod filters;
pub(crate) mod forecast;
mod purse;
mod runner;
mod sources;
pub(crate) mod teacher;

pub(crate) use self::runner::run;
