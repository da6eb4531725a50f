//! The content of an item that stands for a conversation: its summary, as clients keep it and send it again. Written by
//! `compaction`, read by `items`.
//!
//! It is not secret, since the client has the conversation itself; it is marked and carries a checksum, so that what
//! another server made, or what was cut on its way, is told from it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// What every content begins with.
const MARK: &str = "attune1.";
/// Bytes of the checksum.
const CHECK: usize = 8;

/// Writes a summary as the content of an item.
pub(super) fn write(summary: &str) -> String {
    let mut bytes = Sha256::digest(summary)[..CHECK].to_vec();
    bytes.extend_from_slice(summary.as_bytes());
    format!("{MARK}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Reads the summary of a content; `None` if this program did not write it so.
pub(super) fn read(content: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(content.strip_prefix(MARK)?).ok()?;
    let (check, summary) = bytes.split_at_checked(CHECK)?;
    let is_whole = Sha256::digest(summary)[..CHECK] == *check;
    is_whole.then(|| String::from_utf8(summary.to_vec()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        for summary in ["", "Ada lives by the sea.", "ä\n\u{0}"] {
            let content = write(summary);
            assert_eq!(read(&content).as_deref(), Some(summary));
            assert_eq!(read(&content[..content.len() - 1]), None, "cut");
            assert_eq!(read(&content.replace("attune1", "attune2")), None);
        }
        for foreign in ["", "attune1.", "gAAAAABpM0Yj", "attune1.AAAAAAAAAAAA"] {
            assert_eq!(read(foreign), None, "{foreign}");
        }
    }
}
