//! Money in whole millionths, and what tokens cost in it: sums of it are exact, and a budget in it is one.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

/// Millionths of a unit of money.
const MILLIONTHS: f64 = 1e6;
/// The most money that a request may name, in units.
const MOST: f64 = 1e9;

/// Millionths of the configured currency's unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(i64);

/// Prices of tokens, in millionths per million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Price {
    prompt: u64,
    completion: u64,
}

impl Money {
    /// No money.
    pub const NONE: Self = Self(0);

    /// Makes money of a number of millionths, as the database has it.
    pub const fn of_millionths(millionths: i64) -> Self {
        Self(millionths)
    }

    /// Makes money of a number of units; `None` if it is negative, too much, or has a part that is less than a
    /// millionth.
    pub fn of_units(units: f64) -> Option<Self> {
        let millionths = units * MILLIONTHS;
        let whole = millionths.round();
        let exact = (0.0..=MOST).contains(&units) && (millionths - whole).abs() < 1e-3;
        exact.then_some(Self(whole as i64))
    }

    /// Returns the millionths.
    pub const fn millionths(self) -> i64 {
        self.0
    }

    /// Returns the units, for answers.
    pub fn units(self) -> f64 {
        self.0 as f64 / MILLIONTHS
    }
}

impl Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Money {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::NONE, Add::add)
    }
}

/// Two digits behind the point, more where the money is not a whole number of hundredths.
impl fmt::Display for Money {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, all) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let digits = format!("{:06}", all % 1_000_000);
        let kept = digits.trim_end_matches('0').len().max(2);
        write!(formatter, "{sign}{}.{}", all / 1_000_000, &digits[..kept])
    }
}

impl Price {
    /// Makes the price of money per million tokens. Parts of a millionth are rounded up.
    pub fn per_million(prompt: f64, completion: f64) -> Self {
        // What is within a hair's breadth of a whole number is that number, written in binary.
        let whole = |price: f64| (price * MILLIONTHS - 1e-3).ceil().max(0.0) as u64;
        Self { prompt: whole(prompt), completion: whole(completion) }
    }

    /// Returns what the tokens cost, parts of a millionth rounded up.
    pub fn of(self, prompt: u64, completion: u64) -> Money {
        let (prompt, completion) = (u128::from(prompt), u128::from(completion));
        let sum = prompt * u128::from(self.prompt) + completion * u128::from(self.completion);
        Money(i64::try_from(sum.div_ceil(1_000_000)).unwrap_or(i64::MAX))
    }

    /// True if nothing costs anything.
    pub fn is_free(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_told_in_hundredths_or_as_exactly_as_it_is() {
        let told = |millionths| Money(millionths).to_string();
        assert_eq!(told(0), "0.00");
        assert_eq!(told(410_000), "0.41");
        assert_eq!(told(12_300_045), "12.300045");
        assert_eq!(told(-5_000), "-0.005");
    }

    #[test]
    fn a_number_of_units_is_exact_or_none() {
        for (units, millionths) in [(0.0, 0), (0.29, 290_000), (2.0, 2_000_000), (0.000_001, 1)] {
            assert_eq!(Money::of_units(units), Some(Money(millionths)), "{units}");
        }
        for units in [-0.01, 0.000_000_1, 1e10, f64::NAN, f64::INFINITY] {
            assert_eq!(Money::of_units(units), None, "{units}");
        }
    }

    #[test]
    fn tokens_cost_whole_millionths_and_never_less_than_their_price() {
        let price = Price::per_million(0.15, 0.6);
        assert_eq!(price.of(0, 0), Money::NONE);
        assert_eq!(price.of(1, 0), Money(1));
        assert_eq!(price.of(1_000_000, 1_000_000), Money(750_000));
        assert_eq!(price.of(20, 5), Money(6));
        assert!(Price::per_million(0.0, 0.0).is_free() && !price.is_free());
    }
}
