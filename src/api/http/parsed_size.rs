//! How much memory JSON takes once it is parsed, told from its bytes before. Called by `extract`.
//!
//! A value takes many times its bytes: `{}` is an object with a table, and a handler turns what it reads into forms of
//! its own. The prices below are what the dearest handler takes, a conversation, so most requests take less.

/// Bytes for an object, such as a message in all its forms.
const OBJECT: usize = 1024;
/// Bytes for a value in a list: a list that grows by doubling is there twice while it is copied, three times its bytes
/// in all, and a value takes 72.
const ELEMENT: usize = 3 * 72;
/// Bytes for an array.
const ARRAY: usize = ELEMENT + 24;
/// Bytes for a text, without its characters.
const TEXT: usize = ELEMENT + 24;
/// Bytes for the name of a field, or for a text in a field of [`TOKEN_FIELDS`], without its characters: it is no value
/// of any kind, and takes 24.
const NAME: usize = 112;
/// Copies of the characters of a text: read, checked, shown to the template, rendered.
const COPIES: usize = 5;
/// Bytes for a number, `true`, `false` or `null`.
const SCALAR: usize = ELEMENT;
/// Bytes for one in a field of [`TOKEN_FIELDS`], and for a list there.
const TOKEN: usize = 16;
/// Fields of the body that are read as token ids at once, where the route has them at all.
pub(crate) const TOKEN_FIELDS: [&[u8]; 2] = [b"prompt", b"input"];

/// Returns the bytes of memory that the values of `json` may take when they are read. Numbers in the fields `tokens` of
/// the body count as token ids. What is not JSON has some size, too.
pub(crate) fn parsed_size(json: &[u8], tokens: &[&[u8]]) -> usize {
    let mut scan = Scan { json, place: 0 };
    let (mut size, mut depth, mut in_tokens) = (0_usize, 0_usize, false);
    while let Some(byte) = scan.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                size += match byte {
                    b'{' => OBJECT,
                    _ if in_tokens => 4 * TOKEN,
                    _ => ARRAY,
                };
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let text = scan.text();
                let is_name = scan.at_colon();
                size += if is_name || in_tokens { NAME } else { TEXT } + COPIES * text.len();
                if depth == 1 && is_name {
                    in_tokens = tokens.contains(&text);
                }
            }
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                scan.skip_scalar();
                size += if in_tokens { TOKEN } else { SCALAR };
            }
            _ => {}
        }
    }
    size
}

struct Scan<'a> {
    json: &'a [u8],
    place: usize,
}

impl<'a> Scan<'a> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.json.get(self.place).copied();
        self.place += 1;
        byte
    }

    /// Returns the text whose quotation mark was read, with its escapes as they stand.
    fn text(&mut self) -> &'a [u8] {
        let begin = self.place;
        while let Some(byte) = self.next() {
            match byte {
                b'"' => return &self.json[begin..self.place - 1],
                b'\\' => self.place += 1,
                _ => {}
            }
        }
        &self.json[begin..]
    }

    fn at_colon(&self) -> bool {
        let rest = self.json.get(self.place..).unwrap_or_default();
        rest.trim_ascii_start().first() == Some(&b':')
    }

    fn skip_scalar(&mut self) {
        while self.json.get(self.place).is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)) {
            self.place += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(json: &str) -> usize {
        parsed_size(json.as_bytes(), &TOKEN_FIELDS)
    }

    #[test]
    fn every_value_counts_once() {
        assert_eq!(size(r"[{},{} , {}]"), ARRAY + 3 * OBJECT);
        assert_eq!(size(r#"["a","\"]{\\","é"]"#), ARRAY + 3 * TEXT + COPIES * (1 + 6 + 2));
        assert_eq!(size("[1,-2.5e+3,true,null]"), ARRAY + 4 * SCALAR);
        assert_eq!(size(r#"{"a":"x"}"#), OBJECT + NAME + TEXT + 2 * COPIES);
    }

    #[test]
    fn token_ids_are_cheap_in_their_own_fields_only() {
        let of = |field: &str| size(&format!(r#"{{"{field}" : [[1,2],[3]],"n":1}}"#)) - OBJECT - 2 * NAME - SCALAR;
        let name = |field: &str| COPIES * (field.len() + 1);
        assert_eq!(of("prompt"), name("prompt") + 3 * 4 * TOKEN + 3 * TOKEN);
        assert_eq!(of("tools!"), name("tools!") + 3 * ARRAY + 3 * SCALAR);
        let texts = |field: &str| size(&format!(r#"{{"{field}":["a","b"]}}"#)) - OBJECT - NAME - COPIES * field.len();
        assert_eq!(texts("prompt"), 4 * TOKEN + 2 * (NAME + COPIES));
        assert_eq!(texts("tools!"), ARRAY + 2 * (TEXT + COPIES));
        assert!(size(r#"{"x":{"prompt":[1,2,3]}}"#) > 2 * OBJECT + ARRAY + 3 * SCALAR, "not inside of others");
    }

    #[test]
    fn what_is_not_json_ends_all_the_same() {
        for json in ["", "\"", "\"\\", "{{{{", "]]]]", "\u{0}\u{1}", "tttt", "-", "[\"a\\"] {
            assert!(size(json) <= 4 * OBJECT + json.len() * COPIES, "{json}");
        }
    }
}
