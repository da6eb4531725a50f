//! What the old models cost: by the configuration, or by what was read elsewhere, with the day and the place.

use super::SpecialistOptions;
use crate::Result;
use crate::cli::move_in::folder::OldJob;
use crate::config::{Config, Price};
use crate::store::names::base_in_job_name;

/// The currency of the known prices.
const CURRENCY: &str = "USD";
/// Where the known prices stood, and when.
const SOURCE: &str = "tokonomics.ca/blog/llm-fine-tuning-costs-guide, 2026-06";
/// Prices for a million tokens of prompts, of answers and trained on, of fine-tuned models by their base. A date may
/// follow.
const KNOWN: [(&str, f64, f64, f64); 2] = [("gpt-4o-mini", 0.30, 1.20, 3.00), ("gpt-4o", 3.75, 15.00, 25.00)];

/// The prices of old models and of the machine.
pub(super) struct Prices {
    config: Config,
    /// The currency of everything.
    pub currency: String,
    /// Price of an hour of the machine, if it is known.
    pub hour: Option<f64>,
}

/// A price, and where it is from.
pub(super) struct Priced {
    pub price: Price,
    pub source: String,
}

impl Prices {
    /// Reads the configuration that the options name, or the usual one.
    pub(super) fn read(options: &SpecialistOptions) -> Result<Self> {
        let config = Config::load(options.config.as_deref())?;
        config.check_prices()?;
        let hour = options.price_per_hour.or(config.training.price_per_hour);
        Ok(Self { currency: config.currency.clone(), hour, config })
    }

    /// Returns the price of what a job made: the configuration's for the model or for `ft:BASE`, else a known one.
    pub(super) fn of(&self, job: &OldJob) -> Option<Priced> {
        let base = base_in_job_name(&job.base).unwrap_or(&job.base);
        let tuned = format!("ft:{base}");
        for name in [job.model.as_deref(), Some(tuned.as_str())].into_iter().flatten() {
            if let Some(price) = self.config.prices.get(name) {
                return Some(Priced { price: *price, source: format!("[prices.\"{name}\"] of the configuration") });
            }
        }
        let is_of = |name: &str| base.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("-20"));
        let (_, prompt, completion, training) = KNOWN.into_iter().find(|(name, ..)| is_of(name))?;
        let price = Price { prompt, completion, training, ..Price::default() };
        (self.currency == CURRENCY).then(|| Priced { price, source: SOURCE.into() })
    }

    /// Says what to do where a price is not known.
    pub(super) fn hint(job: &OldJob) -> String {
        let base = base_in_job_name(&job.base).unwrap_or(&job.base);
        format!("set prompt and completion in [prices.\"ft:{base}\"]")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn price(base: &str, prices: &[(&str, f64)], currency: &str) -> Option<(f64, String)> {
        let job = OldJob::read(json!({"id": "a", "model": base, "fine_tuned_model": "ft:x:y::z"}), Vec::new())
            .expect("a job");
        let prices =
            prices.iter().map(|(name, prompt)| ((*name).to_owned(), Price { prompt: *prompt, ..Price::default() }));
        let config = Config { prices: prices.collect(), ..Config::default() };
        let prices = Prices { config, currency: currency.into(), hour: None };
        prices.of(&job).map(|priced| (priced.price.prompt, priced.source))
    }

    #[test]
    fn the_configuration_comes_first_and_unknown_prices_are_not_made_up() {
        assert_eq!(price("gpt-4o-mini-2024-07-18", &[], "USD"), Some((0.30, SOURCE.to_owned())));
        assert_eq!(price("ft:gpt-4o-2024-08-06:acme::x", &[], "USD").map(|priced| priced.0), Some(3.75));
        assert_eq!(price("gpt-4o-mini-2024-07-18", &[], "EUR"), None);
        assert_eq!(price("gpt-4o-audio-preview", &[], "USD"), None);
        assert_eq!(price("gpt-4.1-mini-2025-04-14", &[], "USD"), None);
        assert_eq!(price("gpt-4.1-mini", &[("ft:gpt-4.1-mini", 0.8)], "USD").map(|priced| priced.0), Some(0.8));
        assert_eq!(price("gpt-4o", &[("ft:gpt-4o", 1.0), ("ft:x:y::z", 2.0)], "USD").map(|priced| priced.0), Some(2.0));
    }
}
