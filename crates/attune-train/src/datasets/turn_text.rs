//! Comparisons of the texts that a chat template writes. Called by [`super::turn`].

/// Farthest that the text which a template puts before an answer may reach, in characters.
const LONGEST_LEAD: usize = 256;

/// Counts the bytes that two texts have in common at their beginning.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(character, _)| character.len_utf8()).sum()
}

/// Counts the bytes that two texts have in common at their end.
pub(super) fn common_suffix(a: &str, b: &str) -> usize {
    let same = a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b);
    same.map(|(character, _)| character.len_utf8()).sum()
}

/// Moves the place `at` of `text` back to the beginning of a tag such as `<think>` if it is inside of one.
pub(super) fn back_to_tag(text: &str, at: usize) -> usize {
    match text[..at].rfind(['<', '[']) {
        Some(open) if is_part_of_tag(&text[open..at], ['>', ']']) => open,
        _ => at,
    }
}

/// Shortens the last `length` bytes of `text` to those behind a tag, if they begin inside of one.
pub(super) fn forward_to_tag(text: &str, length: usize) -> usize {
    let end = &text[text.len() - length..];
    match end.find(['>', ']']) {
        Some(close) if is_part_of_tag(&end[..close], ['<', '[']) => length - close - 1,
        _ => length,
    }
}

/// Returns true if `text` is one word without the `others` of the brackets around a tag.
fn is_part_of_tag(text: &str, others: [char; 2]) -> bool {
    !text.contains(|character: char| character.is_whitespace() || others.contains(&character))
}

/// Finds the place in the last part of `head` before which it has the longest end in common with `history`, the last of
/// equals; `None` if it has none.
pub(super) fn longest_common_end(history: &str, head: &str) -> Option<usize> {
    let places = head.char_indices().map(|(place, _)| place).chain([head.len()]);
    let places: Vec<usize> = places.collect();
    let latest =
        places.iter().rev().take(LONGEST_LEAD + 1).map(|place| (common_suffix(history, &head[..*place]), *place));
    latest.max().filter(|(length, _)| *length > 0).map(|(_, place)| place)
}

/// Leaves out of an answer the tag that the prompt has opened with `opened`, and the whole block if the prompt has
/// closed it, too.
pub(super) fn without_opened<'a>(opened: &str, answer: &'a str) -> &'a str {
    let tags = opened.trim_end();
    let Some(tag) = tags.ends_with(['>', ']']).then(|| tags.rfind(['<', '['])).flatten().map(|open| &tags[open..])
    else {
        return answer;
    };
    let begin = answer.trim_start();
    if let Some(name) = tag.strip_prefix("</").or_else(|| tag.strip_prefix("[/")) {
        let open = format!("{}{name}", &tag[..1]);
        return match begin.strip_prefix(open.as_str()).and_then(|block| block.split_once(tag)) {
            Some((_, rest)) => rest.trim_start(),
            None => answer,
        };
    }
    match begin.strip_prefix(tag) {
        Some(rest) => rest.strip_prefix(&opened[tags.len()..]).unwrap_or(rest),
        None => answer,
    }
}

/// Removes all blanks, which templates trim and add.
pub(super) fn squeezed(text: &str) -> String {
    text.chars().filter(|character| !character.is_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_inside_a_tag_is_moved_out_of_it() {
        assert_eq!(back_to_tag("<a><think>", 5), 3);
        assert_eq!(back_to_tag("<a>x<b", 4), 4);
        assert_eq!(back_to_tag("1 < 2\nAnswer:", 13), 13);
        assert_eq!(forward_to_tag("x<|eom_id|>\n", 6), 1);
        assert_eq!(forward_to_tag("x<|im_end|>\n", 11), 11);
    }

    #[test]
    fn the_end_of_a_history_is_found_where_an_answer_begins() {
        let history = "<s>[INST]s\n\nHi[/INST]";
        assert_eq!(longest_common_end(history, "<s>[INST]Hi[/INST] "), Some("<s>[INST]Hi[/INST]".len()));
        assert_eq!(longest_common_end(history, "Hello"), None);
    }

    #[test]
    fn what_the_prompt_has_opened_is_not_opened_twice() {
        for (opened, answer, expected) in [
            ("<A><think>\n", "<think>\nSo.\n</think>\nYes", "So.\n</think>\nYes"),
            ("<A><think>\n", "\n<think>So.</think>Yes", "So.</think>Yes"),
            ("<A><think>\n", "Yes", "Yes"),
            ("<A><think>\n</think>\n\n", "<think>So.</think>\n\nYes", "Yes"),
            ("<A><think>\n</think>\n\n", "Yes", "Yes"),
            ("[THINK]", "[THINK]So.[/THINK]Yes", "So.[/THINK]Yes"),
            ("", "<think>So.</think>Yes", "<think>So.</think>Yes"),
            ("assistant\n", "<think>So.</think>Yes", "<think>So.</think>Yes"),
        ] {
            assert_eq!(without_opened(opened, answer), expected, "{opened:?} {answer:?}");
        }
    }
}
