use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::testing::Directory;

const PATIENCE: Duration = Duration::from_secs(2);
/// Beyond doubt longer than any patience here, and shorter than for ever.
const TOO_LONG: Duration = Duration::from_secs(20);

/// Serves each connection by `serve`, once its request's head is read.
async fn server<F>(serve: impl Fn(TcpStream, String) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head(&mut stream).await;
            tokio::spawn(serve(stream, head));
        }
    });
    address
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// A server that sends this and closes.
async fn says(text: &str) -> SocketAddr {
    let text = text.to_owned();
    server(move |mut stream, _| {
        let text = text.clone();
        async move {
            let _ = stream.write_all(text.as_bytes()).await;
        }
    })
    .await
}

fn client(address: SocketAddr) -> Client {
    let url = format!("http://{address}/base").parse().unwrap();
    Client::new(url, Tls::default(), Auth::None)
}

async fn fetch(address: SocketAddr) -> Result<Answer, Failure> {
    let began = Instant::now();
    let answer = client(address)
        .fetch(Request::get("/x?secret=1", PATIENCE))
        .await;
    assert!(began.elapsed() < TOO_LONG, "{:?}", began.elapsed());
    if let Err(failure) = &answer {
        let name = format!("http://{address}/base/x: ");
        assert!(failure.message.starts_with(&name), "{failure}");
        assert!(!failure.message.contains("secret"), "{failure}");
    }
    answer
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nX-Index: 7\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn an_answer_with_its_headers_as_json() {
    let answer = fetch(says(&ok("{\"a\": [1, 2]}")).await).await.unwrap();
    let answer = answer.success().unwrap();
    assert_eq!(answer.header("x-index"), Some("7"));
    let json: serde_json::Value = answer.json().unwrap();
    assert_eq!(json["a"][1], 2);
    let wrong = answer.json::<Vec<String>>().unwrap_err();
    assert_eq!(wrong.class, Class::Malformed);
    assert!(wrong.message.contains("at line 1"), "{wrong}");
}

#[tokio::test]
async fn what_is_sent_is_what_was_asked() {
    let directory = Directory::new("http-secret");
    let file = directory.path().join("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    let secret = || Secret::File(file.clone());
    let echo = server(|mut stream, head| async move {
        let _ = stream.write_all(ok(&head).as_bytes()).await;
    });
    let echo = echo.await;
    for (auth, wanted) in [
        (Auth::None, "accept: application/json\r\n"),
        (Auth::Bearer(secret()), "authorization: Bearer s3cret\r\n"),
        (
            Auth::Header("x-consul-token", secret()),
            "x-consul-token: s3cret\r\n",
        ),
        (
            Auth::Basic {
                user: "lbd".to_owned(),
                password: secret(),
            },
            "authorization: Basic bGJkOnMzY3JldA==\r\n",
        ),
    ] {
        let url = format!("http://{echo}/base/").parse().unwrap();
        let client = Client::new(url, Tls::default(), auth);
        let answer = client
            .fetch(Request::get("/x?y=1", TOO_LONG))
            .await
            .unwrap();
        let seen = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(seen.starts_with("GET /base/x?y=1 HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains(wanted), "{seen}");
        assert!(seen.contains(&format!("host: {echo}\r\n")), "{seen}");
    }
    let lost = Auth::Bearer(Secret::File("/nowhere/token".into()));
    let url = format!("http://{echo}").parse().unwrap();
    let client = Client::new(url, Tls::default(), lost);
    let failure = client.fetch(Request::get("/", PATIENCE)).await.unwrap_err();
    assert_eq!(failure.class, Class::Config);
}

#[test]
fn base64_as_in_the_rfc() {
    for (plain, text) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
        ("fooba", "Zm9vYmE="),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(base64(plain.as_bytes()), text);
    }
}

#[tokio::test]
async fn statuses_become_classes() {
    for (status, class) in [
        ("500 Internal Server Error", Class::Refused),
        ("503 Service Unavailable", Class::Refused),
        ("301 Moved", Class::Refused),
        ("403 Forbidden", Class::Denied),
        ("401 Unauthorized", Class::Denied),
        ("404 Not Found", Class::Missing),
    ] {
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\nno\x1b leader");
        let failure = fetch(says(&text).await)
            .await
            .unwrap()
            .success()
            .unwrap_err();
        assert_eq!(failure.class, class, "{status}");
        let shown = "no\\u{1b} lead";
        assert!(failure.message.contains(shown), "{failure}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_or_not_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    let failure = fetch(gone).await.unwrap_err();
    assert_eq!(failure.class, Class::Unreachable);
    assert!(failure.message.contains("refused"), "{failure}");

    let failure = fetch(says("SSH-2.0-OpenSSH\r\n\r\n").await)
        .await
        .unwrap_err();
    assert_eq!(failure.class, Class::Malformed, "{failure}");
    let failure = fetch(says("").await).await.unwrap_err();
    assert_eq!(failure.class, Class::Unreachable, "{failure}");
    let endless = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(100_000));
    let failure = fetch(says(&endless).await).await.unwrap_err();
    assert_eq!(failure.class, Class::Malformed, "{failure}");
}

#[tokio::test]
async fn half_a_body_is_no_answer() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{\"a\":1}]",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n[{\"a\":1}]\r\n",
    ] {
        let failure = fetch(says(text).await).await.unwrap_err();
        assert_eq!(failure.class, Class::Unreachable, "{failure}");
        assert!(failure.message.contains("breaks off"), "{failure}");
    }
}

#[tokio::test]
async fn one_that_hangs_or_dawdles_is_given_up() {
    let hangs = server(|stream, _| async move {
        sleep(TOO_LONG).await;
        drop(stream);
    });
    let failure = fetch(hangs.await).await.unwrap_err();
    assert_eq!(failure.class, Class::Timeout);
    assert!(failure.message.contains("no answer within"), "{failure}");

    for begin in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"] {
        let slow = server(move |mut stream, _| async move {
            let _ = stream.write_all(begin.as_bytes()).await;
            while stream.write_all(b"H").await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        });
        let failure = fetch(slow.await).await.unwrap_err();
        let wanted = [Class::Timeout, Class::Malformed];
        assert!(wanted.contains(&failure.class), "{failure}");
    }
}

#[tokio::test]
async fn an_endless_body_ends_at_the_limit() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let endless = server(move |mut stream, _| {
        let count = count.clone();
        async move {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            let chunk = format!("10000\r\n{}\r\n", "[".repeat(0x10000));
            while stream.write_all(chunk.as_bytes()).await.is_ok() {
                count.fetch_add(chunk.len(), Ordering::Relaxed);
            }
        }
    });
    let client = client(endless.await);
    let request = || Request::get("/", TOO_LONG);
    let failure = client.fetch(request()).await.unwrap_err();
    assert_eq!(failure.class, Class::Malformed);
    assert!(failure.message.contains("larger than 10 MiB"), "{failure}");
    let mut stream = client.open(request()).await.unwrap();
    let failure = stream.line(PATIENCE).await.unwrap_err();
    assert!(failure.message.contains("longer than 10 MiB"), "{failure}");
    drop(stream);
    // What the sockets' buffers hold comes on top of twice the limit.
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 64 << 20, "{sent} bytes were taken");

    let told = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
    let failure = fetch(says(told).await).await.unwrap_err();
    assert!(failure.message.contains("larger than 10 MiB"), "{failure}");
}

#[tokio::test]
async fn deep_garbage_is_told_and_costs_nothing() {
    for body in [
        "[".repeat(9 << 20),
        "{\"a\":".repeat(1 << 20),
        "\u{1}\u{2}".to_owned(),
    ] {
        let answer = client(says(&ok(&body)).await)
            .fetch(Request::get("/", TOO_LONG))
            .await
            .unwrap();
        let failure = answer.json::<serde_json::Value>().unwrap_err();
        assert_eq!(failure.class, Class::Malformed);
        assert!(failure.message.len() < 600, "{}", failure.message.len());
    }
}

#[tokio::test]
async fn lines_come_as_they_come() {
    let server = server(|mut stream, _| async move {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes()).await;
        for piece in ["on", "e\ntwo\nth", "ree"] {
            let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
            let _ = stream.write_all(chunk.as_bytes()).await;
            sleep(Duration::from_millis(20)).await;
        }
        let _ = stream.write_all(b"0\r\n\r\n").await;
    });
    let client = client(server.await);
    let stream = client.open(Request::get("/", TOO_LONG)).await.unwrap();
    let mut stream = stream.success().await.unwrap();
    let mut lines = Vec::new();
    while let Some(line) = stream.line(TOO_LONG).await.unwrap() {
        lines.push(String::from_utf8(line).unwrap());
    }
    assert_eq!(lines, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_stream_that_hangs_breaks_or_is_refused() {
    let hangs = server(|mut stream, _| async move {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n";
        let _ = stream.write_all(text.as_bytes()).await;
        sleep(TOO_LONG).await;
    });
    let client_of_hangs = client(hangs.await);
    let request = || Request::get("/", TOO_LONG);
    let mut stream = client_of_hangs.open(request()).await.unwrap();
    assert_eq!(stream.line(TOO_LONG).await, Ok(Some(b"one".to_vec())));
    let failure = stream.line(PATIENCE).await.unwrap_err();
    assert_eq!(failure.class, Class::Timeout);

    let breaks = says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\none\n").await;
    let mut stream = client(breaks).open(request()).await.unwrap();
    assert_eq!(stream.line(TOO_LONG).await, Ok(Some(b"one".to_vec())));
    assert_eq!(
        stream.line(TOO_LONG).await.unwrap_err().class,
        Class::Unreachable
    );

    let gone = says("HTTP/1.1 410 Gone\r\nContent-Length: 7\r\n\r\ntoo old").await;
    let stream = client(gone).open(request()).await.unwrap();
    assert_eq!(stream.status, 410);
    let failure = stream.success().await.err().unwrap();
    assert!(failure.message.contains("410 Gone: too old"), "{failure}");
}

/// A CA, a server's certificate for 127.0.0.1 and a client's, as PEM files.
struct Pki {
    directory: Directory,
    server: (CertificateDer<'static>, Vec<u8>),
    ca: CertificateDer<'static>,
}

impl Pki {
    fn new() -> Self {
        let directory = Directory::new("http-tls");
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, text: String| {
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        write("ca.pem", ca.pem());
        let signed = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(names).unwrap();
            (params.signed_by(&key, &ca).unwrap(), key)
        };
        let (cert, key) = signed(&["client"]);
        write("client.pem", cert.pem());
        write("client.key", key.serialize_pem());
        let (cert, key) = signed(&["127.0.0.1", "registry.example"]);
        Self {
            server: (cert.der().clone(), key.serialize_der()),
            ca: ca.der().clone(),
            directory,
        }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.path().join(name))
    }

    async fn serve(&self, wants_client: bool) -> SocketAddr {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match wants_client {
            false => builder.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(self.ca.clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (cert, key) = &self.server;
        let key = PrivateKeyDer::try_from(key.clone()).unwrap();
        let config = builder.with_single_cert(vec![cert.clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    head(&mut stream).await;
                    let _ = stream.write_all(ok("[]").as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        address
    }
}

async fn fetch_tls(address: SocketAddr, tls: Tls) -> Result<Answer, Failure> {
    let url = format!("https://{address}").parse().unwrap();
    let client = Client::new(url, tls, Auth::None);
    client.fetch(Request::get("/", TOO_LONG)).await
}

#[tokio::test]
async fn tls_is_verified_both_ways() {
    let pki = Pki::new();
    let (open, closed) = (pki.serve(false).await, pki.serve(true).await);
    let ours = Tls {
        ca_file: pki.file("ca.pem"),
        ..Tls::default()
    };
    fetch_tls(open, ours.clone()).await.unwrap();
    let named = |name: &str| Tls {
        server_name: Some(name.to_owned()),
        ..ours.clone()
    };
    fetch_tls(open, named("registry.example")).await.unwrap();
    let failure = fetch_tls(open, named("other.example")).await.unwrap_err();
    assert_eq!(failure.class, Class::Denied, "{failure}");

    let other = Pki::new();
    let strangers = Tls {
        ca_file: other.file("ca.pem"),
        ..Tls::default()
    };
    let failure = fetch_tls(open, strangers).await.unwrap_err();
    assert_eq!(failure.class, Class::Denied, "{failure}");

    fetch_tls(closed, ours.clone()).await.unwrap_err();
    let known = Tls {
        cert_file: pki.file("client.pem"),
        key_file: pki.file("client.key"),
        ..ours.clone()
    };
    fetch_tls(closed, known).await.unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let pki = Pki::new();
    let address = pki.serve(false).await;
    let ours = Tls {
        ca_file: pki.file("ca.pem"),
        ..Tls::default()
    };
    for (tls, word) in [
        (
            Tls {
                ca_file: pki.file("missing.pem"),
                ..Tls::default()
            },
            "missing.pem",
        ),
        (
            Tls {
                ca_file: pki.file("client.key"),
                ..Tls::default()
            },
            "no certificate in",
        ),
        (
            Tls {
                cert_file: pki.file("client.pem"),
                ..ours.clone()
            },
            "go together",
        ),
        (
            Tls {
                cert_file: pki.file("client.pem"),
                key_file: pki.file("ca.pem"),
                ..ours.clone()
            },
            "no private key in",
        ),
    ] {
        let failure = fetch_tls(address, tls).await.unwrap_err();
        assert_eq!(failure.class, Class::Config);
        assert!(failure.message.contains(word), "{failure}");
    }
}
