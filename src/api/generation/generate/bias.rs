//! The field `logit_bias`: token ids and what is added to their logits. Completions and chat share it.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::api::http::error::{Problem, Result};
use crate::api::operations::checks::within;

/// Largest number of token ids.
const MAX_ENTRIES: usize = 4096;

/// The entries as the client wrote them: a map would keep only the last of those with the same name.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogitBias(Vec<(String, f32)>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for LogitBias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, bias)| (token, bias)))
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = LogitBias;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogitBias, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(LogitBias(entries))
    }
}

impl LogitBias {
    /// Returns what is added to the logits of a model with `vocabulary` tokens, by token id in ascending order.
    pub(crate) fn check(&self, vocabulary: usize) -> Result<Arc<[(u32, f32)]>> {
        let count = self.0.len();
        if count > MAX_ENTRIES {
            let message = format!("'logit_bias' has {count} entries; at most {MAX_ENTRIES} are allowed.");
            return Err(Problem::invalid_code("logit_bias", "array_above_max_length", message));
        }
        let mut entries = Vec::with_capacity(count);
        for (token, bias) in &self.0 {
            let id = token.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
                let message = format!("'logit_bias' has the key '{token}', which is no token id of this model.");
                Problem::invalid("logit_bias", message)
            })?;
            within("logit_bias", Some(*bias), -100.0, 100.0)?;
            entries.push((id, *bias));
        }
        // Sorted: the engine's sums depend on the order.
        entries.sort_unstable_by_key(|(id, _)| *id);
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let message = format!("'logit_bias' has the token id {} more than once: send it once.", pair[0].0);
            return Err(Problem::invalid_code("logit_bias", "invalid_value", message));
        }
        Ok(entries.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Vec<(u32, f32)>> {
        let bias: LogitBias = serde_json::from_str(json).expect("a map");
        bias.check(10).map(|entries| entries.to_vec())
    }

    #[test]
    fn the_keys_are_token_ids_of_the_model_each_once() {
        assert_eq!(check(r#"{"7": -1, "3": 5}"#).expect("fine"), [(3, 5.0), (7, -1.0)]);
        for refused in [
            r#"{"10": 5}"#,
            r#"{"foo": 0}"#,
            r#"{"3": 101}"#,
            r#"{"3": 60, "03": 60}"#,
            r#"{"3": 1, "+3": 1}"#,
            r#"{"3": 1, "3": 1}"#,
        ] {
            let error = check(refused).expect_err(refused).error;
            assert_eq!(error.param.as_deref(), Some("logit_bias"), "{refused}");
        }
        assert!(check(r#"{"3": 60, "03": 60}"#).expect_err("twice").to_string().contains("token id 3 more than once"));
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let bias = |count: usize| LogitBias((0..count).map(|id| (id.to_string(), 1.0)).collect());
        assert!(bias(MAX_ENTRIES).check(10_000).is_ok() && bias(MAX_ENTRIES + 1).check(10_000).is_err());
    }
}
