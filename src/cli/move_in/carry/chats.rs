//! Stored chats, as a training file for each model and as they were.

use std::collections::BTreeMap;

use serde_json::json;

use super::forms::training_line;
use super::made::{Upload, cut};
use super::{Carry, KIND, MAX_NOTE};
use crate::Result;
use crate::cli::move_in::folder::OldCompletion;

impl Carry<'_> {
    /// Makes a training file of the stored chats of each model, and keeps the chats as they were.
    pub(super) async fn completions(&mut self) -> Result<()> {
        let mut models: BTreeMap<String, Vec<OldCompletion>> = BTreeMap::new();
        for chat in self.folder.completions()? {
            models.entry(chat.object["model"].as_str().unwrap_or("unknown").to_owned()).or_default().push(chat);
        }
        for (model, chats) in models {
            let (mut lines, mut kept) = (Vec::new(), Vec::new());
            for chat in &chats {
                let whole = json!({"completion": chat.object, "messages": chat.messages});
                kept.extend_from_slice(format!("{whole}\n").as_bytes());
                match training_line(chat) {
                    Ok(line) => lines.extend_from_slice(format!("{line}\n").as_bytes()),
                    Err(reason) => {
                        self.ledger.problem(&chat.id, format!("not in the training file of stored chats: {reason}"))?;
                    }
                }
            }
            // With what it is made of in its name: more chats make another file.
            let digest = digest(&kept);
            let name = cut(&model, 200);
            for (part, kind, purpose, content) in [
                ("", "chat.completions", "user_data", &kept),
                (":training", "chat.completions.training", "fine-tune", &lines),
            ] {
                if content.is_empty() {
                    continue;
                }
                let upload = Upload {
                    old_id: &format!("stored:{name}:{digest}{part}"),
                    filename: &format!("stored-{}{}.jsonl", name.replace(':', "-"), part.replace(':', "-")),
                    purpose,
                    content,
                    notes: vec![(KIND, kind.into()), ("openai_model", cut(&model, MAX_NOTE))],
                };
                match self.upload(upload).await? {
                    Ok(id) if purpose == "fine-tune" => self.done(|carried| &mut carried.completions, &model, id)?,
                    Ok(_) => {}
                    Err(reason) => self.ledger.problem(&model, format!("its stored chats are not copied: {reason}"))?,
                }
            }
        }
        Ok(())
    }
}

/// Returns the beginning of the checksum of `bytes`.
fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().take(6).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
