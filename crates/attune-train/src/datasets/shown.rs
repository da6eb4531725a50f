//! Examples as people read them before they train on a file: the text of the tokens that the model gets, and which of
//! it is learned. Called for the page of a new fine-tune.

use super::{ExampleStore, TextCodec, TokenizedExample};
use crate::Result;

/// Tokens that are shown of the beginning and of the end of a stretch with one weight; a longer one has a gap between.
const SHOWN_TOKENS: usize = 120;
/// Stretches of an example that are shown.
const SHOWN_STRETCHES: usize = 24;

/// An example as it is learned.
#[derive(Debug, Clone, PartialEq)]
pub enum ShownExample {
    /// A text, parts of which are learned.
    Answer(Vec<ShownPiece>),
    /// The preferred answer and the other one, each behind its prompt.
    Preference([Vec<ShownPiece>; 2]),
    /// Texts that are compared, the anchor first, with their score or label, if they have one.
    Texts(Vec<String>, Option<f32>),
}

/// A part of a text with one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownPiece {
    /// Text of the tokens, special ones by their names.
    pub text: String,
    /// Weight as a target: 0 for what is only read.
    pub weight: f32,
    /// Number of tokens behind this piece that are not shown.
    pub skipped: usize,
}

/// Returns the first `count` examples of a file; `of_preferences` as for [`super::examine`].
pub fn first_examples(
    examples: &ExampleStore,
    count: usize,
    of_preferences: bool,
    codec: &impl TextCodec,
) -> Result<Vec<ShownExample>> {
    let width = if of_preferences { 2 } else { 1 };
    let starts = (0..examples.len()).step_by(width).take(count);
    starts
        .map(|index| {
            if examples.of_texts {
                let (texts, number) = examples.read_texts(index)?;
                let texts = texts.iter().map(|text| text_of(text, codec)).collect::<Result<_>>()?;
                return Ok(ShownExample::Texts(texts, number));
            }
            let first = pieces(&examples.get(index)?, codec)?;
            if !of_preferences {
                return Ok(ShownExample::Answer(first));
            }
            Ok(ShownExample::Preference([first, pieces(&examples.get(index + 1)?, codec)?]))
        })
        .collect()
}

/// Returns the text of a whole example, or its beginning.
fn text_of(tokens: &[u32], codec: &impl TextCodec) -> Result<String> {
    let shown = tokens.len().min(2 * SHOWN_TOKENS);
    let mut text = codec.decode(&tokens[..shown])?;
    if shown < tokens.len() {
        text.push('…');
    }
    Ok(text)
}

/// Splits a sequence into its stretches of one weight.
fn pieces(example: &TokenizedExample, codec: &impl TextCodec) -> Result<Vec<ShownPiece>> {
    let TokenizedExample { tokens, weights } = example;
    let mut pieces: Vec<ShownPiece> = Vec::new();
    let mut start = 0;
    for (stretch, weights) in weights.chunk_by(|one, other| one.to_bits() == other.to_bits()).enumerate() {
        let (end, weight) = (start + weights.len(), weights[0]);
        if stretch == SHOWN_STRETCHES {
            if let Some(last) = pieces.last_mut() {
                last.skipped += tokens.len() - start;
            }
            break;
        }
        let piece = |from: usize, to: usize, skipped: usize| -> Result<ShownPiece> {
            Ok(ShownPiece { text: part(tokens, from, to, codec)?, weight, skipped })
        };
        if end - start > 2 * SHOWN_TOKENS {
            let (head, tail) = (start + SHOWN_TOKENS, end - SHOWN_TOKENS);
            pieces.push(piece(start, head, tail - head)?);
            pieces.push(piece(tail, end, 0)?);
        } else {
            pieces.push(piece(start, end, 0)?);
        }
        start = end;
    }
    Ok(pieces)
}

/// Returns the text of the tokens `from..to`. It is what they add to the text before them: alone, some vocabularies drop
/// the blank that they begin with.
fn part(tokens: &[u32], from: usize, to: usize, codec: &impl TextCodec) -> Result<String> {
    let (before, whole) = (codec.decode(&tokens[..from])?, codec.decode(&tokens[..to])?);
    match whole.strip_prefix(&before) {
        Some(part) => Ok(part.to_owned()),
        // A character stands on both sides.
        None => Ok(codec.decode(&tokens[from..to])?),
    }
}

#[cfg(test)]
mod tests {
    use attune_model::chat::{Message, ToolDefinition};
    use attune_model::chat_template::TemplateOptions;

    use super::*;

    /// A token is a character; a text begins without its blank, as some vocabularies have it.
    struct Letters;

    impl TextCodec for Letters {
        fn encode(&self, text: &str, _: bool) -> attune_model::Result<Vec<u32>> {
            Ok(text.chars().map(u32::from).collect())
        }

        fn decode(&self, tokens: &[u32]) -> attune_model::Result<String> {
            let text: String = tokens.iter().filter_map(|token| char::from_u32(*token)).collect();
            Ok(text.strip_prefix(' ').unwrap_or(&text).to_owned())
        }

        fn render_chat(
            &self,
            _: &[Message],
            _: &[ToolDefinition],
            _: &TemplateOptions,
        ) -> attune_model::Result<Option<String>> {
            Ok(None)
        }

        fn end_tokens(&self) -> &[u32] {
            &[]
        }
    }

    fn example(parts: &[(&str, f32)]) -> TokenizedExample {
        let mut example = TokenizedExample { tokens: Vec::new(), weights: Vec::new() };
        for (text, weight) in parts {
            example.tokens.extend(text.chars().map(u32::from));
            example.weights.resize(example.tokens.len(), *weight);
        }
        example
    }

    #[test]
    fn what_is_learned_is_told_from_what_is_read() {
        let store = ExampleStore::of([example(&[("Q: <b>", 0.0), (" lamp", 1.0)]), example(&[("a", 0.5), ("b", 1.0)])]);
        let shown = first_examples(&store.unwrap(), 5, false, &Letters).unwrap();
        let piece = |text: &str, weight| ShownPiece { text: text.into(), weight, skipped: 0 };
        assert_eq!(
            shown,
            [
                ShownExample::Answer(vec![piece("Q: <b>", 0.0), piece(" lamp", 1.0)]),
                ShownExample::Answer(vec![piece("a", 0.5), piece("b", 1.0)]),
            ]
        );
    }

    #[test]
    fn long_stretches_and_long_chats_are_cut_and_what_is_left_out_is_counted() {
        let long = "x".repeat(1000);
        let store = ExampleStore::of([example(&[(&long, 0.0), ("yes", 1.0)])]).unwrap();
        let [ShownExample::Answer(pieces)] = &first_examples(&store, 3, false, &Letters).unwrap()[..] else {
            panic!("one answer")
        };
        assert_eq!(pieces.iter().map(|piece| piece.skipped).collect::<Vec<_>>(), [1000 - 2 * SHOWN_TOKENS, 0, 0]);
        assert_eq!(pieces[2].text, "yes");
        let turns: Vec<(&str, f32)> = (0..50).flat_map(|_| [("q", 0.0), ("a", 1.0)]).collect();
        let store = ExampleStore::of([example(&turns)]).unwrap();
        let [ShownExample::Answer(pieces)] = &first_examples(&store, 3, false, &Letters).unwrap()[..] else {
            panic!("one answer")
        };
        assert_eq!((pieces.len(), pieces.last().unwrap().skipped), (SHOWN_STRETCHES, 100 - SHOWN_STRETCHES));
    }

    #[test]
    fn pairs_of_answers_and_of_texts_are_shown_as_such() {
        let answers = ["good", "bad"].map(|answer| example(&[("q", 0.0), (answer, 1.0)]));
        let shown = first_examples(&ExampleStore::of(answers).unwrap(), 3, true, &Letters).unwrap();
        let [ShownExample::Preference([chosen, rejected])] = &shown[..] else { panic!("{shown:?}") };
        assert_eq!((chosen[1].text.as_str(), rejected[1].text.as_str()), ("good", "bad"));
        let tokens = |text: &str| text.chars().map(u32::from).collect::<Vec<u32>>();
        let scored = ExampleStore::of_scored([(vec![tokens("one"), tokens("two")], 0.5)]).unwrap();
        let shown = first_examples(&scored, 3, false, &Letters).unwrap();
        assert_eq!(shown, [ShownExample::Texts(vec!["one".into(), "two".into()], Some(0.5))]);
    }
}
