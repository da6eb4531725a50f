//! `attune costs`: compares the cost of answers on your own machine with per-token prices, and finds the number of
//! requests per day at which both cost the same. The prices are the configuration's; [`crate::costs`] computes.

use crate::config::{Config, Price};
use crate::costs::{Comparison, DAYS_PER_MONTH, Plan};
use crate::{Error, Result, format};
use clap::Args;

use super::output;
use crate::cli::DataDirArgs;

/// The flags of `attune costs`.
#[derive(Debug, Args)]
pub(super) struct CostsOptions {
    #[command(flatten)]
    place: DataDirArgs,
    /// Answer this many requests per day.
    #[arg(long, value_name = "N", value_parser = positive)]
    requests_per_day: f64,
    /// Expect this many tokens in a prompt.
    #[arg(long, value_name = "P", value_parser = at_least_zero)]
    prompt_tokens: f64,
    /// Expect this many tokens in an answer.
    #[arg(long, value_name = "C", value_parser = at_least_zero)]
    completion_tokens: f64,
    /// Compare with the token prices of this entry of `prices` [default: the only one].
    #[arg(long, value_name = "MODEL")]
    against: Option<String>,
    /// Pay for the machine this many hours per day.
    #[arg(long, default_value_t = 24.0, value_name = "H", value_parser = hours)]
    hours_per_day: f64,
    /// Assume that a machine generates this many tokens per second, as measured; without it one machine serves
    /// everything.
    #[arg(long, value_name = "R", value_parser = positive)]
    tokens_per_second: Option<f64>,
    /// Train on this many tokens in one fine-tune, all epochs counted, as `attune estimate` prints them.
    #[arg(long, default_value_t = 0.0, value_name = "T", value_parser = at_least_zero)]
    training_tokens: f64,
    /// Run this many fine-tunes per month.
    #[arg(long, default_value_t = 1.0, value_name = "K", value_parser = at_least_zero)]
    trainings_per_month: f64,
}

fn number(text: &str, holds: impl FnOnce(f64) -> bool, what: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite() && holds(*number)).ok_or_else(|| format!("use {what}"))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |number| number > 0.0, "a number above 0")
}

fn at_least_zero(text: &str) -> Result<f64, String> {
    number(text, |number| number >= 0.0, "a number of at least 0")
}

fn hours(text: &str) -> Result<f64, String> {
    number(text, |number| number > 0.0 && number <= 24.0, "a number of hours above 0, at most 24")
}

impl CostsOptions {
    /// Prints the comparison.
    pub(super) fn run(&self) -> Result<()> {
        let config = self.place.load()?;
        config.check_prices()?;
        let (name, price) = self.price(&config)?;
        let hour = config.training.price_per_hour.ok_or_else(|| {
            Error::Setup("the price of the machine is not known: set price_per_hour in [training]".into())
        })?;
        for line in self.lines(name, &self.plan(hour).compare(price), hour, &config.currency) {
            output::line(line)?;
        }
        Ok(())
    }

    /// Returns the entry of `prices` to compare with, and its name.
    fn price<'a>(&self, config: &'a Config) -> Result<(&'a str, &'a Price)> {
        let known = || config.prices.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let found = match &self.against {
            Some(name) => config.prices.get_key_value(name),
            None if config.prices.len() <= 1 => config.prices.first_key_value(),
            None => {
                let message = format!("there are prices of several models: say which with --against ({})", known());
                return Err(Error::Setup(message));
            }
        };
        let none = || match &self.against {
            Some(name) => format!("--against {name}: `prices` has no such entry (it has: {})", known()),
            None => "no price per token is known: set prompt and completion in [prices.MODEL]".into(),
        };
        found.map(|(name, price)| (name.as_str(), price)).ok_or_else(|| Error::Setup(none()))
    }

    fn plan(&self, price_per_hour: f64) -> Plan {
        Plan {
            requests_per_day: self.requests_per_day,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            price_per_hour,
            hours_per_day: self.hours_per_day,
            tokens_per_second: self.tokens_per_second,
            training_tokens_per_month: self.training_tokens * self.trainings_per_month,
        }
    }

    fn lines(&self, name: &str, costs: &Comparison, hour: f64, currency: &str) -> Vec<String> {
        let money = |amount| format::money(amount, currency);
        let Comparison { request, training, by_token, machines, capacity, break_even, .. } = *costs;
        let own = costs.own();
        let trained = if training > 0.0 { format!(", fine-tunes {}", money(training)) } else { String::new() };
        let mut lines = vec![
            format!(
                "by the token  {} a day: {} requests at {} each ({name}){trained}",
                money(by_token),
                format::count(self.requests_per_day),
                money(request)
            ),
            format!(
                "own machine   {} a day: {} at {} an hour, {} hours, fine-tunes included",
                money(own),
                plural(machines, "machine"),
                money(hour),
                self.hours_per_day
            ),
        ];
        if let Some(capacity) = capacity {
            lines.push(format!("capacity      {} requests per day and machine", format::count(capacity.floor())));
        }
        lines.push(match (break_even, capacity) {
            (Some(requests), _) => format!("break-even    {} requests per day", format::count(requests)),
            (None, Some(_)) => "break-even    none: what a machine answers in a day costs less by the token".into(),
            (None, None) => "break-even    none: the tokens cost nothing".into(),
        });
        let (cheaper, less) =
            if own < by_token { ("own machine", by_token - own) } else { ("by the token", own - by_token) };
        lines.push(if less == 0.0 {
            "cheaper       neither".into()
        } else {
            format!("cheaper       {cheaper}, by {} a day, {} a month", money(less), money(less * DAYS_PER_MONTH))
        });
        lines
    }
}

fn plural(count: f64, what: &str) -> String {
    let count = format::count(count);
    let s = if count == "1" { "" } else { "s" };
    format!("{count} {what}{s}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: CostsOptions,
    }

    const PRICE: Price = Price { prompt: 1.0, cached_prompt: None, completion: 4.0, training: 3.0, batch: None };

    fn options(arguments: &[&str]) -> CostsOptions {
        let all = ["costs", "--requests-per-day", "10000", "--prompt-tokens", "400", "--completion-tokens", "100"];
        Line::try_parse_from([&all, arguments].concat()).expect("arguments").options
    }

    #[test]
    fn the_flags_are_the_plan() {
        let arguments = ["--tokens-per-second", "5", "--training-tokens", "100", "--trainings-per-month", "3"];
        let plan = options(&arguments).plan(0.2);
        assert_eq!((plan.requests_per_day, plan.prompt_tokens, plan.completion_tokens), (10_000.0, 400.0, 100.0));
        assert_eq!((plan.price_per_hour, plan.hours_per_day, plan.tokens_per_second), (0.2, 24.0, Some(5.0)));
        assert!((plan.training_tokens_per_month - 300.0).abs() < 1e-9);
    }

    #[test]
    fn whose_tokens_are_paid_for_must_be_clear() {
        let mut config = Config::default();
        assert!(options(&[]).price(&config).is_err());
        config.prices.insert("one".into(), PRICE);
        assert_eq!(options(&[]).price(&config).expect("the only one").0, "one");
        config.prices.insert("two".into(), PRICE);
        assert!(options(&[]).price(&config).is_err_and(|error| error.to_string().contains("one, two")));
        assert_eq!(options(&["--against", "two"]).price(&config).expect("named").0, "two");
        assert!(options(&["--against", "three"]).price(&config).is_err());
    }
}
