//! `attune embed`: makes vectors of the texts of a file on a running server, several requests at a time, and writes them
//! to a file in the order of the texts. Progress goes to standard error; standard output is the path of the vectors, for
//! scripts. What is written stays: the next start goes on behind it.

mod corpus;
mod vectors_file;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use futures::stream::{self, StreamExt as _};
use reqwest::Method;
use serde_json::{Map, Value, json};

use self::corpus::{Corpus, Text};
use self::vectors_file::{Origin, VectorsFile};
use super::client::{Failure, Server, ServerPlace};
use super::output::{line, note};
use super::progress::Progress;
use crate::{Error, Result, format};

/// The field of a request with its texts.
const TEXTS: &str = "input";
/// Requests that wait for their answers at a time: while the server computes one, others are on their way.
const IN_FLIGHT: usize = 4;
/// The first and the longest pause before a server that does not say when is asked again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The flags of `attune embed`.
#[derive(Debug, Args)]
pub(super) struct EmbedOptions {
    #[command(flatten)]
    place: ServerPlace,
    /// Read the texts from this file: JSON Lines, or one text in each line.
    file: PathBuf,
    /// Make the vectors with this model.
    #[arg(long, value_name = "ID")]
    model: String,
    /// Write the vectors to this file: JSON Lines, or an array of NumPy if its name ends with `.npy` [default: FILE with
    /// the ending `.vectors.jsonl`].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take the text of a line of JSON from this field; the field `id` is passed on.
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_field: String,
    /// Put the model's prompt of this name before each text, such as `query`.
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
    /// Make vectors of this many values.
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Cut texts that are too long for the model, instead of ending with the first one.
    #[arg(long)]
    truncate: bool,
    /// Send this many texts with each request.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch: usize,
    /// Give up after this many seconds without vectors from the server.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    patience: u64,
}

impl EmbedOptions {
    /// Writes the vectors and prints the path of their file.
    pub(super) async fn run(self) -> Result<()> {
        let corpus = Corpus::read(&self.file, &self.text_field)?;
        let output = self.output.clone().unwrap_or_else(|| self.file.with_extension("vectors.jsonl"));
        let origin = Origin { request: self.fields(), texts: corpus.texts, digest: corpus.digest.clone() };
        let mut vectors = VectorsFile::open(&output, &origin)?;
        let progress = Progress::new(corpus.texts, vectors.written());
        if vectors.written() > 0 {
            progress.say(&format!("{} texts were done before", format::count(vectors.written() as f64)));
        }
        let asker = &Asker {
            server: self.place.server()?,
            fields: origin.request,
            patience: Duration::from_secs(self.patience),
            progress: &progress,
            file: &self.file,
        };
        let batches = Batches { texts: corpus.open()?.skip(vectors.written()), size: self.batch };
        let requests = stream::iter(batches).map(|batch| async move { asker.vectors(batch?).await });
        let mut answers = Box::pin(requests.buffered(IN_FLIGHT));
        while let Some(answer) = answers.next().await {
            let (texts, made) = answer?;
            vectors.write(&texts, &made)?;
            progress.reached(vectors.written());
        }
        vectors.finish()?;
        progress.clear();
        note(format_args!("{} vectors", format::count(corpus.texts as f64)));
        line(output.display())
    }

    /// Returns the fields of each request beside its texts.
    fn fields(&self) -> Map<String, Value> {
        let fields = [
            ("model", Some(json!(self.model))),
            ("prompt_name", self.prompt_name.as_ref().map(|name| json!(name))),
            ("dimensions", self.dimensions.map(|width| json!(width))),
            ("truncate", self.truncate.then(|| json!(true))),
            ("encoding_format", Some(json!("base64"))),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// Groups of texts for one request each.
struct Batches<T> {
    texts: T,
    size: usize,
}

impl<T: Iterator<Item = Result<Text>>> Iterator for Batches<T> {
    type Item = Result<Vec<Text>>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch: Result<Vec<Text>> = self.texts.by_ref().take(self.size).collect();
        Some(batch).filter(|batch| !batch.as_ref().is_ok_and(Vec::is_empty))
    }
}

/// Asks for the vectors of texts.
struct Asker<'a> {
    server: Server,
    fields: Map<String, Value>,
    patience: Duration,
    progress: &'a Progress,
    /// The file of the texts, for messages.
    file: &'a PathBuf,
}

impl Asker<'_> {
    /// Returns the texts of a batch with their vectors. Where a text of it is refused, each is asked for alone, so that the
    /// message names the line that is at fault.
    async fn vectors(&self, batch: Vec<Text>) -> Result<(Vec<Text>, Vec<Vec<f32>>)> {
        match self.ask(&batch).await {
            Ok(vectors) => return Ok((batch, vectors)),
            Err(failure) if failure.is_of_field(TEXTS) => {}
            Err(failure) => return Err(failure.into()),
        }
        let mut vectors = Vec::with_capacity(batch.len());
        for text in &batch {
            let asked = self.ask(std::slice::from_ref(text)).await;
            vectors.extend(asked.map_err(|failure| match failure {
                Failure::Refused { ref message, .. } if failure.is_of_field(TEXTS) => {
                    Error::Setup(format!("{} line {}: {message}", self.file.display(), text.line))
                }
                failure => failure.into(),
            })?);
        }
        Ok((batch, vectors))
    }

    /// Asks until there is an answer, or patience has an end.
    async fn ask(&self, texts: &[Text]) -> Result<Vec<Vec<f32>>, Failure> {
        let mut body = self.fields.clone();
        body.insert(TEXTS.into(), texts.iter().map(|text| text.content.as_str()).collect());
        let (begin, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let request = self.server.request(Method::POST, &["embeddings"], &[]).json(&body);
            match self.server.answer(request).await {
                Ok(answer) => return read(&answer, texts.len()),
                Err(Failure::Away { message, after }) => {
                    let wait = after.unwrap_or(pause);
                    if begin.elapsed() + wait >= self.patience {
                        return Err(Failure::Away { message, after });
                    }
                    let seconds = format::duration(wait.as_secs_f64());
                    self.progress.say_once(&format!("{message}; asking again in {seconds}"));
                    tokio::time::sleep(wait).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                Err(refused) => return Err(refused),
            }
        }
    }
}

/// Reads `count` vectors, in the order of the texts.
fn read(answer: &Value, count: usize) -> Result<Vec<Vec<f32>>, Failure> {
    let vectors = answer["data"].as_array().map(|data| data.iter().map(vector).collect::<Option<Vec<_>>>());
    match vectors.flatten() {
        Some(vectors) if vectors.len() == count => Ok(vectors),
        _ => Err(Failure::Refused {
            message: format!("the server's answer does not hold {count} vectors in base64: is it Attune?"),
            is_at_fault: false,
            param: None,
        }),
    }
}

/// Reads a vector: base64 of little-endian 32-bit floats.
fn vector(item: &Value) -> Option<Vec<f32>> {
    let bytes = STANDARD.decode(item["embedding"].as_str()?).ok()?;
    let (values, rest) = bytes.as_chunks::<4>();
    (rest.is_empty() && !values.is_empty()).then(|| values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_read_of_base64_and_all_must_be_there() {
        let one = json!({"embedding": "AAAAPwAAgL8="});
        assert_eq!(read(&json!({"data": [one, one]}), 2).expect("vectors"), [[0.5, -1.0], [0.5, -1.0]]);
        for (answer, count) in [
            (json!({"data": [one]}), 2),
            (json!({"data": [{"embedding": [0.5]}]}), 1),
            (json!({"data": [{"embedding": "AAAA"}]}), 1),
            (json!({}), 0),
        ] {
            assert!(read(&answer, count).is_err(), "{answer}");
        }
    }
}
