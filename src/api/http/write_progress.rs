//! A limit on how long a client may take nothing of its answer. An answer that nobody reads holds its content, its file
//! and its connection; a write that stands still for too long ends the connection, and with it all of that. Wraps the
//! stream of each connection that [`serving`](super::serving) accepts.
//!
//! The kernel takes more only once a third of its buffer is free, which a slow client may need long for. So progress is
//! also what the client has taken out of that buffer.

use std::io;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::libc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// A stream whose writes fail once one has made no progress for a while. Silence between writes is no stall.
#[derive(Debug)]
pub(crate) struct WriteProgress<S> {
    stream: S,
    limit: Duration,
    /// Returns the bytes that the client has not taken.
    backlog: fn(&S) -> usize,
    /// The write that waits for the client.
    stalled: Option<Stall>,
}

#[derive(Debug)]
struct Stall {
    end: Pin<Box<Sleep>>,
    backlog: usize,
}

impl WriteProgress<TcpStream> {
    /// Wraps `stream`; its client must take something within `limit` if there is something to take.
    pub(crate) fn of(stream: TcpStream, limit: Duration) -> Self {
        Self::new(stream, limit, backlog)
    }
}

/// Returns the bytes of the kernel's buffer that the client has not acknowledged.
fn backlog(stream: &TcpStream) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as `stream` is borrowed, and the call writes one `c_int` to the pointer.
    let status = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

impl<S> WriteProgress<S> {
    fn new(stream: S, limit: Duration, backlog: fn(&S) -> usize) -> Self {
        Self { stream, limit, backlog, stalled: None }
    }

    /// Starts the clock where a write must wait, and stops it where one went on.
    fn watch<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let Self { stream, limit, backlog, stalled } = self;
        let stall = stalled.get_or_insert_with(|| Stall { end: Box::pin(sleep(*limit)), backlog: backlog(stream) });
        loop {
            ready!(stall.end.as_mut().poll(context));
            let left = backlog(stream);
            if left >= stall.backlog {
                let message = format!("the client took nothing of its answer for {} s", limit.as_secs());
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
            }
            *stall = Stall { end: Box::pin(sleep(*limit)), backlog: left };
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteProgress<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteProgress<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(context, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_write_that_stands_still_fails_and_one_that_goes_on_does_not() {
        let (server, _client) = duplex(16);
        let mut server = WriteProgress::new(server, SHORT, |_| 16);
        let error = server.write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (server, mut client) = duplex(16);
        let mut server = WriteProgress::new(server, Duration::from_mins(5), |_| 0);
        let writing = async {
            server.write_all(&[7; 64]).await.expect("somebody reads");
            assert!(server.stalled.is_none(), "the clock stops");
        };
        let mut read = [0; 64];
        let (read, ()) = tokio::join!(client.read_exact(&mut read), writing);
        assert_eq!(read.expect("all of it"), 64);
    }

    #[tokio::test]
    async fn what_the_client_takes_of_the_kernels_buffer_is_progress() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, (server, _)) = (client.expect("connected"), server.expect("accepted"));
        let mut server = WriteProgress::of(server, SHORT);
        while tokio::time::timeout(SHORT, server.stream.writable()).await.is_ok() {
            let _ = server.stream.try_write(&vec![0; 65536]);
        }
        let full = backlog(&server.stream);
        assert!(full > 0, "what nobody has read");
        let error = server.write_all(&[0; 1]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // As if more had waited when the stall began.
        server.stalled = Some(Stall { end: Box::pin(sleep(Duration::ZERO)), backlog: full + 1 });
        server.limit = Duration::from_mins(5);
        let outcome = tokio::time::timeout(SHORT, server.write_all(&[0; 1])).await;
        assert!(outcome.is_err(), "it waits on");
        assert!(server.stalled.as_ref().is_some_and(|stall| stall.backlog <= full), "for what is left now");
        client.read_exact(&mut [0; 1]).await.expect("the client is there");
    }

    #[tokio::test]
    async fn time_without_a_write_is_no_stall() {
        let (server, mut client) = duplex(16);
        let mut server = WriteProgress::new(server, Duration::ZERO, |_| 0);
        server.write_all(&[1; 16]).await.expect("it fits");
        client.read_exact(&mut [0; 16]).await.expect("read");
        tokio::time::sleep(SHORT).await;
        server.write_all(&[1; 16]).await.expect("it fits again");
    }
}
