//! The header `Content-Disposition` of a part of a form: the names of the part and of its file, in every form that
//! clients write (RFC 7578, RFC 5987, RFC 2047). Called by `form`.
//!
//! Own code, since libraries read plain parameters only, and take what stands inside a quoted one for another.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use encoding_rs::{Encoding, WINDOWS_1252};
use percent_encoding::percent_decode_str;
use regex::{Captures, Regex};

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The names in the header of a part.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Disposition {
    /// The name of the part.
    pub name: Option<String>,
    /// The name of the file; `None` if the part has none.
    pub filename: Option<String>,
}

impl Disposition {
    /// Reads the header's value.
    pub(super) fn parse(header: &[u8]) -> Self {
        // Neither is forbidden in a form; Latin-1 is what old clients mean.
        let text = std::str::from_utf8(header).map_or_else(|_| WINDOWS_1252.decode(header).0, Cow::Borrowed);
        let parameters = parameters_of(&text);
        let find = |name: &str| parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
        // The form that names its charset is the better one, whichever stands first.
        let extended = find("filename*").and_then(extended_value);
        let filename = extended.or_else(|| find("filename").map(decode_words)).filter(|name| !name.is_empty());
        Self { name: find("name").map(str::to_owned), filename }
    }
}

/// Returns the parameters of a header's value in their order, with names in lower case; none if the header is broken.
pub(super) fn parameters_of(header: &str) -> Vec<(String, String)> {
    parameters(header, escaped_text).or_else(|| parameters(header, raw_text)).unwrap_or_default()
}

/// Returns the parameters in their order, with names in lower case; `None` if the header is broken. `quoted` reads the
/// text after a quotation mark, and returns it with what follows its end.
fn parameters(header: &str, quoted: fn(&str) -> Option<(String, &str)>) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = header.split_once(';').map_or("", |(_, rest)| rest);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        if rest.is_empty() {
            return Some(found);
        }
        let end = rest.find(['=', ';']).unwrap_or(rest.len());
        let name = rest[..end].trim().to_ascii_lowercase();
        let Some(value) = rest[end..].strip_prefix('=') else {
            rest = &rest[end..];
            continue;
        };
        let value = value.trim_start();
        let (value, after) = if let Some(text) = value.strip_prefix('"') {
            quoted(text)?
        } else {
            let (token, after) = value.split_at(value.find(';').unwrap_or(value.len()));
            (token.trim_end().to_owned(), after)
        };
        rest = after.trim_start();
        if !(rest.is_empty() || rest.starts_with(';')) {
            return None;
        }
        found.push((name, value));
    }
}

/// Reads a text in which a backslash stands before a quotation mark or a backslash. Any other one is part of the text:
/// browsers do not write them twice.
fn escaped_text(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => {
                value.push(characters.next_if(|(_, next)| matches!(next, '"' | '\\')).map_or('\\', |(_, next)| next));
            }
            other => value.push(other),
        }
    }
    None
}

/// Reads a text that was written as it is, so that a name may end in a backslash or hold quotation marks: it ends at
/// the first of them that another parameter or nothing follows.
fn raw_text(text: &str) -> Option<(String, &str)> {
    let ends = |after: &str| {
        let after = after.trim();
        let next = after.strip_prefix(';').map(|next| next.split('=').next().unwrap_or_default().trim());
        after.is_empty() || next.is_some_and(|next| !next.contains(['"', ';', ' ', '.']))
    };
    let (index, _) = text.match_indices('"').find(|(index, _)| ends(&text[index + 1..]))?;
    Some((text[..index].replace("\\\"", "\""), &text[index + 1..]))
}

/// Returns the text of `charset'language'percent-encoded`; `None` if it is broken or in an unknown charset.
fn extended_value(value: &str) -> Option<String> {
    let mut parts = value.splitn(3, '\'');
    let (charset, _, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    decode(charset, &percent_decode_str(encoded).collect::<Vec<_>>())
}

fn decode(charset: &str, bytes: &[u8]) -> Option<String> {
    let text = Encoding::for_label(charset.as_bytes())?.decode_without_bom_handling_and_without_replacement(bytes)?;
    Some(text.into_owned())
}

/// Returns `text` with its encoded words, `=?charset?B?…?=` or `=?charset?Q?…?=`, in plain.
fn decode_words(text: &str) -> String {
    static WORDS: LazyLock<Option<Regex>> = LazyLock::new(|| {
        // Words that stand side by side are one text, of which a character may be cut in two.
        Regex::new(r"=\?[^?\s]+\?[BbQq]\?[^?]*\?=(?:[ \t]*=\?[^?\s]+\?[BbQq]\?[^?]*\?=)*").ok()
    });
    let Some(words) = WORDS.as_ref() else { return text.to_owned() };
    let plain = |run: &Captures<'_>| decode_run(&run[0]).unwrap_or_else(|| run[0].to_owned());
    words.replace_all(text, plain).into_owned()
}

/// Returns the text of words side by side; `None` if one is broken, or if their charsets differ inside a character.
fn decode_run(run: &str) -> Option<String> {
    let (mut text, mut pending) = (String::new(), (String::new(), Vec::new()));
    let mut fields = run.split('?').skip(1);
    while let (Some(charset), Some(encoding), Some(word)) = (fields.next(), fields.next(), fields.next()) {
        // The end of this word and the beginning of the next one.
        fields.next();
        // A language may follow the charset.
        let charset = charset.split('*').next().unwrap_or_default().to_ascii_lowercase();
        if charset != pending.0 && !pending.1.is_empty() {
            text.push_str(&decode(&pending.0, &std::mem::take(&mut pending.1))?);
        }
        pending.0 = charset;
        pending.1.extend(if encoding.eq_ignore_ascii_case("B") {
            BASE64.decode(word).ok()?
        } else {
            from_quoted(word)?
        });
    }
    text.push_str(&decode(&pending.0, &pending.1)?);
    Some(text)
}

/// Returns the bytes of an encoded word of the kind `Q`.
fn from_quoted(word: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'_' => b' ',
            b'=' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filename(parameters: &str) -> Option<String> {
        let read = Disposition::parse(format!("form-data; name=\"file\"; {parameters}").as_bytes());
        assert_eq!(read.name.as_deref(), Some("file"), "{parameters}");
        let other = Disposition::parse(format!("form-data; {parameters}; name=\"file\"").as_bytes());
        assert_eq!(other, read, "the order of parameters must not matter: {parameters}");
        read.filename
    }

    #[test]
    fn a_name_with_its_charset_is_read_and_preferred() {
        for parameters in [
            "filename*=utf-8''tr%C3%A4nen.jsonl",
            "filename*=UTF-8''tr%c3%a4nen.jsonl",
            "filename*=Utf-8'de'tr%C3%A4nen.jsonl",
            "filename*=iso-8859-1''tr%E4nen.jsonl",
            "FileName*=utf-8''tr%C3%A4nen.jsonl",
            "filename*=\"utf-8''tr%C3%A4nen.jsonl\"",
            "filename=\"tr_nen.jsonl\"; filename*=utf-8''tr%C3%A4nen.jsonl",
            "filename*=utf-8''tr%C3%A4nen.jsonl; filename=tr_nen.jsonl",
            "filename=\"=?utf-8?B?dHLDpG5lbi5qc29ubA==?=\"; filename*=utf-8''tr%C3%A4nen.jsonl",
        ] {
            assert_eq!(filename(parameters).as_deref(), Some("tränen.jsonl"), "{parameters}");
        }
        for broken in ["filename*=klingon''x", "filename*=utf-8''%ff", "filename*=x"] {
            assert_eq!(filename(broken), None, "{broken}");
            let plain = filename(&format!("{broken}; filename=\"plain\""));
            assert_eq!(plain.as_deref(), Some("plain"), "{broken}");
        }
    }

    #[test]
    fn encoded_words_are_decoded() {
        for (words, plain) in [
            ("=?utf-8?B?dHLDpG5lbi5qc29ubA==?=", "tränen.jsonl"),
            ("=?UTF-8?b?dHLDpG5lbi5qc29ubA?=", "tränen.jsonl"),
            ("=?UTF-8?Q?tr=C3=A4nen_2.jsonl?=", "tränen 2.jsonl"),
            ("=?ISO-8859-1?q?tr=E4nen?=.jsonl", "tränen.jsonl"),
            // A character cut in two, and words of two charsets.
            ("=?utf-8?Q?tr=C3?= =?utf-8?Q?=A4nen?=", "tränen"),
            ("=?utf-8?Q?tr=C3=A4?= =?iso-8859-1*de?Q?n=E4n?=", "tränän"),
            ("a =?utf-8?Q?b?= c", "a b c"),
            // What is broken stays as it is.
            ("=?utf-8?Q?tr=C3?=", "=?utf-8?Q?tr=C3?="),
            ("=?klingon?Q?x?=", "=?klingon?Q?x?="),
            ("=?utf-8?X?x?= 1=?2", "=?utf-8?X?x?= 1=?2"),
        ] {
            assert_eq!(filename(&format!("filename=\"{words}\"")).as_deref(), Some(plain), "{words}");
        }
    }

    #[test]
    fn quoted_names_are_read_whether_escaped_or_not() {
        for (written, read) in [
            (r#"filename="a \"b\" \\ c""#, r#"a "b" \ c"#),
            (r#"filename="C:\data\x.jsonl""#, r"C:\data\x.jsonl"),
            (r#"filename="dir\""#, r"dir\"),
            (r#"filename="dir\\""#, r"dir\"),
            (r#"filename="a "b" c.jsonl""#, r#"a "b" c.jsonl"#),
            (r#"filename="x; name=purpose""#, "x; name=purpose"),
            (r#"filename="x\"; name=purpose""#, r#"x"; name=purpose"#),
            (r#"FILENAME = "x.jsonl" "#, "x.jsonl"),
            ("filename=x.jsonl", "x.jsonl"),
            ("filename=\"学習.jsonl\"", "学習.jsonl"),
        ] {
            assert_eq!(filename(written).as_deref(), Some(read), "{written}");
        }
        assert_eq!(filename("filename=\"\""), None);
        assert_eq!(filename("filename"), None);
    }

    #[test]
    fn a_part_is_found_by_its_name_in_any_spelling() {
        for header in ["form-data; Name=file", "FORM-DATA;name=\"file\"", "form-data; NAME=\"file\" ; x=y;"] {
            assert_eq!(Disposition::parse(header.as_bytes()).name.as_deref(), Some("file"), "{header}");
        }
        assert_eq!(
            Disposition::parse(b"form-data; name=file; filename=\"tr\xe4nen\"").filename.as_deref(),
            Some("tränen")
        );
        assert_eq!(Disposition::parse(b"form-data"), Disposition::default());
    }
}
