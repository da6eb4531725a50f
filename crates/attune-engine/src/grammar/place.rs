//! Where an answer stands among its calls: before them, in a call, or in a text of a call that follows a grammar of its
//! own. Used by `texts`.

use std::sync::LazyLock;

/// How JSON writes the characters that cannot stand for themselves: the shortest spelling of each, and its byte.
static SPELLINGS: LazyLock<Vec<(String, u8)>> = LazyLock::new(|| {
    let spelling = |byte: u8| match byte {
        b'"' | b'\\' => format!("\\{}", char::from(byte)),
        8 => "\\b".to_owned(),
        9 => "\\t".to_owned(),
        10 => "\\n".to_owned(),
        12 => "\\f".to_owned(),
        13 => "\\r".to_owned(),
        _ => format!("\\u{byte:04x}"),
    };
    (0..0x20).chain([b'"', b'\\', 0x7F]).map(|byte| (spelling(byte), byte)).collect()
});

/// The texts of an answer that follow grammars of their own: JSON strings of its calls.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// Text before the first call; calls begin with the answer if it is empty.
    pub trigger: String,
    /// True if calls begin with the answer or not at all.
    pub anchored: bool,
    /// The texts.
    pub grammars: Vec<TextGrammar>,
}

/// The grammar of a text.
#[derive(Debug, Clone)]
pub struct TextGrammar {
    /// How calls with the text begin, up to its quotation mark.
    pub openings: Vec<String>,
    /// The grammar, in Lark syntax.
    pub lark: String,
}

/// A place in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Before the calls, behind this many bytes of the trigger.
    Before(usize),
    /// In an answer without calls.
    Elsewhere,
    /// Among the calls.
    Calls(Calls),
    /// In the text of this number.
    Text(usize, Escape),
}

/// A place among calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Calls {
    /// Objects that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Bytes of an opening that the call begins with, and the first opening that begins so; `None` if none does.
    opening: Option<(usize, usize)>,
}

/// The beginning of an escape in a text; empty outside of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Escape {
    bytes: [u8; 6],
    length: usize,
}

/// What a byte of a JSON string means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This byte of the text.
    Byte(u8),
    /// A part of an escape, which will be one of these bytes.
    Part(Escape, Vec<u8>),
    /// The end of the text.
    End,
    /// Nothing that may stand there.
    Nothing,
}

impl Escape {
    /// Reads the next byte of a text.
    pub(super) fn read(mut self, byte: u8) -> Meaning {
        if self.length == 0 {
            match byte {
                b'"' => return Meaning::End,
                b'\\' => {}
                0..0x20 => return Meaning::Nothing,
                byte => return Meaning::Byte(byte),
            }
        }
        let Some(place) = self.bytes.get_mut(self.length) else { return Meaning::Nothing };
        *place = byte;
        self.length += 1;
        let begun = &self.bytes[..self.length];
        let possible = SPELLINGS.iter().filter(|(spelling, _)| spelling.as_bytes().starts_with(begun));
        let possible: Vec<&(String, u8)> = possible.collect();
        match possible.as_slice() {
            [] => Meaning::Nothing,
            [(spelling, byte)] if spelling.len() == self.length => Meaning::Byte(*byte),
            _ => Meaning::Part(self, possible.iter().map(|(_, byte)| *byte).collect()),
        }
    }
}

/// Finds the texts in an answer.
#[derive(Debug)]
pub(super) struct Finder {
    trigger: Vec<u8>,
    anchored: bool,
    /// The openings, and the number of the text behind each.
    openings: Vec<(Vec<u8>, usize)>,
}

impl Finder {
    pub(super) fn new(texts: &Texts) -> Self {
        let numbered = texts.grammars.iter().enumerate();
        let openings = numbered
            .flat_map(|(number, text)| text.openings.iter().map(move |opening| (opening.clone().into_bytes(), number)));
        let trigger = texts.trigger.clone().into_bytes();
        Self { anchored: texts.anchored || trigger.is_empty(), trigger, openings: openings.collect() }
    }

    /// Returns the place at the beginning of an answer.
    pub(super) fn start() -> Place {
        Place::Before(0)
    }

    /// Returns the place behind a text.
    pub(super) fn behind_text() -> Place {
        // In the arguments, which are in a call.
        Place::Calls(Calls { depth: 2, ..Calls::default() })
    }

    /// Returns the bytes of the shortest opening.
    pub(super) fn shortest(&self) -> usize {
        self.openings.iter().map(|(opening, _)| opening.len()).min().unwrap_or_default()
    }

    /// Returns the place behind `byte`, which is not read in a text.
    pub(super) fn after(&self, place: Place, byte: u8) -> Place {
        match place {
            Place::Before(matched) => self.after_text(matched, byte),
            Place::Calls(calls) => self.after_call(calls, byte),
            place @ (Place::Elsewhere | Place::Text(..)) => place,
        }
    }

    fn after_text(&self, matched: usize, byte: u8) -> Place {
        if self.trigger.is_empty() {
            return if byte == b'{' { self.after_call(Calls::default(), byte) } else { Place::Elsewhere };
        }
        if self.trigger[matched] == byte {
            return if matched + 1 == self.trigger.len() {
                Place::Calls(Calls::default())
            } else {
                Place::Before(matched + 1)
            };
        }
        if self.anchored {
            return Place::Elsewhere;
        }
        // The longest beginning of the trigger that the bytes so far end with.
        let mut read = self.trigger[..matched].to_vec();
        read.push(byte);
        let ends = (1..read.len()).find(|from| self.trigger.starts_with(&read[*from..]));
        Place::Before(ends.map_or(0, |from| read.len() - from))
    }

    fn after_call(&self, mut calls: Calls, byte: u8) -> Place {
        if calls.depth == 0 {
            if byte == b'{' {
                calls = Calls { depth: 1, opening: self.longer(0, 0, byte), ..calls };
            }
            return Place::Calls(calls);
        }
        if let Some((length, first)) = calls.opening {
            calls.opening = self.longer(length, first, byte);
            let whole = calls.opening.map(|(length, first)| (length, &self.openings[first]));
            if let Some((length, (opening, number))) = whole
                && opening.len() == length
            {
                return Place::Text(*number, Escape::default());
            }
        }
        match byte {
            _ if calls.escaped => calls.escaped = false,
            b'\\' if calls.in_string => calls.escaped = true,
            b'"' => calls.in_string = !calls.in_string,
            b'{' if !calls.in_string => calls.depth += 1,
            b'}' if !calls.in_string => calls.depth -= 1,
            _ => {}
        }
        Place::Calls(calls)
    }

    /// Finds an opening that begins with `length` bytes of the opening `first` and then `byte`.
    fn longer(&self, length: usize, first: usize, byte: u8) -> Option<(usize, usize)> {
        let begun = &self.openings.get(first)?.0[..length];
        let is = |opening: &[u8]| opening.starts_with(begun) && opening.get(length) == Some(&byte);
        let found = self.openings.iter().position(|(opening, _)| is(opening))?;
        Some((length + 1, found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finder(trigger: &str, anchored: bool) -> Finder {
        let text = |name: &str| TextGrammar {
            openings: vec![
                format!("{{\"name\": \"{name}\", \"arguments\": {{\"input\": \""),
                format!("{{\"{name}\":\""),
            ],
            lark: String::new(),
        };
        Finder::new(&Texts { trigger: trigger.into(), anchored, grammars: vec![text("a"), text("ab")] })
    }

    /// Returns the number of the text that begins with the end of `answer`.
    fn found(finder: &Finder, answer: &str) -> Option<usize> {
        let place = answer.bytes().fold(Finder::start(), |place, byte| finder.after(place, byte));
        if let Place::Text(number, _) = place { Some(number) } else { None }
    }

    const A: &str = "{\"name\": \"a\", \"arguments\": {\"input\": \"";
    const AB: &str = "{\"name\": \"ab\", \"arguments\": {\"input\": \"";

    #[test]
    fn texts_are_found_in_calls_alone() {
        let marked = finder("<call>", false);
        for (answer, number) in [
            (format!("<call>\n{A}"), Some(0)),
            (format!("<call>{AB}"), Some(1)),
            ("<call>{\"ab\":\"".into(), Some(1)),
            (format!("So <ca<call>{A}"), Some(0)),
            (format!("<call>{{\"name\": \"c\", \"arguments\": {{\"x\": \"}}\\\"{{\"}}}}</call><call>{A}"), Some(0)),
            (A.to_owned(), None),
            (format!("<call>{{\"name\": \"c\", \"arguments\": {A}"), None),
            (format!("<call>{{\"x\": \"{A}"), None),
            ("<call>{\"name\": \"abc\", \"arguments\": {\"input\": \"".into(), None),
        ] {
            assert_eq!(found(&marked, &answer), number, "{answer}");
        }
        let plain = finder("", false);
        assert_eq!((found(&plain, A), found(&plain, &format!("a{A}"))), (Some(0), None));
        let anchored = finder("<call>", true);
        assert_eq!(found(&anchored, &format!("<call>{A}")), Some(0));
        assert_eq!(found(&anchored, &format!("\"<call>{A}")), None);
    }

    #[test]
    fn a_text_is_read_in_its_shortest_spelling() {
        let read = |text: &str| {
            let mut escape = Escape::default();
            let mut bytes = Vec::new();
            for byte in text.bytes() {
                match escape.read(byte) {
                    Meaning::Byte(byte) => {
                        bytes.push(byte);
                        escape = Escape::default();
                    }
                    Meaning::Part(part, possible) => {
                        assert!(!possible.is_empty());
                        escape = part;
                    }
                    Meaning::End => return Some(bytes),
                    Meaning::Nothing => return None,
                }
            }
            None
        };
        let every = (0..0x80).map(char::from).chain("äß🙂".chars()).collect::<String>();
        let spelled = serde_json::Value::from(every.as_str()).to_string().replace('\u{7f}', "\\u007f");
        assert_eq!(read(&spelled[1..]), Some(every.into_bytes()));
        for other in ["\\/\"", "\\u000a\"", "\\u0041\"", "\\x\"", "\n\"", "\\u001F\""] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
