//! What Attune and the engine in another process say to each other over a Unix socket: token ids in, token ids with log
//! probabilities out. A frame is its length (4 bytes, little-endian) and a JSON object. Used by [`super`] and by the program
//! `attune-mistralrs` at the other end.

use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the protocol; both ends must have the same.
pub const VERSION: u32 = 2;
/// Most bytes of a frame. The largest is a prompt as long as a context of a million tokens.
pub const MOST_BYTES: usize = 64 << 20;

/// What Attune says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum ToChild {
    /// Load the model; the first frame, and sent once.
    Load(Load),
    /// Continue a prompt.
    Generate(Generate),
    /// The tokens that may come next in an answer that follows a grammar; one frame before each token but the first.
    Allow {
        /// The answer.
        request: u64,
        /// A bit for each token.
        tokens: Vec<u32>,
    },
    /// Nobody wants the rest of an answer.
    Cancel {
        /// The answer.
        request: u64,
    },
}

/// The model and how it is held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// [`VERSION`] of Attune.
    pub version: u32,
    /// Folder in Hugging Face form.
    pub path: PathBuf,
    /// Type of the weights (`f32`, `bf16`, `f16`); `None` for the device's usual one.
    pub dtype: Option<String>,
    /// Block format to quantize to at load.
    pub quantize: Option<String>,
    /// Folder of a PEFT adapter that is added to the weights.
    pub adapter: Option<PathBuf>,
    /// Compute on the CPU although there is a GPU.
    pub on_cpu: bool,
    /// Sequences that run at the same time.
    pub max_sequences: usize,
    /// Memory for keys and values of paged attention on a GPU, in MiB; `None` leaves it to the engine.
    pub cache_mib: Option<usize>,
}

/// A prompt to continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// Number of the answer, which all further frames name.
    pub request: u64,
    /// Token ids.
    pub prompt: Vec<u32>,
    /// Most new tokens; 0 asks for the prompt's log probabilities alone.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub draw: Draw,
    /// Number of most probable tokens to tell with each token; `None` for no log probabilities at all.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt, which are told before the first token.
    pub prompt_logprobs: Option<usize>,
    /// Tokens behind which Attune ends the answer: nothing needs to be computed for what would follow.
    pub ends: Vec<u32>,
    /// The tokens that may come first, a bit for each; `None` without a grammar.
    pub allowed: Option<Vec<u32>>,
}

/// Copy of [`TokenLogprobs`](crate::logprobs::TokenLogprobs).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// A token's id.
    pub id: u32,
    /// Its log probability.
    pub logprob: f32,
    /// The most probable tokens in its place with theirs.
    pub top: Vec<(u32, f32)>,
}

/// Copy of [`Sampling`](crate::Sampling), whose fields say what these mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of Sampling")]
pub struct Draw {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: usize,
    pub min_p: f32,
    pub seed: Option<u64>,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repetition_penalty: f32,
    pub logit_bias: Vec<(u32, f32)>,
}

/// What the engine says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum FromChild {
    /// The model is being loaded; said again and again while it is.
    Loading {
        /// Bytes of memory that the process has.
        resident_bytes: u64,
    },
    /// The model is loaded; requests may come.
    Ready {
        /// [`VERSION`] of the engine.
        version: u32,
        /// Tokens that a sequence may have.
        context: usize,
        /// Bytes of memory that the process has.
        resident_bytes: u64,
    },
    /// The model cannot be loaded; the process ends.
    Unfit {
        /// Why.
        message: String,
    },
    /// Log probabilities of tokens of the prompt, in order from the second one on; several frames for a long prompt.
    Prompt {
        /// The answer.
        request: u64,
        /// The tokens.
        tokens: Vec<Scored>,
    },
    /// A token was drawn.
    Token {
        /// The answer.
        request: u64,
        /// Its id.
        token: u32,
        /// Its log probability, if log probabilities were asked for.
        logprob: Option<f32>,
        /// The most probable tokens with theirs.
        top: Vec<(u32, f32)>,
    },
    /// The engine ended the answer behind its last token.
    Ended {
        /// The answer.
        request: u64,
        /// True if it met a limit of length, false if the token before was one of its ends.
        at_length: bool,
    },
    /// The answer failed.
    Failed {
        /// The answer.
        request: u64,
        /// Why, for the log.
        message: String,
    },
}

/// Writes a frame.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let mut frame = vec![0_u8; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MOST_BYTES {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes is too long")));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    stream.write_all(&frame)
}

/// Reads the next frame; `None` if the other end has gone between two frames.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0_u8; 4];
    if let Err(error) = stream.read_exact(&mut length) {
        return if error.kind() == ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST_BYTES {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes is too long")));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    Ok(Some(serde_json::from_slice(&frame)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let said = [
            FromChild::Ready { version: VERSION, context: 128, resident_bytes: 9 },
            FromChild::Token { request: 7, token: 3, logprob: Some(-0.1), top: vec![(3, -0.1), (1, f32::MIN)] },
            FromChild::Prompt { request: 7, tokens: vec![Scored { id: 2, logprob: -1.5, top: Vec::new() }] },
            FromChild::Ended { request: 7, at_length: true },
        ];
        let mut bytes = Vec::new();
        for message in &said {
            write(&mut bytes, message).unwrap();
        }
        let mut stream = bytes.as_slice();
        for message in &said {
            assert_eq!(read::<FromChild>(&mut stream).unwrap().as_ref(), Some(message));
        }
        assert_eq!(read::<FromChild>(&mut stream).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_an_error_and_reserves_nothing() {
        let too_long = (MOST_BYTES as u32 + 1).to_le_bytes();
        assert!(read::<FromChild>(&mut too_long.as_slice()).is_err());
        let cut = [9, 0, 0, 0, b'{'];
        assert!(read::<FromChild>(&mut cut.as_slice()).is_err());
        let unknown = b"\x0e\0\0\0{\"say\":\"what\"}";
        assert!(read::<FromChild>(&mut unknown.as_slice()).is_err());
    }
}
