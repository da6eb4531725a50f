//! Texts: the schema of a string for llguidance, and patterns as regular expressions of whole texts. Used by
//! `keywords`, `objects` and `document`.

use llguidance::derivre::{RegexAst, RegexBuilder};
use llguidance::regex_to_lark;
use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::{Map, Value, json};

use super::{budget, weight};

/// Formats that are enforced, each with the largest length of its texts; all others are annotations.
const FORMATS: [(&str, Option<u64>); 10] = [
    ("date", None),
    ("time", None),
    ("date-time", None),
    ("duration", None),
    // RFC 5321, 4.5.3.1, RFC 1035, 2.3.4, and the shortest limit of common browsers.
    ("email", Some(254)),
    ("hostname", Some(253)),
    ("uri", Some(2048)),
    ("ipv4", None),
    ("ipv6", None),
    ("uuid", None),
];
/// Largest length of a text whose pattern repeats something without end.
const PATTERN_LENGTH: u64 = 2048;
/// Largest number of names that are listed in place of a pattern.
const MAX_NAMES: usize = 64;
/// Largest size of one of them, in bytes.
const NAME_BYTES: usize = 1 << 10;
/// Largest work to find out whether a pattern has any text.
const FUEL: u64 = 50_000;
/// The same, a little below that of llguidance, which refuses a pattern that takes more.
const LEAF_FUEL: u64 = 8_000;

const DATE: &str = concat!(
    // Any year but 0000.
    r"(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-",
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    // 29 February of leap years.
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)",
);
const TIME: &str =
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";

/// Returns true if texts of the format `name` are enforced.
pub(super) fn is_format(name: &str) -> bool {
    FORMATS.iter().any(|(known, _)| *known == name)
}

/// Returns true if no text has both formats.
pub(super) fn formats_exclude(a: &str, b: &str) -> bool {
    let overlap = |a: &str, b: &str| match a {
        "hostname" => matches!(b, "date" | "uuid" | "ipv4" | "duration"),
        "uri" => b == "ipv6",
        _ => false,
    };
    is_format(a) && is_format(b) && a != b && !overlap(a, b) && !overlap(b, a)
}

/// Returns the pattern of the formats that llguidance takes too widely.
fn format_pattern(name: &str) -> Option<String> {
    let date_parts = "(?:N1Y(?:N1M(?:N1D)?)?|N1M(?:N1D)?|N1D)";
    let time_parts = "T(?:N1H(?:N1M(?:N1S)?)?|N1M(?:N1S)?|N1S)";
    match name {
        "date" => Some(format!("^(?:{DATE})$")),
        "time" => Some(format!("^(?:{TIME})$")),
        "date-time" => Some(format!("^(?:{DATE}T{TIME})$")),
        "duration" => {
            // Of six digits each, all together are less than the largest duration of common libraries, 10^9 days.
            let parts = format!("^P(?:{date_parts}(?:{time_parts})?|{time_parts}|N1W)$");
            Some(parts.replace("N1", "[0-9]{1,6}"))
        }
        _ => None,
    }
}

/// Checks that `pattern` can be followed; an error says why it cannot.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    budget::check()?;
    weight::check_one(pattern)?;
    RegexBuilder::new()
        .mk_regex_for_serach(&regex_to_lark(pattern, "dw"))
        .map(|_| ())
        .map_err(|error| format!("the pattern {pattern:?}: {error}"))
}

/// Returns true if `text` matches `pattern`, which was checked.
pub(super) fn matches(pattern: &str, text: &str) -> Result<bool, String> {
    budget::compare()?;
    let mut builder = RegexBuilder::new();
    let regex = builder.mk_regex_for_serach(&regex_to_lark(pattern, "dw")).map_err(|error| error.to_string())?;
    let regex = builder.to_regex_limited(regex, FUEL);
    Ok(regex.map_err(|_| format!("the pattern {pattern:?} is too complex"))?.is_match(text))
}

/// Returns true if no text matches all the patterns `with` and none of `without`, and is none of `names`.
pub(super) fn is_empty(with: &[String], without: &[String], names: &[String]) -> Result<bool, String> {
    is_empty_within(FUEL, with, without, names)
}

fn is_empty_within(fuel: u64, with: &[String], without: &[String], names: &[String]) -> Result<bool, String> {
    budget::compare()?;
    weight::check(with, without)?;
    let search = |pattern: &String| RegexAst::SearchRegex(regex_to_lark(pattern, "dw"));
    let mut parts: Vec<RegexAst> = with.iter().map(search).collect();
    let excluded = without.iter().map(search).chain(names.iter().map(|name| RegexAst::Literal(name.clone())));
    parts.push(RegexAst::Not(Box::new(RegexAst::Or(excluded.collect()))));
    let mut builder = RegexBuilder::new();
    let regex = builder.mk(&RegexAst::And(parts)).map_err(|error| error.to_string())?;
    let regex = builder.to_regex_limited(regex, fuel);
    Ok(regex.map_err(|_| format!("the patterns {with:?} are too complex"))?.always_empty())
}

/// Returns the pattern and all further patterns and formats of the schema `map`.
fn constraints<'a>(map: &'a Map<String, Value>, keyword: &'static str) -> impl Iterator<Item = &'a str> {
    let more = map.get("allOf").and_then(Value::as_array).into_iter().flatten();
    map.get(keyword).into_iter().chain(more.filter_map(move |more| more.get(keyword))).filter_map(Value::as_str)
}

/// Returns the patterns that a text of the schema `map` must match.
pub(super) fn patterns(map: &Map<String, Value>) -> Vec<String> {
    let formats = constraints(map, "format").filter_map(format_pattern);
    constraints(map, "pattern").map(str::to_owned).chain(formats).collect()
}

/// Returns the formats of the schema `map`.
pub(super) fn formats(map: &Map<String, Value>) -> Vec<&str> {
    constraints(map, "format").collect()
}

/// Writes the schema of the texts of `map` in the form that llguidance reads.
pub(super) fn leaf(map: &Map<String, Value>) -> Value {
    let patterns = patterns(map);
    let formats = formats(map);
    let mut leaf = json!({"type": "string"});
    let least = map.get("minLength").and_then(Value::as_u64).unwrap_or(0);
    let longest = map.get("maxLength").and_then(Value::as_u64).or_else(|| longest(&patterns, &formats, least));
    if least > 0 {
        leaf["minLength"] = least.into();
    }
    if let Some(longest) = longest {
        leaf["maxLength"] = longest.into();
    }
    let rest = formats.iter().filter(|name| format_pattern(name).is_none()).map(|name| json!({"format": name}));
    let all: Vec<Value> = patterns.iter().map(|pattern| json!({"pattern": pattern})).chain(rest).collect();
    if !all.is_empty() {
        leaf["allOf"] = all.into();
    }
    leaf
}

/// Returns the largest length of texts whose schema names none; `None` if a bound would leave no text, or if it would
/// be too much work for llguidance to find that out.
fn longest(patterns: &[String], formats: &[&str], least: u64) -> Option<u64> {
    if patterns.is_empty() {
        let limits = formats.iter().filter_map(|name| FORMATS.iter().find(|(known, _)| known == name)?.1);
        return limits.min().filter(|longest| least <= *longest);
    }
    if formats.iter().any(|name| format_pattern(name).is_none()) || !patterns.iter().any(|pattern| repeats(pattern)) {
        return None;
    }
    let mut bounded = patterns.to_vec();
    bounded.push(length_pattern(least, Some(PATTERN_LENGTH)));
    let some = least <= PATTERN_LENGTH && is_empty_within(LEAF_FUEL, &bounded, &[], &[]) == Ok(false);
    some.then_some(PATTERN_LENGTH)
}

fn length_pattern(least: u64, most: Option<u64>) -> String {
    let most = most.map_or_else(String::new, |most| most.to_string());
    format!("^(?s:.{{{least},{most}}})$")
}

/// Returns an error, which names the limit, if the texts of the schema `map` are too much work to follow.
pub(super) fn check_work(map: &Map<String, Value>) -> Result<(), String> {
    let mut patterns = patterns(map);
    let known = formats(map).into_iter().filter(|name| format_pattern(name).is_none());
    // llguidance has patterns of its own for these; each reads a byte in about as many ways as this one.
    patterns.extend(known.map(|_| "[a-z][a-z0-9][a-zA-Z][0-9a-f][^@]".to_owned()));
    weight::check(&patterns, &[])
}

/// Returns true if it is certain that no text follows the schema `map`.
pub(super) fn is_never(map: &Map<String, Value>) -> bool {
    let count = |keyword: &str| map.get(keyword).and_then(Value::as_u64);
    let (least, most) = (count("minLength"), count("maxLength"));
    if least.zip(most).is_some_and(|(least, most)| least > most) {
        return true;
    }
    let mut patterns = patterns(map);
    if !patterns.is_empty() && (least.is_some() || most.is_some()) {
        patterns.push(length_pattern(least.unwrap_or(0), most));
    }
    !patterns.is_empty() && is_empty(&patterns, &[], &[]).unwrap_or(false)
}

/// Returns true if `pattern` describes a whole text and repeats one thing without end. Several repetitions times all
/// lengths would be too many states.
fn repeats(pattern: &str) -> bool {
    let Ok(hir) = regex_syntax::parse(pattern) else { return false };
    let once = pattern.matches(['*', '+']).count() + pattern.matches(",}").count() == 1;
    once && pattern.starts_with('^') && pattern.ends_with('$') && hir.properties().maximum_len().is_none()
}

/// Writes `pattern` as an expression that matches a whole text rather than a part of it.
pub(super) fn whole(pattern: &str) -> String {
    let pattern = regex_to_lark(pattern, "dw");
    let parts = alternatives(&pattern).into_iter().map(|part| {
        let (start, part) = part.strip_prefix('^').map_or(("(?s:.*)", part), |rest| ("", rest));
        let slashes = part.strip_suffix('$').map(|rest| rest.len() - rest.trim_end_matches('\\').len());
        match slashes {
            Some(slashes) if slashes.is_multiple_of(2) => format!("{start}(?:{})", &part[..part.len() - 1]),
            _ => format!("{start}(?:{part})(?s:.*)"),
        }
    });
    format!("(?:{})", parts.collect::<Vec<_>>().join("|"))
}

/// Splits an expression at the bars outside of all brackets.
fn alternatives(pattern: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut in_class, mut escaped) = (Vec::new(), 0, 0_usize, false, false);
    for (at, character) in pattern.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' => in_class = false,
            _ if in_class => {}
            '[' => in_class = true,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => {
                parts.push(&pattern[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&pattern[start..]);
    parts
}

/// Lists the texts that match `pattern`; `None` if there are many.
pub(super) fn names(pattern: &str) -> Option<Vec<String>> {
    words(&regex_syntax::parse(&whole(pattern)).ok()?)
}

fn words(hir: &Hir) -> Option<Vec<String>> {
    let one = || vec![String::new()];
    let found = match hir.kind() {
        HirKind::Empty => one(),
        HirKind::Literal(literal) => vec![String::from_utf8(literal.0.to_vec()).ok()?],
        HirKind::Class(Class::Unicode(class)) => {
            let ranges = class.ranges();
            let count: u32 = ranges.iter().map(|range| u32::from(range.end()) - u32::from(range.start()) + 1).sum();
            if count as usize > MAX_NAMES {
                return None;
            }
            ranges.iter().flat_map(|range| range.start()..=range.end()).map(String::from).collect()
        }
        HirKind::Capture(capture) => words(&capture.sub)?,
        HirKind::Repetition(repetition) => {
            let most = repetition.max.filter(|most| *most as usize <= MAX_NAMES)?;
            let inner = words(&repetition.sub)?;
            let (mut found, mut longer) = (Vec::new(), one());
            for count in 0..=most {
                if count >= repetition.min {
                    found.extend(longer.iter().cloned());
                }
                longer = product(&longer, &inner)?;
            }
            found
        }
        HirKind::Concat(parts) => parts.iter().try_fold(one(), |before, part| product(&before, &words(part)?))?,
        HirKind::Alternation(parts) => parts.iter().map(words).collect::<Option<Vec<_>>>()?.concat(),
        HirKind::Look(_) | HirKind::Class(Class::Bytes(_)) => return None,
    };
    (found.len() <= MAX_NAMES && found.iter().all(|name| name.len() <= NAME_BYTES)).then_some(found)
}

fn product(before: &[String], after: &[String]) -> Option<Vec<String>> {
    let longest = |names: &[String]| names.iter().map(String::len).max().unwrap_or(0);
    let fits = before.len() * after.len() <= MAX_NAMES * MAX_NAMES && longest(before) + longest(after) <= NAME_BYTES;
    fits.then(|| before.iter().flat_map(|start| after.iter().map(move |end| format!("{start}{end}"))).collect())
}
