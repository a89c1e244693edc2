use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
    time::timeout,
};

use super::{connect, read_http_head, runtime};
use crate::bulk::{self, CHUNK, Stream};

/// Longest time for a whole transfer.
const LIMIT: Duration = Duration::from_secs(60);

/// Longest datagram: the answer, longer by name and address, still fits a frame.
const LONGEST_DATAGRAM: usize = 1400;

/// Longest wait for the echo of a datagram.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends `length` bytes to the HTTP server and compares the SHA-256 that it computed. To be
/// called on a host's thread.
pub fn upload(source: SocketAddr, target: SocketAddr, length: u64) -> anyhow::Result<()> {
    let seed = length ^ u64::from(target.port());
    let transfer = async {
        let mut connection = connect(source, target).await?;
        let head = format!("POST /upload HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        connection.write_all(head.as_bytes()).await?;
        let (mut stream, mut buffer, mut left) = (Stream::new(seed), vec![0; CHUNK], length);
        while left > 0 {
            stream.fill(&mut buffer);
            let part = left.min(CHUNK as u64);
            let sent = connection.write_all(&buffer[..part as usize]).await;
            sent.with_context(|| format!("{left} of {length} bytes left to send"))?;
            left -= part;
        }
        let answer = read_http_head(&mut connection).await;
        let mut body = vec![0; answer.map_err(|f| anyhow::anyhow!("answer: {f}"))? as usize];
        connection.read_exact(&mut body).await?;
        let expected = format!("{} {length}", bulk::digest(seed, length));
        let received = String::from_utf8_lossy(&body);
        ensure!(
            received == expected,
            "the server received {received}, sent was {expected}"
        );
        Ok(())
    };
    runtime().block_on(async {
        timeout(crate::patience(LIMIT), transfer)
            .await
            .context("upload timed out")?
    })
}

/// Fetches `length` bytes from the HTTP server and compares their SHA-256. To be called on a
/// host's thread.
pub fn download(source: SocketAddr, target: SocketAddr, length: u64) -> anyhow::Result<()> {
    let seed = length ^ u64::from(target.port());
    let transfer = async {
        let mut connection = connect(source, target).await?;
        let head = format!("GET /download/{seed}/{length} HTTP/1.1\r\nHost: lbt\r\n\r\n");
        connection.write_all(head.as_bytes()).await?;
        let announced = read_http_head(&mut connection).await;
        let announced = announced.map_err(|f| anyhow::anyhow!("answer: {f}"))?;
        ensure!(
            announced == length,
            "{announced} bytes announced, {length} asked for"
        );
        let (mut hash, mut buffer, mut left) = (Sha256::new(), vec![0; CHUNK], length);
        while left > 0 {
            let part = left.min(CHUNK as u64) as usize;
            let read = connection.read_exact(&mut buffer[..part]).await;
            read.with_context(|| format!("{left} of {length} bytes left to receive"))?;
            hash.update(&buffer[..part]);
            left -= part as u64;
        }
        let (received, sent) = (bulk::hex(hash), bulk::digest(seed, length));
        ensure!(received == sent, "received {received}, sent was {sent}");
        Ok(())
    };
    runtime().block_on(async {
        timeout(crate::patience(LIMIT), transfer)
            .await
            .context("download timed out")?
    })
}

/// Sends `count` datagrams of all sizes up to a full frame to the echo server over one socket, and
/// compares every answer byte by byte. To be called on a host's thread.
pub fn datagrams(source: SocketAddr, target: SocketAddr, count: usize) -> anyhow::Result<()> {
    let conversation = async {
        let socket = UdpSocket::bind(source).await?;
        socket.connect(target).await?;
        let (mut stream, mut sent, mut received) = (Stream::new(1), vec![0; CHUNK], vec![0; CHUNK]);
        for number in 0..count {
            let length = 1 + number % LONGEST_DATAGRAM;
            stream.fill(&mut sent[..length.next_multiple_of(8)]);
            socket.send(&sent[..length]).await?;
            let answer = timeout(crate::patience(PATIENCE), socket.recv(&mut received)).await;
            let answer = answer.with_context(|| format!("no answer to datagram {number}"))??;
            // `NAME PEER ` and the datagram.
            let mut parts = received[..answer].splitn(3, |byte| *byte == b' ');
            ensure!(
                parts.nth(2) == Some(&sent[..length]),
                "datagram {number} of {length} bytes came back changed"
            );
        }
        Ok(())
    };
    runtime().block_on(conversation)
}
