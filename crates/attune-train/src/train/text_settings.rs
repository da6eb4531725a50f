//! Settings of files that have texts in place of answers. Called by [`super::settings`], and by the worker for the
//! prompts, which it needs to read the file.

use crate::datasets::TextPrompts;
use crate::datasets::parse::Format;
use crate::train::hyperparameters::{Hyperparameters, TextLoss};
use crate::{Error, Result};
use attune_model::vectors::VectorForm;

/// Characters of an unknown name that an error shows.
const MAX_SHOWN: usize = 64;

/// Returns the loss that lines of `format` are learned with; `None` for answers.
pub(super) fn loss_of(format: Option<Format>) -> Option<TextLoss> {
    match format? {
        Format::Pair => Some(TextLoss::Ranking),
        Format::ScoredPair => Some(TextLoss::CosineSimilarity),
        Format::LabelledPair => Some(TextLoss::BinaryCrossEntropy),
        Format::Completion | Format::Chat => None,
    }
}

/// Refuses settings that are not for a file that is learned with `loss`.
pub(super) fn check_text_settings(asked: &Hyperparameters, loss: Option<TextLoss>) -> Result<()> {
    let fault = |name, message: String| Err(Error::Setting { name, message });
    if asked.scale.is_some() && loss != Some(TextLoss::Ranking) {
        let message = "scale is for files of pairs of texts, such as `anchor` and `positive`: leave it out";
        return fault("scale", message.into());
    }
    if asked.hard_negatives.is_some_and(|count| count > 0) && loss != Some(TextLoss::Ranking) {
        let message = "hard_negatives is for files of pairs of texts, such as `anchor` and `positive`: leave it out";
        return fault("hard_negatives", message.into());
    }
    if let Some(other) = asked.loss.filter(|other| Some(*other) != loss) {
        let lines = match other {
            TextLoss::Ranking => "`anchor` and `positive` alone",
            TextLoss::CosineSimilarity => "a `score`",
            TextLoss::BinaryCrossEntropy => "a `label`",
        };
        let name = other.name();
        let message = format!("the loss {name} is for training files whose lines have {lines}: leave loss out");
        return fault("loss", message);
    }
    let named = [("query_prompt", &asked.query_prompt), ("document_prompt", &asked.document_prompt)];
    let makes_vectors = matches!(loss, Some(TextLoss::Ranking | TextLoss::CosineSimilarity));
    match named.into_iter().find(|(_, prompt)| prompt.is_some()) {
        Some((name, _)) if !makes_vectors => {
            fault(name, format!("{name} is for files of pairs of texts that train vectors: leave it out"))
        }
        _ => Ok(()),
    }
}

/// Returns the texts that stand before those of pairs: the prompts that are asked for, else the model's usual one.
pub fn prompts(asked: &Hyperparameters, form: &VectorForm) -> Result<TextPrompts> {
    let text = |name, asked: Option<&String>| match asked.or(form.default_prompt.as_ref()).map(String::as_str) {
        None | Some("") => Ok(String::new()),
        Some(prompt) => form.prompts.get(prompt).cloned().ok_or_else(|| {
            let shown: String = prompt.chars().take(MAX_SHOWN).collect();
            let known = form.prompts.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "it has none".into() } else { format!("it has {known}") };
            Error::Setting { name, message: format!("{name}: the model has no prompt '{shown}'; {known}") }
        }),
    };
    Ok(TextPrompts {
        anchor: text("query_prompt", asked.query_prompt.as_ref())?,
        others: text("document_prompt", asked.document_prompt.as_ref())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(default_prompt: Option<&str>) -> VectorForm {
        VectorForm {
            poolings: Vec::new(),
            pools_prompt: true,
            layers: Vec::new(),
            is_normalized: true,
            prompts: [("query", "Find: "), ("document", "Text: ")]
                .map(|(name, text)| (name.into(), text.into()))
                .into(),
            default_prompt: default_prompt.map(str::to_owned),
            is_lower_cased: false,
            max_tokens: 512,
            shorter_widths: Vec::new(),
            hidden_size: 4,
        }
    }

    fn asked(query: Option<&str>, document: Option<&str>) -> Hyperparameters {
        let [query_prompt, document_prompt] = [query, document].map(|name| name.map(str::to_owned));
        Hyperparameters { query_prompt, document_prompt, ..Hyperparameters::default() }
    }

    #[test]
    fn prompts_are_those_that_are_named_else_the_usual_one_else_none() {
        let texts = |query, document, default| {
            let TextPrompts { anchor, others } = prompts(&asked(query, document), &form(default)).unwrap();
            (anchor, others)
        };
        assert_eq!(texts(None, None, None), (String::new(), String::new()));
        assert_eq!(texts(Some("query"), Some("document"), None), ("Find: ".into(), "Text: ".into()));
        assert_eq!(texts(None, Some("document"), Some("query")), ("Find: ".into(), "Text: ".into()));
        assert_eq!(texts(Some(""), None, Some("query")), (String::new(), "Find: ".into()));
        let said = prompts(&asked(None, Some("other")), &form(None)).unwrap_err().to_string();
        assert!(said.contains("document_prompt") && said.contains("'other'; it has document, query"), "{said}");
    }

    #[test]
    fn settings_of_other_files_are_refused_by_their_names() {
        let refused = |asked: &Hyperparameters, loss| match check_text_settings(asked, loss) {
            Err(Error::Setting { name, .. }) => Some(name),
            _ => None,
        };
        let scale = Hyperparameters { scale: Some(20.0), ..Hyperparameters::default() };
        let loss = |loss| Hyperparameters { loss: Some(loss), ..Hyperparameters::default() };
        let (ranking, similarity) = (Some(TextLoss::Ranking), Some(TextLoss::CosineSimilarity));
        assert_eq!((refused(&scale, ranking), refused(&scale, similarity)), (None, Some("scale")));
        assert_eq!(refused(&loss(TextLoss::Ranking), ranking), None);
        assert_eq!(refused(&loss(TextLoss::CosineSimilarity), ranking), Some("loss"));
        assert_eq!(refused(&loss(TextLoss::Ranking), None), Some("loss"));
        let mined = |count| Hyperparameters { hard_negatives: Some(count), ..Hyperparameters::default() };
        assert_eq!((refused(&mined(3), ranking), refused(&mined(0), None)), (None, None));
        assert_eq!(refused(&mined(3), similarity), Some("hard_negatives"));
        let query = asked(Some("query"), None);
        assert_eq!((refused(&query, similarity), refused(&query, None)), (None, Some("query_prompt")));
        assert_eq!(refused(&query, Some(TextLoss::BinaryCrossEntropy)), Some("query_prompt"));
    }
}
