//! Accepts connections and serves HTTP/1 and HTTP/2 on each, until the server stops. `app` calls [`serve`].
//! [`connections`](super::connections) bounds their number and says which must end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http;
use axum::response::{IntoResponse as _, Response};
use axum::{BoxError, Router};
use futures::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt as _};

use crate::api::http::accepting::Outage;
use crate::api::http::connections::{Connection, Connections, Ending, NoPlace};
use crate::api::http::error::{Problem, RateLimit};
use crate::api::http::holding_body::holding;
use crate::api::http::transport::PROBES;
use crate::api::http::write_progress::WriteProgress;
use crate::config::limits::ConnectionLimits;

/// Streams of one connection over HTTP/2 at a time.
const MAX_STREAMS: u32 = 128;
/// Bytes of the head of a request over HTTP/2, and over HTTP/1 bytes that are read or written at a time.
const MAX_HEAD: u32 = 32 << 10;
const MAX_BUFFER: usize = 64 << 10;
/// Time for a client without a running request to agree that its connection ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// Pause after a failure to accept that concerns all connections, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);
/// Time for what runs behind a connection that was cut to notice it.
const AFTER_CUT: Duration = Duration::from_millis(500);

/// Answers requests at `listener` with `routes` until `shutdown`, then `grace` longer those that run. All of them have
/// ended when it returns, with what they used on record.
pub(crate) async fn serve(
    listener: TcpListener,
    routes: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let connections = Connections::new(limits);
    let server = Server {
        builder: builder(limits.idle),
        unread: limits.unread,
        routes,
        shutdown: shutdown.clone(),
        cut: CancellationToken::new(),
    };
    let server = Arc::new(server);
    let tasks = TaskTracker::new();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = end_idle(&connections) => {}
        () = accept_all(&listener, &connections, &server, &tasks) => {}
    }
    // New connections are refused from now on.
    drop(listener);
    tasks.close();
    if timeout(grace, tasks.wait()).await.is_err() {
        server.cut.cancel();
        tasks.wait().await;
    }
    if timeout(AFTER_CUT, connections.without_requests()).await.is_err() {
        tracing::warn!("requests still run although their connections have ended");
    }
}

/// What all connections have in common.
struct Server {
    builder: Builder<TokioExecutor>,
    /// Time for which a client may take nothing of its answer.
    unread: Duration,
    routes: Router,
    /// Ends connections once their requests have ended.
    shutdown: CancellationToken,
    /// Ends them at once.
    cut: CancellationToken,
}

fn builder(idle: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // Connections without a request are ended by `end_idle`, whatever they send instead of one.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        // Finds clients that are gone in the middle of a stream.
        .keep_alive_interval(idle / 3)
        .keep_alive_timeout(idle / 3)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .max_send_buf_size(MAX_BUFFER);
    builder
}

async fn end_idle(connections: &Connections) {
    let mut ticks = interval(connections.look_every());
    loop {
        ticks.tick().await;
        connections.end_idle();
    }
}

async fn accept_all(listener: &TcpListener, connections: &Connections, server: &Arc<Server>, tasks: &TaskTracker) {
    let mut outage = Outage::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                outage.accepted();
                let (connection, end) = connections.open(peer.ip()).await;
                tasks.spawn(Arc::clone(server).follow(stream, connection, end));
            }
            Err(error) => {
                if outage.failed(&error) {
                    // An idle connection has a descriptor that a new one can use.
                    connections.make_room();
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Server {
    /// Serves one connection to its end.
    async fn follow(self: Arc<Self>, stream: TcpStream, connection: Arc<Connection>, end: oneshot::Receiver<Ending>) {
        // The events of a stream are small: none may wait for the acknowledgement of the one before.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let doorway = Doorway { routes: self.routes.clone(), connection: Arc::clone(&connection) };
        let served = self
            .builder
            .serve_connection(TokioIo::new(WriteProgress::of(stream, self.unread)), TowerToHyperService::new(doorway));
        let mut served = pin!(served);
        let ending = tokio::select! {
            // What a client does wrong is its own affair.
            _ = &mut served => return,
            () = self.cut.cancelled() => return,
            () = self.shutdown.cancelled() => None,
            ending = end => ending.ok(),
        };
        // Tells a client over HTTP/2 which of its requests were not seen.
        served.as_mut().graceful_shutdown();
        let mut wait = if ending == Some(Ending::Displaced) { Duration::ZERO } else { FAREWELL };
        let served = async {
            // A request that came in the same moment is answered.
            while timeout(wait, &mut served).await.is_err() && !connection.is_idle_for(wait) {
                wait = FAREWELL;
            }
        };
        tokio::select! {
            () = served => {}
            () = self.cut.cancelled() => {}
        }
    }
}

/// The routes as one connection sees them.
#[derive(Clone)]
struct Doorway {
    routes: Router,
    connection: Arc<Connection>,
}

impl Doorway {
    async fn answer(self, mut request: Request) -> Response {
        let is_probe = PROBES.contains(&request.uri().path());
        let running = match self.connection.begin(request.version(), is_probe) {
            Ok(running) => running,
            Err(why) => return Problem::from(why).into_response(),
        };
        request.extensions_mut().insert(self.connection);
        let Ok(response) = self.routes.oneshot(request).await;
        response.map(|body| holding(body, running))
    }
}

impl<B> Service<http::Request<B>> for Doorway
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = self.clone().answer(request.map(Body::new));
        Box::pin(async move { Ok(answer.await) })
    }
}

impl From<NoPlace> for Problem {
    fn from(why: NoPlace) -> Self {
        match why {
            NoPlace::All => Self::unavailable("All connections of this server are busy. Please try again."),
            NoPlace::OfKey => Self::rate_limited(
                RateLimit::Requests,
                "All connections that this key may have are busy. Please try again.",
                Some(Duration::from_secs(1)),
            ),
        }
    }
}
