//! Turns token ids of OpenAI's tokenizer back into text. Called by `embeddings`.
//!
//! Clients that know a model by `OpenAI`'s name, such as `LangChain`, tokenize with the tokenizer that this name has
//! there and send ids. Under an alias of such a name the ids are therefore not the served model's own.

use tiktoken_rs::{CoreBPE, Rank, cl100k_base_singleton};

use crate::api::generation::input::Item;
use crate::api::http::error::{Problem, Result};
use crate::api::http::share::Share;

/// Prefix of the names of `OpenAI`'s embedding models, whose tokenizer is `cl100k_base`.
const EMBEDDING_NAMES: &str = "text-embedding-";
/// Memory for the text of one id; hardly any has more bytes.
const FOREIGN_BYTES: usize = 16;

/// Returns the `items` of a request for `model`. If it `is_alias` and of those that clients take for one of `OpenAI`'s
/// embedding models, token ids are turned into text; under any other name they are the model's own.
pub(crate) async fn own_items(is_alias: bool, share: &Share, model: &str, items: Vec<Item>) -> Result<Vec<Item>> {
    let has_ids = items.iter().any(|item| matches!(item, Item::Tokens(_)));
    if !has_ids || !model.starts_with(EMBEDDING_NAMES) || !is_alias {
        return Ok(items);
    }
    let ids = items.iter().map(|item| if let Item::Tokens(tokens) = item { tokens.len() } else { 0 });
    share.keep(FOREIGN_BYTES * ids.sum::<usize>()).await?;
    // The first use builds the table, which takes a moment.
    let read = move || items.into_iter().map(|item| as_text(cl100k_base_singleton(), "input", item)).collect();
    share.run("read token ids", read).await
}

/// Turns token ids into text. Bytes of a character that was cut become a replacement character.
fn as_text(table: &CoreBPE, param: &str, item: Item) -> Result<Item> {
    let Item::Tokens(ids) = item else { return Ok(item) };
    if ids.is_empty() {
        return Err(Problem::invalid(param, format!("'{param}' must not hold an empty array of token ids.")));
    }
    match table.decode_bytes(&ids as &[Rank]) {
        Ok(bytes) => Ok(Item::Text(String::from_utf8_lossy(&bytes).into_owned())),
        Err(fault) => {
            let message = format!(
                "'{param}' holds the token id {}, which cl100k_base does not have: under this model's name token ids are \
                 those of cl100k_base.",
                fault.token
            );
            Err(Problem::invalid(param, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::http::share::Resources;
    use crate::config::limits::Limits;

    const TEXT: &str = "Wo liegt Kessing? 東京 🙂, said  the café.";

    async fn read(model: &str, items: Vec<Item>) -> Result<Vec<Item>> {
        let share = Resources::new(&Limits::default()).share("a".into());
        own_items(["text-embedding-3-small", "ada"].contains(&model), &share, model, items).await
    }

    #[tokio::test]
    async fn the_table_is_the_one_that_clients_use() {
        // `tests/sdk/test_aliases.py` sends these.
        let ids = vec![791, 15140, 8640, 1555, 279, 2362, 6424, 13];
        let text = "The river runs through the old town.";
        assert_eq!(cl100k_base_singleton().encode_ordinary(text), ids);
        let read = read("text-embedding-3-small", vec![Item::Tokens(ids)]).await.expect("a text");
        assert_eq!(read, [Item::Text(text.into())]);
    }

    #[tokio::test]
    async fn ids_under_the_name_of_an_openai_model_become_the_text_that_they_were() {
        let ids = cl100k_base_singleton().encode_ordinary(TEXT);
        let items = vec![Item::Tokens(ids), Item::Text("as it is".into())];
        let read = read("text-embedding-3-small", items).await.expect("texts");
        assert_eq!(read, [Item::Text(TEXT.into()), Item::Text("as it is".into())]);
    }

    #[tokio::test]
    async fn ids_under_any_other_name_are_the_models_own() {
        for name in ["ada", "demo", "text-embedding-4"] {
            let items = vec![Item::Tokens(vec![1, 2])];
            assert_eq!(read(name, items.clone()).await.expect("ids"), items, "{name}");
        }
    }

    #[tokio::test]
    async fn half_a_character_does_not_fail_the_text() {
        let ids = cl100k_base_singleton().encode_ordinary("🙂");
        assert!(ids.len() > 1, "the character is cut below");
        let read = read("text-embedding-3-small", vec![Item::Tokens(ids[..1].to_vec())]).await.expect("a text");
        assert!(matches!(&read[..], [Item::Text(text)] if text.contains('\u{fffd}')), "{read:?}");
    }

    #[tokio::test]
    async fn ids_that_cl100k_does_not_have_are_refused() {
        for id in [100_256, 100_300, u32::MAX] {
            let fault = read("text-embedding-3-small", vec![Item::Tokens(vec![1, id])]).await.expect_err("no such id");
            assert!(fault.to_string().contains(&id.to_string()), "{fault}");
        }
        assert!(read("text-embedding-3-small", vec![Item::Tokens(Vec::new())]).await.is_err());
    }
}
