//! The defaults of answers that a GGUF file suggests, `general.sampling.*`, under the names that
//! `generation_config.json` has for them.

use serde_json::{Map, Value};

use super::Metadata;
use crate::Result;

/// Keys behind `general.sampling.`, and their names in `generation_config.json`. What that file knows no setting for
/// keeps its name, to be told as not applied.
const NAMES: [(&str, &str); 7] = [
    ("temp", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("penalty_repeat", "repetition_penalty"),
    ("xtc_probability", "xtc_probability"),
    ("mirostat", "mirostat"),
];

/// Returns what the file with these keys suggests.
pub fn settings(metadata: &Metadata) -> Result<Map<String, Value>> {
    let mut settings = Map::new();
    for (key, name) in NAMES {
        let number = metadata.number(&format!("general.sampling.{key}"))?;
        settings.extend(number.map(|number| (name.to_owned(), number.into())));
    }
    // The order of the steps, and how far back repetitions count.
    if metadata.has("general.sampling.sequence") {
        settings.insert("sequence".into(), true.into());
    }
    let repeats = settings.get("repetition_penalty").is_some_and(|penalty| *penalty != 1.0);
    if repeats && metadata.has("general.sampling.penalty_last_n") {
        settings.insert("penalty_last_n".into(), true.into());
    }
    let suppressed = metadata.sizes("tokenizer.ggml.suppress_tokens")?;
    settings.extend(suppressed.map(|ids| ("suppress_tokens".to_owned(), ids.into())));
    Ok(settings)
}
