//! Tokenizers that do not fit their embedding: a model loads without the added tokens that it has no rows for, as text
//! models cut out of models with pictures have them, and no text becomes an id beyond the embedding.

use std::path::Path;

use attune::model::entry::ModelEntry;
use attune::model::tokenizer::Tokenizer;
use attune::model::{BaseModel, Result};
use serde_json::{Value, json};

/// What no row belongs to.
const PICTURE: &str = "<image_soft_token>";
const TEXT: &str = "Where is <image_soft_token><|im_end|> the town?";

fn demo() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

fn load(path: &Path) -> Result<BaseModel> {
    BaseModel::load_on(&ModelEntry::new("demo", path), &crate::kernels())
}

/// Makes a copy of the demo model with a change of its `tokenizer.json`.
fn changed(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    change(&mut tokenizer);
    std::fs::write(file, tokenizer.to_string()).unwrap();
    folder
}

fn add(tokenizer: &mut Value, id: u32, content: &str) {
    let mut token = tokenizer["added_tokens"][0].clone();
    (token["id"], token["content"]) = (id.into(), content.into());
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
}

/// Checks that the model has no token for the picture.
fn check(model: &BaseModel) {
    let original = Tokenizer::read(&demo()).unwrap();
    let (tokenizer, rows) = (&model.tokenizer, model.config.vocab_size);
    assert_eq!((tokenizer.vocabulary_size(), rows), (2048, 2048));
    for text in [TEXT, PICTURE, "<|im_start|>user\nHi<|im_end|>", " a  b\n"] {
        for special in [false, true] {
            let ids = tokenizer.encode(text, special).unwrap();
            assert_eq!(ids, original.encode(text, special).unwrap(), "{text}");
            assert!(ids.iter().all(|id| (*id as usize) < rows));
        }
    }
    assert_eq!(tokenizer.decode(&tokenizer.encode(TEXT, false).unwrap(), false).unwrap(), TEXT);
    assert_eq!((tokenizer.token(PICTURE), tokenizer.special_token(PICTURE)), (None, None));
    assert_eq!(tokenizer.special_token("<|im_end|>"), original.special_token("<|im_end|>"));
    let vocabulary = model.vocabulary.as_ref().expect("grammars work");
    assert_eq!(vocabulary.size(), rows);
    assert_eq!(vocabulary.token_bytes(2047), tokenizer.decode(&[2047], false).unwrap().as_bytes());
}

#[test]
fn added_tokens_without_a_row_are_text_in_a_folder() {
    let folder = changed(|tokenizer| add(tokenizer, 2048, PICTURE));
    check(&load(folder.path()).unwrap());
    // It may be a word of the vocabulary as well.
    let folder = changed(|tokenizer| {
        tokenizer["model"]["vocab"][PICTURE] = 2048.into();
        add(tokenizer, 2048, PICTURE);
    });
    check(&load(folder.path()).unwrap());
}

#[test]
fn added_tokens_without_a_row_are_text_in_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.gguf");
    crate::gguf::write_demo(&[PICTURE], &file);
    check(&load(&file).unwrap());
}

#[test]
fn a_text_that_would_become_a_token_without_a_row_is_refused_by_the_tokens_name() {
    let folder = changed(|tokenizer| {
        // A word that is in the vocabulary is taken whole.
        tokenizer["model"]["ignore_merges"] = true.into();
        tokenizer["model"]["vocab"]["picture"] = 2048.into();
        add(tokenizer, 2048, "picture");
    });
    let model = load(folder.path()).unwrap();
    let refused = model.tokenizer.encode("picture", false).unwrap_err().to_string();
    assert!(refused.contains("no embedding for the token `picture`"), "{refused}");
    assert!(model.tokenizer.encode("pictures", false).is_ok());
}

#[test]
fn other_tokens_without_a_row_are_refused() {
    let said = |folder: tempfile::TempDir| load(folder.path()).unwrap_err().to_string();
    let words = changed(|tokenizer| tokenizer["model"]["vocab"]["zzz"] = 2048.into());
    assert!(said(words).contains("the tokenizer has 2049 tokens, the embedding only 2048 rows"));
    let begins = changed(|tokenizer| {
        add(tokenizer, 2048, "<s>");
        let mark = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing", "single": [mark, text("A")], "pair": [mark, text("A"), text("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [2048], "tokens": ["<s>"]}}});
    });
    assert!(said(begins).contains("the token 2048 `<s>` begins or ends texts"));
}
