//! Whole files into a folder of this machine, such that a written blob is complete or absent and outlives a power cut.
//! Called by [`Blobs`](super::Blobs).

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{CHUNK_BYTES, PUT_ATTEMPTS};

/// Rest after a piece that is written beside requests, as a multiple of the time that it took.
const REST: u32 = 3;
/// The same at the most: a slow disk takes no core.
const LONGEST_REST: Duration = Duration::from_millis(10);

/// Writes `content` to a new file beside `target` in pieces with rests, then [renames](rename) it: a core is never
/// taken for long.
pub(super) fn write_with_rests(content: &[u8], target: &Path, folder: &Path) -> io::Result<()> {
    // The name of a file that is being staged, as the object store has them: a listing leaves it out.
    let mut staged = target.as_os_str().to_owned();
    staged.push(format!("#{}", rand::random::<u64>()));
    let staged = PathBuf::from(staged);
    let written = write_pieces(content, &staged).and_then(|()| rename(&staged, target, folder));
    if written.is_err() {
        // What was staged goes; the failure that matters is the first one.
        let _ = std::fs::remove_file(&staged);
    }
    written
}

fn write_pieces(content: &[u8], path: &Path) -> io::Result<()> {
    let mut file = with_folder(path, || File::create_new(path))?;
    for piece in content.chunks(CHUNK_BYTES) {
        let begin = Instant::now();
        file.write_all(piece)?;
        std::thread::sleep((REST * begin.elapsed()).min(LONGEST_REST));
    }
    Ok(())
}

/// Makes something in the folder of `path`, and that folder; again where a deletion took the folder away in between.
pub(super) fn with_folder<T>(path: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let parent = path.parent().unwrap_or(path);
    let mut attempt = 1;
    loop {
        match std::fs::create_dir_all(parent).and_then(|()| make()) {
            Err(error) if error.kind() == ErrorKind::NotFound && attempt < PUT_ATTEMPTS => attempt += 1,
            made => return made,
        }
    }
}

/// Renames `path` to `target`, which lies below `folder`; both survive a power cut once it returns.
pub(super) fn rename(path: &Path, target: &Path, folder: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    let parent = target.parent().unwrap_or(folder);
    with_folder(target, || std::fs::rename(path, target))?;
    // Folders on the way may be new, too.
    for changed in parent.ancestors().take_while(|changed| changed.starts_with(folder)) {
        File::open(changed)?.sync_all()?;
    }
    Ok(())
}
