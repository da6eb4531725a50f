//! Python's methods of texts, lists and dictionaries (`message.content.split('</think>')[-1].strip()`). Positions
//! count characters.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::{bind, refuse};
use super::{data, python, sequences};

/// Calls a method; an unknown one is [`ErrorKind::UnknownMethod`].
pub(super) fn call(state: &State<'_, '_>, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (value.kind(), method) {
        (ValueKind::String, "format") => {
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
        }
        (ValueKind::String, _) => call_on_text(value.as_str().unwrap_or_default(), method, arguments),
        (ValueKind::Map, _) => call_on_dictionary(value, method, arguments),
        (ValueKind::Seq | ValueKind::Iterable, "count" | "index") => {
            let sought = required(method, arguments)?;
            let mut items = value.try_iter()?;
            if method == "count" {
                return Ok(Value::from(items.filter(|item| *item == sought).count()));
            }
            let at = items.position(|item| item == sought);
            at.map(Value::from).ok_or_else(|| refuse("index: the value is not in the list"))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn call_on_dictionary(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let pairs = || sequences::pairs(value).map(Vec::into_iter);
    Ok(match method {
        "get" => {
            let [key, default] = bind("get", ["key", "default"], arguments)?;
            let key = key.ok_or_else(|| refuse("get needs a key"))?;
            let found = value.as_object().and_then(|object| object.get_value(&key));
            found.or(default).unwrap_or_else(|| Value::from(()))
        }
        "keys" => data::list(pairs()?.map(|(key, _)| key).collect()),
        "values" => data::list(pairs()?.map(|(_, item)| item).collect()),
        "items" => sequences::items(value)?,
        "copy" => value.clone(),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn call_on_text(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "upper" => Value::from(text.to_uppercase()),
        "lower" | "casefold" => Value::from(text.to_lowercase()),
        "capitalize" => Value::from(capitalize(text)),
        "title" => Value::from(title(text)),
        "swapcase" => Value::from(text.chars().flat_map(swapped).collect::<String>()),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(method, ["chars"], arguments)?;
            Value::from(strip(text, chars.as_ref(), method != "rstrip", method != "lstrip"))
        }
        "split" | "rsplit" => split(text, method, arguments)?,
        "splitlines" => {
            let [keep_ends] = bind(method, ["keepends"], arguments)?;
            let keep_ends = keep_ends.is_some_and(|flag| flag.is_true());
            data::list(python::lines(text, keep_ends).into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => partition(text, method, arguments)?,
        "replace" => {
            let [old, new, count] = bind(method, ["old", "new", "count"], arguments)?;
            let count = count.map(i64::try_from).transpose()?;
            Value::from(replace(text, &text_of(method, old.as_ref())?, &text_of(method, new.as_ref())?, count))
        }
        "removeprefix" => {
            let prefix = text_of(method, Some(&required(method, arguments)?))?;
            Value::from(text.strip_prefix(prefix.as_str()).unwrap_or(text))
        }
        "removesuffix" => {
            let suffix = text_of(method, Some(&required(method, arguments)?))?;
            Value::from(text.strip_suffix(suffix.as_str()).unwrap_or(text))
        }
        "startswith" | "endswith" => affix(text, method, arguments)?,
        "find" | "rfind" | "index" | "rindex" | "count" => find(text, method, arguments)?,
        "join" => {
            let texts = required(method, arguments)?.try_iter()?.map(|item| text_of(method, Some(&item)));
            Value::from(texts.collect::<Result<Vec<_>, Error>>()?.join(text))
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(text, method, arguments)?,
        _ => Value::from(has_property(text, method).ok_or_else(|| Error::from(ErrorKind::UnknownMethod))?),
    })
}

/// Answers `isupper`, `isdigit` and the like; `None` for other names. Nothing is true of an empty text but `isascii`.
fn has_property(text: &str, method: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let digit = |character: char| character.is_ascii_digit() || (!character.is_ascii() && character.is_numeric());
    Some(match method {
        "islower" => is_cased(text, char::is_uppercase),
        "isupper" => is_cased(text, char::is_lowercase),
        "isspace" => all(python::is_blank),
        "isdigit" | "isnumeric" | "isdecimal" => all(digit),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "istitle" => is_cased(text, |_| false) && title(text) == text,
        _ => return None,
    })
}

/// Returns true if `text` has letters with a case and none of the `other` case.
pub(super) fn is_cased(text: &str, other: fn(char) -> bool) -> bool {
    let cased = |character: char| character.is_lowercase() || character.is_uppercase();
    text.chars().any(cased) && !text.chars().any(other)
}

/// Returns the first character in upper case and the rest in lower case.
pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(characters.as_str().to_lowercase().chars()).collect()
}

/// Begins each run of letters with a capital one.
fn title(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            output.extend(character.to_lowercase());
        } else {
            output.extend(character.to_uppercase());
        }
        inside = character.is_lowercase() || character.is_uppercase();
    }
    output
}

fn swapped(character: char) -> Vec<char> {
    if character.is_uppercase() { character.to_lowercase().collect() } else { character.to_uppercase().collect() }
}

/// Removes `chars` (blanks if there are none) from the beginning and the end.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&Value>, from_start: bool, from_end: bool) -> &'a str {
    let chars = chars.filter(|chars| !chars.is_none()).map(data::to_text);
    let removed = |character: char| match &chars {
        Some(chars) => chars.contains(character),
        None => python::is_blank(character),
    };
    let text = if from_start { text.trim_start_matches(removed) } else { text };
    if from_end { text.trim_end_matches(removed) } else { text }
}

/// Replaces the first `count` occurrences of `old`; all if `count` is negative or `None`.
pub(super) fn replace(text: &str, old: &str, new: &str, count: Option<i64>) -> String {
    match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => text.replacen(old, new, count),
        None => text.replace(old, new),
    }
}

fn split(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [separator, most] = bind(method, ["sep", "maxsplit"], arguments)?;
    let most = most.map(i64::try_from).transpose()?.and_then(|most| usize::try_from(most).ok());
    let parts: Vec<&str> = match separator.filter(|separator| !separator.is_none()) {
        Some(separator) => {
            let separator = text_of(method, Some(&separator))?;
            if separator.is_empty() {
                return Err(refuse(format!("{method}: the separator is empty")));
            }
            match (method, most) {
                (_, None) => text.split(separator.as_str()).collect(),
                ("split", Some(most)) => text.splitn(most + 1, separator.as_str()).collect(),
                (_, Some(most)) => {
                    let mut parts: Vec<&str> = text.rsplitn(most + 1, separator.as_str()).collect();
                    parts.reverse();
                    parts
                }
            }
        }
        None => split_at_blanks(text, most.unwrap_or(usize::MAX), method == "rsplit"),
    };
    Ok(data::list(parts.into_iter().map(Value::from).collect()))
}

/// Splits at runs of blanks, at most `most` times, from the end if `reverse`. What is left then keeps its blanks.
fn split_at_blanks(text: &str, most: usize, reverse: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        rest =
            if reverse { rest.trim_end_matches(python::is_blank) } else { rest.trim_start_matches(python::is_blank) };
        if rest.is_empty() {
            break;
        }
        let cut = if reverse { rest.rfind(python::is_blank) } else { rest.find(python::is_blank) };
        let Some(cut) = cut.filter(|_| parts.len() < most) else {
            parts.push(rest);
            break;
        };
        if reverse {
            parts.push(rest[cut..].trim_start_matches(python::is_blank));
            rest = &rest[..cut];
        } else {
            parts.push(&rest[..cut]);
            rest = &rest[cut..];
        }
    }
    if reverse {
        parts.reverse();
    }
    parts
}

fn partition(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let separator = text_of(method, Some(&required(method, arguments)?))?;
    let cut = if method == "partition" { text.split_once(&separator) } else { text.rsplit_once(&separator) };
    let parts = match cut {
        Some((before, after)) => [before, separator.as_str(), after],
        None if method == "partition" => [text, "", ""],
        None => ["", "", text],
    };
    Ok(data::tuple(parts.into_iter().map(Value::from).collect()))
}

/// Answers `startswith` and `endswith`, whose argument is a text or a tuple of texts.
fn affix(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [affix, start, end] = bind(method, ["prefix", "start", "end"], arguments)?;
    let affix = affix.ok_or_else(|| refuse(format!("{method} needs a text")))?;
    let (_, part) = section(text, start, end)?;
    let affixes = if affix.as_str().is_some() { vec![affix] } else { affix.try_iter()?.collect() };
    for affix in affixes {
        let affix = text_of(method, Some(&affix))?;
        let found = if method == "startswith" { part.starts_with(&affix) } else { part.ends_with(&affix) };
        if found {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

/// Answers `find`, `rfind`, `index`, `rindex` and `count`.
fn find(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [sought, start, end] = bind(method, ["sub", "start", "end"], arguments)?;
    let sought = text_of(method, sought.as_ref())?;
    let (before, part) = section(text, start, end)?;
    if method == "count" {
        return Ok(Value::from(part.matches(sought.as_str()).count()));
    }
    let at = if method.starts_with('r') { part.rfind(&sought) } else { part.find(&sought) };
    match at {
        Some(at) => Ok(Value::from(before + part[..at].chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(refuse(format!("{method}: the text is not found"))),
    }
}

/// Returns the characters of `text` from `start` to `end`, which may count from the end, and their number before it.
fn section(text: &str, start: Option<Value>, end: Option<Value>) -> Result<(usize, &str), Error> {
    let length = text.chars().count();
    let position = |value: Option<Value>, default: usize| -> Result<usize, Error> {
        let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(default) };
        let at = i64::try_from(value)?;
        let distance = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
        Ok(if at < 0 { length.saturating_sub(distance) } else { distance.min(length) })
    };
    let (start, end) = (position(start, 0)?, position(end, length)?);
    let offset = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(offset, _)| offset);
    Ok((start, &text[offset(start)..offset(end.max(start))]))
}

fn pad(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [width, fill] = bind(method, ["width", "fillchar"], arguments)?;
    let width = usize::try_from(width.ok_or_else(|| refuse(format!("{method} needs a width")))?)?;
    let missing = width.saturating_sub(text.chars().count());
    if missing > 1_000_000 {
        return Err(refuse(format!("{method}: the width is too large")));
    }
    let fill = fill.map_or_else(|| " ".to_owned(), |fill| data::to_text(&fill));
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", fill.repeat(missing)),
        "rjust" => format!("{}{text}", fill.repeat(missing)),
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
        }
    }))
}

/// Returns the one argument of `method`.
fn required(method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let [argument] = bind(method, ["argument"], arguments)?;
    argument.ok_or_else(|| refuse(format!("{method} needs an argument")))
}

/// Returns an argument of `method` that must be a text.
fn text_of(method: &str, argument: Option<&Value>) -> Result<String, Error> {
    let text = argument.and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| refuse(format!("{method}: the argument must be a text")))
}
