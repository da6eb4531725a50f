//! The input file of a batch: checks all of its lines before the first one is answered, and reads them one after the
//! other then. Both read a file of any size; call [`check`] off the async threads.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;

use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::api::http::error::{Problem, Result};
use crate::datasets::json;
use crate::datasets::lines::Lines;
use crate::jobs::batches::LineFault;
use crate::off_thread::off_thread;

/// Limits of a batch: its lines, its bytes, and the inputs of all embeddings.
const MAX_LINES: usize = 50_000;
const MAX_BYTES: u64 = 200 << 20;
const MAX_INPUTS: usize = 50_000;
/// Bytes of a line's own id.
const MAX_ID: usize = 512;
/// Faults that are told.
const MAX_FAULTS: usize = 100;
/// Lines that are read ahead.
const AHEAD: usize = 4;

/// One request of a batch.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// Number in the file, from 1.
    pub number: i32,
    /// The client's own id.
    pub custom_id: String,
    /// Body of the request.
    pub body: Map<String, Value>,
}

/// What a check found.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Lines.
    pub total: usize,
    /// The model of the first line that names one.
    pub model: Option<String>,
    /// What is wrong, the first [`MAX_FAULTS`].
    pub faults: Vec<LineFault>,
}

impl Checked {
    /// What is found of a file that is gone.
    pub(super) fn without_file(message: &str) -> Self {
        let mut checked = Self::default();
        checked.fault(None, "invalid_input_file", Some("input_file_id"), message);
        checked
    }

    fn fault(&mut self, line: Option<usize>, code: &str, param: Option<&str>, message: impl Into<String>) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(LineFault {
                code: code.into(),
                // The database holds no such character.
                message: message.into().replace('\0', "\u{fffd}"),
                param: param.map(str::to_owned),
                line: line.map(|line| line as i64),
            });
        }
    }
}

/// Checks all lines of `file`, each of which asks `endpoint`.
pub(super) fn check(file: File, endpoint: &str) -> Result<Checked> {
    let mut checked = Checked::default();
    let bytes = file.metadata().map_err(Problem::io("read the input of a batch"))?.len();
    if bytes > MAX_BYTES {
        let message = format!("The file has {bytes} bytes; a batch may have {MAX_BYTES}.");
        checked.fault(None, "file_too_large", Some("input_file_id"), message);
        return Ok(checked);
    }
    let mut lines = Lines::new(BufReader::with_capacity(1 << 20, file));
    let (mut ids, mut inputs) = (HashSet::new(), 0_usize);
    while let Some((number, line)) = lines.next_line()? {
        checked.total += 1;
        if checked.total > MAX_LINES {
            let message = format!("The file has more than {MAX_LINES} lines, the most that a batch may have.");
            checked.fault(Some(number), "too_many_tasks", Some("input_file_id"), message);
            return Ok(checked);
        }
        match line.and_then(json::object) {
            Ok(line) => {
                if let Some(id) = check_id(&mut checked, number, &line)
                    && !ids.insert(id.to_owned())
                {
                    let message = format!("The custom_id '{id}' stands in more than one line: give each its own.");
                    checked.fault(Some(number), "duplicate_custom_id", Some("custom_id"), message);
                }
                check_route(&mut checked, number, &line, endpoint);
                check_body(&mut checked, number, &line);
                inputs += line.get("body").map_or(0, count_inputs);
            }
            Err(fault) => {
                let message = format!("This line is not parseable as valid JSON. It {}.", place_last(&fault));
                checked.fault(Some(number), "invalid_json_line", None, message);
            }
        }
    }
    checked.model = checked.model.take().map(|model| model.replace('\0', "\u{fffd}"));
    if checked.total == 0 {
        checked.fault(None, "empty_file", Some("input_file_id"), "The file has no lines: write one request on each.");
    }
    if endpoint == "/v1/embeddings" && inputs > MAX_INPUTS {
        let message = format!("The lines have {inputs} inputs; a batch of embeddings may have {MAX_INPUTS}.");
        checked.fault(None, "too_many_tasks", Some("input_file_id"), message);
    }
    Ok(checked)
}

/// Puts the place in front of a fault, such as `column 3: has …`, behind it.
fn place_last(fault: &str) -> Cow<'_, str> {
    match fault.split_once(": ") {
        Some((place, told)) if place.starts_with("column ") || place.starts_with("byte ") => {
            Cow::Owned(format!("{told} ({place})"))
        }
        _ => Cow::Borrowed(fault),
    }
}

fn check_id<'a>(checked: &mut Checked, number: usize, line: &'a Map<String, Value>) -> Option<&'a str> {
    match line.get("custom_id") {
        None | Some(Value::Null) => missing(checked, number, "custom_id"),
        Some(Value::String(id)) if id.is_empty() => {
            checked.fault(Some(number), "invalid_value", Some("custom_id"), "The custom_id is empty.");
        }
        Some(Value::String(id)) if id.len() > MAX_ID => {
            let message = format!("The custom_id has {} bytes; it may have {MAX_ID}.", id.len());
            checked.fault(Some(number), "invalid_value", Some("custom_id"), message);
        }
        Some(Value::String(id)) => return Some(id),
        Some(_) => checked.fault(Some(number), "invalid_type", Some("custom_id"), "The custom_id is not a string."),
    }
    None
}

fn check_route(checked: &mut Checked, number: usize, line: &Map<String, Value>, endpoint: &str) {
    match line.get("method") {
        None | Some(Value::Null) => missing(checked, number, "method"),
        Some(method) if method != "POST" => {
            checked.fault(Some(number), "invalid_method", Some("method"), "The method must be 'POST'.");
        }
        Some(_) => {}
    }
    match line.get("url") {
        None | Some(Value::Null) => missing(checked, number, "url"),
        Some(url) if url != endpoint => {
            let message = format!("The url must be the endpoint of the batch, '{endpoint}'.");
            checked.fault(Some(number), "url_mismatch", Some("url"), message);
        }
        Some(_) => {}
    }
}

fn check_body(checked: &mut Checked, number: usize, line: &Map<String, Value>) {
    let body = match line.get("body") {
        None | Some(Value::Null) => return missing(checked, number, "body"),
        Some(Value::Object(body)) => body,
        Some(_) => return checked.fault(Some(number), "invalid_type", Some("body"), "The body is not an object."),
    };
    match (body.get("model"), &checked.model) {
        (Some(Value::String(model)), None) => checked.model = Some(model.clone()),
        (Some(Value::String(model)), Some(first)) if model != first => {
            let message = format!("The model of a batch is the same in every line; the first one is '{first}'.");
            checked.fault(Some(number), "model_mismatch", Some("body.model"), message);
        }
        (Some(Value::String(_)), Some(_)) => {}
        (None | Some(Value::Null), _) => missing(checked, number, "body.model"),
        (Some(_), _) => checked.fault(Some(number), "invalid_type", Some("body.model"), "The model is not a string."),
    }
}

fn missing(checked: &mut Checked, number: usize, param: &str) {
    let message = format!("Missing required parameter: '{param}'.");
    checked.fault(Some(number), "missing_required_parameter", Some(param), message);
}

/// Returns how many inputs a body has: a list of token ids is one.
fn count_inputs(body: &Value) -> usize {
    match body.get("input") {
        Some(Value::Array(items)) if !items.first().is_some_and(Value::is_number) => items.len(),
        Some(_) => 1,
        None => 0,
    }
}

/// Reads the lines of a file that [`check`] found nothing wrong with, on a thread of their own. The last one may be an
/// error; dropping the receiver ends the reading.
pub(super) fn read(file: File) -> mpsc::Receiver<Result<Line>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let lines = sender.clone();
        let read = move || {
            let mut reader = Lines::new(BufReader::with_capacity(1 << 20, file));
            while let Some((number, line)) = reader.next_line()? {
                let line = line.and_then(json::object).and_then(|line| {
                    let number = i32::try_from(number).map_err(|error| error.to_string())?;
                    of_object(number, line).ok_or_else(|| "is no request".to_owned())
                });
                let line =
                    line.map_err(|fault| Problem::defect(format!("line {number} of a checked batch {fault}")))?;
                // Nobody wants the rest.
                if lines.blocking_send(Ok(line)).is_err() {
                    break;
                }
            }
            Ok::<_, Problem>(())
        };
        if let Err(problem) = off_thread("read a batch", read).await {
            // Nobody may want to know.
            let _ = sender.send(Err(problem)).await;
        }
    });
    receiver
}

fn of_object(number: i32, mut line: Map<String, Value>) -> Option<Line> {
    let custom_id = line.get("custom_id")?.as_str()?.to_owned();
    match line.remove("body") {
        Some(Value::Object(body)) => Some(Line { number, custom_id, body }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    fn file(content: &str) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content.as_bytes()).expect("written");
        file.rewind().expect("at its beginning");
        file
    }

    fn line(id: &str, more: &str) -> String {
        format!(
            r#"{{"custom_id":"{id}","method":"POST","url":"/v1/embeddings","body":{{"model":"m","input":"x"}}{more}}}"#
        )
    }

    /// Code, line and field of each fault.
    fn faults(content: &str) -> Vec<(String, Option<i64>, Option<String>)> {
        let checked = check(file(content), "/v1/embeddings").expect("read");
        checked.faults.into_iter().map(|fault| (fault.code, fault.line, fault.param)).collect()
    }

    #[test]
    fn right_lines_have_no_fault_and_tell_their_model() {
        let checked =
            check(file(&format!("{}\n{}\n\n", line("a", ""), line("b", ""))), "/v1/embeddings").expect("read");
        assert_eq!((checked.total, checked.model.as_deref(), checked.faults.len()), (2, Some("m"), 0));
    }

    #[test]
    fn every_fault_names_its_line_and_field() {
        let good = line("a", "");
        for (bad, code, param) in [
            ("{", "invalid_json_line", None),
            ("[1]", "invalid_json_line", None),
            (&line("a", ""), "duplicate_custom_id", Some("custom_id")),
            (&line("", ""), "invalid_value", Some("custom_id")),
            (&line("b", "").replace("\"b\"", "3"), "invalid_type", Some("custom_id")),
            (&line("b", "").replace("custom_id", "id"), "missing_required_parameter", Some("custom_id")),
            (&line("b", "").replace("POST", "GET"), "invalid_method", Some("method")),
            (&line("b", "").replace("/embeddings", "/completions"), "url_mismatch", Some("url")),
            (&line("b", "").replace("\"m\"", "\"other\""), "model_mismatch", Some("body.model")),
            (&line("b", "").replace("\"model\":\"m\",", ""), "missing_required_parameter", Some("body.model")),
            (&line("b", "").replace("body", "bodies"), "missing_required_parameter", Some("body")),
        ] {
            let found = faults(&format!("{good}\n{bad}\n"));
            assert_eq!(found, [(code.to_owned(), Some(2), param.map(str::to_owned))], "{bad}");
        }
        assert_eq!(faults("")[0].0, "empty_file");
    }

    #[test]
    fn a_batch_has_fifty_thousand_lines_and_inputs_at_the_most() {
        let lines = |count: usize| (0..count).map(|number| line(&number.to_string(), "") + "\n").collect::<String>();
        assert!(faults(&lines(MAX_LINES)).is_empty());
        assert_eq!(faults(&lines(MAX_LINES + 1))[0].0, "too_many_tasks");
        let inputs = format!("[{}]", vec!["\"x\""; MAX_INPUTS + 1].join(","));
        assert_eq!(faults(&line("a", "").replace("\"x\"", &inputs))[0].0, "too_many_tasks");
        let tokens = format!("[{}]", vec!["5"; MAX_INPUTS + 1].join(","));
        assert!(faults(&line("a", "").replace("\"x\"", &tokens)).is_empty(), "token ids are one input");
    }

    #[tokio::test]
    async fn lines_are_read_as_they_stand_in_the_file() {
        let mut lines = read(file(&format!("{}\n{}", line("a", ""), line("b", ""))));
        let mut found = Vec::new();
        while let Some(line) = lines.recv().await {
            let line = line.expect("a line");
            found.push((line.number, line.custom_id, line.body["input"].clone()));
        }
        assert_eq!(found, [(1, "a".into(), "x".into()), (2, "b".into(), "x".into())]);
    }
}
