//! Decimal numbers with all their digits, as schemas write them, and the regular expressions of ranges of digits. Used
//! by `number`.

use std::cmp::Ordering;

use serde_json::Number;

/// Largest exponent of ten that a bound may have; far beyond the numbers that answers have.
const MAX_EXPONENT: i32 = 400;

/// A decimal number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decimal {
    negative: bool,
    /// Digits before the point without leading zeros; empty for 0.
    whole: String,
    /// Digits after it without trailing zeros.
    pub fraction: String,
}

impl Decimal {
    /// Reads a JSON number as it is written; `None` if its exponent is out of all reason.
    pub(super) fn of(number: &Number) -> Option<Self> {
        Self::parse(&number.to_string())
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent: i32 = exponent.trim_start_matches('+').parse().ok()?;
        if exponent.abs() > MAX_EXPONENT {
            return None;
        }
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let point = whole.len() as i32 + exponent;
        let zeros = |count: i32| "0".repeat(count.max(0) as usize);
        let digits = format!("{}{digits}{}", zeros(-point), zeros(point - digits.len() as i32));
        let (whole, fraction) = digits.split_at(point.max(0) as usize);
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let negative = negative && !(whole.is_empty() && fraction.is_empty());
        Some(Self { negative, whole: whole.to_owned(), fraction: fraction.to_owned() })
    }

    pub(super) fn zero() -> Self {
        Self { negative: false, whole: String::new(), fraction: String::new() }
    }

    pub(super) fn is_negative(&self) -> bool {
        self.negative
    }

    pub(super) fn is_zero(&self) -> bool {
        self.whole.is_empty() && self.fraction.is_empty()
    }

    /// Counts the digits before the point.
    pub(super) fn whole_digits(&self) -> usize {
        self.whole.len()
    }

    /// Returns the number without its sign.
    pub(super) fn magnitude(&self) -> Self {
        Self { negative: false, ..self.clone() }
    }

    /// Returns the digits before the point as a number; the largest one where they are too many.
    pub(super) fn whole(&self) -> u128 {
        if self.whole.is_empty() { 0 } else { self.whole.parse().unwrap_or(u128::MAX) }
    }

    /// Returns the number times `10^scale`, rounded towards minus infinity, and whether that is exact; saturates.
    pub(super) fn scaled(&self, scale: usize) -> (i128, bool) {
        let (kept, rest) = self.fraction.split_at(scale.min(self.fraction.len()));
        let digits = format!("0{}{kept}{}", self.whole, "0".repeat(scale - kept.len()));
        let magnitude = digits.parse::<i128>().unwrap_or(i128::MAX / 4).min(i128::MAX / 4);
        let exact = rest.is_empty();
        let signed = if self.negative { -magnitude - i128::from(!exact) } else { magnitude };
        (signed, exact)
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let magnitudes =
            (self.whole.len(), &self.whole, &self.fraction).cmp(&(other.whole.len(), &other.whole, &other.fraction));
        match (self.negative, other.negative) {
            (false, false) => magnitudes,
            (true, true) => magnitudes.reverse(),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

/// Joins alternatives of a regular expression.
pub(super) fn either(parts: &[String]) -> String {
    if let [only] = parts { only.clone() } else { format!("(?:{})", parts.join("|")) }
}

fn class(low: u8, high: u8) -> String {
    if low == high { char::from(low).to_string() } else { format!("[{}-{}]", char::from(low), char::from(high)) }
}

/// Writes exactly `count` digits.
fn digits(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => "[0-9]".into(),
        _ => format!("[0-9]{{{count}}}"),
    }
}

/// Writes the whole numbers from `low` to `high`, which are in order, without leading zeros.
pub(super) fn whole_range(low: u128, high: u128) -> String {
    let (low, high) = (low.to_string(), high.to_string());
    if low.len() == high.len() {
        return same_length(low.as_bytes(), high.as_bytes());
    }
    let mut parts = vec![same_length(low.as_bytes(), "9".repeat(low.len()).as_bytes())];
    match high.len() - low.len() {
        1 => {}
        2 => parts.push(format!("[1-9]{}", digits(low.len()))),
        _ => parts.push(format!("[1-9][0-9]{{{},{}}}", low.len(), high.len() - 2)),
    }
    let first = format!("1{}", "0".repeat(high.len() - 1));
    parts.push(same_length(first.as_bytes(), high.as_bytes()));
    either(&parts)
}

fn same_length(low: &[u8], high: &[u8]) -> String {
    let common = low.iter().zip(high).take_while(|(low, high)| low == high).count();
    let prefix: String = low[..common].iter().map(|digit| char::from(*digit)).collect();
    let (low, high) = (&low[common..], &high[common..]);
    let (Some(&(mut first)), Some(&(mut last))) = (low.first(), high.first()) else { return prefix };
    let rest = low.len() - 1;
    let mut parts = Vec::new();
    if low[1..].iter().any(|digit| *digit != b'0') {
        parts.push(format!("{}{}", char::from(first), same_length(&low[1..], &vec![b'9'; rest])));
        first += 1;
    }
    let mut end = None;
    if high[1..].iter().any(|digit| *digit != b'9') {
        end = Some(format!("{}{}", char::from(last), same_length(&vec![b'0'; rest], &high[1..])));
        last -= 1;
    }
    if first <= last {
        parts.push(format!("{}{}", class(first, last), digits(rest)));
    }
    parts.extend(end);
    format!("{prefix}{}", either(&parts))
}

/// Texts of digits after a decimal point.
pub(super) struct Fraction {
    /// True if there may be none.
    empty: bool,
    /// Expressions of those that are not empty.
    texts: Vec<String>,
}

impl Fraction {
    /// Accepts up to `count` digits.
    pub(super) fn any(count: usize) -> Self {
        Self { empty: true, texts: up_to(1, count).into_iter().collect() }
    }

    /// Accepts up to `count` digits that make at least `low`, or more if it is excluded.
    pub(super) fn at_least(low: &[u8], included: bool, count: usize) -> Self {
        let Some((&first, rest)) = low.split_first() else {
            if included {
                return Self::any(count);
            }
            let nonzero = (count > 0).then(|| format!("{}[1-9]", up_to(0, count - 1).unwrap_or_default()));
            return Self { empty: false, texts: nonzero.into_iter().collect() };
        };
        let mut texts = Vec::new();
        if count > 0 {
            texts.extend(Self::at_least(rest, included, count - 1).after(char::from(first)));
            if first < b'9' {
                texts.push(format!("{}{}", class(first + 1, b'9'), up_to(0, count - 1).unwrap_or_default()));
            }
        }
        Self { empty: false, texts }
    }

    /// Accepts up to `count` digits that make at most `high`, or less if it is excluded; 0 only if `zero`.
    pub(super) fn at_most(high: &[u8], included: bool, zero: bool, count: usize) -> Self {
        let Some((&first, rest)) = high.split_first() else {
            let is_zero = included && zero;
            return Self { empty: is_zero, texts: (is_zero && count > 0).then(|| "0".into()).into_iter().collect() };
        };
        let mut texts = Vec::new();
        if count > 0 {
            let more = up_to(0, count - 1).unwrap_or_default();
            texts.extend(Self::at_most(rest, included, zero || first > b'0', count - 1).after(char::from(first)));
            if first > b'0' && zero {
                texts.push(format!("{}{more}", class(b'0', first - 1)));
            } else if first > b'0' {
                texts.extend((first > b'1').then(|| format!("{}{more}", class(b'1', first - 1))));
                texts.extend(Self::at_least(b"", false, count - 1).after('0'));
            }
        }
        Self { empty: zero, texts }
    }

    /// Accepts up to `count` digits between two bounds in order, each with whether it is included.
    pub(super) fn between(low: (&[u8], bool), high: (&[u8], bool), count: usize) -> Self {
        let Some((&first, low_rest)) = low.0.split_first() else {
            return Self::at_most(high.0, high.1, low.1, count);
        };
        let Some((&last, high_rest)) = high.0.split_first() else { return Self { empty: false, texts: Vec::new() } };
        let mut texts = Vec::new();
        if count > 0 && first == last {
            let inner = if low_rest.is_empty() && high_rest.is_empty() && !(low.1 && high.1) {
                Self { empty: false, texts: Vec::new() }
            } else {
                Self::between((low_rest, low.1), (high_rest, high.1), count - 1)
            };
            texts.extend(inner.after(char::from(first)));
        } else if count > 0 {
            texts.extend(Self::at_least(low_rest, low.1, count - 1).after(char::from(first)));
            if last - first > 1 {
                texts.push(format!("{}{}", class(first + 1, last - 1), up_to(0, count - 1).unwrap_or_default()));
            }
            texts.extend(Self::at_most(high_rest, high.1, true, count - 1).after(char::from(last)));
        }
        Self { empty: false, texts }
    }

    fn after(self, digit: char) -> Option<String> {
        match (self.empty, self.texts.is_empty()) {
            (false, true) => None,
            (true, true) => Some(digit.to_string()),
            (false, false) => Some(format!("{digit}{}", either(&self.texts))),
            (true, false) => Some(format!("{digit}(?:{})?", self.texts.join("|"))),
        }
    }

    /// Writes the numbers with one of the whole parts `whole` and this fraction; `None` if there is none.
    pub(super) fn of_whole(self, whole: &str) -> Option<String> {
        match (self.empty, self.texts.is_empty()) {
            (false, true) => None,
            (true, true) => Some(whole.to_owned()),
            (false, false) => Some(format!("{whole}\\.{}", either(&self.texts))),
            (true, false) => Some(format!("{whole}(?:\\.{})?", either(&self.texts))),
        }
    }
}

fn up_to(least: usize, most: usize) -> Option<String> {
    match most {
        0 => None,
        1 if least == 1 => Some("[0-9]".into()),
        _ => Some(format!("[0-9]{{{least},{most}}}")),
    }
}
