//! Fetches one file into the cache: resumed to the byte, checked against its checksum, and shown under its name only
//! when it is whole. Called by [`pull`](crate::pull).

use std::io::{ErrorKind, Read as _};
use std::path::Path;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use reqwest::{Response, StatusCode};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _, SeekFrom};

use crate::cache::RepositoryCache;
use crate::checksum::Sum;
use crate::client::{Client, Fault};
use crate::listing::RemoteFile;
use crate::lock::Lock;
use crate::name::Repository;
use crate::patience::Patience;
use crate::progress::Progress;
use crate::refusal::host;
use crate::{Error, Result};

/// Bytes of an unfinished file that are read at a time.
const PIECE: usize = 1 << 20;
/// How often a file is begun anew because the hub does not go on where it ended.
const MOST_RESTARTS: u32 = 3;

/// Where a file comes from and where it goes.
pub(crate) struct Source<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepositoryCache,
    pub(crate) repository: &'a Repository,
    pub(crate) commit: &'a str,
    /// Read the bytes that are there already, and fetch anew what is wrong.
    pub(crate) verify: bool,
    pub(crate) progress: &'a dyn Progress,
}

/// An unfinished file: its bytes so far, and their checksum.
struct Part<'a> {
    wanted: &'a RemoteFile,
    file: File,
    sum: Sum,
    length: u64,
    /// True if some bytes were there before this process.
    resumed: bool,
    /// How often all bytes were forgotten.
    restarts: u32,
}

impl Source<'_> {
    /// Fetches `file`, unless its bytes are there already.
    pub(crate) async fn fetch(&self, file: &RemoteFile) -> Result<()> {
        let digits = file.checksum.digits();
        let lock = Lock::take(&self.cache.lock(digits), || self.progress.waiting(&file.path)).await?;
        let blob = self.cache.blob(digits);
        if is_there(&blob, file.size) && (!self.verify || is_right(&blob, file).await?) {
            self.progress.reached(&file.path, file.size);
            return Ok(());
        }
        let mut path = self.cache.part(digits);
        if !lock.is_exclusive() {
            // Another process may be writing the same: without a lock each has a file of its own.
            path.set_extension(format!("{}.incomplete", std::process::id()));
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(format!("make {}", folder.display())))?;
        }
        let mut part = Part::open(&path, file).await?;
        self.fill(&mut part, &path).await?;
        part.file.flush().await.map_err(|error| full(&path, error))?;
        part.file.sync_all().await.map_err(|error| full(&path, error))?;
        drop(part);
        std::fs::rename(&path, &blob).map_err(Error::io(format!("rename {}", path.display())))?;
        drop(lock);
        Ok(())
    }

    /// Fetches what is missing, again and again, until the checksum is right.
    async fn fill(&self, part: &mut Part<'_>, path: &Path) -> Result<()> {
        let mut patience = Patience::default();
        loop {
            self.progress.reached(&part.wanted.path, part.length);
            if part.length == part.wanted.size {
                match part.check() {
                    Ok(()) => return Ok(()),
                    // What an earlier process left may be damaged: once from the start.
                    Err(_) if part.resumed => part.restart(path).await?,
                    Err(error) => {
                        let _ = std::fs::remove_file(path);
                        return Err(error);
                    }
                }
            }
            let before = part.length;
            match self.stream(part, path).await {
                Ok(()) => {}
                Err(Fault::Final(error)) => {
                    if matches!(error, Error::WrongBytes { .. }) {
                        let _ = std::fs::remove_file(path);
                    }
                    return Err(error);
                }
                Err(Fault::Passing { error, wait }) => {
                    if part.length > before {
                        patience.reset();
                    }
                    let name = &part.wanted.path;
                    patience.rest((error, wait), |error, pause| self.progress.retrying(name, error, pause)).await?;
                }
            }
        }
    }

    /// Appends the bytes of one answer.
    async fn stream(&self, part: &mut Part<'_>, path: &Path) -> Result<(), Fault> {
        let wanted = part.wanted;
        if part.length == wanted.size {
            return Ok(());
        }
        let mut response = self.client.file(self.repository, self.commit, &wanted.path, part.length).await?;
        if part.length > 0 && !continues(&response, part.length) {
            // The range was ignored, or cannot be had: from the start.
            part.restart(path).await?;
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && part.restarts <= MOST_RESTARTS {
                return Ok(());
            }
        }
        check_answer(&response, wanted, part.length)?;
        let host = host(response.url());
        loop {
            let chunk = response.chunk().await.map_err(|error| self.client.broken(&host, &error))?;
            let Some(chunk) = chunk else { break };
            if part.length + chunk.len() as u64 > wanted.size {
                return Err(wrong(wanted, &format!("more than {} bytes", wanted.size)).into());
            }
            part.file.write_all(&chunk).await.map_err(|error| full(path, error))?;
            part.sum.add(&chunk);
            part.length += chunk.len() as u64;
            self.progress.reached(&wanted.path, part.length);
        }
        part.file.flush().await.map_err(|error| full(path, error))?;
        if part.length < wanted.size {
            let reason = format!("the connection ended after {} of {} bytes", part.length, wanted.size);
            return Err(Fault::Passing { error: Error::Unreachable { host, reason }, wait: None });
        }
        Ok(())
    }
}

impl<'a> Part<'a> {
    /// Opens the unfinished file at `path`, and reads what an earlier process has left there.
    async fn open(path: &Path, wanted: &'a RemoteFile) -> Result<Self> {
        let fault = || Error::io(format!("open {}", path.display()));
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path).await.map_err(fault())?;
        let there = file.metadata().await.map_err(fault())?.len();
        let mut sum = Sum::of(wanted);
        if there > wanted.size {
            file.set_len(0).await.map_err(fault())?;
        } else if there > 0 {
            let copy = file.try_clone().await.map_err(fault())?.into_std().await;
            sum = read_into(sum, copy).await.map_err(fault())?;
        }
        let length = if there > wanted.size { 0 } else { there };
        file.seek(SeekFrom::Start(length)).await.map_err(fault())?;
        Ok(Self { wanted, file, sum, length, resumed: length > 0, restarts: 0 })
    }

    /// Forgets all bytes.
    async fn restart(&mut self, path: &Path) -> Result<()> {
        let fault = || Error::io(format!("empty {}", path.display()));
        self.file.set_len(0).await.map_err(fault())?;
        self.file.seek(SeekFrom::Start(0)).await.map_err(fault())?;
        (self.sum, self.length, self.resumed) = (Sum::of(self.wanted), 0, false);
        self.restarts += 1;
        Ok(())
    }

    /// Compares the checksum of all bytes.
    fn check(&self) -> Result<()> {
        let found = self.sum.digits();
        if found == self.wanted.checksum.digits() {
            return Ok(());
        }
        Err(wrong(self.wanted, &format!("checksum {found} instead of {}", self.wanted.checksum.digits())))
    }
}

/// Adds all bytes of `file` to `sum`, on a thread for such work.
async fn read_into(mut sum: Sum, mut file: std::fs::File) -> std::io::Result<Sum> {
    let read = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; PIECE];
        loop {
            let count = file.read(&mut piece)?;
            if count == 0 {
                return Ok(sum);
            }
            sum.add(&piece[..count]);
        }
    });
    read.await.map_err(std::io::Error::other)?
}

/// Returns true if the bytes at `blob` have the checksum of `file`.
async fn is_right(blob: &Path, file: &RemoteFile) -> Result<bool> {
    let fault = || Error::io(format!("read {}", blob.display()));
    let sum = read_into(Sum::of(file), std::fs::File::open(blob).map_err(fault())?).await.map_err(fault())?;
    Ok(sum.digits() == file.checksum.digits())
}

/// Returns true if the bytes of a file are there.
pub(crate) fn is_there(blob: &Path, size: u64) -> bool {
    std::fs::metadata(blob).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// Returns true if an answer goes on at byte `offset`.
fn continues(response: &Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    let start = range.strip_prefix("bytes ").and_then(|range| range.split_once('-')).map(|(start, _)| start.trim());
    response.status() == StatusCode::PARTIAL_CONTENT && start.and_then(|start| start.parse().ok()) == Some(offset)
}

/// Refuses an answer that cannot hold the rest of `wanted`, before its bytes are read.
fn check_answer(response: &Response, wanted: &RemoteFile, offset: u64) -> Result<()> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let length: Option<u64> = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let missing = wanted.size - offset;
    let path = &wanted.path;
    let reason = match length {
        _ if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => {
            format!("it has no bytes of {path} after {offset}, and the file has {}", wanted.size)
        }
        Some(length) if length != missing && header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html")) => {
            format!("a web page came instead of {path}; is there a proxy that wants a login?")
        }
        Some(length) if length != missing => format!("{path}: {length} bytes are announced instead of {missing}"),
        _ => return Ok(()),
    };
    Err(Error::Answer { host: host(response.url()), reason })
}

fn wrong(file: &RemoteFile, reason: &str) -> Error {
    Error::WrongBytes { file: file.path.clone(), reason: reason.to_owned() }
}

/// Returns the error of writing to `path`; a full disk, or a quota that is used up, is told as such.
fn full(path: &Path, error: std::io::Error) -> Error {
    let kinds = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
    let context = format!("write {}", path.display());
    if kinds.contains(&error.kind()) {
        let advice = "make room or set HF_HOME to a folder on another disk; what has been downloaded is kept";
        return Error::io(format!("{context}: the disk is full; {advice}"))(error);
    }
    Error::io(context)(error)
}
