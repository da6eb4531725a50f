//! Downloads a model into the cache, in an order in which a kill leaves nothing that this or another program takes for
//! complete: the list of the files, the bytes, the snapshot, and last the name of the branch. Called by the command
//! line and by the server's start.

use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};

use attune_support::format;

use crate::cache::RepositoryCache;
use crate::choice::{Choice, Form, INDEX};
use crate::client::Client;
use crate::download::{Source, is_there};
use crate::found::{self, Cached, Found};
use crate::listing::RemoteFile;
use crate::name::{ModelName, is_commit};
use crate::progress::{Plan, Progress};
use crate::settings::Settings;
use crate::{Error, Result};

/// Files that are fetched at a time.
const AT_A_TIME: usize = 4;

/// A hub, and the cache of what has come from it.
#[derive(Debug, Clone)]
pub struct Hub {
    settings: Settings,
}

impl Hub {
    /// Makes a hub of its settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Reads the settings of the process's environment.
    pub fn from_environment() -> Result<Self> {
        Settings::from_environment().map(Self::new)
    }

    /// Returns the folder of the cache.
    pub fn cache(&self) -> &Path {
        &self.settings.cache
    }

    /// Returns the model `name` if it is complete in the cache.
    pub fn find(&self, name: &ModelName) -> Option<Found> {
        found::find(&self.settings.cache, name)
    }

    /// Returns all models of the cache.
    pub fn models(&self) -> Vec<Cached> {
        found::list(&self.settings.cache)
    }

    /// Returns the model from the cache; downloads it if it is not complete there. Nothing else asks the network.
    pub async fn find_or_pull(&self, name: &ModelName, progress: &dyn Progress) -> Result<Found> {
        match self.find(name) {
            Some(found) => Ok(found),
            None => Box::pin(self.pull(name, false, progress)).await,
        }
    }

    /// Downloads what is missing of the newest commit of the model's revision; with `verify` it also reads what is
    /// there, and fetches anew what is wrong.
    pub async fn pull(&self, name: &ModelName, verify: bool, progress: &dyn Progress) -> Result<Found> {
        let known = self.find(name).filter(|found| found.is_listed || self.settings.offline);
        if let Some(found) = known.filter(|_| self.settings.offline || is_commit(name.revision()) && !verify) {
            return Ok(found);
        }
        if self.settings.offline {
            let cache = self.settings.cache.clone();
            return Err(Error::Offline { name: name.to_string(), cache, command: name.command() });
        }
        let client = Client::new(&self.settings)?;
        let cache = RepositoryCache::of(&self.settings.cache, &name.repository);
        let commit = client.commit(&name.repository, name.revision()).await?;
        let files = match cache.listing(&commit) {
            Some(files) => files,
            None => client.listing(&name.repository, &commit).await?,
        };
        let choice = Choice::of(&name.repository, &files, &name.pick)?;
        cache.write_listing(&commit, &files)?;
        let (repository, commit) = (&name.repository, commit.as_str());
        let source = Source { client: &client, cache: &cache, repository, commit, verify, progress };
        let chosen = self.fetch(&source, name, choice, &files).await?;
        cache.publish(commit, &chosen)?;
        cache.write_commit(name.revision(), commit)?;
        found::look(&cache, repository, commit, &name.pick)
            .map_err(|reason| Error::Unusable { repository: repository.to_string(), reason })
    }

    /// Fetches the bytes of all chosen files, those first that decide about the others; returns the files.
    async fn fetch(
        &self,
        source: &Source<'_>,
        name: &ModelName,
        mut choice: Choice,
        files: &[RemoteFile],
    ) -> Result<Vec<RemoteFile>> {
        self.plan(source, name, &choice.files)?;
        let first = |path: &str| choice.files.iter().find(|file| file.path == path);
        if let (Form::Folder, Some(config)) = (choice.form, first("config.json")) {
            source.fetch(config).await?;
            if let Some(reason) = source.progress.refuse(&source.cache.blob(config.checksum.digits())) {
                return Err(Error::Unusable { repository: name.repository.to_string(), reason });
            }
        }
        if let Some(index) = first(INDEX) {
            source.fetch(index).await?;
            let path = source.cache.blob(index.checksum.digits());
            let text = std::fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))?;
            choice.add_parts(&name.repository, &text, files)?;
            self.plan(source, name, &choice.files)?;
        }
        let mut chosen = choice.files;
        chosen.sort_by_key(|file| file.size);
        let fetches = chosen.iter().map(|file| source.fetch(file));
        futures::stream::iter(fetches).buffer_unordered(AT_A_TIME).try_collect::<()>().await?;
        Ok(chosen)
    }

    /// Tells what will be fetched; refuses it if the disk has too little room.
    fn plan(&self, source: &Source<'_>, name: &ModelName, files: &[RemoteFile]) -> Result<()> {
        let there = files.iter().map(|file| bytes_there(source.cache, file)).sum();
        let bytes = files.iter().map(|file| file.size).sum();
        let (name, commit) = (name.to_string(), source.commit.to_owned());
        source.progress.planned(&Plan { name, commit, files: files.len(), bytes, there });
        check_room(&self.settings.cache, bytes.saturating_sub(there))
    }
}

fn bytes_there(cache: &RepositoryCache, file: &RemoteFile) -> u64 {
    let digits = file.checksum.digits();
    if is_there(&cache.blob(digits), file.size) {
        return file.size;
    }
    std::fs::metadata(cache.part(digits)).map_or(0, |part| part.len().min(file.size))
}

/// Refuses to fetch more than the cache's disk has room for.
fn check_room(cache: &Path, needed: u64) -> Result<()> {
    let there = cache.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let folder = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    // A file system that does not say how much is free is full when it says so.
    let Ok(disk) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    if free >= needed {
        return Ok(());
    }
    let (needed, free) = (format::bytes(needed), format::bytes(free));
    Err(Error::NoRoom { folder: cache.to_path_buf(), needed, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_has_room_for_is_refused_before_it_is_fetched() {
        let folder = tempfile::tempdir().expect("a folder");
        let below = folder.path().join("not/made/yet");
        assert!(check_room(&below, 1).is_ok());
        let said = check_room(&below, u64::MAX).expect_err("nobody has that").to_string();
        assert!(said.contains("is full") && said.contains("HF_HOME"), "{said}");
    }
}
