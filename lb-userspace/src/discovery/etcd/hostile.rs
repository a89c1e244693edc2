//! Members that speak gRPC and mean harm.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hyper::{
    HeaderMap,
    body::Bytes,
    http::{HeaderValue, Response},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::discovery::{Report, Settings};

/// Of a response, that the cluster is at revision 5.
const HEADER: &[u8] = &[0x0a, 2, 0x18, 5];
/// A key of which nothing is said.
const KEY: &[u8] = &[0x12, 0];
const CREATED: &[u8] = &[0x18, 1];
/// Canceled, because revision 9 is the first there is.
const COMPACTED: &[u8] = &[0x20, 1, 0x28, 9];
const EVENT: &[u8] = &[0x5a, 0];

struct Member {
    /// What it answers to requests for keys, and to all further ones the last.
    ranges: Vec<Vec<u8>>,
    /// What it tells each watch, which then stays open.
    watch: Vec<Vec<u8>>,
    reads: AtomicUsize,
}

impl Member {
    async fn start(range: Vec<u8>, watch: &[Vec<u8>]) -> (Etcd, Arc<Self>) {
        Self::with_ranges(vec![range], watch).await
    }

    async fn with_ranges(ranges: Vec<Vec<u8>>, watch: &[Vec<u8>]) -> (Etcd, Arc<Self>) {
        let member = Arc::new(Self {
            ranges,
            watch: watch.to_vec(),
            reads: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = member.clone();
        tokio::spawn(async move {
            while let Ok((peer, _)) = listener.accept().await {
                let served = served.clone();
                tokio::spawn(async move { served.serve(peer).await });
            }
        });
        let config = Config {
            endpoints: vec![format!("http://{address}").parse().unwrap()],
            prefix: "web/".to_owned(),
            user: None,
            password: None,
            tls: Tls::default(),
        };
        (config.source("web"), member)
    }

    async fn serve(&self, peer: TcpStream) -> Result<(), h2::Error> {
        let mut connection = h2::server::handshake(peer).await?;
        let mut open = Vec::new();
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request?;
            let head = Response::builder().header("content-type", "application/grpc");
            let mut stream = respond.send_response(head.body(()).unwrap(), false)?;
            if request.uri().path() == "/etcdserverpb.KV/Range" {
                let reads = self.reads.fetch_add(1, Ordering::Relaxed);
                let range = &self.ranges[reads.min(self.ranges.len() - 1)];
                stream.send_data(framed(range), false)?;
                let ok = (
                    "grpc-status".parse().unwrap(),
                    HeaderValue::from_static("0"),
                );
                stream.send_trailers(HeaderMap::from_iter([ok]))?;
            } else {
                for message in &self.watch {
                    stream.send_data(framed(message), false)?;
                }
                open.push((request, stream));
            }
        }
        Ok(())
    }
}

fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}

async fn ends(mut source: Etcd) -> String {
    let (mut feed, _reports) = Feed::open(&Settings::default());
    let ended = timeout(Duration::from_secs(30), source.session(&mut feed)).await;
    ended.unwrap().unwrap_err().message
}

#[tokio::test]
async fn pages_of_more_than_was_asked_for_are_refused() {
    let range = [HEADER, &KEY.repeat(1001)].concat();
    let (source, _) = Member::start(range, &[]).await;
    let told = ends(source).await;
    assert!(told.contains("1001 keys where 1000"), "{told}");
}

#[tokio::test]
async fn messages_are_small() {
    let range = [HEADER, &KEY.repeat(2 << 20)].concat();
    let (source, member) = Member::start(range, &[]).await;
    let told = ends(source).await;
    assert!(told.contains("limit is: 2097152"), "{told}");
    // Of a thousand keys, a hundred, ten, one.
    assert_eq!(member.reads.load(Ordering::Relaxed), 4);

    let events = EVENT.repeat(2 << 20);
    let watch = [[HEADER, CREATED].concat(), [HEADER, &events].concat()];
    let (source, _) = Member::start(HEADER.to_vec(), &watch).await;
    let told = ends(source).await;
    assert!(told.contains("limit is: 2097152"), "{told}");
}

#[tokio::test]
async fn keys_without_end_come_to_one() {
    // Each page is full of what is no key below the prefix, and says that there is more.
    let range = [HEADER, &KEY.repeat(1000), &[0x18, 1]].concat();
    let (source, member) = Member::start(range, &[]).await;
    let told = ends(source).await;
    assert!(told.contains("more than 100000 keys"), "{told}");
    assert_eq!(member.reads.load(Ordering::Relaxed), 101);
}

#[tokio::test]
async fn pages_with_nothing_on_them_come_to_an_end() {
    let more = |keys: &[u8]| [HEADER, keys, &[0x18, 1]].concat();
    let (source, member) = Member::with_ranges(vec![more(KEY), more(&[])], &[]).await;
    let told = ends(source).await;
    assert!(
        told.contains("more is promised, but does not come"),
        "{told}"
    );
    assert_eq!(member.reads.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn compaction_without_end_is_told_and_waited_for() {
    let watch = [[HEADER, CREATED].concat(), [HEADER, COMPACTED].concat()];
    let (mut source, member) = Member::start(HEADER.to_vec(), &watch).await;
    let (mut feed, mut reports) = Feed::open(&Settings::default());
    let session = source.session(&mut feed);
    assert!(timeout(Duration::from_secs(4), session).await.is_err());
    let reads = member.reads.load(Ordering::Relaxed);
    assert!((2..=5).contains(&reads), "{reads}");
    let mut told = Vec::new();
    while let Ok(report) = reports.try_recv() {
        if let Report::Failure(failure) = report {
            told.push(failure.message);
        }
    }
    assert!(told[0].contains("compacted 2 times"), "{told:?}");
}
