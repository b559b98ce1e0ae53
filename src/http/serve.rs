//! Serving until told to stop, within limits that a crowd of connections can not break.

use std::{future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulConnection, GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};
use tower::ServiceExt;

use super::tls::Tls;

/// How long to wait after no connection could be taken, mostly because the process has no descriptor left.
const PAUSE: Duration = Duration::from_secs(1);

/// Limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Connections that are served at the same time.
    pub connections: usize,
    /// How long the head of a connection's next request may take to be there whole, from when it was opened or its last
    /// answer ended. A connection that asks nothing for so long is closed too.
    pub head_time: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { connections: 1024, head_time: Duration::from_secs(30) }
    }
}

/// Serves `routes` on `listener` until `shutdown` ends, then takes no new connection and returns when the requests that run
/// are answered. How long they may take is the caller's to limit. Connections above the limit are given `crowded`, and end
/// with its answer. With `tls`, all of them begin with a handshake, which may take as long as a request's head.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    crowded: Router,
    limits: ConnectionLimits,
    tls: Option<Tls>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let (places, graceful) = (Arc::new(Semaphore::new(limits.connections)), GracefulShutdown::new());
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        let place = Arc::clone(&places).try_acquire_owned().ok();
        let routes = if place.is_some() { &routes } else { &crowded };
        // A token is a small packet; without this the kernel would hold it back to fill a larger one.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        let (routes, tls, watcher) = (routes.clone(), tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            let served = match tls {
                None => watcher.watch(connection(stream, peer, routes, limits.head_time)).await,
                Some(tls) => match tls.accept(stream, limits.head_time).await {
                    Ok(stream) => watcher.watch(connection(stream, peer, routes, limits.head_time)).await,
                    Err(error) => return tracing::debug!(%error, "a handshake failed"),
                },
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// One connection's requests, each of which knows where it comes from.
fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: SocketAddr,
    routes: Router,
    head_time: Duration,
) -> impl GracefulConnection<Error = hyper::Error> + Send {
    let service = routes.map_request(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_time)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
}

/// A client that left before it was accepted is its own affair; where the process can take no more, others must end first.
async fn refused(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if ![ConnectionAborted, ConnectionRefused, ConnectionReset].contains(&error.kind()) {
        tracing::warn!(%error, "no connection could be accepted");
        tokio::time::sleep(PAUSE).await;
    }
}
