//! Checks that the files, the settings and the model to continue of one job fit together. Called by [`super::training`]
//! before the first step.

use attune_train::FileFault;

use crate::datasets::{DatasetReport, Purpose};
use crate::jobs::{Error, Result};
use crate::model::lora::modules::{EXPERTS, names};
use crate::model::lora::{Adapter, LoraLayer, Site};
use crate::train::Trainer;
use crate::train::hyperparameters::{ALL_LINEAR, Classification, Hyperparameters};

/// Refuses a validation file of another format than the training file, and classification metrics for pairs of texts.
pub(super) fn check_alike(
    training: &DatasetReport,
    validation: Option<&DatasetReport>,
    classification: Option<&Classification>,
) -> Result<()> {
    let formats = (training.format, validation.and_then(|validation| validation.format));
    if let (Some(learned), Some(measured)) = formats
        && learned != measured
    {
        let message = format!(
            "Validation file: each of its lines is {measured}, but each line of the training file is {learned}: give the \
             same format in both"
        );
        return Err(unfit(Purpose::Validation, message));
    }
    if training.is_of_texts() && classification.is_some_and(|asked| asked.compute == Some(true)) {
        return Err(Error::ClassesOfPairs);
    }
    Ok(())
}

/// Refuses pairs of texts if every batch would hold a single pair without negatives.
pub(super) fn check_told_apart(trainer: &Trainer, training: &DatasetReport) -> Result<()> {
    let settings = trainer.settings();
    let negatives = training.texts > 2 * training.sequences;
    let alone = trainer.total_steps() == settings.epochs * training.sequences && settings.batch_size > 1;
    if training.is_of_pairs() && alone && !negatives {
        let message = "Training file: any two of its pairs share a text, so there is nothing that a pair could be told apart \
                       from: give pairs of different texts, or a `negative` to each";
        return Err(unfit(Purpose::Training, message));
    }
    Ok(())
}

/// Copies rank, alpha and layers of a continued adapter into the settings; refuses a request for others.
pub(super) fn take_shape(resolved: &mut Hyperparameters, asked: &Hyperparameters, initial: &Adapter) -> Result<()> {
    let pair = initial.layers.iter().flat_map(LoraLayer::pairs).next();
    let pair = pair.ok_or_else(|| Error::Internal("the adapter to continue has no layers".into()))?;
    let rank = pair.a.dim(0)? as u32;
    if let Some(other) = asked.rank.filter(|other| *other != rank) {
        let message = format!("rank is {other}, but the model to continue has rank {rank}: leave rank out");
        return Err(setting("rank", message));
    }
    let alpha = f64::from(pair.scale) * f64::from(rank);
    if let Some(other) = asked.alpha.filter(|other| (other - alpha).abs() > 1e-3) {
        let message = format!("alpha is {other}, but the model to continue has alpha {alpha}: leave alpha out");
        return Err(setting("alpha", message));
    }
    if asked.use_rslora == Some(true) {
        let message = "use_rslora is for new adapters, but the model to continue has its scale already: leave it out";
        return Err(setting("use_rslora", message));
    }
    let has = |site: &Site| initial.layers.iter().any(|layer| layer.get(*site).is_some());
    let modules = initial.names.modules.iter().filter(|module| module.sites.iter().any(has));
    let of_expert = |site: &Site| initial.layers.iter().any(|layer| layer.expert(0, *site).is_some());
    let modules = modules.chain(EXPERTS.iter().filter(|module| module.sites.iter().any(of_expert)));
    let modules: Vec<String> = names(modules).into_iter().map(str::to_owned).collect();
    let is_all = modules == names(initial.names.modules);
    let is_same = |other: &Vec<String>| *other == modules || (is_all && *other == [ALL_LINEAR]);
    if asked.target_modules.as_ref().is_some_and(|other| !is_same(other)) {
        let names = modules.join(", ");
        let message =
            format!("target_modules are others than those of the model to continue, {names}: leave target_modules out");
        return Err(setting("target_modules", message));
    }
    resolved.rank = Some(rank);
    resolved.alpha = Some(alpha);
    resolved.use_rslora = Some(false);
    resolved.target_modules = Some(modules);
    Ok(())
}

/// Makes the error of a file that does not fit the others.
fn unfit(purpose: Purpose, message: impl Into<String>) -> Error {
    attune_train::Error::File { purpose, fault: FileFault::Content, message: message.into() }.into()
}

/// Makes the error of a setting that does not fit the model to continue.
fn setting(name: &'static str, message: impl Into<String>) -> Error {
    attune_train::Error::Setting { name, message: message.into() }.into()
}
