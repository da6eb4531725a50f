//! Numbers: reads the keywords of a schema that bound them, and writes the regular expression of the numbers that they
//! allow. Bounds keep all their digits, and every number has a longest form, so that no model can run on in digits.

use serde_json::{Map, Number, Value, json};

use super::decimal::{Decimal, Fraction, either, whole_range};

/// Most digits after the point of a number whose bounds do not ask for more; with fewer than 16 significant digits,
/// different numbers are different as 64-bit floats.
const FRACTION_DIGITS: usize = 15;
/// Numbers without bounds: up to 20 digits before and after the point, exponents up to 299.
const ANY: &str = r"-?(?:(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?|[0-9](?:\.[0-9]{1,20})?[eE][+-]?[12][0-9]{2})";
/// A number with one bound has fewer than 20 digits before the point.
const END: &str = "1e20";
/// Largest whole numbers whose multiples the compiler takes exactly.
const MULTIPLES: i128 = 999_999_999_999_999;

/// Numbers that a grammar may allow.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A regular expression.
    Pattern(String),
    /// A JSON schema for llguidance, which tells multiples by their remainders.
    Multiples { schema: Value, remainders: i128 },
}

/// A bound, and whether it is allowed itself.
pub(super) type Bound = (Decimal, bool);

/// Returns the lower and the upper bound of the schema `map`, whose keywords were checked.
pub(super) fn bounds(map: &Map<String, Value>) -> Result<(Option<Bound>, Option<Bound>), String> {
    let lower = strictest(bound(map, "minimum")?, bound(map, "exclusiveMinimum")?, true);
    let upper = strictest(bound(map, "maximum")?, bound(map, "exclusiveMaximum")?, false);
    Ok((lower, upper))
}

fn bound(map: &Map<String, Value>, keyword: &str) -> Result<Option<Decimal>, String> {
    let Some(Value::Number(number)) = map.get(keyword) else { return Ok(None) };
    Decimal::of(number).map(Some).ok_or_else(|| format!("'{keyword}' is {number}, which is out of range"))
}

fn strictest(included: Option<Decimal>, excluded: Option<Decimal>, lower: bool) -> Option<Bound> {
    match (included, excluded) {
        (None, None) => None,
        (Some(included), None) => Some((included, true)),
        (None, Some(excluded)) => Some((excluded, false)),
        (Some(included), Some(excluded)) => {
            let stricter = if lower { excluded >= included } else { excluded <= included };
            Some(if stricter { (excluded, false) } else { (included, true) })
        }
    }
}

/// Writes a constant; whole numbers of more than 64 bits have lost their digits when they were read.
pub(super) fn constant(number: &Number) -> Result<String, String> {
    let text = number.to_string();
    let whole = number.is_f64() && Decimal::of(number).is_some_and(|decimal| decimal.fraction.is_empty());
    if whole && number.as_f64().is_none_or(|value| value.abs() >= 9.3e18) {
        return Err(format!("{text} is a whole number of more than 64 bits: write it as a string"));
    }
    Ok(text)
}

/// Returns the form of the numbers, whole ones only if `integer`, that the schema `map` allows; `None` if there is
/// none.
pub(super) fn form(map: &Map<String, Value>, integer: bool) -> Result<Option<Form>, String> {
    let (lower, upper) = bounds(map)?;
    let (lower, upper) = (lower.as_ref(), upper.as_ref());
    match map.get("multipleOf").and_then(Value::as_number) {
        None if integer => Ok(whole_numbers(lower, upper)?.map(Form::Pattern)),
        None => Ok(decimals(lower, upper, None).map(Form::Pattern)),
        Some(step) => multiples(step, integer, lower, upper),
    }
}

/// Returns the whole numbers within the bounds. They fit 64 bits, signed if they may.
fn whole_limits(lower: Option<&Bound>, upper: Option<&Bound>) -> Result<(i128, i128), String> {
    let low = lower.map(|(bound, included)| {
        let (floor, exact) = bound.scaled(0);
        if exact && *included { floor } else { floor + 1 }
    });
    let high = upper.map(|(bound, included)| {
        let (floor, exact) = bound.scaled(0);
        if exact && !included { floor - 1 } else { floor }
    });
    let (least, most) = (i128::from(i64::MIN), i128::from(u64::MAX));
    if low.is_some_and(|low| low > most) || high.is_some_and(|high| high < least) {
        return Err("its bounds ask for whole numbers of more than 64 bits: use a string".into());
    }
    let low = low.unwrap_or(least).max(least);
    let default = if low > i128::from(i64::MAX) { most } else { i128::from(i64::MAX) };
    Ok((low, high.unwrap_or(default).min(most)))
}

fn whole_numbers(lower: Option<&Bound>, upper: Option<&Bound>) -> Result<Option<String>, String> {
    let (low, high) = whole_limits(lower, upper)?;
    let mut parts = Vec::new();
    if low <= high && low < 0 {
        parts.push(format!("-{}", whole_range(high.min(-1).unsigned_abs(), low.unsigned_abs())));
    }
    if low <= high && high >= 0 {
        parts.push(whole_range(low.max(0).unsigned_abs(), high.unsigned_abs()));
    }
    Ok((!parts.is_empty()).then(|| either(&parts)))
}

/// Writes the numbers within the bounds with at most `digits` after the point, or as many as are sensible.
fn decimals(lower: Option<&Bound>, upper: Option<&Bound>, digits: Option<usize>) -> Option<String> {
    if lower.is_none() && upper.is_none() && digits.is_none() {
        return Some(ANY.into());
    }
    let digits = digits.unwrap_or_else(|| fraction_digits(lower, upper));
    let end = Decimal::parse(END)?;
    let magnitude = |bound: &Bound| (bound.0.magnitude(), bound.1);
    let zero = |included| (Decimal::zero(), included);
    let mut parts = Vec::new();
    if lower.is_none_or(|(lower, _)| lower.is_negative()) {
        let low = upper.filter(|(upper, _)| upper.is_negative()).map_or(zero(false), magnitude);
        let high = lower.map_or((end.clone(), false), magnitude);
        parts.extend(not_negative(&low, &high, digits).map(|numbers| format!("-{numbers}")));
    }
    if upper.is_none_or(|(upper, _)| !upper.is_negative()) {
        let low = lower.filter(|(lower, _)| !lower.is_negative()).map_or(zero(true), magnitude);
        let high = upper.map_or((end, false), magnitude);
        parts.extend(not_negative(&low, &high, digits));
    }
    (!parts.is_empty()).then(|| either(&parts))
}

/// Returns how many digits after the point keep a number away from its excluded bounds when a client reads it as a
/// 64-bit float.
fn fraction_digits(lower: Option<&Bound>, upper: Option<&Bound>) -> usize {
    let mut digits = FRACTION_DIGITS;
    for (bound, included) in lower.into_iter().chain(upper) {
        if !included {
            digits = digits.min(FRACTION_DIGITS.saturating_sub(bound.whole_digits()));
        }
    }
    let needed = lower.into_iter().chain(upper).map(|(bound, _)| bound.fraction.len()).max().unwrap_or(0);
    digits.max(needed)
}

fn not_negative(low: &Bound, high: &Bound, digits: usize) -> Option<String> {
    if low.0 > high.0 || (low.0 == high.0 && !(low.1 && high.1)) {
        return None;
    }
    let (low_digits, high_digits) = ((low.0.fraction.as_bytes(), low.1), (high.0.fraction.as_bytes(), high.1));
    let (first, last) = (low.0.whole(), high.0.whole());
    if first == last {
        return Fraction::between(low_digits, high_digits, digits).of_whole(&first.to_string());
    }
    let mut parts = Vec::new();
    parts.extend(Fraction::at_least(low_digits.0, low.1, digits).of_whole(&first.to_string()));
    if last - first > 1 {
        parts.extend(Fraction::any(digits).of_whole(&whole_range(first + 1, last - 1)));
    }
    // A whole bound that is excluded leaves nothing of its own whole part.
    if high.1 || !high.0.fraction.is_empty() {
        parts.extend(Fraction::at_most(high_digits.0, high.1, true, digits).of_whole(&last.to_string()));
    }
    (!parts.is_empty()).then(|| either(&parts))
}

/// Returns the form of the multiples of `step` within the bounds.
fn multiples(
    step: &Number,
    integer: bool,
    lower: Option<&Bound>,
    upper: Option<&Bound>,
) -> Result<Option<Form>, String> {
    let out_of_range = || format!("'multipleOf' is {step}, which is out of range");
    let decimal = Decimal::of(step).ok_or_else(out_of_range)?.magnitude();
    let scale = decimal.fraction.len();
    if scale == 0 && decimal.whole() == 1 {
        return Ok(whole_numbers(lower, upper)?.map(Form::Pattern));
    }
    if !integer && decimal.scaled(scale).0 == 1 && scale <= 20 {
        return Ok(decimals(lower, upper, Some(scale)).map(Form::Pattern));
    }
    if decimal.is_zero() || scale > 9 {
        return Err(out_of_range());
    }
    // Whole multiples of 0.25 are those of 1, and of 1.5 those of 3.
    let digits = decimal.scaled(scale).0;
    let unit = 10_i128.pow(scale as u32);
    let (step, unit) = if integer { (digits / greatest_divisor(digits, unit), 1) } else { (digits, unit) };
    let scale = if integer { 0 } else { scale };
    let limit = MULTIPLES / step * step;
    let low = lower.map_or(-limit, |(bound, included)| {
        let (floor, exact) = bound.scaled(scale);
        let least = if exact && *included { floor } else { floor + 1 };
        (least.div_euclid(step) + i128::from(least.rem_euclid(step) != 0)) * step
    });
    let high = upper.map_or(limit, |(bound, included)| {
        let (floor, exact) = bound.scaled(scale);
        (if exact && !included { floor - 1 } else { floor }).div_euclid(step) * step
    });
    if low > limit || high < -limit {
        return Err("its bounds ask for multiples of more than 15 digits".into());
    }
    let (low, high) = (low.max(-limit), high.min(limit));
    if low >= high {
        return Ok((low == high).then(|| Form::Pattern(written(low, scale).replace('.', "\\."))));
    }
    let float = |number: i128| number as f64 / unit as f64;
    let kind = if integer || scale == 0 { "integer" } else { "number" };
    let schema = json!({
        "type": kind, "multipleOf": float(step), "minimum": float(low), "maximum": float(high),
    });
    Ok(Some(Form::Multiples { schema, remainders: step }))
}

/// Writes a whole number divided by `10^scale`.
fn written(number: i128, scale: usize) -> String {
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if number < 0 { "-" } else { "" };
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

fn greatest_divisor(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

#[cfg(test)]
#[path = "number_tests.rs"]
mod tests;
