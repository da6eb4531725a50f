//! Reads a training file that is larger than the memory that reading may take. One test in a process of its own, since
//! it measures the process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufReader, Read};

use attune::datasets::{self, Purpose, RenderSettings, TextCodec, TextPrompts, TokenizedExample};
use attune::model::Result;
use attune::model::chat::{Message, ToolDefinition};
use attune::model::chat_template::TemplateOptions;
use serde_json::json;

const LINES: usize = 40_000;
/// Tokens of an example, including prompt and end token.
const TOKENS: usize = 1_000;
/// Digits of a token in a line.
const FIELD: usize = 3;

/// Lines of the file, generated when they are read.
struct Lines {
    next: usize,
    line: Vec<u8>,
    read: usize,
}

fn answer(number: usize) -> String {
    let field = |token: usize| format!("{:0width$}", (number + token) % 1000, width = FIELD);
    (0..TOKENS - 2).map(field).collect::<Vec<_>>().concat()
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.read == self.line.len() {
            if self.next == LINES {
                return Ok(0);
            }
            self.line = format!("{}\n", json!({"prompt": "", "completion": answer(self.next)})).into_bytes();
            (self.next, self.read) = (self.next + 1, 0);
        }
        let length = buffer.len().min(self.line.len() - self.read);
        buffer[..length].copy_from_slice(&self.line[self.read..self.read + length]);
        self.read += length;
        Ok(length)
    }
}

/// Codec with one token for three digits.
struct Digits;

impl TextCodec for Digits {
    fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>> {
        Ok(text
            .as_bytes()
            .chunks(FIELD)
            .map(|digits| digits.iter().fold(0, |n, d| 10 * n + u32::from(d - b'0')))
            .collect())
    }

    fn decode(&self, tokens: &[u32]) -> Result<String> {
        Ok(tokens.iter().map(|token| format!("{token:0FIELD$}")).collect::<Vec<_>>().concat())
    }

    fn render_chat(&self, _: &[Message], _: &[ToolDefinition], _: &TemplateOptions) -> Result<Option<String>> {
        Ok(None)
    }

    fn end_tokens(&self) -> &[u32] {
        &[1000]
    }
}

/// Returns the peak memory of this process so far, in bytes.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn a_file_is_read_within_a_small_part_of_its_size_in_memory() {
    let settings = RenderSettings {
        prompt_loss_weight: 0.0,
        max_tokens: 4096,
        scratch: std::env::temp_dir(),
        now: 0,
        prompts: TextPrompts::default(),
    };
    let before = peak_memory();
    let lines = BufReader::new(Lines { next: 0, line: Vec::new(), read: 0 });
    let data = datasets::read(lines, Purpose::Training, &Digits, &settings).unwrap();
    assert_eq!((data.report.examples, data.report.tokens), (LINES, LINES * TOKENS));
    // In any order, as training steps read.
    for number in (0..LINES).rev().step_by(997) {
        let TokenizedExample { tokens, weights } = data.examples.get(number).unwrap();
        let expected: Vec<u32> = (0..TOKENS - 2).map(|token| ((number + token) % 1000) as u32).collect();
        assert_eq!((tokens[0], &tokens[1..TOKENS - 1], tokens[TOKENS - 1]), (1000, expected.as_slice(), 1000));
        assert_eq!((weights[0], weights[1], weights.len()), (0.0, 1.0, TOKENS));
    }
    // 120 MB of text and 40 million tokens, which are 320 MB as tokens and weights.
    let grown = peak_memory() - before;
    assert!(grown < 40 << 20, "{} MB", grown >> 20);
}
