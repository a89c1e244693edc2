//! Whatever arrives on the socket is answered in words or cut off, and the daemon goes on.

use std::time::{Duration, Instant};

use crate::common::{Daemon, fault, status};
use lb_userspace::{
    api::{
        client::{CallError, Client},
        types::{Fault, FaultCode, Request, Response},
    },
    http::Limits,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

const QUICK: Limits = Limits {
    connections: 4,
    body: 4 << 20,
    header_time: Duration::from_millis(300),
    body_time: Duration::from_millis(500),
    answer_time: Duration::from_secs(5),
};

fn daemon() -> Daemon {
    Daemon::with_limits(QUICK, |request| match request {
        Request::Status => Ok(Response::Status(status())),
        _ => fault(FaultCode::NotFound, "no service `x`"),
    })
}

/// Sends bytes, and returns the answer's status and body.
async fn exchange(daemon: &Daemon, bytes: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
    // The daemon may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned());
    (status.unwrap_or(0), body.unwrap_or_default())
}

async fn refusal(daemon: &Daemon, bytes: &[u8]) -> (u16, Fault) {
    let (status, body) = exchange(daemon, bytes).await;
    let fault = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{status} {body}: {e}"));
    (status, fault)
}

fn post(body: &str) -> Vec<u8> {
    format!(
        "POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn assert_alive(daemon: &Daemon) {
    let answer = Client::new(&daemon.socket).call(&Request::Status).await;
    assert!(matches!(answer, Ok(Response::Status(_))), "{answer:?}");
}

#[tokio::test]
async fn a_request_is_answered_and_a_fault_keeps_its_code() {
    let daemon = daemon();
    assert_alive(&daemon).await;
    let answer = Client::new(&daemon.socket)
        .call(&Request::GetServices)
        .await;
    match answer {
        Err(CallError::Fault(fault)) => assert_eq!(fault.code, FaultCode::NotFound),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn wrong_paths_and_methods_are_told_what_is_served() {
    let daemon = daemon();
    let (status, fault) = refusal(&daemon, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(status, 404);
    assert!(fault.message.contains("POST /v1/call"), "{fault:?}");

    let (status, fault) = refusal(&daemon, b"GET /v1/call HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(status, 405);
    assert!(fault.message.contains("POST"), "{fault:?}");
}

#[tokio::test]
async fn wrong_bodies_are_told_which_verb_field_or_value() {
    let daemon = daemon();
    let cases = [
        ("", r#"such as {"verb":"status"}"#),
        ("{\"verb\":", "EOF while parsing"),
        ("[]", "expected an object"),
        ("7", "expected an object"),
        ("{}", "missing field `verb`"),
        (r#"{"verb":"destroy"}"#, "`get-services`"),
        (r#"{"verb":"remove-service"}"#, "missing field `name`"),
        (
            r#"{"verb":"remove-service","name":"a","force":1}"#,
            "`force`",
        ),
        (
            r#"{"verb":"set-mode","backend":"web","mode":"drain"}"#,
            "SERVICE/ADDR:PORT",
        ),
        (
            r#"{"verb":"set-mode","backend":"web/10.0.0.1:80","mode":"off"}"#,
            "`maintenance`",
        ),
        (
            r#"{"verb":"set-weight","backend":"web/10.0.0.1:80","weight":{"absolute":70000}}"#,
            "70000",
        ),
    ];
    for (body, expected) in cases {
        let (status, fault) = refusal(&daemon, &post(body)).await;
        assert_eq!((status, fault.code), (400, FaultCode::Invalid), "{body}");
        assert!(
            fault.message.contains(expected),
            "{body}: {}",
            fault.message
        );
    }
    assert_alive(&daemon).await;
}

#[tokio::test]
async fn deeply_nested_json_is_a_fault_and_no_stack_overflow() {
    let daemon = daemon();
    let (status, _) = refusal(&daemon, &post(&"[".repeat(1 << 20))).await;
    assert_eq!(status, 400);
    assert_alive(&daemon).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_declared_or_not() {
    let daemon = daemon();
    let big = " ".repeat(5 << 20);
    let (status, fault) = refusal(&daemon, &post(&big)).await;
    assert_eq!(status, 413);
    assert!(fault.message.contains("4194304 bytes"), "{fault:?}");

    let mut chunked =
        b"POST /v1/call HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len()).bytes());
    assert_eq!(refusal(&daemon, &chunked).await.0, 413);
    assert_alive(&daemon).await;
}

#[tokio::test]
async fn ten_megabytes_of_noise_are_refused_in_words() {
    let daemon = daemon();
    // xorshift64: the same noise on every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = (0..10 << 20)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    let (status, fault) = refusal(&daemon, &noise).await;
    assert_eq!(status, 400);
    assert!(fault.message.contains("no HTTP request"), "{fault:?}");
    assert_alive(&daemon).await;
}

#[tokio::test]
async fn headers_without_end_or_measure_are_cut_off() {
    let daemon = daemon();
    let mut many = b"POST /v1/call HTTP/1.1\r\n".to_vec();
    for i in 0..200 {
        many.extend(format!("x-{i}: 1\r\n").bytes());
    }
    many.extend(b"\r\n");
    assert_eq!(exchange(&daemon, &many).await.0, 431);

    let long = format!(
        "POST /v1/call HTTP/1.1\r\nx: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    assert_eq!(exchange(&daemon, long.as_bytes()).await.0, 431);
    assert_eq!(
        exchange(&daemon, b"POST /v1/call HTTP/9.9\r\n\r\n").await.0,
        400
    );
    assert_alive(&daemon).await;
}

#[tokio::test]
async fn half_requests_end_at_their_time_limit() {
    let daemon = daemon();
    let halves: [&[u8]; 3] = [
        b"",
        b"POST /v1/ca",
        b"POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-le",
    ];
    for half in halves {
        let begin = Instant::now();
        let (status, _) = exchange(&daemon, half).await;
        assert_eq!(status, 0);
        assert!(begin.elapsed() < Duration::from_secs(3));
    }
    let (status, fault) = refusal(
        &daemon,
        b"POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    )
    .await;
    assert_eq!(status, 408);
    assert!(fault.message.contains("was not read"), "{fault:?}");
    assert_alive(&daemon).await;
}

#[tokio::test]
async fn too_many_connections_are_told_so_and_places_come_back() {
    let daemon = daemon();
    let mut held = Vec::new();
    for _ in 0..QUICK.connections {
        held.push(UnixStream::connect(&daemon.socket).await.unwrap());
    }
    let (status, fault) = refusal(&daemon, &post(r#"{"verb":"status"}"#)).await;
    assert_eq!(status, 503);
    assert!(fault.message.contains("4 connections"), "{fault:?}");
    let client = Client::new(&daemon.socket);
    match client.call(&Request::Status).await {
        Err(CallError::Unreachable(message)) => {
            assert_eq!(message, "the daemon is busy (4 connections); try again");
        }
        other => panic!("{other:?}"),
    }

    tokio::time::sleep(QUICK.header_time * 2).await;
    assert_alive(&daemon).await;
}

#[tokio::test]
async fn a_peer_that_shuts_down_its_side_still_gets_its_answer() {
    let daemon = daemon();
    let mut stream = UnixStream::connect(&daemon.socket).await.unwrap();
    stream
        .write_all(&post(r#"{"verb":"status"}"#))
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
