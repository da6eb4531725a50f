//! Reads the files of a job: the lines that cannot be learned here, the prompts that a model is asked with the answers
//! that are expected, and the lines that are held back from training where a job has no validation file. Used by
//! [`super::retrain`] and [`super::compare`].

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::answers;
use crate::datasets::lines::Lines;
use crate::datasets::parse;
use crate::datasets::{MIN_EXAMPLES, preference};
use crate::train::hyperparameters::Method;
use crate::{Error, Result};

/// Fields of a line that belong to the request, beside its messages.
const FIELDS: [&str; 3] = ["tools", "functions", "parallel_tool_calls"];

/// A line of a file, with its number from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub number: usize,
    pub text: String,
}

/// A line that cannot be learned here, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub line: usize,
    pub reason: String,
}

/// What was read of a file.
#[derive(Debug, Default)]
pub(super) struct Examples {
    /// Lines that can be learned.
    pub lines: Vec<Line>,
    /// The others.
    pub faults: Vec<Fault>,
}

/// A prompt with the answer that the file gives to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    /// The line of the file.
    pub line: usize,
    /// The prompt's digest: equal prompts are asked once.
    pub digest: String,
    /// `/chat/completions`, or `/completions`.
    pub is_chat: bool,
    /// The prompt: a request without the model and how it answers.
    pub body: Map<String, Value>,
    /// The answer, as [`answers::text_of`] writes it.
    pub expected: String,
}

impl Examples {
    /// Reads a file as training with `method` reads it.
    pub(super) fn read(path: &Path, method: Method) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(format!("read {}", path.display())))?;
        let mut lines = Lines::new(BufReader::new(file));
        let mut examples = Self::default();
        while let Some((number, line)) = lines.next_line()? {
            match line.map(str::to_owned).and_then(|text| check(&text, method).map(|()| text)) {
                Ok(text) => examples.lines.push(Line { number, text }),
                Err(reason) => examples.faults.push(Fault { line: number, reason }),
            }
        }
        Ok(examples)
    }

    /// Splits the lines into those to train on and those to ask about: of every hundred different prompts `percent`
    /// are held back, spread over the file, each with all lines that have it, so that none was trained on. `None` if
    /// too few lines would be left.
    pub(super) fn hold_out(&self, percent: u32, method: Method) -> Option<(Vec<&Line>, Vec<&Line>)> {
        let mut prompts: HashMap<String, bool> = HashMap::new();
        let percent = percent as usize;
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        for line in &self.lines {
            let count = prompts.len();
            let is_held_out = question(line, method).is_some_and(|question| {
                *prompts.entry(question.digest).or_insert((count + 1) * percent / 100 > count * percent / 100)
            });
            if is_held_out { held_out.push(line) } else { training.push(line) }
        }
        (!held_out.is_empty() && training.len() >= MIN_EXAMPLES).then_some((training, held_out))
    }

    /// Returns the prompts, at most `most` of them, spread over the file.
    pub(super) fn questions(&self, method: Method, most: usize) -> Vec<Question> {
        let all: Vec<Question> = self.lines.iter().filter_map(|line| question(line, method)).collect();
        if all.len() <= most {
            return all;
        }
        let step = |index: usize| index * all.len() / most;
        (0..most).map(|index| all[step(index)].clone()).collect()
    }
}

/// Writes lines as a file has them.
pub(super) fn as_file<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Vec<u8> {
    lines.into_iter().flat_map(|line| line.text.bytes().chain([b'\n'])).collect()
}

/// Says which lines cannot be learned, the first few in full.
pub(super) fn describe(faults: &[Fault]) -> String {
    const SHOWN: usize = 20;
    let shown = faults.iter().take(SHOWN).map(|fault| format!("line {} {}", fault.line, fault.reason));
    let text = shown.collect::<Vec<_>>().join("; ");
    if faults.len() > SHOWN { format!("{text}; and {} more lines", faults.len() - SHOWN) } else { text }
}

fn check(line: &str, method: Method) -> Result<(), String> {
    match method {
        Method::Supervised => parse::example(line).map(|_| ()),
        Method::Dpo => preference::preference(line).map(|_| ()),
    }
}

/// Reads the prompt of a line, and its answer: the last one that is trained on, of pairs the preferred one. `None` if
/// nothing stands before the answer.
fn question(line: &Line, method: Method) -> Option<Question> {
    let object: Value = serde_json::from_str(&line.text).ok()?;
    let (source, answer) = match method {
        Method::Dpo => {
            let preferred = ["preferred_output", "preferred_completion"].into_iter().find_map(|key| object.get(key))?;
            (&object["input"], Some(&preferred[0]))
        }
        Method::Supervised => (&object, None),
    };
    let mut body = Map::new();
    if let Some(prompt) = source["prompt"].as_str() {
        body.insert("prompt".into(), prompt.into());
        let expected = object["completion"].as_str()?.trim().to_owned();
        return Some(Question { line: line.number, digest: digest(&body), is_chat: false, body, expected });
    }
    let messages = source["messages"].as_array()?;
    let is_learned = |message: &&Value| message["role"] == "assistant" && message["weight"].as_f64() != Some(0.0);
    let (before, answer) = if let Some(answer) = answer {
        (messages.as_slice(), answer)
    } else {
        let last = messages.iter().rposition(|message| is_learned(&message))?;
        (&messages[..last], &messages[last])
    };
    if before.is_empty() {
        return None;
    }
    body.insert("messages".into(), before.iter().map(without_weight).collect());
    for field in FIELDS {
        if let Some(value) = source.get(field) {
            body.insert(field.into(), value.clone());
        }
    }
    Some(Question { line: line.number, digest: digest(&body), is_chat: true, body, expected: answers::text_of(answer) })
}

/// A message as requests have it: the weight is for training only.
fn without_weight(message: &Value) -> Value {
    let mut message = message.clone();
    if let Some(fields) = message.as_object_mut() {
        fields.remove("weight");
    }
    message
}

fn digest(body: &Map<String, Value>) -> String {
    let hash = format!("{:x}", Sha256::digest(json!(body).to_string()));
    hash[..32].to_owned()
}

impl Question {
    /// Returns the end of the prompt, for people.
    pub(super) fn shown(&self) -> String {
        if !self.is_chat {
            return self.body["prompt"].as_str().unwrap_or_default().to_owned();
        }
        let last = self.body["messages"].as_array().and_then(|messages| messages.last());
        last.map(answers::text_of).unwrap_or_default()
    }

    /// Returns the texts of the prompt, to count their tokens.
    pub(super) fn texts(&self) -> String {
        json!(self.body.values().collect::<Vec<_>>()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(lines: &[Value], method: Method) -> Examples {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for line in lines {
            writeln!(file, "{line}").expect("written");
        }
        Examples::read(file.path(), method).expect("read")
    }

    fn chat(user: &str, answer: &str) -> Value {
        json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]})
    }

    #[test]
    fn what_cannot_be_learned_is_told_line_by_line() {
        let image = json!({"messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]},
            {"role": "assistant", "content": "a cat"}]});
        let examples = read(&[chat("a", "b"), image, chat("c", "d")], Method::Supervised);
        assert_eq!(examples.lines.iter().map(|line| line.number).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(examples.faults.iter().map(|fault| fault.line).collect::<Vec<_>>(), [2]);
        assert!(describe(&examples.faults).starts_with("line 2 message 1"), "{}", describe(&examples.faults));
    }

    #[test]
    fn a_prompt_is_what_stands_before_the_last_answer_that_is_trained_on() {
        let line = json!({"tools": [], "messages": [
            {"role": "system", "content": "short"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "first", "weight": 0},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "second", "weight": 1},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": "third", "weight": 0}]});
        let question = question(&Line { number: 4, text: line.to_string() }, Method::Supervised).expect("a prompt");
        assert_eq!((question.line, question.expected.as_str()), (4, "second"));
        assert_eq!(question.body["messages"].as_array().expect("messages").len(), 4);
        assert!(!question.texts().contains("weight"));
        assert_eq!(question.shown(), "two");
        let pair = json!({"input": {"messages": [{"role": "user", "content": "q"}]},
            "preferred_output": [{"role": "assistant", "content": "good"}],
            "non_preferred_output": [{"role": "assistant", "content": "bad"}]});
        let examples = read(&[pair], Method::Dpo);
        assert_eq!(examples.questions(Method::Dpo, 10)[0].expected, "good");
        let text = read(&[json!({"prompt": "a ->", "completion": " b\n"})], Method::Supervised);
        let question = &text.questions(Method::Supervised, 10)[0];
        assert_eq!((question.is_chat, question.expected.as_str()), (false, "b"));
    }

    #[test]
    fn no_prompt_that_is_held_back_is_trained_on() {
        let lines: Vec<Value> = (0..60).map(|index| chat(&format!("q{}", index % 30), "a")).collect();
        let examples = read(&lines, Method::Supervised);
        let (training, held_out) = examples.hold_out(10, Method::Supervised).expect("enough lines");
        let prompts = |lines: &[&Line]| -> std::collections::BTreeSet<String> {
            lines.iter().filter_map(|line| question(line, Method::Supervised)).map(|question| question.digest).collect()
        };
        assert_eq!((training.len(), held_out.len(), prompts(&held_out).len()), (54, 6, 3));
        assert!(prompts(&training).is_disjoint(&prompts(&held_out)));
        assert!(read(&lines[..10], Method::Supervised).hold_out(10, Method::Supervised).is_none(), "too few are left");
        assert!(examples.hold_out(0, Method::Supervised).is_none());
    }

    #[test]
    fn fewer_prompts_are_spread_over_the_file() {
        let lines: Vec<Value> = (0..100).map(|index| chat(&format!("q{index}"), "a")).collect();
        let questions = read(&lines, Method::Supervised).questions(Method::Supervised, 4);
        assert_eq!(questions.iter().map(|question| question.line).collect::<Vec<_>>(), [1, 26, 51, 76]);
    }
}
