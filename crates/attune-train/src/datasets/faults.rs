//! Collects the faults of a file's lines and words them: equal faults once, with the lines that have them. Called by
//! [`super::read`], and by `api` for uploads.
//!
//! A fault is the rest of a sentence that begins with its line: `has no messages`, or `is empty: remove it`. It may
//! begin with its place in the line, `message 2: has no content`; faults that differ in their place alone are equal.

use std::fmt::Write as _;

use super::report::NotedLines;

/// Different faults that an error lists before it only counts lines.
const MAX_LISTED_FAULTS: usize = 20;
/// Lines that are shown of each different fault, and the most bytes of one.
const SHOWN_LINES: usize = 3;
const SHOWN_BYTES: usize = 600;

/// Verbs that faults begin with.
const VERBS: [(&str, &str); 5] =
    [("has", "have"), ("is", "are"), ("ends", "end"), ("begins", "begin"), ("looks", "look")];

/// Faults by line. All lines are counted, and the first different faults are kept with their lines.
#[derive(Debug, Default)]
pub struct Faults {
    listed: Vec<Group>,
    /// Lines with a fault.
    lines: usize,
    /// Lines whose fault is not listed.
    others: usize,
}

/// Lines with the same fault.
#[derive(Debug)]
struct Group {
    fault: String,
    lines: NotedLines,
    /// Place of the fault in the first line; `None` for the line as a whole.
    place: Option<String>,
    /// Whether the fault is at this place of every line.
    same_place: bool,
    /// The first lines themselves, if they were given.
    shown: Vec<ShownLine>,
}

/// A fault for people who look at the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownFault {
    /// What is wrong, with which lines, and what to change.
    pub sentence: String,
    /// The first of these lines.
    pub lines: Vec<ShownLine>,
}

/// A line with a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownLine {
    /// Number of the line, counted from 1.
    pub number: usize,
    /// Text of the line, or of a part of it around the fault; what is no text is shown as `�`.
    pub text: String,
    /// Whether something of the line before `text` is left out, and behind it.
    pub cut: [bool; 2],
}

impl Faults {
    /// Notes the fault of line `number`; lines come in order, each with one fault.
    pub fn push(&mut self, number: usize, fault: &str) {
        self.push_shown(number, fault, None);
    }

    /// Does as [`Faults::push`], and keeps the line itself to show it, if it is one of the first with this fault.
    pub fn push_shown(&mut self, number: usize, fault: &str, line: Option<&[u8]>) {
        let (place, fault) = split_place(fault.trim_end_matches('.'));
        self.lines += 1;
        let group = match self.listed.iter().position(|group| group.fault == fault) {
            Some(known) => &mut self.listed[known],
            None if self.listed.len() < MAX_LISTED_FAULTS => {
                let (fault, place) = (fault.to_owned(), place.map(str::to_owned));
                self.listed.push(Group {
                    fault,
                    lines: NotedLines::default(),
                    place,
                    same_place: true,
                    shown: Vec::new(),
                });
                let last = self.listed.len() - 1;
                &mut self.listed[last]
            }
            None => {
                self.others += 1;
                return;
            }
        };
        group.same_place &= group.place.as_deref() == place;
        group.lines.note(number);
        if let Some(line) = line.filter(|_| group.shown.len() < SHOWN_LINES) {
            group.shown.push(ShownLine::of(number, line, place));
        }
    }

    /// Returns the number of lines with a fault, and of those whose fault is not listed.
    pub const fn counts(&self) -> [usize; 2] {
        [self.lines, self.others]
    }

    /// Returns the listed faults with the lines that were kept of them.
    pub fn shown(&self) -> Vec<ShownFault> {
        self.listed.iter().map(|group| ShownFault { sentence: group.sentence(), lines: group.shown.clone() }).collect()
    }

    /// Returns true if no line has a fault.
    pub const fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Returns the message for the client, about the file called `title`.
    pub fn describe(&self, title: &str) -> String {
        match self.lines {
            1 => format!("{title} has a fault on 1 line.{}", self.sentences()),
            lines => format!("{title} has faults on {lines} lines.{}", self.sentences()),
        }
    }

    /// Returns a sentence for each fault, with a blank before it.
    pub fn sentences(&self) -> String {
        let mut text = String::new();
        for group in &self.listed {
            let _ = write!(text, " {}", group.sentence());
        }
        match self.others {
            0 => {}
            1 => text.push_str(" 1 more line has another fault."),
            others => {
                let _ = write!(text, " {others} more lines have other faults.");
            }
        }
        text
    }
}

impl Group {
    fn sentence(&self) -> String {
        let mut text = self.lines.to_string();
        text[..1].make_ascii_uppercase();
        match &self.place {
            None => {}
            Some(place) if self.same_place => {
                let _ = write!(text, " ({place})");
            }
            Some(place) => {
                let _ = write!(text, " ({place} of line {})", self.lines.first.first().unwrap_or(&0));
            }
        }
        text + &predicate(&self.fault, self.lines.count > 1) + "."
    }
}

impl ShownLine {
    /// Cuts out the part of `line` around `place`, or its beginning.
    fn of(number: usize, line: &[u8], place: Option<&str>) -> Self {
        let at = place.and_then(byte_of).unwrap_or(0);
        // A little more before the place than behind it, as faults are noticed where they end.
        let start = if at > SHOWN_BYTES { (at - SHOWN_BYTES / 2).min(line.len()) } else { 0 };
        let end = (start + SHOWN_BYTES).min(line.len());
        let part = &line[start..end];
        // Characters are not cut: the bytes that go on with one begin with the bits 10.
        let is_inside = |byte: &u8| *byte & 0b1100_0000 == 0b1000_0000;
        let first = if start > 0 { part.iter().take(3).take_while(|byte| is_inside(byte)).count() } else { 0 };
        let behind = line.get(end).is_some_and(is_inside);
        let begun = part.iter().rev().take(3).take_while(|byte| is_inside(byte)).count() + 1;
        let last = if behind { part.len().saturating_sub(begun).max(first) } else { part.len() };
        let is_seen = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
        let text = String::from_utf8_lossy(&part[first..last]);
        let text = text.chars().map(|c| if is_seen(c) { c } else { char::REPLACEMENT_CHARACTER }).collect();
        Self { number, text, cut: [start > 0, end < line.len()] }
    }
}

/// Returns the byte of a line that a place names, if it does.
fn byte_of(place: &str) -> Option<usize> {
    let last = place.rsplit(", ").next()?;
    let number = last.strip_prefix("column ").or_else(|| last.strip_prefix("byte "))?;
    number.parse::<usize>().ok().map(|number| number.saturating_sub(1))
}

/// Words a fault of line `number` as a sentence.
pub(super) fn on_line(number: usize, fault: &str) -> String {
    let mut faults = Faults::default();
    faults.push(number, fault);
    faults.sentences().trim_start().to_owned()
}

/// Returns the fault as it follows one or many lines; a fault without a verb of its own follows a colon.
fn predicate(fault: &str, many: bool) -> String {
    let verb = VERBS.iter().find_map(|(one, all)| Some((one, all, fault.strip_prefix(one)?.strip_prefix(' ')?)));
    match verb {
        Some((one, all, rest)) => format!(" {} {rest}", if many { all } else { one }),
        None => format!(": {fault}"),
    }
}

/// Splits a fault into its place (`message 2`, `column 7`) and the rest.
fn split_place(fault: &str) -> (Option<&str>, &str) {
    let Some((place, rest)) = fault.split_once(": ") else { return (None, fault) };
    let last = place.rsplit(", ").next().unwrap_or_default();
    let numbered = ["message ", "column ", "byte "].iter().find_map(|kind| last.strip_prefix(kind));
    let is_place = numbered.is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()));
    if is_place { (Some(place), rest) } else { (None, fault) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(faults: &[(usize, &str)]) -> String {
        let mut all = Faults::default();
        for (number, fault) in faults {
            all.push(*number, fault);
        }
        all.describe("Training file")
    }

    #[test]
    fn equal_faults_are_one_sentence_with_all_their_lines() {
        let bot = "message 2: has the role `bot`: use `assistant`";
        assert_eq!(
            told(&[(3, bot)]),
            "Training file has a fault on 1 line. Line 3 (message 2) has the role `bot`: use `assistant`."
        );
        assert_eq!(
            told(&[(1, bot), (2, "is empty: remove it"), (3, bot)]),
            "Training file has faults on 3 lines. Lines 1 and 3 (message 2) have the role `bot`: use `assistant`. \
             Line 2 is empty: remove it."
        );
        let elsewhere = "message 4: has the role `bot`: use `assistant`";
        let message = told(&[(5, elsewhere), (7, bot)]);
        assert!(message.contains("Lines 5 and 7 (message 4 of line 5) have the role `bot`"), "{message}");
    }

    #[test]
    fn sentences_of_others_keep_their_own_beginning_and_end_once() {
        let message = told(&[(1, "The template fails: check roles."), (2, "The template fails: check roles.")]);
        assert!(message.ends_with("Lines 1 and 2: The template fails: check roles."), "{message}");
        let output = told(&[(1, "`chosen`, message 1: has no `content`")]);
        assert!(output.ends_with("Line 1 (`chosen`, message 1) has no `content`."), "{output}");
    }

    #[test]
    fn what_differs_is_listed_up_to_a_limit_and_all_lines_are_counted() {
        let faults: Vec<String> = (1..=50).map(|number| format!("has the unknown key `{number}`: remove it")).collect();
        let faults: Vec<(usize, &str)> =
            faults.iter().enumerate().map(|(at, fault)| (at + 1, fault.as_str())).collect();
        let message = told(&faults);
        assert!(message.starts_with("Training file has faults on 50 lines. Line 1 has"), "{message}");
        assert!(message.contains("Line 20 ") && !message.contains("Line 21 "), "{message}");
        assert!(message.ends_with("30 more lines have other faults."), "{message}");
    }

    #[test]
    fn lines_are_shown_around_their_fault_and_characters_stay_whole() {
        let mut all = Faults::default();
        let line = format!("{{\"a\": \"{}\u{202e}<script>é\", }}", "é".repeat(2000));
        let at = line.len() - 1;
        for number in 1..=5 {
            all.push_shown(number, &format!("column {at}: has a comma too many"), Some(line.as_bytes()));
        }
        all.push_shown(6, "byte 3: is not UTF-8", Some(b"{\"\xff\": 1}"));
        all.push_shown(7, "has no messages", Some(b"{}\0"));
        let shown = all.shown();
        assert_eq!(all.counts(), [7, 0]);
        assert_eq!(shown[0].lines.iter().map(|line| line.number).collect::<Vec<_>>(), [1, 2, 3]);
        let first = &shown[0].lines[0];
        assert_eq!(first.cut, [true, false]);
        assert!(first.text.starts_with('é') && first.text.ends_with("<script>é\", }"), "{}", first.text);
        assert!(first.text.len() <= SHOWN_BYTES && !first.text.contains('\u{fffd}'), "{}", first.text);
        assert_eq!(shown[1].lines[0].text, "{\"\u{fffd}\": 1}");
        assert_eq!((shown[2].lines[0].text.as_str(), shown[2].lines[0].cut), ("{}\u{fffd}", [false, false]));
        for beginning in 0..4 {
            let line = format!("{}{}", "a".repeat(beginning), "\u{1f600}".repeat(1000));
            let shown = ShownLine::of(1, line.as_bytes(), None);
            assert!(!shown.text.contains('\u{fffd}') && shown.text.len() > SHOWN_BYTES - 4, "{beginning}");
        }
    }
}
