//! The cost of training in money: by the hour of the machine and by the token, if the configuration has the price. The
//! worker reports it with its estimates and when a job ends.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::Config;
use crate::format;

const SECONDS_PER_HOUR: f64 = 3600.0;
const TOKENS_PER_PRICE: f64 = 1e6;

/// Prices of training.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pricing {
    /// Currency of the prices, such as `EUR`.
    pub currency: String,
    /// Price of an hour of the machine.
    pub per_hour: Option<f64>,
    /// Price of a million trained tokens, by base model id.
    pub per_million_tokens: BTreeMap<String, f64>,
}

/// Cost of a run; a part without a price is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Currency of the amounts.
    pub currency: String,
    /// Cost of the machine's hours.
    pub machine: Option<f64>,
    /// Cost of the trained tokens, as `/v1/usage` counts them.
    pub tokens: Option<f64>,
}

impl Pricing {
    /// Returns the configuration's prices.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            currency: config.currency.clone(),
            per_hour: config.training.price_per_hour,
            per_million_tokens: config.prices.iter().map(|(base, price)| (base.clone(), price.training)).collect(),
        }
    }

    /// Returns the cost of training the base model `base` for `seconds` on `tokens`.
    pub fn cost(&self, base: &str, seconds: f64, tokens: u64) -> Cost {
        Cost {
            currency: self.currency.clone(),
            machine: self.per_hour.map(|price| price * seconds / SECONDS_PER_HOUR),
            tokens: self.per_million_tokens.get(base).map(|price| price * tokens as f64 / TOKENS_PER_PRICE),
        }
    }
}

impl Cost {
    /// Returns the parts that have a price, as texts for people.
    pub(crate) fn in_words(&self) -> Vec<String> {
        let parts = [(self.machine, "machine time"), (self.tokens, "tokens")];
        let priced = parts.into_iter().filter_map(|(amount, what)| Some((amount?, what)));
        priced.map(|(amount, what)| format!("{} for {what}", format::money(amount, &self.currency))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_and_tokens_are_counted_apart_and_need_a_price_each() {
        let mut pricing = Pricing { currency: "EUR".into(), per_hour: Some(1.2), ..Pricing::default() };
        pricing.per_million_tokens.insert("demo".into(), 3.0);
        let cost = pricing.cost("demo", 1800.0, 500_000);
        assert_eq!((cost.machine, cost.tokens), (Some(0.6), Some(1.5)));
        assert_eq!(cost.in_words(), ["0.60 EUR for machine time", "1.50 EUR for tokens"]);
        let other = Pricing { per_hour: None, ..pricing }.cost("other", 1800.0, 500_000);
        assert_eq!((other.machine, other.tokens, other.in_words().len()), (None, None, 0));
    }
}
