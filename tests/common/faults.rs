//! A store of blobs that fails, waits or stands still where a test says so. Use as
//! `#[path = "../common/faults.rs"] mod faults;`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::fmt;
use std::io;
use std::path::Path as Folder;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use attune::store::Store;
use attune::store::blobs::Blobs;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// What is done to a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Delete,
}

/// What happens before it is done.
pub(crate) enum Effect {
    Pass,
    /// It is not done, and the system says so with this number.
    Fail(i32),
    Delay(Duration),
    /// It waits until the gate is opened.
    Halt(Arc<Gate>),
}

/// A place at which a process stands still.
#[derive(Debug)]
pub(crate) struct Gate {
    reached: Semaphore,
    open: Semaphore,
}

impl Gate {
    pub(crate) fn closed() -> Arc<Self> {
        Arc::new(Self { reached: Semaphore::new(0), open: Semaphore::new(0) })
    }

    pub(crate) async fn is_reached(&self) {
        drop(tokio::time::timeout(Duration::from_mins(4), self.reached.acquire()).await.expect("reached").unwrap());
    }

    pub(crate) fn open(&self) {
        self.open.add_permits(1_000);
    }

    async fn pass(&self) {
        self.reached.add_permits(1);
        self.open.acquire().await.unwrap().forget();
    }
}

type Rule = Box<dyn FnMut(Access, &str) -> Effect + Send>;

/// The faults of a [`FaultyStore`]; they can be changed while it is used.
#[derive(Clone)]
pub(crate) struct Faults(Arc<Mutex<Rule>>);

impl Faults {
    /// Returns `store` with blobs that obey these faults, of which there are none yet.
    pub(crate) fn of(store: &Store, data_dir: &Folder) -> (Self, Store) {
        let faults = Self(Arc::new(Mutex::new(Box::new(|_, _| Effect::Pass))));
        let local = LocalFileSystem::new_with_prefix(data_dir.join("blobs")).unwrap();
        let inner = local.with_fsync(true).with_automatic_cleanup(true);
        let mut store = store.clone();
        store.blobs = Blobs::over(Arc::new(FaultyStore { inner, faults: faults.clone() }));
        (faults, store)
    }

    pub(crate) fn set(&self, rule: impl FnMut(Access, &str) -> Effect + Send + 'static) {
        *self.0.lock() = Box::new(rule);
    }

    /// Lets every `access` to a key with `part` in it fail with the system's error `number`.
    pub(crate) fn fail(&self, access: Access, part: &'static str, number: i32) {
        self.set(
            move |done, key| if done == access && key.contains(part) { Effect::Fail(number) } else { Effect::Pass },
        );
    }

    /// Halts the `nth` `access`, counted from 1, to a key with `part` in it.
    pub(crate) fn halt(&self, access: Access, part: &'static str, nth: usize) -> Arc<Gate> {
        let (gate, mut seen) = (Gate::closed(), 0);
        let closed = Arc::clone(&gate);
        self.set(move |done, key| {
            seen += usize::from(done == access && key.contains(part));
            if seen == nth && done == access && key.contains(part) {
                seen += 1_000;
                return Effect::Halt(Arc::clone(&closed));
            }
            Effect::Pass
        });
        gate
    }

    pub(crate) fn mend(&self) {
        self.set(|_, _| Effect::Pass);
    }

    async fn before(&self, access: Access, key: &Path) -> Result<()> {
        let effect = (self.0.lock())(access, key.as_ref());
        match effect {
            Effect::Pass => {}
            Effect::Fail(number) => {
                let source = Box::new(io::Error::from_raw_os_error(number));
                return Err(object_store::Error::Generic { store: "test", source });
            }
            Effect::Delay(time) => tokio::time::sleep(time).await,
            Effect::Halt(gate) => gate.pass().await,
        }
        Ok(())
    }
}

struct FaultyStore {
    inner: LocalFileSystem,
    faults: Faults,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a store with faults")
    }
}

type Answer<'f, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'f>>;

impl ObjectStore for FaultyStore {
    fn put_opts<'s, 'l, 'f>(
        &'s self,
        location: &'l Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Answer<'f, PutResult>
    where
        's: 'f,
        'l: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            self.faults.before(Access::Write, location).await?;
            self.inner.put_opts(location, payload, opts).await
        })
    }

    fn put_multipart_opts<'s, 'l, 'f>(
        &'s self,
        location: &'l Path,
        opts: PutMultipartOptions,
    ) -> Answer<'f, Box<dyn MultipartUpload>>
    where
        's: 'f,
        'l: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            self.faults.before(Access::Write, location).await?;
            self.inner.put_multipart_opts(location, opts).await
        })
    }

    fn get_opts<'s, 'l, 'f>(&'s self, location: &'l Path, options: GetOptions) -> Answer<'f, GetResult>
    where
        's: 'f,
        'l: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            if !options.head {
                self.faults.before(Access::Read, location).await?;
            }
            self.inner.get_opts(location, options).await
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let faults = self.faults.clone();
        let checked = locations.and_then(move |location| {
            let faults = faults.clone();
            async move {
                faults.before(Access::Delete, &location).await?;
                Ok(location)
            }
        });
        self.inner.delete_stream(checked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'s, 'l, 'f>(&'s self, prefix: Option<&'l Path>) -> Answer<'f, ListResult>
    where
        's: 'f,
        'l: 'f,
        Self: 'f,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'s, 'a, 'b, 'f>(&'s self, from: &'a Path, to: &'b Path, options: CopyOptions) -> Answer<'f, ()>
    where
        's: 'f,
        'a: 'f,
        'b: 'f,
        Self: 'f,
    {
        self.inner.copy_opts(from, to, options)
    }
}
