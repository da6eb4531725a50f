//! Whole files into a folder of this machine, such that a written blob is complete or absent and outlives a power cut.
//! Called by [`Blobs`](super::Blobs).

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{CHUNK_BYTES, PUT_ATTEMPTS};

/// Rest after a piece that is written beside requests, as a multiple of the time that it took.
const REST: u32 = 3;
/// The same at the most: a slow disk takes no core.
const LONGEST_REST: Duration = Duration::from_millis(10);

/// Memory that a disk takes without a copy: as large as, and aligned to, any disk's blocks.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

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
    let whole = content.len() / size_of::<Page>() * size_of::<Page>();
    let mut pages = vec![Page::zeroed(); CHUNK_BYTES.min(whole) / size_of::<Page>()];
    let mut past_cache = past_cache(&file, true);
    for piece in content[..whole].chunks(CHUNK_BYTES) {
        let begin = Instant::now();
        let aligned: &mut [u8] = &mut bytemuck::must_cast_slice_mut(&mut pages)[..piece.len()];
        aligned.copy_from_slice(piece);
        match file.write_all(aligned) {
            // The file system has no such way after all; nothing was written.
            Err(error) if past_cache && error.kind() == ErrorKind::InvalidInput => {
                past_cache = self::past_cache(&file, false);
                file.write_all(aligned)?;
            }
            written => written?,
        }
        std::thread::sleep((REST * begin.elapsed()).min(LONGEST_REST));
    }
    self::past_cache(&file, false);
    file.write_all(&content[whole..])
}

/// Lets writes of whole pages go past the page cache, or no longer: they cost a core half as much, and leave nothing to
/// flush. Returns whether they do; a file system may have no such way.
fn past_cache(file: &File, wanted: bool) -> bool {
    let flags = if wanted { OFlag::O_DIRECT } else { OFlag::empty() };
    fcntl(file, FcntlArg::F_SETFL(flags)).is_ok() && wanted
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
