//! Adapters that come from elsewhere: the two PEFT files out of a folder or a tar archive, with strict limits.
//!
//! Called by `api/models/lora_adapters.rs` off the async threads. Only names and sizes are judged here; [`super::peft`]
//! judges the content of the files.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use crate::adapters::peft::PeftFiles;
use crate::adapters::pieces::Pieces;
use crate::adapters::{Error, Result};

/// The files of a PEFT folder.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Bytes of `adapter_config.json` at the most.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Entries of an archive at the most, its invisible ones included.
const MAX_ENTRIES: usize = 16;
/// Bytes of an invisible entry (an archiver's note about the next one) at the most.
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Bytes that an archive has beside its two files at the most.
const ARCHIVE_BYTES: u64 = MAX_CONFIG_BYTES + MAX_ENTRIES as u64 * (MAX_NOTE_BYTES + 1024) + (64 << 10);
/// Where the server keeps its own things inside the data folder.
const OWN_FOLDERS: [&str; 3] = ["blobs", "postgres", "tmp"];

/// Returns the bytes that an archive may have if its weights may have `max_weights`.
pub const fn max_archive_bytes(max_weights: u64) -> u64 {
    max_weights.saturating_add(ARCHIVE_BYTES)
}

/// Returns the error for a path or an archive that cannot be taken because of `why`.
fn refuse(why: impl std::fmt::Display) -> Error {
    Error::Source(why.to_string())
}

/// The open files of a PEFT folder. They are opened before they are judged, so a change of the folder meanwhile does
/// not matter.
pub struct Folder {
    config: File,
    weights: File,
    max_weights: u64,
}

impl Folder {
    /// Opens the PEFT folder at `path`, which must lie below `data_dir`; a path that is not absolute begins there.
    /// Links are followed if they stay below it.
    pub fn open(data_dir: &Path, path: &Path, max_weights: u64) -> Result<Self> {
        let root = data_dir.canonicalize().map_err(Error::io(format!("find {}", data_dir.display())))?;
        let folder = inside(&root, data_dir, path)?;
        if folder == root || is_own(&root, &folder) {
            return Err(refuse("the server keeps its own files there; name another folder below data_dir"));
        }
        let open = |name: &str| {
            let file =
                folder.join(name).canonicalize().map_err(|_| refuse(format_args!("the folder has no {name}")))?;
            if !file.starts_with(&root) || is_own(&root, &file) {
                return Err(refuse(format_args!("{name} is a link that leads out of it")));
            }
            open_file(&file, name)
        };
        Ok(Self { config: open(CONFIG)?, weights: open(WEIGHTS)?, max_weights })
    }

    /// Bytes that reading takes, as far as can be known before.
    pub fn bytes(&self) -> u64 {
        self.weights.metadata().map_or(0, |metadata| metadata.len()).min(self.max_weights)
    }

    /// The content of both files.
    pub fn read(self, pieces: &mut Pieces<'_>) -> Result<PeftFiles> {
        let bytes = self.bytes();
        let config = read_all(self.config, CONFIG, 0, MAX_CONFIG_BYTES, pieces)?;
        Ok(PeftFiles { config, weights: read_all(self.weights, WEIGHTS, bytes, self.max_weights, pieces)? })
    }
}

/// True if `path`, which has no links, is or lies in one of the server's own folders.
fn is_own(root: &Path, path: &Path) -> bool {
    OWN_FOLDERS.iter().any(|own| path.starts_with(root.join(own)))
}

/// Resolves `path` to a folder below `root`. Nothing outside `root` is looked at, so that nobody learns what is there.
fn inside(root: &Path, data_dir: &Path, path: &Path) -> Result<PathBuf> {
    let outside = || refuse("it must be a folder below the server's data_dir, or the id of an uploaded file");
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(refuse("it must not hold `..`"));
    }
    let asked = path;
    let path = match (path.is_absolute(), path.strip_prefix(data_dir)) {
        (false, _) => root.join(path),
        (true, Ok(below)) => root.join(below),
        (true, Err(_)) if path.starts_with(root) => path.to_path_buf(),
        (true, Err(_)) => return Err(outside()),
    };
    match path.canonicalize() {
        Ok(place) if place.starts_with(root) => Ok(place),
        Ok(_) => Err(outside()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(Error::FolderNotFound(asked.display().to_string()))
        }
        Err(error) => Err(refuse(format_args!("it cannot be read ({error})"))),
    }
}

/// A regular file. Neither a link put there meanwhile nor a pipe holds it up.
fn open_file(path: &Path, name: &str) -> Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = file.map_err(|error| refuse(format_args!("{name} cannot be read: {error}")))?;
    let is_file = file.metadata().map_err(Error::io(format!("read {}", path.display())))?.is_file();
    if !is_file {
        return Err(refuse(format_args!("{name} is not a file")));
    }
    Ok(file)
}

/// Reads at most `limit` bytes, more of which are an error, in one stretch of memory if there are no more than
/// `expected`.
fn read_all(mut content: impl Read, name: &str, expected: u64, limit: u64, pieces: &mut Pieces<'_>) -> Result<Vec<u8>> {
    let unreadable = |error| refuse(format_args!("{name} cannot be read: {error}"));
    let mut bytes = pieces.read(&mut content, expected as usize, |_| {}).map_err(unreadable)?;
    // What was not expected: a file that grows meanwhile.
    let rest = limit.saturating_add(1).saturating_sub(bytes.len() as u64);
    Read::take(&mut content, rest).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(refuse(format_args!("{name} is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads a tar archive that holds the two files and nothing else, as the download of an adapter gives it.
pub fn read_archive(archive: File, max_weights: u64, pieces: &mut Pieces<'_>) -> Result<PeftFiles> {
    let bytes = archive.metadata().map_or(0, |metadata| metadata.len());
    let mut archive = tar::Archive::new(std::io::BufReader::with_capacity(1 << 20, archive));
    let (mut config, mut weights) = (None, None);
    // Raw: names from notes, whose length nobody checks, and sparse files are not unfolded.
    let entries = archive.entries().map_err(|error| not_a_tar(&error))?.raw(true);
    for (index, entry) in entries.enumerate() {
        let mut entry = entry.map_err(|error| not_a_tar(&error))?;
        if index == MAX_ENTRIES {
            return Err(refuse(format_args!("the archive has more than {MAX_ENTRIES} entries")));
        }
        let name = String::from_utf8_lossy(&entry.header().path_bytes()).into_owned();
        let file = name.strip_prefix("./").unwrap_or(&name).to_owned();
        match entry.header().entry_type() {
            EntryType::Regular => {}
            EntryType::Directory if matches!(&*file, "" | ".") => continue,
            // Times and the like; a name in it is ignored, and so is not one of the two.
            EntryType::XHeader | EntryType::XGlobalHeader if entry.size() <= MAX_NOTE_BYTES => continue,
            _ => return Err(refuse(format_args!("the archive's entry `{name}` is not a plain file"))),
        }
        let (place, limit) = match &*file {
            CONFIG => (&mut config, MAX_CONFIG_BYTES),
            WEIGHTS => (&mut weights, max_weights),
            _ => {
                return Err(refuse(format_args!(
                    "the archive holds `{name}`; it must hold {CONFIG} and {WEIGHTS} alone, without a folder"
                )));
            }
        };
        let declared = entry.size();
        if declared > limit {
            return Err(refuse(format_args!("{file} is larger than {limit} bytes")));
        }
        let content = read_all(&mut entry, &file, declared.min(bytes), limit, pieces)?;
        if content.len() as u64 != declared {
            return Err(refuse(format_args!("the archive ends in the middle of {file}")));
        }
        if place.replace(content).is_some() {
            return Err(refuse(format_args!("the archive holds {file} twice")));
        }
    }
    match (config, weights) {
        (Some(config), Some(weights)) => Ok(PeftFiles { config, weights }),
        (None, _) => Err(refuse(format_args!("the archive has no {CONFIG}"))),
        (_, None) => Err(refuse(format_args!("the archive has no {WEIGHTS}"))),
    }
}

fn not_a_tar(error: &std::io::Error) -> Error {
    let what =
        if error.kind() == ErrorKind::UnexpectedEof { "ends too early" } else { "is not an uncompressed tar archive" };
    refuse(format_args!("the file {what} ({error})"))
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
