use std::{io::Write as _, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::*;

/// Long enough for any machine; no passing test waits for it.
const PATIENT: Duration = Duration::from_secs(60);
/// For servers that never answer.
const SHORT: Duration = Duration::from_millis(100);

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn http(timeout: Duration) -> Health {
    Health {
        check: HealthCheck::Http {
            path: "/healthz?deep=1".into(),
            host: None,
            expect_status: vec![200],
        },
        timeout,
        ..Health::default()
    }
}

fn tcp(timeout: Duration) -> Health {
    Health {
        timeout,
        ..Health::default()
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

/// Probes a server that reads the request, writes `answer` and closes.
async fn probe_answer(health: &Health, answer: &[u8]) -> Outcome {
    let (listener, address) = listen().await;
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        // The probe may leave before a long answer ends.
        let _ = stream.write_all(answer).await;
    };
    tokio::join!(run(health, address), server).0
}

fn assert_outcome(outcome: &Outcome, kind: Kind, words: &str) {
    assert_eq!((outcome.kind, &*outcome.words), (kind, words));
}

#[tokio::test]
async fn tcp_succeeds_when_accepted_and_leaves_by_reset() {
    let (listener, address) = listen().await;
    let outcome = run(&tcp(PATIENT), address).await;
    assert_outcome(&outcome, Kind::Success, "connection accepted");
    let (mut stream, _) = listener.accept().await.unwrap();
    let end = stream.read_u8().await.unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn probes_go_to_the_health_port() {
    let (_listener, address) = listen().await;
    let health = Health {
        port: Some(address.port()),
        ..tcp(PATIENT)
    };
    let outcome = run(&health, SocketAddr::new(address.ip(), 1)).await;
    assert_eq!(outcome.kind, Kind::Success);
}

#[tokio::test]
async fn a_closed_port_refuses() {
    // Bound but not listening: the port is held, and refuses.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    for health in [tcp(PATIENT), http(PATIENT)] {
        let outcome = run(&health, address).await;
        assert_outcome(&outcome, Kind::Refused, "connection refused");
    }
}

#[tokio::test]
async fn a_connection_with_itself_is_no_backend() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let stream = socket.connect(address).await.unwrap();
    let error = prepare(&stream, address).unwrap_err();
    assert_eq!(from_io(&error).kind, Kind::Refused);
}

#[tokio::test]
async fn a_full_backlog_times_out() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut kept = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        kept.push(stream.unwrap());
    }
    let outcome = run(&tcp(SHORT), address).await;
    assert_outcome(&outcome, Kind::Timeout, "no answer within 100ms");
}

#[tokio::test]
async fn http_sends_a_proper_request() {
    let (listener, address) = listen().await;
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
        request.to_ascii_lowercase()
    };
    let health = http(PATIENT);
    let (outcome, request) = tokio::join!(run(&health, address), server);
    assert_outcome(&outcome, Kind::Success, "HTTP status 200");
    assert!(request.starts_with("get /healthz?deep=1 http/1.1\r\n"));
    let version = env!("CARGO_PKG_VERSION");
    for header in [
        format!("host: {address}"),
        format!("user-agent: lbd/{version}"),
        "connection: close".to_owned(),
    ] {
        assert!(request.contains(&format!("\r\n{header}\r\n")), "{request}");
    }
}

#[test]
fn the_host_header_is_as_configured_or_the_address() {
    let host = |host, address: &str| {
        let request = http::request("/", host, address.parse().unwrap()).unwrap();
        request.headers()["host"].to_str().unwrap().to_owned()
    };
    assert_eq!(host(Some("web.test"), "10.0.0.1:80"), "web.test");
    assert_eq!(host(None, "10.0.0.1:80"), "10.0.0.1:80");
    assert_eq!(host(None, "[fe80::1%3]:80"), "[fe80::1]:80");
}

#[tokio::test]
async fn answers_are_judged_by_status() {
    let long_body = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &vec![b'x'; 1 << 20]].concat();
    let cases: [(&[u8], Kind, &str); 11] = [
        (b"HTTP/1.1 200 OK\r\n\r\n", Kind::Success, "HTTP status 200"),
        (
            b"HTTP/1.0 200 Fine\r\n\r\n",
            Kind::Success,
            "HTTP status 200",
        ),
        (
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            Kind::Success,
            "HTTP status 200",
        ),
        // The body does not count, not even its absence.
        (&long_body, Kind::Success, "HTTP status 200"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf",
            Kind::Success,
            "HTTP status 200",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            Kind::Success,
            "HTTP status 200",
        ),
        (
            b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
            Kind::Status,
            "HTTP status 503, expected 200",
        ),
        (
            b"",
            Kind::Error,
            "connection closed without a complete answer",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-",
            Kind::Error,
            "connection closed without a complete answer",
        ),
        (
            b"SSH-2.0-OpenSSH_9.6\r\n",
            Kind::Error,
            "not HTTP: invalid HTTP version parsed",
        ),
        (
            b"HTTP/1.1 2000 OK\r\n\r\n",
            Kind::Error,
            "not HTTP: invalid HTTP status-code parsed",
        ),
    ];
    for (answer, kind, words) in cases {
        let outcome = probe_answer(&http(PATIENT), answer).await;
        assert_outcome(&outcome, kind, words);
    }
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
    for n in 0..100_000 {
        write!(answer, "X-{n}: y\r\n").unwrap();
    }
    let outcome = probe_answer(&http(PATIENT), &answer).await;
    assert_eq!(outcome.kind, Kind::Error, "{outcome:?}");
    assert!(outcome.words.starts_with("not HTTP: "), "{outcome:?}");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_not_http() {
    let (listener, address) = listen().await;
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 mail.test ESMTP\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let health = http(PATIENT);
    let (outcome, ()) = tokio::join!(run(&health, address), server);
    assert_eq!(outcome.kind, Kind::Error);
    assert!(outcome.words.starts_with("not HTTP: "), "{outcome:?}");
}

#[tokio::test]
async fn a_server_that_closes_at_once_fails() {
    let (listener, address) = listen().await;
    let server = async { drop(listener.accept().await.unwrap()) };
    let health = http(PATIENT);
    let (outcome, ()) = tokio::join!(run(&health, address), server);
    assert_eq!(outcome.kind, Kind::Error);
    assert!(outcome.words.starts_with("connection "), "{outcome:?}");
}

#[tokio::test]
async fn a_silent_server_times_out() {
    let (_listener, address) = listen().await;
    let outcome = run(&http(SHORT), address).await;
    let words = "connected, but no answer within 100ms";
    assert_outcome(&outcome, Kind::Timeout, words);
}

#[tokio::test]
async fn a_dripping_server_times_out() {
    let (listener, address) = listen().await;
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut answer = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        answer.resize(1 << 20, b'x');
        for byte in answer {
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let health = http(SHORT);
    let (outcome, ()) = tokio::join!(run(&health, address), server);
    assert_eq!(outcome.kind, Kind::Timeout, "{outcome:?}");
}

#[tokio::test]
async fn a_body_without_end_is_left_unread() {
    let (listener, address) = listen().await;
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let health = http(PATIENT);
    let (outcome, ()) = tokio::join!(run(&health, address), server);
    assert_outcome(&outcome, Kind::Success, "HTTP status 200");
}

#[tokio::test]
async fn a_path_that_cannot_be_asked_for_is_an_error() {
    let (_listener, address) = listen().await;
    let mut health = http(PATIENT);
    if let HealthCheck::Http { path, .. } = &mut health.check {
        *path = "/a b".into();
    }
    let outcome = run(&health, address).await;
    assert_eq!(outcome.kind, Kind::Error);
    assert!(outcome.words.starts_with("cannot ask for `/a b`: "));
}

#[test]
fn expected_statuses_are_listed() {
    let words = |expected: &[u16]| http::judge(500, expected).words.into_owned();
    assert_eq!(words(&[200]), "HTTP status 500, expected 200");
    assert_eq!(words(&[200, 204]), "HTTP status 500, expected 200 or 204");
    assert_eq!(
        words(&[200, 204, 301]),
        "HTTP status 500, expected 200, 204 or 301"
    );
}

#[test]
fn socket_errors_in_words() {
    let outcome = |number| from_io(&io::Error::from_raw_os_error(number));
    for (number, kind, words) in [
        (libc::EHOSTUNREACH, Kind::Unreachable, "no route to host"),
        (libc::ENETUNREACH, Kind::Unreachable, "network unreachable"),
        (libc::ETIMEDOUT, Kind::Timeout, "connection timed out"),
        (libc::ECONNRESET, Kind::Error, "connection reset"),
    ] {
        assert_outcome(&outcome(number), kind, words);
    }
    for number in [libc::EMFILE, libc::EADDRNOTAVAIL] {
        let outcome = outcome(number);
        assert_eq!(outcome.kind.success(), None, "says nothing of the backend");
        assert_eq!(outcome.kind.label(), "error");
    }
}
