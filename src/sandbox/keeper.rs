//! The thread that starts interpreters and sees them off. It lives as long as the server: the system ends a child with the
//! thread that started it, which no thread of a pool may be.

use std::io;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use tokio::sync::oneshot;

use super::scratch::{Home, Scratch};

/// Time between two looks at those that have been told to end.
const LOOK: Duration = Duration::from_millis(10);

/// What the thread is asked to do.
enum Order {
    Start(Command, oneshot::Sender<io::Result<Child>>),
    /// Waits for the end of a child that was killed, and removes its folder.
    SeeOff(Child, Scratch),
}

/// Speaks to the thread. Cheap to clone; the thread ends with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Keeper(Sender<Order>);

impl Keeper {
    /// Starts the thread, and another one that removes folders and keeps `home` until the last of them.
    pub(super) fn start(home: Arc<Home>) -> io::Result<Self> {
        let (sender, orders) = mpsc::channel();
        let (ended, folders) = mpsc::channel();
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        thread("grader-folders").spawn(move || remove(&folders, home))?;
        thread("grader-keeper").spawn(move || keep(&orders, &ended))?;
        Ok(Self(sender))
    }

    /// Starts a child.
    pub(super) async fn start_child(&self, command: Command) -> io::Result<Child> {
        let (sender, receiver) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts interpreters has ended");
        self.0.send(Order::Start(command, sender)).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// Hands over a child that was killed.
    pub(super) fn see_off(&self, child: Child, folder: Scratch) {
        // Without the thread the server is ending, and the next one removes the folder.
        drop(self.0.send(Order::SeeOff(child, folder)));
    }
}

fn keep(orders: &Receiver<Order>, ended: &Sender<Scratch>) {
    let mut leaving: Vec<(Child, Scratch)> = Vec::new();
    let mut is_open = true;
    while is_open || !leaving.is_empty() {
        let next = if leaving.is_empty() {
            orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            orders.recv_timeout(LOOK)
        };
        match next {
            Ok(Order::Start(command, reply)) => start(command, reply),
            Ok(Order::SeeOff(child, folder)) => leaving.push((child, folder)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                is_open = false;
                std::thread::sleep(LOOK);
            }
        }
        for (mut child, folder) in std::mem::take(&mut leaving) {
            match child.try_wait() {
                Ok(None) => leaving.push((child, folder)),
                // Without the other thread nothing needs the folder any more either.
                Ok(Some(_)) | Err(_) => drop(ended.send(folder)),
            }
        }
    }
}

/// Removes folders as they come, however long one takes, until no more can come; then their home.
fn remove(folders: &Receiver<Scratch>, home: Arc<Home>) {
    for folder in folders {
        if let Err(error) = folder.remove() {
            tracing::warn!(%error, "the folder of a grader cannot be removed");
        }
    }
    drop(home);
}

fn start(mut command: Command, reply: oneshot::Sender<io::Result<Child>>) {
    if let Err(Ok(mut child)) = reply.send(command.spawn()) {
        // Whoever asked has gone; it has run nobody's code yet.
        drop(child.kill());
        drop(child.wait());
    }
}
