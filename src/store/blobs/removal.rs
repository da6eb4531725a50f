//! Takes blobs away in two steps, so that a mistaken removal can be undone: first out of their place by one rename,
//! then, once a look at the rows has confirmed that none names them, for good. Also lists what nobody else sees: files
//! that a killed process had half written. Called by [`crate::store::removal`] and the sweep.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use futures::TryStreamExt as _;
use object_store::ObjectStoreExt as _;
use object_store::path::Path as Key;
use uuid::Uuid;

use super::durable::with_folder;
use super::{Blobs, PUT_ATTEMPTS, absent_is_empty, checked};
use crate::off_thread::off_thread;
use crate::store::{Error, Result};

/// Folder of what was taken away and is not yet deleted.
const REMOVED: &str = "removed";

/// What was taken out of its place; only who holds this knows where it is now, but for the sweep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TakenAway {
    /// Where it was: `adapters/{sha256}` or `files/{id}`.
    pub place: String,
    /// Folder that it is below now.
    token: String,
}

/// A file in the store, complete or not.
#[derive(Debug, Clone)]
pub(crate) struct Remains {
    /// Its key; one that was not completed has a `#` and a number at the end.
    pub key: String,
    /// Time of the last write.
    pub modified: SystemTime,
}

impl Remains {
    /// True for a file whose writer has not completed it, and may be gone.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.key.contains('#')
    }
}

impl Blobs {
    /// Takes the blob or folder `place` out of its place; `None` if nothing is there.
    pub(crate) async fn take_away(&self, place: &str) -> Result<Option<TakenAway>> {
        let from = checked(place)?;
        let taken = TakenAway { place: place.into(), token: Uuid::new_v4().simple().to_string() };
        let Some(folder) = self.folder.clone() else {
            let moved = self.move_keys(&from, &taken.key()).await?;
            return Ok((moved > 0).then_some(taken));
        };
        let (from, to, top) = (folder.join(place), folder.join(taken.key()), folder.join(REMOVED));
        let moved = on_disk(place, move || {
            let moved = rename(&from, &to)?;
            // Where nothing was there to move, its new folder is of no use.
            if !moved {
                remove_tree(&to, &top)?;
            }
            Ok(moved)
        });
        Ok(moved.await?.then_some(taken))
    }

    /// Puts back what was taken away. What was written to its place meanwhile is the same, and stays or is replaced.
    pub(crate) async fn put_back(&self, taken: &TakenAway) -> Result<()> {
        let Some(folder) = self.folder.clone() else {
            self.move_keys(&Key::from(taken.key()), &taken.place).await?;
            return Ok(());
        };
        let (from, to) = (folder.join(taken.key()), folder.join(&taken.place));
        let top = folder.join(REMOVED);
        on_disk(&taken.place, move || {
            for file in files_below(&from)? {
                let target = file.path.strip_prefix(&from).map_err(io::Error::other)?;
                rename(&file.path, &if target.as_os_str().is_empty() { to.clone() } else { to.join(target) })?;
            }
            remove_tree(&from, &top)
        })
        .await
    }

    /// Deletes what was taken away.
    pub(crate) async fn discard(&self, taken: &TakenAway) -> Result<()> {
        self.remove(&format!("{REMOVED}/{}", taken.token)).await
    }

    /// Lists what was taken away and neither put back nor deleted: its process was killed, or is about to do so.
    pub(crate) async fn taken_away(&self) -> Result<Vec<TakenAway>> {
        let mut all: Vec<TakenAway> = Vec::new();
        for Remains { key, .. } in self.remains(REMOVED).await? {
            let mut parts = key.splitn(5, '/').skip(1);
            if let (Some(token), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next()) {
                let name = name.split('#').next().unwrap_or(name);
                all.push(TakenAway { place: format!("{kind}/{name}"), token: token.into() });
            }
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// Deletes a blob, complete or not, or everything below a folder; nothing there is no error. It must never be
    /// needed again: nothing brings it back.
    pub(crate) async fn remove(&self, place: &str) -> Result<()> {
        let complete = checked(place.split('#').next().unwrap_or(place))?;
        let Some(folder) = self.folder.clone() else { return self.delete_prefix(complete.as_ref()).await };
        if complete.parts_count() < 2 {
            return Err(Error::Internal(format!("refusing to delete every blob under `{place}`")));
        }
        let path = folder.join(place);
        // The folder of the kind stays.
        let top = folder.join(place.split('/').next().unwrap_or(place));
        on_disk(place, move || remove_tree(&path, &top)).await
    }

    /// Lists all files below `prefix`, those included that were never completed.
    pub(crate) async fn remains(&self, prefix: &str) -> Result<Vec<Remains>> {
        let key = checked(prefix)?;
        let Some(folder) = self.folder.clone() else {
            let entries = self.list(prefix)?.map_ok(|entry| Remains { key: entry.key, modified: entry.modified });
            return entries.try_collect().await;
        };
        let path = folder.join(key.as_ref());
        on_disk(prefix, move || {
            let relative = |path: PathBuf| path.strip_prefix(&folder).ok()?.to_str().map(str::to_owned);
            let found = files_below(&path)?.into_iter();
            Ok(found.filter_map(|file| Some(Remains { key: relative(file.path)?, modified: file.modified })).collect())
        })
        .await
    }

    /// Renames all blobs of a store that is no folder; returns how many.
    async fn move_keys(&self, from: &Key, to: &str) -> Result<usize> {
        let listed = self.store.list(Some(from)).map_ok(|meta| meta.location).try_collect().await;
        let mut keys: Vec<Key> = listed.or_else(absent_is_empty)?;
        if self.store.head(from).await.is_ok() {
            keys.push(from.clone());
        }
        for key in &keys {
            let rest = key.as_ref().strip_prefix(from.as_ref()).unwrap_or_default();
            match self.store.rename(key, &Key::from(format!("{to}{rest}"))).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(keys.len())
    }
}

impl TakenAway {
    fn key(&self) -> String {
        format!("{REMOVED}/{}/{}", self.token, self.place)
    }
}

struct FoundFile {
    path: PathBuf,
    modified: SystemTime,
}

/// Does `work` on a thread that may block.
async fn on_disk<T: Send + 'static>(place: &str, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let done = off_thread("remove a blob", move || Ok::<_, Error>(work())).await?;
    done.map_err(Error::io(format!("remove {place}")))
}

/// Renames a file or folder; `false` if there is none.
fn rename(from: &Path, to: &Path) -> io::Result<bool> {
    with_folder(to, || match std::fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Where `from` is still there, a removal took away the folder that it was to move to.
            let there = absent_is(None, std::fs::symlink_metadata(from).map(Some))?;
            there.map_or(Ok(false), |_| Err(error))
        }
        moved => moved.map(|()| true),
    })
}

/// Deletes a file or folder, and the empty folders that it leaves below `top`.
fn remove_tree(path: &Path, top: &Path) -> io::Result<()> {
    let mut attempt = 1;
    loop {
        let removed = match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
            Ok(_) => std::fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            // A writer that was on its way into the folder before it was moved has come to it now.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && attempt < PUT_ATTEMPTS => attempt += 1,
            removed => break absent_is((), removed)?,
        }
    }
    for parent in path.ancestors().skip(1).take_while(|parent| *parent != top && parent.starts_with(top)) {
        // One that somebody writes into is not empty; who finds it gone makes it again.
        if std::fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

/// Returns the files at or below `path`. What vanishes meanwhile is not there.
fn files_below(path: &Path) -> io::Result<Vec<FoundFile>> {
    let (mut found, mut pending) = (Vec::new(), vec![path.to_owned()]);
    while let Some(path) = pending.pop() {
        let Some(metadata) = absent_is(None, std::fs::symlink_metadata(&path).map(Some))? else { continue };
        if metadata.is_dir() {
            let Some(entries) = absent_is(None, std::fs::read_dir(&path).map(Some))? else { continue };
            for entry in entries {
                pending.push(entry?.path());
            }
        } else {
            found.push(FoundFile { path, modified: metadata.modified()? });
        }
    }
    Ok(found)
}

fn absent_is<T>(nothing: T, result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(nothing),
        result => result,
    }
}
