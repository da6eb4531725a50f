//! What a person has chosen of a new fine-tune so far: the fields of its form, as texts, and the body of the request that
//! they make. Every page of a new fine-tune carries them in its address.

use serde_json::{Map, Value, json};
use url_pairs::encode;

/// A field of the form that is a setting of training.
pub(super) struct Field {
    /// The name of the setting in the API.
    pub name: &'static str,
    pub label: &'static str,
    pub hint: &'static str,
    pub kind: FieldKind,
    /// Whether it is among those that are shown at once.
    pub is_usual: bool,
}

/// What a setting takes; none leaves it to the server.
pub(super) enum FieldKind {
    /// A number; the bounds are hints for the browser, the API decides.
    Number { least: &'static str, most: &'static str, step: &'static str },
    /// One of these words.
    Word(&'static [&'static str]),
    /// Yes or no.
    Switch,
    /// A text.
    Text,
    /// Words with commas between them, or the one word that stands for all.
    Words(&'static str),
}

use FieldKind::{Number, Switch, Text, Word, Words};

const fn whole(least: &'static str, most: &'static str) -> FieldKind {
    Number { least, most, step: "1" }
}

const fn number(least: &'static str, most: &'static str) -> FieldKind {
    Number { least, most, step: "any" }
}

/// The settings, the usual ones first.
pub(super) const SETTINGS: &[Field] = &[
    Field {
        name: "n_epochs",
        label: "Epochs",
        hint: "How often the whole file is read.",
        kind: whole("1", "50"),
        is_usual: true,
    },
    Field {
        name: "batch_size",
        label: "Batch size",
        hint: "Examples of a step.",
        kind: whole("1", "256"),
        is_usual: true,
    },
    Field {
        name: "learning_rate",
        label: "Learning rate",
        hint: "How far a step goes.",
        kind: number("0", ""),
        is_usual: true,
    },
    Field {
        name: "rank",
        label: "Rank",
        hint: "The size of the adapter: more can learn more, and takes more memory.",
        kind: whole("1", "256"),
        is_usual: true,
    },
    Field {
        name: "max_seq_length",
        label: "Longest example",
        hint: "Tokens; longer examples are cut at the end.",
        kind: whole("16", "4096"),
        is_usual: true,
    },
    Field { name: "alpha", label: "Alpha", hint: "Strength of the adapter.", kind: number("0", ""), is_usual: false },
    Field {
        name: "learning_rate_multiplier",
        label: "Learning rate multiplier",
        hint: "A factor on the learning rate.",
        kind: number("0", ""),
        is_usual: false,
    },
    Field {
        name: "lr_scheduler",
        label: "Schedule",
        hint: "How the learning rate falls after its rise.",
        kind: Word(&["linear", "cosine", "constant"]),
        is_usual: false,
    },
    Field {
        name: "warmup_ratio",
        label: "Warm-up",
        hint: "Share of the steps in which the learning rate rises.",
        kind: number("0", "1"),
        is_usual: false,
    },
    Field {
        name: "weight_decay",
        label: "Weight decay",
        hint: "Pull of the weights towards zero.",
        kind: number("0", "1"),
        is_usual: false,
    },
    Field {
        name: "max_grad_norm",
        label: "Gradient norm",
        hint: "Largest norm of a step's gradient; 0 does not limit it.",
        kind: number("0", "1000"),
        is_usual: false,
    },
    Field {
        name: "lora_dropout",
        label: "Dropout",
        hint: "Share of the adapter's inputs that a step leaves out.",
        kind: number("0", "0.9"),
        is_usual: false,
    },
    Field {
        name: "use_rslora",
        label: "rsLoRA",
        hint: "Scale by alpha / √rank in place of alpha / rank.",
        kind: Switch,
        is_usual: false,
    },
    Field {
        name: "target_modules",
        label: "Layers",
        hint: "all-linear, or names with commas between them: q_proj, v_proj.",
        kind: Words("all-linear"),
        is_usual: false,
    },
    Field {
        name: "prompt_loss_weight",
        label: "Prompt loss weight",
        hint: "How much of the prompts is learned, for prompts and completions.",
        kind: number("0", "1"),
        is_usual: false,
    },
    Field {
        name: "early_stopping_patience",
        label: "Stop early",
        hint: "Evaluations without a lower validation loss after which training ends. Needs a validation file.",
        kind: whole("0", "1000"),
        is_usual: false,
    },
    Field {
        name: "keep_best",
        label: "Keep the best",
        hint: "The model is that of the lowest validation loss. Needs a validation file.",
        kind: Switch,
        is_usual: false,
    },
    Field {
        name: "beta",
        label: "Beta",
        hint: "For the method dpo: how strongly the model is held to what it was.",
        kind: number("0", "2"),
        is_usual: false,
    },
    Field {
        name: "scale",
        label: "Scale",
        hint: "For pairs of texts: factor on the cosine similarities.",
        kind: number("0", "1000"),
        is_usual: false,
    },
    Field {
        name: "hard_negatives",
        label: "Hard negatives",
        hint: "For pairs of texts: wrong texts that are searched in the file for each pair.",
        kind: whole("0", "16"),
        is_usual: false,
    },
    Field {
        name: "query_prompt",
        label: "Prompt of anchors",
        hint: "For pairs of texts: name of the model's prompt.",
        kind: Text,
        is_usual: false,
    },
    Field {
        name: "document_prompt",
        label: "Prompt of other texts",
        hint: "For pairs of texts: name of the model's prompt.",
        kind: Text,
        is_usual: false,
    },
];

/// The fields that are no settings of training.
const OTHERS: [&str; 6] = ["training_file", "validation_file", "model", "method", "suffix", "seed"];
/// Those of the method `distillation`.
const OF_DISTILLATION: [&str; 21] = [
    "from",
    "prompts",
    "stored_model",
    "note",
    "note_value",
    "created_after",
    "created_before",
    "limit",
    "teacher",
    "max_teacher_cost",
    "samples",
    "temperature",
    "max_tokens",
    "keep",
    "filter",
    "filter_text",
    "filter_field",
    "judge",
    "judge_rule",
    "graders",
    "min_score",
];
/// The word of that method.
pub(super) const DISTILLATION: &str = "distillation";

/// Longest text of a field.
pub(super) const MAX_TEXT: usize = 4096;

/// What was chosen so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    values: Vec<(&'static str, String)>,
}

impl Draft {
    /// Takes the known fields that say something from a form or a query; of a name that comes twice the last one.
    pub(super) fn of(pairs: &[(String, String)]) -> Self {
        let mut draft = Self::default();
        for (name, value) in pairs {
            let fields = OTHERS.into_iter().chain(OF_DISTILLATION).chain(SETTINGS.iter().map(|field| field.name));
            let known = fields.into_iter().find(|known| known == name);
            if let Some(known) = known {
                draft.set(known, value.trim());
            }
        }
        draft
    }

    /// Returns the text of a field; empty if nothing was chosen.
    pub(super) fn get(&self, name: &str) -> &str {
        self.values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// Sets or, with an empty text, removes a field.
    pub(super) fn set(&mut self, name: &'static str, value: &str) {
        self.values.retain(|(known, _)| *known != name);
        if !value.is_empty() {
            self.values.push((name, value.chars().take(MAX_TEXT).collect()));
        }
    }

    /// Returns the fields that say something.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Returns the fields as the query of an address.
    pub(super) fn query(&self) -> String {
        encode(self.pairs())
    }

    /// Returns the method of training.
    pub(super) fn method(&self) -> &str {
        match self.get("method") {
            "" => "supervised",
            method => method,
        }
    }

    /// Returns the settings of training that were chosen.
    pub(super) fn settings(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        for field in SETTINGS {
            let text = self.get(field.name);
            if !text.is_empty() {
                settings.insert(field.name.into(), field.kind.value(text));
            }
        }
        settings
    }

    /// Returns the body of the request that creates the job, or estimates it.
    pub(super) fn body(&self) -> Value {
        let method = self.method();
        let mut body = self.body_of(&json!({"type": method, method: {"hyperparameters": self.settings()}}));
        body["training_file"] = self.get("training_file").into();
        if !self.get("validation_file").is_empty() {
            body["validation_file"] = self.get("validation_file").into();
        }
        body
    }

    /// Returns the body for a `method` with what every job has.
    pub(super) fn body_of(&self, method: &Value) -> Value {
        let mut body = json!({"model": self.get("model"), "method": method});
        if !self.get("suffix").is_empty() {
            body["suffix"] = self.get("suffix").into();
        }
        if !self.get("seed").is_empty() {
            body["seed"] = number_or_text(self.get("seed"));
        }
        body
    }
}

impl FieldKind {
    /// Returns a text as the value of the setting. What it is not is sent as it was written: the API says what is wrong.
    fn value(&self, text: &str) -> Value {
        match self {
            Number { .. } => number_or_text(text),
            Word(_) | Text => text.into(),
            Switch => match text {
                "yes" => true.into(),
                "no" => false.into(),
                other => other.into(),
            },
            Words(all) if text == *all => text.into(),
            Words(_) => text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect(),
        }
    }
}

/// Returns a number, or what was written in its place, which the API refuses in its words.
pub(super) fn number_or_text(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(number @ Value::Number(_)) => number,
        // As people write numbers, too: `.5`, `1.`, `+2`.
        _ => match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
            Some(number) => number.into(),
            None => text.into(),
        },
    }
}

/// Queries of addresses.
pub(super) mod url_pairs {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

    /// Encodes names and values as a query.
    pub(crate) fn encode<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let pair = |(name, value): (&str, &str)| {
            format!("{}={}", utf8_percent_encode(name, NON_ALPHANUMERIC), utf8_percent_encode(value, NON_ALPHANUMERIC))
        };
        pairs.into_iter().map(pair).collect::<Vec<_>>().join("&")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(pairs: &[(&str, &str)]) -> Draft {
        Draft::of(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn what_was_chosen_becomes_the_body_that_the_api_takes() {
        let draft = draft(&[
            ("training_file", "file-1"),
            ("model", "demo"),
            ("n_epochs", "3"),
            ("n_epochs", " 4 "),
            ("learning_rate", "1e-4"),
            ("keep_best", "yes"),
            ("target_modules", "q_proj, v_proj,"),
            ("rank", "wide"),
            ("alpha", ""),
            ("estimate", "yes"),
        ]);
        assert_eq!(
            draft.body(),
            json!({"model": "demo", "training_file": "file-1", "method": {"type": "supervised", "supervised":
                {"hyperparameters": {"n_epochs": 4, "learning_rate": 1e-4, "rank": "wide",
                                     "target_modules": ["q_proj", "v_proj"], "keep_best": true}}}})
        );
    }

    #[test]
    fn an_address_holds_what_was_chosen_and_nothing_else() {
        let hostile = "\"><script>&rank=1 \u{202e}";
        let draft = draft(&[("model", hostile), ("unknown", "x"), ("method", "dpo"), ("seed", "7")]);
        let query = draft.query();
        assert!(!query.contains(['"', '<', ' ', '\u{202e}']) && !query.contains("rank=1"), "{query}");
        assert_eq!(draft.get("model"), hostile);
        assert_eq!(draft.body()["method"], json!({"type": "dpo", "dpo": {"hyperparameters": {}}}));
        assert_eq!(draft.body()["seed"], 7);
    }
}
