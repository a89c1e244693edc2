//! Between the client and its server: the client believes any length that a server puts in front of a
//! packet, and would take that much memory.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// Longest packet of a server, in bytes: the names of as many instances as a source may have.
pub const MAX_PACKET: u32 = 16 << 20;

/// A way to one server for one connection. Ends when dropped.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    fault: Arc<OnceLock<&'static str>>,
    task: AbortHandle,
}

impl Relay {
    /// Connects to `server`, a name or an address with a port.
    pub(super) async fn begin(server: &str) -> io::Result<Self> {
        let far = TcpStream::connect(server).await?;
        far.set_nodelay(true)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let fault = Arc::new(OnceLock::new());
        let told = fault.clone();
        let task = tokio::spawn(async move {
            let Ok((near, _)) = listener.accept().await else {
                return;
            };
            // One is all that is served.
            drop(listener);
            let _ = near.set_nodelay(true);
            let (mut from_client, mut to_client) = near.into_split();
            let (from_server, mut to_server) = far.into_split();
            let mut from_server = BufReader::new(from_server);
            let ended = tokio::select! {
                ended = copy(&mut from_client, &mut to_server) => ended.map(drop),
                ended = packets(&mut from_server, &mut to_client) => ended,
            };
            if ended.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                let _ = told.set("a packet longer than 16 MiB; does ZooKeeper answer there?");
            }
        });
        Ok(Self {
            address,
            fault,
            task: task.abort_handle(),
        })
    }

    /// What the server did wrong, if that ended it.
    pub(super) fn fault(&self) -> Option<&'static str> {
        self.fault.get().copied()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Hands packets on until the end.
///
/// # Errors
/// If one is too long (`InvalidData`), the end comes within a length (`UnexpectedEof`), or one of the
/// sides fails.
pub async fn packets(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    loop {
        let length = from.read_u32().await?;
        if length > MAX_PACKET {
            return Err(io::ErrorKind::InvalidData.into());
        }
        to.write_u32(length).await?;
        let length = u64::from(length);
        if copy(&mut from.take(length), to).await? < length {
            return Ok(());
        }
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_pass_up_to_a_length() {
        let small = [
            &[0, 0, 0, 3][..],
            b"abc",
            &[0, 0, 0, 0],
            &[0, 0, 0, 1],
            b"d",
        ]
        .concat();
        let mut out = Vec::new();
        let end = packets(&mut &small[..], &mut out).await.unwrap_err();
        assert_eq!((out, end.kind()), (small, io::ErrorKind::UnexpectedEof));

        let mut out = Vec::new();
        let half = [0, 0, 0, 9, 1, 2];
        packets(&mut &half[..], &mut out).await.unwrap();
        assert_eq!(out, half);

        for long in [[1, 0, 0, 1], [0xff; 4]] {
            let mut out = Vec::new();
            let end = packets(&mut &long[..], &mut out).await.unwrap_err();
            assert_eq!((out.len(), end.kind()), (0, io::ErrorKind::InvalidData));
        }
    }
}
