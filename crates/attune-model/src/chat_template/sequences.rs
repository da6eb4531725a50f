//! Jinja2's filters on lists and dictionaries.

#![allow(clippy::needless_pass_by_value, reason = "the engine hands a filter its arguments by value")]

use minijinja::value::{DynObject, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::arguments::{bind, refuse, split};
use super::data;

/// Registers the filters of this file.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    for name in ["length", "count"] {
        environment.add_filter(name, length);
    }
    environment.add_filter("first", |value: &Value| Ok::<_, Error>(items_of(value)?.next().unwrap_or_default()));
    environment.add_filter("last", |value: &Value| Ok::<_, Error>(items_of(value)?.last().unwrap_or_default()));
    environment.add_filter("list", |value: &Value| Ok::<_, Error>(data::list(items_of(value)?.collect())));
    environment.add_filter("join", join);
    environment.add_filter("items", items);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("sort", sort);
    environment.add_filter("unique", unique);
    environment.add_filter("min", |value: &Value, arguments: Rest<Value>| extreme("min", value, &arguments));
    environment.add_filter("max", |value: &Value, arguments: Rest<Value>| extreme("max", value, &arguments));
    environment.add_filter("sum", sum);
    environment.add_filter("map", map);
    environment.add_filter("reverse", reverse);
}

/// Returns the items that Python's `for` would go through; nothing is no list.
fn items_of(value: &Value) -> Result<impl Iterator<Item = Value> + use<>, Error> {
    if value.is_none() {
        return Err(refuse("none is not iterable"));
    }
    value.try_iter()
}

/// Returns keys and values of a dictionary.
pub(super) fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let pairs = value.as_object().filter(|_| value.kind() == ValueKind::Map).and_then(DynObject::try_iter_pairs);
    Ok(pairs.ok_or_else(|| refuse(format!("cannot get item pairs of {}", value.kind())))?.collect())
}

/// Returns the pairs of a dictionary as tuples; none of what is undefined.
pub(super) fn items(value: &Value) -> Result<Value, Error> {
    let pairs = if value.is_undefined() { Vec::new() } else { pairs(value)? };
    Ok(data::list(pairs.into_iter().map(|(key, item)| data::tuple(vec![key, item])).collect()))
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(0),
        ValueKind::Iterable => Ok(value.try_iter()?.count()),
        kind => value.len().ok_or_else(|| refuse(format!("cannot calculate length of value of type {kind}"))),
    }
}

fn join(value: &Value, arguments: Rest<Value>) -> Result<String, Error> {
    let [between, attribute] = bind("join", ["d", "attribute"], &arguments)?;
    let between = between.map_or_else(String::new, |between| data::to_text(&between));
    let key = Key { attribute, folds_case: false };
    let texts = items_of(value)?.map(|item| Ok(data::to_text(&key.of(&item)?)));
    Ok(texts.collect::<Result<Vec<_>, Error>>()?.join(&between))
}

/// What items are compared by.
struct Key {
    /// Attribute of each item, as a path; `None` for the item itself.
    attribute: Option<Value>,
    /// True if texts are compared in lower case.
    folds_case: bool,
}

impl Key {
    fn new(attribute: Option<Value>, case_sensitive: Option<Value>) -> Self {
        Self { attribute, folds_case: !case_sensitive.is_some_and(|flag| flag.is_true()) }
    }

    fn of(&self, item: &Value) -> Result<Value, Error> {
        let found = match &self.attribute {
            Some(attribute) if !attribute.is_none() => attribute_of(item, attribute)?,
            _ => item.clone(),
        };
        Ok(self.fold(found))
    }

    fn fold(&self, value: Value) -> Value {
        match value.as_str().filter(|_| self.folds_case) {
            Some(text) => Value::from(text.to_lowercase()),
            None => value,
        }
    }
}

/// Returns the attribute at a path such as `function.name` or `0`.
fn attribute_of(item: &Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return item.get_item(path) };
    path.split('.').try_fold(item.clone(), |item, part| match part.parse::<usize>() {
        Ok(index) => item.get_item_by_index(index),
        Err(_) => item.get_attr(part),
    })
}

fn dictsort(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let [case_sensitive, by, reverse] = bind("dictsort", ["case_sensitive", "by", "reverse"], &arguments)?;
    let key = Key::new(None, case_sensitive);
    let by = by.map_or_else(|| "key".to_owned(), |by| data::to_text(&by));
    if by != "key" && by != "value" {
        return Err(refuse("dictsort: sort by key or by value"));
    }
    let mut pairs = pairs(value)?;
    let compared = |pair: &(Value, Value)| key.fold(if by == "key" { pair.0.clone() } else { pair.1.clone() });
    if reverse.is_some_and(|reverse| reverse.is_true()) {
        pairs.sort_by_key(|pair| std::cmp::Reverse(compared(pair)));
    } else {
        pairs.sort_by_key(compared);
    }
    Ok(data::list(pairs.into_iter().map(|(key, item)| data::tuple(vec![key, item])).collect()))
}

fn sort(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let [reverse, case_sensitive, attribute] = bind("sort", ["reverse", "case_sensitive", "attribute"], &arguments)?;
    // Several attributes with commas between them are compared one after the other.
    let attributes: Vec<Option<Value>> = match attribute.as_ref().and_then(Value::as_str) {
        Some(names) => names.split(',').map(|name| Some(Value::from(name.trim()))).collect(),
        None => vec![attribute],
    };
    let keys: Vec<Key> = attributes.into_iter().map(|attribute| Key::new(attribute, case_sensitive.clone())).collect();
    let keyed = items_of(value)?.map(|item| {
        let compared = keys.iter().map(|key| key.of(&item)).collect::<Result<Vec<_>, Error>>()?;
        Ok((compared, item))
    });
    let mut keyed = keyed.collect::<Result<Vec<_>, Error>>()?;
    if reverse.is_some_and(|reverse| reverse.is_true()) {
        keyed.sort_by(|one, other| other.0.cmp(&one.0));
    } else {
        keyed.sort_by(|one, other| one.0.cmp(&other.0));
    }
    Ok(data::list(keyed.into_iter().map(|(_, item)| item).collect()))
}

fn unique(value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let [case_sensitive, attribute] = bind("unique", ["case_sensitive", "attribute"], &arguments)?;
    let key = Key::new(attribute, case_sensitive);
    let (mut seen, mut kept) = (std::collections::BTreeSet::new(), Vec::new());
    for item in items_of(value)? {
        if seen.insert(key.of(&item)?) {
            kept.push(item);
        }
    }
    Ok(data::list(kept))
}

fn extreme(filter: &str, value: &Value, arguments: &[Value]) -> Result<Value, Error> {
    let [case_sensitive, attribute] = bind(filter, ["case_sensitive", "attribute"], arguments)?;
    let key = Key::new(attribute, case_sensitive);
    let mut best: Option<(Value, Value)> = None;
    for item in items_of(value)? {
        let compared = key.of(&item)?;
        let better =
            best.as_ref().is_none_or(|(best, _)| if filter == "min" { compared < *best } else { compared > *best });
        if better {
            best = Some((compared, item));
        }
    }
    Ok(best.map(|(_, item)| item).unwrap_or_default())
}

fn sum(state: &State<'_, '_>, value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let [attribute, start] = bind("sum", ["attribute", "start"], &arguments)?;
    let key = Key { attribute, folds_case: false };
    let numbers = start.map(Ok).into_iter().chain(items_of(value)?.map(|item| key.of(&item)));
    let numbers = numbers.collect::<Result<Vec<_>, Error>>()?;
    minijinja::filters::sum(state, Value::from(numbers))
}

/// Applies a filter to each item, or returns an attribute of each, `default` where it is missing.
fn map(state: &State<'_, '_>, value: &Value, arguments: Rest<Value>) -> Result<Value, Error> {
    let (positional, keywords) = split(&arguments)?;
    let mut mapped = Vec::new();
    if positional.is_empty() {
        let [attribute, default] = bind("map", ["attribute", "default"], &arguments)?;
        let attribute = attribute.ok_or_else(|| refuse("map needs a filter or an attribute"))?;
        for item in items_of(value)? {
            mapped.push(match (attribute_of(&item, &attribute), &default) {
                (Ok(found), Some(default)) if found.is_undefined() => default.clone(),
                (Err(_), Some(default)) => default.clone(),
                (found, _) => found?,
            });
        }
        return Ok(data::list(mapped));
    }
    let name = positional[0].as_str().ok_or_else(|| refuse("map: the name of a filter must be a text"))?;
    for item in items_of(value)? {
        let given = positional[1..].iter().cloned().chain(keywords.clone().map(Value::from));
        let called: Vec<Value> = std::iter::once(item).chain(given).collect();
        mapped.push(state.apply_filter(name, &called).map_err(|error| match error.kind() {
            ErrorKind::UnknownFilter => refuse(format!("map: there is no filter `{name}`")),
            _ => error,
        })?);
    }
    Ok(data::list(mapped))
}

fn reverse(value: &Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Value::from(text.chars().rev().collect::<String>()));
    }
    let mut items: Vec<Value> = items_of(value)?.collect();
    items.reverse();
    Ok(data::list(items))
}
