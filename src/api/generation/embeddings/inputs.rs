//! Texts to inputs of the engine: prompt, tokens, and what is too long. Called by `embeddings`, and by `ranking` for texts
//! that stand alone.

use crate::api::generation::embeddings::prompts::Prompt;
use crate::api::generation::input::{Item, Place, check_ids};
use crate::api::generation::length::Length;
use crate::api::generation::room::{Room, too_many_tokens};
use crate::api::generation::target::Target;
use crate::api::http::error::{Problem, Result};
use crate::engine::EmbedInput;
use crate::model::BaseModel;

/// Largest number of tokens of all inputs of one request together.
const MAX_TOKENS: usize = 300_000;

/// Reads `items`, which stand in the field `param`: one input of each, with the `prompt` before texts. Token ids are
/// taken as they are.
pub(crate) async fn read(
    target: &Target,
    param: &'static str,
    items: Vec<Item>,
    prompt: Prompt,
    length: Length,
) -> Result<Vec<EmbedInput>> {
    check_not_empty(param, &items)?;
    check_prompt(&prompt, &items)?;
    let model = target.model();
    let unpooled = model.unpooled_tokens(&prompt.text)?;
    let items = prepare(target, items, prompt.text).await?;
    let count = items.len();
    let bytes = items.iter().map(Item::text_bytes).sum::<usize>();
    let room = Room { each: if length.is_cut { usize::MAX } else { length.limit }, all: MAX_TOKENS };
    let items = target.measure(param, items, room).await.map_err(|problem| problem.blamed_on(param))?;
    let most = bytes.min(length.limit.saturating_mul(count)).min(MAX_TOKENS);
    let mut total = 0;
    let read = move |model: &BaseModel, index, item| {
        let place = Place::of(param, index, count);
        let unpooled = if matches!(item, Item::Text(_)) { unpooled } else { 0 };
        let tokens = encode(model, item, length, place)?;
        check_rest(tokens.len(), unpooled, place)?;
        total += tokens.len();
        if total > MAX_TOKENS {
            return Err(too_many_tokens(param, format_args!("at least {total}"), MAX_TOKENS));
        }
        Ok(EmbedInput { tokens, second: None, unpooled })
    };
    target.tokenize(items, Item::text_bytes, most, read).await
}

fn check_not_empty(param: &'static str, items: &[Item]) -> Result<()> {
    let empty = items.iter().position(|item| matches!(item, Item::Text(text) if text.is_empty()));
    match empty {
        Some(index) => {
            let message = format!("'{param}' must not hold an empty text; the text number {index} (from 0) is empty.");
            Err(Problem::invalid_code(param, "invalid_value", message))
        }
        None => Ok(()),
    }
}

/// Refuses token ids with a prompt that was asked for: it stands before texts only.
fn check_prompt(prompt: &Prompt, items: &[Item]) -> Result<()> {
    match prompt.asked_by {
        Some(field) if items.iter().any(|item| matches!(item, Item::Tokens(_))) => {
            let message = format!(
                "'{field}' puts a prompt before texts, but 'input' holds token ids, which are taken as they are: send texts, \
                 or leave '{field}' out."
            );
            Err(Problem::invalid_code(field, "invalid_value", message))
        }
        _ => Ok(()),
    }
}

/// Puts the prompt before the texts.
async fn prepare(target: &Target, items: Vec<Item>, prompt: String) -> Result<Vec<Item>> {
    if prompt.is_empty() {
        return Ok(items);
    }
    let added = prompt.len() * items.len();
    target.share.keep(added).await?;
    let bytes = added + items.iter().map(Item::text_bytes).sum::<usize>();
    let one = move |item| match item {
        Item::Text(text) => Item::Text([prompt.as_str(), &text].concat()),
        Item::Tokens(tokens) => Item::Tokens(tokens),
    };
    target.read_text(bytes, move |_| Ok(items.into_iter().map(one).collect())).await
}

/// Returns the tokens of an item, with those that the tokenizer puts around a text; cut if they are too many and may be cut.
fn encode(model: &BaseModel, item: Item, length: Length, place: Place) -> Result<Vec<u32>> {
    let tokens = match item {
        Item::Text(text) => {
            let read = model.tokenizer.encode_within(&text, length.limit);
            length.check(read.map_err(|error| place.blame(error.into()))?, place)?
        }
        Item::Tokens(tokens) => {
            let checked = check_ids(&place.to_string(), &tokens, model.config.vocab_size);
            checked.map_err(|problem| problem.blamed_on(place.param))?;
            length.fit(tokens, model.tokenizer.tokens_behind(), place)?
        }
    };
    if tokens.is_empty() {
        return Err(Problem::invalid(place.param, format!("'{place}' is a text without any token.")));
    }
    Ok(tokens)
}

/// Refuses an input whose prompt leaves no token of the text to be pooled.
fn check_rest(tokens: usize, unpooled: usize, place: Place) -> Result<()> {
    if unpooled < tokens {
        return Ok(());
    }
    let message = format!(
        "The model's prompt has {unpooled} tokens, and '{place}' is cut at {tokens}, so that nothing of the text is left."
    );
    Err(Problem::invalid_code(place.param, "invalid_value", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_texts_are_refused_with_their_number() {
        let items = [Item::Text("a".into()), Item::Text(String::new())];
        let problem = check_not_empty("input", &items).expect_err("the second is empty");
        assert!(problem.error.message.contains("number 1"), "{problem}");
        assert_eq!(problem.error.param.as_deref(), Some("input"));
        assert!(check_not_empty("input", &items[..1]).is_ok());
    }

    #[test]
    fn a_prompt_that_was_asked_for_does_not_go_with_token_ids() {
        let items = [Item::Text("a".into()), Item::Tokens(vec![1])];
        let of = |asked_by| Prompt { text: "query: ".into(), asked_by };
        let problem = check_prompt(&of(Some("prompt_name")), &items).expect_err("ids have no prompt");
        assert_eq!(problem.error.param.as_deref(), Some("prompt_name"));
        assert!(check_prompt(&of(None), &items).is_ok(), "the model's default stands before texts only");
        assert!(check_prompt(&of(Some("prompt_name")), &items[..1]).is_ok());
    }

    #[test]
    fn something_of_the_text_must_be_left_behind_the_prompt() {
        let place = Place::of("input", 1, 2);
        assert!(check_rest(5, 4, place).is_ok());
        let problem = check_rest(4, 4, place).expect_err("only the prompt");
        assert!(problem.error.message.contains("input[1]"), "{problem}");
    }
}
