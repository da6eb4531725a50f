//! Lark grammars of clients: what llguidance reads and would not follow exactly, or only with more work than is bounded, is
//! refused by its place before llguidance sees it. Used by `texts`, and by the API to refuse it at once.

use std::collections::HashMap;

use regex_syntax::hir::{Hir, HirKind, Look};

use super::weight;

/// Largest size of a grammar, in bytes.
const MAX_BYTES: usize = 32 << 10;
/// Largest size of all terminals once the terminals in them are written out, in bytes.
const MAX_UNFOLDED: usize = 256 << 10;
/// Largest number in a repetition outside of an expression.
const MAX_REPEATS: u32 = 1_000;
/// Size that a terminal of the library counts as, in bytes.
const LIBRARY_BYTES: usize = 128;

/// Returns the grammar `text` with its `start` renamed and a `start` of its own, which ends with the token `end`. An error
/// says what is wrong, and where.
pub(super) fn with_end(text: &str, end: u32) -> Result<String, String> {
    let tokens = tokens(text)?;
    let is_taken = |name: &str| tokens.iter().any(|token| token.name() == Some(name));
    // One of these is free: there are more of them than words.
    let mut names = (0..=tokens.len()).map(|number| format!("text-{number}"));
    let name = names.find(|name| !is_taken(name)).unwrap_or_default();
    let (mut rules, mut from) = (String::new(), 0);
    for token in tokens.iter().filter(|token| token.name() == Some("start")) {
        let at = token.at + token.text.len() - "start".len();
        rules.extend([&text[from..at], &name]);
        from = at + "start".len();
    }
    rules.push_str(&text[from..]);
    Ok(format!("{rules}\nstart: {name} <[{end}]>\n"))
}

/// Returns a reason of llguidance that names a place, in the form of the others: the place first, without the lines around it.
pub(super) fn placed(reason: &str) -> Option<String> {
    let (place, what) = reason.strip_prefix("at ").unwrap_or(reason).split_once(": ")?;
    let what = what.lines().next().unwrap_or_default();
    if place == "EOF" {
        return Some(format!("at its end: {what}"));
    }
    let (line, column) = place.strip_suffix(')')?.split_once('(')?;
    let numbers = [line, column].iter().all(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    numbers.then(|| format!("line {line}, column {column}: {what}"))
}

/// Checks of a grammar in Lark syntax what llguidance does not check itself; quick. An error says what is wrong, and where.
pub fn check(text: &str) -> Result<(), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it has {} bytes; at most {MAX_BYTES} are allowed", text.len()));
    }
    let tokens = tokens(text)?;
    for (index, token) in tokens.iter().enumerate() {
        let next = tokens.get(index + 1);
        let before = index.checked_sub(1).map_or(Kind::Newline, |before| tokens[before].kind);
        token.check(next)?;
        let is_head = before == Kind::Newline && token.name().is_some();
        if is_head && next.is_some_and(|next| next.text == "[") {
            let attributes: Vec<&str> = tokens[index + 2..].iter().map(|token| token.text).take(2).collect();
            if attributes != ["lazy", "]"] {
                return Err(token.fault("a rule's attributes other than [lazy] are not supported"));
            }
        }
        if token.kind == Kind::Number && matches!(before, Kind::Sign) {
            let number = token.text.parse::<u32>().map_err(|_| token.fault("a repetition needs whole numbers"))?;
            if number > MAX_REPEATS {
                return Err(token.fault(&format!("a repetition of {number}; at most {MAX_REPEATS} are allowed")));
            }
        }
    }
    check_unfolded(&tokens)
}

/// Refuses terminals that are too large once those in them are written out.
fn check_unfolded(tokens: &[Token<'_>]) -> Result<(), String> {
    // Bytes of each terminal, and what it refers to.
    let mut terminals: HashMap<&str, (usize, Vec<&str>)> = HashMap::new();
    let (mut current, mut at_line_start) = (None, true);
    for token in tokens {
        match token.kind {
            Kind::Terminal if at_line_start => {
                current = Some(token.text);
                terminals.entry(token.text).or_default();
            }
            Kind::Rule | Kind::Directive if at_line_start => current = None,
            kind => {
                if let Some(terminal) = current.and_then(|name| terminals.get_mut(name)) {
                    terminal.0 += token.text.len();
                    terminal.1.extend((kind == Kind::Terminal).then_some(token.text));
                }
            }
        }
        at_line_start = token.kind == Kind::Newline;
    }
    let mut known = HashMap::new();
    let mut total = 0_usize;
    for name in terminals.keys() {
        total = total.saturating_add(unfolded(name, &terminals, &mut known));
    }
    if total > MAX_UNFOLDED {
        return Err(format!("its terminals unfold to more than {MAX_UNFOLDED} bytes: make them smaller"));
    }
    Ok(())
}

/// Returns the size of a terminal once the terminals in it are written out.
fn unfolded<'a>(
    name: &'a str,
    terminals: &HashMap<&'a str, (usize, Vec<&'a str>)>,
    known: &mut HashMap<&'a str, usize>,
) -> usize {
    if let Some(size) = known.get(name) {
        return *size;
    }
    let Some((bytes, parts)) = terminals.get(name) else { return LIBRARY_BYTES };
    // One that leads back to itself is refused by name by llguidance.
    known.insert(name, *bytes);
    let size = parts.iter().fold(*bytes, |size, part| size.saturating_add(unfolded(part, terminals, known)));
    known.insert(name, size);
    size
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rule,
    Terminal,
    Text,
    Regex,
    Number,
    Directive,
    Newline,
    Sign,
}

/// A word of a grammar.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    /// Its first byte.
    at: usize,
    line: usize,
    column: usize,
}

impl<'a> Token<'a> {
    /// Returns the name of a rule or terminal, without the marks before it.
    fn name(&self) -> Option<&'a str> {
        match self.kind {
            Kind::Rule => Some(self.text.trim_start_matches(['!', '?'])),
            Kind::Terminal => Some(self.text),
            _ => None,
        }
    }

    fn fault(&self, what: &str) -> String {
        format!("line {}, column {}: {what}", self.line, self.column)
    }

    fn check(&self, next: Option<&Token<'_>>) -> Result<(), String> {
        let unsupported = |what: &str| Err(self.fault(&format!("{what} are not supported")));
        match (self.kind, self.text) {
            (Kind::Directive, "%import" | "%ignore") => Ok(()),
            (Kind::Directive, other) => {
                Err(self.fault(&format!("{other} is not supported: use %import common.NAME and %ignore")))
            }
            (Kind::Sign, "<") => unsupported("special tokens"),
            (Kind::Sign, "@") => unsupported("references to other grammars"),
            (Kind::Sign, "&") => unsupported("intersections of terminals"),
            (Kind::Sign, "::") => unsupported("rules with parameters"),
            (Kind::Sign, "~") if next.is_none_or(|next| next.kind != Kind::Number) => {
                unsupported("complements of terminals")
            }
            (Kind::Regex, text) => {
                let end = text.rfind('/').unwrap_or_default();
                let (pattern, flags) = (&text[1..end], &text[end + 1..]);
                check_regex(pattern, flags).map_err(|reason| self.fault(&reason))
            }
            _ => Ok(()),
        }
    }
}

fn check_regex(pattern: &str, flags: &str) -> Result<(), String> {
    weight::check_one(pattern)?;
    let whole = if flags.is_empty() { pattern.to_owned() } else { format!("(?{flags}){pattern}") };
    let hir = regex_syntax::parse(&whole).map_err(|error| {
        let reason = match error {
            regex_syntax::Error::Parse(error) => error.kind().to_string(),
            regex_syntax::Error::Translate(error) => error.kind().to_string(),
            _ => "it cannot be read".to_owned(),
        };
        format!("the expression /{pattern}/: {reason}")
    })?;
    if hir.properties().look_set().iter().any(|look| !matches!(look, Look::Start | Look::End)) {
        return Err(format!("the expression /{pattern}/: look-around, \\b and lines' ends are not supported"));
    }
    if is_lazy(&hir) {
        return Err(format!("the expression /{pattern}/: lazy repetition (*?, +?, ??) is not supported"));
    }
    Ok(())
}

fn is_lazy(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Repetition(repetition) => !repetition.greedy || is_lazy(&repetition.sub),
        HirKind::Capture(capture) => is_lazy(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(is_lazy),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => false,
    }
}

/// Splits a grammar into words as llguidance does; blanks and comments are left out.
fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let mut tokens = Vec::new();
    let (mut at, mut line, mut column) = (0, 1, 1);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (kind, length) = match first {
            ' ' | '\t' => (None, 1),
            '#' => (None, up_to_line_end(rest)),
            '/' if rest.starts_with("//") => (None, up_to_line_end(rest)),
            '\n' => (Some(Kind::Newline), 1),
            '\r' if rest.starts_with("\r\n") => (Some(Kind::Newline), 2),
            '"' => {
                (Some(Kind::Text), enclosed(rest, '"').map(|end| end + flags(&rest[end..], "i")).unwrap_or_default())
            }
            '/' => (
                Some(Kind::Regex),
                enclosed(rest, '/').map(|end| end + flags(&rest[end..], "imslux")).unwrap_or_default(),
            ),
            '%' => (Some(Kind::Directive), 1 + run(&rest[1..], |letter| letter.is_ascii_lowercase())),
            '0'..='9' => (Some(Kind::Number), run(rest, |letter| letter.is_ascii_digit())),
            ':' if rest.starts_with("::") => (Some(Kind::Sign), 2),
            '!' | '?' | '_' | 'a'..='z' | 'A'..='Z' => {
                let marks = run(rest, |letter| matches!(letter, '!' | '?' | '_'));
                let is_part = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
                match rest[marks..].chars().next() {
                    Some('a'..='z') => (Some(Kind::Rule), marks + run(&rest[marks..], is_part)),
                    Some('A'..='Z') => (Some(Kind::Terminal), marks + run(&rest[marks..], is_part)),
                    _ => (Some(Kind::Sign), 1),
                }
            }
            '.' | ',' | '(' | ')' | '{' | '}' | '[' | ']' | '~' | '|' | '&' | '=' | ':' | '+' | '*' | '-' | '>'
            | '<' | '@' => (Some(Kind::Sign), 1),
            _ => (None, 0),
        };
        let place = Token { kind: kind.unwrap_or(Kind::Sign), text: &rest[..length], at, line, column };
        if length == 0 {
            let what = match first {
                '"' => "a text has no end; it may not hold line ends".to_owned(),
                '/' => "an expression has no end".to_owned(),
                other => format!("unexpected character {other:?}"),
            };
            return Err(place.fault(&what));
        }
        if kind.is_some() {
            tokens.push(place);
        }
        for letter in rest[..length].chars() {
            (line, column) = if letter == '\n' { (line + 1, 1) } else { (line, column + 1) };
        }
        at += length;
    }
    Ok(tokens)
}

fn up_to_line_end(rest: &str) -> usize {
    rest.find('\n').unwrap_or(rest.len())
}

/// Returns the length of what is enclosed in `mark`, with the marks.
fn enclosed(rest: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    for (at, letter) in rest.char_indices().skip(1) {
        match letter {
            '\n' if mark == '"' => return None,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            letter if letter == mark => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn flags(rest: &str, known: &str) -> usize {
    run(rest, |letter| known.contains(letter))
}

fn run(rest: &str, is_part: impl Fn(char) -> bool) -> usize {
    rest.find(|letter| !is_part(letter)).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_followed_is_refused_by_its_place() {
        for (text, place, word) in [
            ("start: A\nA: /a*?b/", "line 2, column 4", "lazy"),
            ("start: /(?U)a*/", "line 1, column 8", "lazy"),
            ("start: /(?=a)b/", "line 1, column 8", "look-around"),
            ("start: /a\\b/", "line 1, column 8", "look-around"),
            ("start: /(a)\\1/", "line 1, column 8", "backreferences"),
            ("start: /[b-a]/", "line 1, column 8", "range"),
            ("start: \"a\" <|im_end|>", "line 1, column 12", "special tokens"),
            ("start: <[5]>", "line 1, column 8", "special tokens"),
            ("start: @document", "line 1, column 8", "references"),
            ("start: %json {}", "line 1, column 8", "%json"),
            ("%llguidance {}\nstart: \"a\"", "line 1, column 1", "%llguidance"),
            ("%declare A\nstart: A", "line 1, column 1", "%declare"),
            ("%override start: \"a\"", "line 1, column 1", "%override"),
            ("start: A & B", "line 1, column 10", "intersections"),
            ("start: A\nA: ~B", "line 2, column 4", "complements"),
            ("start[max_tokens=3]: /a/", "line 1, column 1", "attributes"),
            ("start: x::1", "line 1, column 9", "parameters"),
            ("start: \"a\"~3..5000", "line 1, column 15", "5000"),
            ("start: \"a\"{3,100000}", "line 1, column 14", "100000"),
            ("start: 'a'", "line 1, column 8", "'\\''"),
            ("start: \"a\n\"", "line 1, column 8", "no end"),
            ("# none\nstart: /a", "line 2, column 8", "no end"),
        ] {
            let reason = check(text).expect_err(text);
            assert!(reason.starts_with(place) && reason.contains(word), "{text}: {reason}");
        }
        for fine in [
            "start: \"a\" // a comment with <, @ and &\n",
            "?start: a [b] -> x\n  | \"<@&\" /[<@&~]/i\na: \"a\"~3 \"b\" ~ 2..4\nb: B{2}\nB: \"a\"..\"z\"",
            "%import common.WS\n%import common (INT, WORD)\n%ignore WS\nstart: INT",
            "start: line\nline[lazy]: /.*\\n/\r\n",
        ] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(check(&format!("start: \"{}\"", "a".repeat(MAX_BYTES))).is_err());
        let doubled: Vec<String> = (0..40).map(|index| format!("A{}: A{index} A{index}\n", index + 1)).collect();
        let doubled = doubled.concat();
        let reason = check(&format!("start: A40\nA0: \"a\"\n{doubled}")).expect_err("2 to the 40th letters");
        assert!(reason.contains("unfold"), "{reason}");
        assert_eq!(check("start: A\nA: B\nB: A"), Ok(()), "llguidance refuses it by name");
    }

    #[test]
    fn the_start_is_renamed_wherever_it_stands() {
        let text = "?start: \"(\" start \")\" | text-0 | \"start\" // start\ntext-0: /start/";
        let expected =
            "?text-1: \"(\" text-1 \")\" | text-0 | \"start\" // start\ntext-0: /start/\nstart: text-1 <[7]>\n";
        assert_eq!(with_end(text, 7).as_deref(), Ok(expected));
    }
}
