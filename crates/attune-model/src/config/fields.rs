//! Fields of `config.json` by name, as Python reads them: a field that is missing has its family's default, which is
//! not always that of one that is `null`.

use serde_json::{Map, Value};

use crate::python_json;

/// The fields of one `config.json`.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Parses the file's text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match python_json::parse(text.as_bytes()) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err("the file must hold a JSON object".into()),
            Err(error) => Err(format!("not JSON: {error}")),
        }
    }

    /// Returns the fields of the file's `text_config`, whose `model_type` must be the given one. What the whole file says
    /// about its weights holds for them.
    pub(super) fn inside(self, model_type: &str) -> Result<Self, String> {
        const OF_THE_FILE: [&str; 4] = ["quantization_config", "dtype", "torch_dtype", "tie_word_embeddings"];
        let Some(Value::Object(mut inner)) = self.get("text_config").cloned() else {
            return Err("`text_config` must be an object".into());
        };
        if let Some(other) = inner.get("model_type").filter(|other| *other != model_type) {
            return Err(format!("text_config with the model_type {other} is not supported; supported is {model_type}"));
        }
        for name in OF_THE_FILE {
            if let Some(value) = self.get(name) {
                inner.insert(name.to_owned(), value.clone());
            }
        }
        Ok(Self(inner))
    }

    /// Gives the fields that older code named in GPT-2's manner (Nomic) their usual names.
    pub(super) fn with_usual_names(mut self) -> Self {
        const NAMES: [(&str, &str); 6] = [
            ("n_embd", "hidden_size"),
            ("n_head", "num_attention_heads"),
            ("n_layer", "num_hidden_layers"),
            ("n_inner", "intermediate_size"),
            ("n_positions", "max_position_embeddings"),
            ("layer_norm_epsilon", "layer_norm_eps"),
        ];
        for (old, usual) in NAMES {
            if !self.has(usual)
                && let Some(value) = self.0.get(old).cloned()
            {
                self.0.insert(usual.to_owned(), value);
            }
        }
        self
    }

    /// Returns the field `name`; `None` if it is missing or `null`.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Returns true if the field is there, even as `null`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns a text; `None` if it is missing.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, String> {
        self.get(name).map(|value| value.as_str().ok_or_else(|| wrong(name, "a text"))).transpose()
    }

    /// Returns a size of at least 1; `default` if it is missing.
    pub(super) fn size(&self, name: &str, default: usize) -> Result<usize, String> {
        Ok(self.optional_size(name)?.unwrap_or(default))
    }

    /// Returns a size of at least 1; `None` if it is missing or `null`.
    pub(super) fn optional_size(&self, name: &str) -> Result<Option<usize>, String> {
        let size = |value: &Value| value.as_u64().filter(|size| *size > 0).map(|size| size as usize);
        self.get(name).map(|value| size(value).ok_or_else(|| wrong(name, "a whole number of at least 1"))).transpose()
    }

    /// Returns a number; `None` if it is missing.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, String> {
        self.get(name).map(|value| value.as_f64().ok_or_else(|| wrong(name, "a number"))).transpose()
    }

    /// Returns a flag; `default` if it is missing.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| wrong(name, "true or false"))
    }

    /// Returns a list, its items read by `item`; `None` if it is missing.
    pub(super) fn list<'a, T>(
        &'a self,
        name: &str,
        item: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let items = value.as_array().and_then(|items| items.iter().map(item).collect::<Option<Vec<T>>>());
        items.map(Some).ok_or_else(|| wrong(name, "a list"))
    }
}

fn wrong(name: &str, kind: &str) -> String {
    format!("`{name}` must be {kind}")
}
