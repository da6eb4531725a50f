//! The defaults of answers that a GGUF file suggests, `general.sampling.*`, under the names that
//! `generation_config.json` has for them.

use serde_json::{Map, Value};

use super::{Metadata, Value as KeyValue};
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

/// Returns the keys for what `generation_config.json` suggests, as far as files have some.
pub(crate) fn keys(settings: &Map<String, Value>) -> Vec<(String, KeyValue)> {
    let numbers = NAMES.iter().filter_map(|(key, name)| {
        let number = settings.get(*name)?.as_f64()?;
        let value = if *key == "top_k" { KeyValue::from(number as i32) } else { KeyValue::from(number as f32) };
        Some((format!("general.sampling.{key}"), value))
    });
    let suppressed = settings.get("suppress_tokens").and_then(Value::as_array);
    let ids = suppressed.map(|ids| ids.iter().filter_map(|id| Some(id.as_u64()? as i32)).collect::<Vec<i32>>());
    let ids = ids.filter(|ids| !ids.is_empty());
    numbers.chain(ids.map(|ids| ("tokenizer.ggml.suppress_tokens".to_owned(), ids.into()))).collect()
}

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
