//! Reads the bodies that create fine-tune jobs. A field that they do not have is refused by name, with the known one
//! that was probably meant: a misspelt setting that is ignored costs the time of a whole job.

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use crate::api::ApiState;
use crate::api::http::error::{Problem, Result};
use crate::api::http::extract::{UnknownField, parse_or, read};
use crate::datasets::parse::shorten;
use crate::datasets::spelling::{nearest, plain};

/// A body that creates a job. Its structures, and those inside it, deny unknown fields.
pub(crate) trait JobRequest: DeserializeOwned + Send + 'static {
    /// Returns the fields inside the body that may be looked for elsewhere, by the path where they belong.
    fn inner() -> Vec<(&'static str, Vec<String>)>;

    /// A sentence for a field that is not known at all.
    const HINT: &'static str;
}

/// A JSON body that creates a job. `null` for an optional field is as if it were absent.
#[derive(Debug)]
pub(crate) struct JobBody<T>(pub T);

impl<T: JobRequest> FromRequest<ApiState> for JobBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        read(request, state, &[], parse).await.map(Self)
    }
}

/// Reads a body that creates a job; an error names the field at fault.
pub(crate) fn parse<T: JobRequest>(bytes: &[u8]) -> Result<T, Problem> {
    parse_or(bytes, unknown::<T>)
}

/// Returns the names of the fields of `T`, which must deny unknown ones.
pub(crate) fn fields_of<T: DeserializeOwned>() -> Vec<String> {
    let mut known = Vec::new();
    let _ = parse_or::<T>(br#"{"":null}"#, |field| {
        known.clone_from(&field.known);
        field.problem("")
    });
    known
}

/// Names for the settings in other programs, without separators and case, with those here.
const SYNONYMS: [(&str, &str); 62] = [
    ("epochs", "n_epochs"),
    ("epoch", "n_epochs"),
    ("numepochs", "n_epochs"),
    ("numtrainepochs", "n_epochs"),
    ("trainepochs", "n_epochs"),
    ("maxepochs", "n_epochs"),
    ("passes", "n_epochs"),
    ("lr", "learning_rate"),
    ("eta", "learning_rate"),
    ("stepsize", "learning_rate"),
    ("baselr", "learning_rate"),
    ("maxlr", "learning_rate"),
    ("peaklr", "learning_rate"),
    ("lrmultiplier", "learning_rate_multiplier"),
    ("lrmult", "learning_rate_multiplier"),
    ("multiplier", "learning_rate_multiplier"),
    ("batch", "batch_size"),
    ("bs", "batch_size"),
    ("nbatch", "batch_size"),
    ("minibatchsize", "batch_size"),
    ("microbatchsize", "batch_size"),
    ("trainbatchsize", "batch_size"),
    ("perdevicetrainbatchsize", "batch_size"),
    ("r", "rank"),
    ("lorar", "rank"),
    ("lorarank", "rank"),
    ("loraalpha", "alpha"),
    ("dropout", "lora_dropout"),
    ("warmup", "warmup_ratio"),
    ("warmupsteps", "warmup_ratio"),
    ("scheduler", "lr_scheduler"),
    ("lrschedulertype", "lr_scheduler"),
    ("learningratescheduler", "lr_scheduler"),
    ("schedule", "lr_scheduler"),
    ("wd", "weight_decay"),
    ("decay", "weight_decay"),
    ("gradclip", "max_grad_norm"),
    ("clip", "max_grad_norm"),
    ("gradientclipping", "max_grad_norm"),
    ("maxlength", "max_seq_length"),
    ("maxtokens", "max_seq_length"),
    ("maxseqlen", "max_seq_length"),
    ("seqlen", "max_seq_length"),
    ("sequencelength", "max_seq_length"),
    ("contextlength", "max_seq_length"),
    ("cutofflen", "max_seq_length"),
    ("modules", "target_modules"),
    ("layers", "target_modules"),
    ("loratargetmodules", "target_modules"),
    ("patience", "early_stopping_patience"),
    ("earlystopping", "early_stopping_patience"),
    ("loadbestmodelatend", "keep_best"),
    ("rslora", "use_rslora"),
    ("promptweight", "prompt_loss_weight"),
    ("nclasses", "classification_n_classes"),
    ("positiveclass", "classification_positive_class"),
    ("file", "training_file"),
    ("dataset", "training_file"),
    ("trainfile", "training_file"),
    ("basemodel", "model"),
    ("name", "suffix"),
    ("randomseed", "seed"),
];
/// Words for the object that holds the settings.
const OBJECTS: [&str; 9] = [
    "hyperparams",
    "hyperparameter",
    "params",
    "parameters",
    "settings",
    "config",
    "options",
    "trainingargs",
    "trainingarguments",
];

/// Makes the error for a field that the body of `T` does not have at this place.
fn unknown<T: JobRequest>(field: &UnknownField) -> Problem {
    if let Some(meant) = meant(&field.name, &field.known) {
        return field.problem(&format!("Did you mean '{meant}'?"));
    }
    let at_top = ("", fields_of::<T>());
    for (place, known) in T::inner().iter().chain((!field.parent.is_empty()).then_some(&at_top)) {
        let Some(meant) = meant(&field.name, known) else { continue };
        // The settings of a method stand inside it.
        let method =
            [".dpo", ".distillation"].into_iter().find(|own| field.parent.starts_with(&format!("method{own}")));
        let place = method.map_or_else(|| (*place).to_owned(), |own| place.replace(".supervised", own));
        let put = match place.as_str() {
            "" => "at the top level of the body, beside 'training_file'".to_owned(),
            place => format!("inside '{place}'"),
        };
        let meant = if meant == field.name { "It".into() } else { format!("Did you mean '{meant}'? It") };
        return field.problem(&format!("{meant} belongs {put}."));
    }
    let known = field.known.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    field.problem(format!("Known here: {known}. {}", T::HINT).trim_end())
}

/// Returns the name of `known` that `name` was probably meant as.
fn meant<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let known = || known.iter().map(String::as_str);
    let plain = plain(name);
    let object = OBJECTS.contains(&plain.as_str()).then_some("hyperparameters");
    let synonym = SYNONYMS.iter().find(|(other, _)| *other == plain).map(|(_, meant)| *meant).or(object);
    let synonym = synonym.and_then(|meant| known().find(|name| *name == meant));
    synonym.or_else(|| nearest(name, known()))
}

impl UnknownField {
    /// Makes the error, with what to write instead.
    fn problem(&self, advice: &str) -> Problem {
        let path = format!("{}{}{}", self.parent, if self.parent.is_empty() { "" } else { "." }, shorten(&self.name));
        let message = format!("Unknown parameter: '{path}'. {advice}");
        Problem::invalid_code(path, "unknown_parameter", message)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read for its errors")]
    struct Outer {
        training_file: String,
        seed: Option<u32>,
        method: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read for its errors")]
    struct Inner {
        n_epochs: Option<u32>,
        learning_rate: Option<f64>,
        batch_size: Option<u32>,
    }

    impl JobRequest for Outer {
        fn inner() -> Vec<(&'static str, Vec<String>)> {
            vec![("method", fields_of::<Inner>())]
        }

        const HINT: &'static str = "See the manual.";
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_known_one_that_was_meant() {
        for (body, param, advice) in [
            (r#"{"method":{"epochs":5}}"#, "method.epochs", "Did you mean 'n_epochs'?"),
            (r#"{"method":{"lr":5}}"#, "method.lr", "Did you mean 'learning_rate'?"),
            (r#"{"method":{"batchSize":5}}"#, "method.batchSize", "Did you mean 'batch_size'?"),
            (r#"{"method":{"laerning_rate":5}}"#, "method.laerning_rate", "Did you mean 'learning_rate'?"),
            (
                r#"{"method":{"seed":5}}"#,
                "method.seed",
                "It belongs at the top level of the body, beside 'training_file'.",
            ),
            (r#"{"n_epochs":5}"#, "n_epochs", "It belongs inside 'method'."),
            (r#"{"epochs":5}"#, "epochs", "Did you mean 'n_epochs'? It belongs inside 'method'."),
            (r#"{"wizard`s":5}"#, "wizard`s", "Known here: 'training_file', 'seed', 'method'. See the manual."),
        ] {
            let problem = parse::<Outer>(body.as_bytes()).expect_err(body);
            assert_eq!(problem.status, 400);
            assert_eq!((problem.error.param.as_deref(), problem.error.code), (Some(param), Some("unknown_parameter")));
            assert_eq!(problem.error.message, format!("Unknown parameter: '{param}'. {advice}"));
        }
        assert!(parse::<Outer>(br#"{"training_file":"file-1","seed":null}"#).is_ok());
    }

    #[test]
    fn every_synonym_is_written_as_it_is_compared() {
        assert!(SYNONYMS.iter().all(|(other, _)| plain(other) == *other));
    }
}
