//! A limit on how long a client may take nothing of its answer. An answer that nobody reads holds its content, its file
//! and its connection; a write that stands still for too long ends the connection, and with it all of that. Wraps the
//! stream of each connection that `app` accepts.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// A stream whose writes fail once one has made no progress for a while. Silence between writes is no stall.
#[derive(Debug)]
pub(crate) struct WriteProgress<S> {
    stream: S,
    limit: Duration,
    /// The end of the write that waits for the client.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteProgress<S> {
    /// Wraps `stream`; a write may stand still for `limit`.
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, stalled: None }
    }

    /// Starts the clock where a write must wait, and stops it where one went on.
    fn watch<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        stalled.as_mut().poll(context).map(|()| {
            let message = format!("the client took nothing of its answer for {} s", limit.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        })
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

/// Accepts connections with this limit. The events of a stream are small: none may wait for the acknowledgement of the
/// one before.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    /// How long a write may stand still.
    pub limit: Duration,
}

impl<S> Accept<TcpStream, S> for Watched {
    type Stream = WriteProgress<TcpStream>;
    type Service = S;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(stream.set_nodelay(true).map(|()| (WriteProgress::new(stream, self.limit), service)))
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
        let error = WriteProgress::new(server, SHORT).write_all(&[0; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (server, mut client) = duplex(16);
        let mut server = WriteProgress::new(server, Duration::from_mins(5));
        let writing = async {
            server.write_all(&[7; 64]).await.expect("somebody reads");
            assert!(server.stalled.is_none(), "the clock stops");
        };
        let mut read = [0; 64];
        let (read, ()) = tokio::join!(client.read_exact(&mut read), writing);
        assert_eq!(read.expect("all of it"), 64);
    }

    #[tokio::test]
    async fn time_without_a_write_is_no_stall() {
        let (server, mut client) = duplex(16);
        let mut server = WriteProgress::new(server, Duration::ZERO);
        server.write_all(&[1; 16]).await.expect("it fits");
        client.read_exact(&mut [0; 16]).await.expect("read");
        tokio::time::sleep(SHORT).await;
        server.write_all(&[1; 16]).await.expect("it fits again");
    }
}
