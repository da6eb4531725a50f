//! Prices of hosted models, to begin a comparison with: the configuration's, then a few that were read elsewhere, each
//! with the day and the place. Prices change, so the calculator lets people correct them; the server keeps none.

use crate::config::{Config, Price};

/// The currency of the known prices.
const CURRENCY: &str = "USD";

/// A model that somebody hosts, as the calculator's table shows it: texts, since people edit them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hosted {
    /// Name of the model.
    pub model: String,
    /// Money for a million tokens of prompts, of answers, and trained on.
    pub prompt: String,
    pub completion: String,
    pub training: String,
    /// Day of the price.
    pub seen: String,
    /// Where it stood.
    pub source: String,
}

/// Prices for a million tokens of prompts and of answers in [`CURRENCY`], by the day and the place they were read at.
const KNOWN: [(&str, f64, f64, &str, &str); 5] = [
    ("GPT-4.1 mini", 0.40, 1.60, "2026-06-21", "tokenmath.io/openai-api-pricing-explained"),
    ("GPT-5 mini", 0.25, 2.00, "2026-03-21", "deploybase.ai/articles/openai-pricing"),
    ("Claude Haiku 4.5", 1.00, 5.00, "2026-07-05", "huggingface.co/datasets/aicostbudget-ai/ai-api-pricing"),
    ("Gemini 2.5 Flash", 0.30, 2.50, "2026-07-11", "github.com/cuihuan/llm-gateway-bench, data/prices.json"),
    ("DeepSeek V4 Flash", 0.14, 0.28, "2026-07-11", "github.com/cuihuan/llm-gateway-bench, data/prices.json"),
];

/// Returns the rows that the table begins with. Those in another currency than the configuration's are left out.
pub(super) fn known(config: &Config) -> Vec<Hosted> {
    let own = config.prices.iter().map(|(name, price)| Hosted {
        model: name.clone(),
        prompt: price.prompt.to_string(),
        completion: price.completion.to_string(),
        training: price.training.to_string(),
        seen: String::new(),
        source: "this server's configuration".into(),
    });
    let is_same = config.currency == CURRENCY;
    let others = KNOWN.iter().filter(|_| is_same).map(|(model, prompt, completion, seen, source)| Hosted {
        model: (*model).into(),
        prompt: prompt.to_string(),
        completion: completion.to_string(),
        training: String::new(),
        seen: (*seen).into(),
        source: (*source).into(),
    });
    own.chain(others).collect()
}

impl Hosted {
    /// Reads the prices; the error names the field at fault. An empty price of training counts as none.
    pub(super) fn price(&self) -> Result<Price, &'static str> {
        let number = |text: &str, field| {
            text.trim().parse().ok().filter(|price: &f64| price.is_finite() && *price >= 0.0).ok_or(field)
        };
        Ok(Price {
            prompt: number(&self.prompt, "prompts")?,
            cached_prompt: None,
            completion: number(&self.completion, "answers")?,
            training: if self.training.trim().is_empty() { 0.0 } else { number(&self.training, "training")? },
            batch: None,
        })
    }

    /// True if nothing stands in the row that has a meaning.
    pub(super) fn is_empty(&self) -> bool {
        [&self.model, &self.prompt, &self.completion].iter().all(|text| text.trim().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_prices_have_a_day_and_a_place_and_one_currency() {
        let mut config = Config::default();
        config.prices.insert("mine".into(), Price { prompt: 1.0, ..Price::default() });
        let rows = known(&config);
        assert_eq!(rows.len(), KNOWN.len() + 1);
        for row in &rows[1..] {
            assert!(row.price().is_ok_and(|price| price.prompt > 0.0), "{row:?}");
            assert!(row.seen.parse::<jiff::civil::Date>().is_ok() && !row.source.is_empty(), "{row:?}");
        }
        config.currency = "EUR".into();
        assert_eq!(known(&config).len(), 1);
    }

    #[test]
    fn a_wrong_price_is_named() {
        let row = |prompt: &str, training: &str| {
            Hosted { prompt: prompt.into(), completion: "1".into(), training: training.into(), ..Hosted::default() }
                .price()
        };
        assert!(row("1", "").is_ok_and(|price| price.training == 0.0));
        for wrong in ["", "x", "-1", "inf", "NaN"] {
            assert_eq!(row(wrong, "").err(), Some("prompts"), "{wrong}");
        }
        assert_eq!(row("1", "-").err(), Some("training"));
    }
}
