//! Python's way of reading texts: `int()` and `float()`, lines and blanks.

/// Returns true for the characters that Python's `str.strip` removes.
pub(super) fn is_blank(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// Splits `text` into lines as `str.splitlines` does, with their ends if `keep_ends`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |character: char| {
        matches!(character, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let end = &rest[at..];
        let length = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if keep_ends { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Reads an integer as Python's `int(text, base)`; `None` if `text` is none, or lies beyond 128 bits.
pub(super) fn read_integer(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_blank);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |prefix: u8| digits.as_bytes().get(1).is_some_and(|mark| mark.eq_ignore_ascii_case(&prefix));
    let named = [(b'x', 16), (b'o', 8), (b'b', 2)]
        .into_iter()
        .find(|&(prefix, own)| digits.starts_with('0') && prefixed(prefix) && (base == own || base == 0));
    let (digits, base) = match named {
        // An underscore may follow the prefix.
        Some((_, own)) => (digits[2..].strip_prefix('_').unwrap_or(&digits[2..]), own),
        None if base == 0
            && digits.len() > 1
            && digits.starts_with('0')
            && digits.bytes().any(|digit| digit != b'0') =>
        {
            return None;
        }
        None => (digits, if base == 0 { 10 } else { base }),
    };
    if !(2..=36).contains(&base) {
        return None;
    }
    let digits = without_underscores(digits, u8::is_ascii_alphanumeric)?;
    if !digits.starts_with(|digit: char| digit.is_digit(base)) {
        return None;
    }
    let number = i128::from_str_radix(&digits, base).ok()?;
    Some(if negative { -number } else { number })
}

/// Reads a number as Python's `float(text)`; `None` if `text` is none.
pub(super) fn read_float(text: &str) -> Option<f64> {
    without_underscores(text.trim_matches(is_blank), u8::is_ascii_digit)?.parse().ok()
}

/// Removes underscores, each of which must stand between two digits.
fn without_underscores(text: &str, is_digit: fn(&u8) -> bool) -> Option<String> {
    let bytes = text.as_bytes();
    let digit_at = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(is_digit);
    let placed = |at: usize| digit_at(at.checked_sub(1)) && digit_at(Some(at + 1));
    let all_placed = bytes.iter().enumerate().all(|(at, byte)| *byte != b'_' || placed(at));
    all_placed.then(|| text.replace('_', ""))
}
