//! The input of a custom tool, which takes a text: the model calls it as a function of one text. This file writes that text
//! as the function's arguments, and reads it out of them as they arrive. Used by `messages`, and by the writers of `chat`
//! and `responses`.

use serde_json::json;

/// Characters of an escape of two units: `\ud83d\ude00`.
const LONGEST_ESCAPE: usize = 12;
/// Characters of an escape of one unit: `\u00e4`.
const UNIT: usize = 6;

/// Writes a text as the arguments of the function of one text.
pub(crate) fn arguments_of(input: &str) -> String {
    json!({"input": input}).to_string()
}

/// Reads the text out of the arguments of a function of one text, however they are cut.
#[derive(Debug, Default)]
pub(crate) struct InputReader {
    state: State,
    /// An escape that is not whole yet.
    escape: String,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the colon behind the one name.
    #[default]
    Name,
    /// Before the text's quotation mark.
    Start,
    Text,
    Escape,
    End,
}

impl InputReader {
    /// Takes more of the arguments, and returns what is certain of the text now.
    pub(crate) fn push(&mut self, arguments: &str) -> String {
        let mut text = String::new();
        for character in arguments.chars() {
            self.take(character, &mut text);
        }
        text
    }

    fn take(&mut self, character: char, text: &mut String) {
        match (self.state, character) {
            (State::Name, ':') => self.state = State::Start,
            (State::Start, '"') => self.state = State::Text,
            (State::Text, '"') => self.state = State::End,
            (State::Text, '\\') => {
                self.state = State::Escape;
                self.escape.push(character);
            }
            (State::Text, other) => text.push(other),
            (State::Escape, other) => self.take_escape(other, text),
            (State::Name | State::Start | State::End, _) => {}
        }
    }

    fn take_escape(&mut self, character: char, text: &mut String) {
        // Behind one half of a pair only the beginning of the other half may follow.
        if !character.is_ascii() {
            text.extend([char::REPLACEMENT_CHARACTER, character]);
            self.escape.clear();
            self.state = State::Text;
            return;
        }
        let is_half = self.escape.len() == UNIT || self.escape.len() == UNIT + 1;
        if is_half && character != ['\\', 'u'][self.escape.len() - UNIT] {
            text.push(char::REPLACEMENT_CHARACTER);
            let rest = self.escape.split_off(UNIT);
            self.escape.clear();
            self.state = State::Text;
            for held in rest.chars().chain([character]) {
                self.take(held, text);
            }
            return;
        }
        self.escape.push(character);
        if let Ok(read) = serde_json::from_str::<String>(&format!("\"{}\"", self.escape)) {
            text.push_str(&read);
        } else if self.escape.len() >= LONGEST_ESCAPE {
            text.push(char::REPLACEMENT_CHARACTER);
        } else {
            return;
        }
        self.escape.clear();
        self.state = State::Text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &str, size: usize) -> String {
        let mut reader = InputReader::default();
        let characters: Vec<char> = arguments.chars().collect();
        characters.chunks(size).map(|chunk| reader.push(&chunk.iter().collect::<String>())).collect()
    }

    #[test]
    fn a_text_is_read_out_of_its_arguments_as_far_as_they_are_there() {
        for (arguments, input) in [
            ("", ""),
            ("{\"input\": ", ""),
            ("{\"input\": \"", ""),
            ("{\"input\": \"a:b", "a:b"),
            ("{\"input\": \"a\\", "a"),
            ("{\"input\": \"ä\\u00e", "ä"),
            ("{\"input\": \"a\\ud83d\\ude", "a"),
            ("{\"input\": \"a\\ud83d\\ude00\\n\\\"\\\\\"}", "a😀\n\"\\"),
            ("{\"input\": \"\\ud83dx\"}", "\u{fffd}x"),
            ("{\"input\": \"\\ud83d\\nx\"}", "\u{fffd}\nx"),
            ("{\"input\": \"\\u00e4\\u0000\"", "ä\0"),
            ("{\"input\": \"\\ud83dé\"}", "\u{fffd}é"),
            ("{\"input\":\"a\"}", "a"),
        ] {
            for size in [1, 2, 3, 100] {
                assert_eq!(read(arguments, size), input, "{arguments} by {size}");
            }
        }
        let text = "{\"a\": 1}\n\\ \u{1}ü😀";
        assert_eq!(read(&arguments_of(text), 1), text);
    }
}
