//! An HTTP server on a port of its own, for as long as somebody holds on to it.

use std::net::{Ipv4Addr, SocketAddr};

use axum::{Router, serve::ListenerExt as _};
use tokio::{net::TcpListener, task::JoinSet};

use crate::error::{Error, Result};

/// A running server. Dropping it ends it.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Ends what it holds when it is dropped, which a bare task would not.
    _task: JoinSet<()>,
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    /// If there is no port for it.
    pub async fn start(router: Router) -> Result<Self> {
        let refused = || Error::system("a port for a local server");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(refused())?;
        let address = listener.local_addr().map_err(refused())?;
        // Otherwise an answer's last packet may wait for the acknowledgement of the one before it.
        let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
        let mut task = JoinSet::new();
        task.spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { address, _task: task })
    }
}
