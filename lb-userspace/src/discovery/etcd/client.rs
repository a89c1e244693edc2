//! One connection to one member of a cluster.
//!
//! The client library would balance requests over several endpoints, and then nobody could tell
//! which of them does not answer, nor compare the revisions of two answers.

use std::{fs, future::Future, io::ErrorKind, path::Path, time::Duration};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, Identity, KeyValue, KvClient,
    TlsOptions, WatchOptions, WatchStream,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::{Config, known::Known};
use crate::discovery::{
    Class, Failure,
    http::{BaseUrl, Tls},
    resolve,
    rules::MAX_INSTANCES,
};

/// Time to connect, and for each answer. etcd itself gives up a request after 7 s without a quorum.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(4);
/// For all pages of a read: a member must not have each come just in time.
const READ: Duration = Duration::from_secs(300);

/// A member that does not answer a ping in this time hangs: a watch would wait for it for ever. etcd
/// ends connections that ping more often than every 5 s (`--grpc-keepalive-min-time`).
const PING: Duration = Duration::from_secs(7);
const PONG: Duration = Duration::from_secs(5);

/// Keys a page: a request of them all may be larger than what a server is willing to send. Fewer where so
/// many are larger than what lbd is willing to read.
const PAGE: usize = 1000;
/// Largest message, in bytes: a key with the largest value that etcd takes, unless it is told otherwise. What
/// is in it is known only once it is read, and a key of two bytes takes 80 then, an event 180.
const MAX_MESSAGE: usize = 2 << 20;
/// All keys and values below a prefix together, in bytes.
const MAX_TOTAL: usize = 64 << 20;
const MAX_KEY_FILE: u64 = 1 << 20;

pub(super) struct Member {
    name: BaseUrl,
    client: Client,
}

impl Member {
    pub(super) async fn connect(config: &Config, url: &BaseUrl) -> Result<Self, Failure> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING, PONG)
            // A member without a quorum would answer from what it knew, and watch nothing for ever.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let (tls, password) = (config.tls.clone(), config.password.clone());
        let is_tls = url.is_tls;
        let read = spawn_blocking(move || {
            let tls = is_tls.then(|| tls_options(&tls)).transpose()?;
            let password = password.map(|secret| secret.read()).transpose()?;
            Ok((tls, password))
        });
        let (tls, password) = read.await.unwrap_or_else(|_| {
            Err(Failure::new(
                Class::Internal,
                "reading certificates panicked",
            ))
        })?;
        if let Some(tls) = tls {
            options = options.with_tls(tls);
        }
        if let (Some(user), Some(password)) = (&config.user, password) {
            options = options.with_user(user, password.expose());
        }
        // The client has a resolver of its own, which is asked only for names that are known.
        let known = timeout(CONNECT, resolve::addresses(&url.host, url.port)).await;
        let known = known.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        known.map_err(|error| {
            Failure::new(Class::Unreachable, format!("{url}: no address: {error}"))
        })?;
        let connect = Client::connect([url.to_string()], Some(options));
        let client = within(url, "no connection", connect).await?;
        Ok(Self {
            name: url.clone(),
            client,
        })
    }

    /// All keys below the prefix, as of one revision.
    pub(super) async fn read(&self, prefix: &str, known: &mut Known) -> Result<(), Failure> {
        let mut kv: KvClient = self
            .client
            .kv_client()
            .max_decoding_message_size(MAX_MESSAGE);
        let end = behind(prefix.as_bytes());
        let mut from = prefix.as_bytes().to_vec();
        let mut pairs = Vec::new();
        let mut total = 0;
        let mut revision = 0;
        let mut limit = PAGE;
        let end_of_patience = Instant::now() + READ;
        loop {
            if Instant::now() > end_of_patience {
                let what = format!("not all below `{prefix}` within {READ:?}");
                return Err(self.failure(Class::Timeout, what));
            }
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(limit as i64)
                .with_revision(revision);
            let get = async {
                match kv.get(from.clone(), Some(options)).await {
                    Err(error) if limit > 1 && is_too_large(&error) => Ok(None),
                    other => other.map(Some),
                }
            };
            let Some(mut page) = within(&self.name, "no answer", get).await? else {
                limit /= 10;
                continue;
            };
            if revision == 0 {
                revision = page.header().map_or(0, |header| header.revision());
            }
            let more = page.more();
            let read = page.take_kvs().into_iter().map(KeyValue::into_key_value);
            let is_empty = read.len() == 0;
            take(read, limit, &mut pairs, &mut total).map_err(|what| {
                self.failure(Class::Malformed, format!("below `{prefix}` {what}"))
            })?;
            if more && is_empty {
                let what = format!("below `{prefix}` more is promised, but does not come");
                return Err(self.failure(Class::Malformed, what));
            }
            match pairs.last() {
                Some((last, _)) if more => from = [last.as_slice(), &[0]].concat(),
                _ => break,
            }
        }
        if revision <= 0 {
            return Err(self.failure(Class::Malformed, "an answer without a revision"));
        }
        let replaced = known.replace(pairs, revision);
        replaced.map_err(|failure| failure.context(self.below(prefix)))
    }

    /// What happens below the prefix from a revision on.
    pub(super) async fn watch(&self, prefix: &str, from: i64) -> Result<WatchStream, Failure> {
        let options = WatchOptions::new()
            .with_range(behind(prefix.as_bytes()))
            .with_start_revision(from)
            // What happened at once may be more than fits into a message.
            .with_fragment()
            .with_progress_notify();
        let mut watch = self
            .client
            .watch_client()
            .max_decoding_message_size(MAX_MESSAGE);
        let watch = watch.watch(prefix, Some(options));
        within(&self.name, "no watch", watch).await
    }

    /// What is read, for messages.
    pub(super) fn below(&self, prefix: &str) -> String {
        format!("{}: below `{prefix}`", self.name)
    }

    pub(super) fn failure(&self, class: Class, what: impl std::fmt::Display) -> Failure {
        Failure::new(class, format!("{}: {what}", self.name))
    }

    pub(super) fn failed(&self, error: &Error) -> Failure {
        failed(&self.name, error)
    }
}

type Pair = (Vec<u8>, Vec<u8>);

/// Adds a page of at most `limit` keys to what was read before, of which `total` is the bytes.
///
/// # Errors
/// In words, if it is longer, or if all is more than a source may hold.
fn take(
    page: impl ExactSizeIterator<Item = Pair>,
    limit: usize,
    pairs: &mut Vec<Pair>,
    total: &mut usize,
) -> Result<(), String> {
    let count = page.len();
    if count > limit {
        return Err(format!(
            "it tells {count} keys where {limit} were asked for"
        ));
    }
    if pairs.len() + count > MAX_INSTANCES {
        return Err(format!(
            "are more than {MAX_INSTANCES} keys, of which no source may have more"
        ));
    }
    for (key, value) in page {
        *total += key.len() + value.len();
        pairs.push((key, value));
    }
    match *total > MAX_TOTAL {
        true => Err(format!("is more than {} MiB", MAX_TOTAL >> 20)),
        false => Ok(()),
    }
}

/// Whether an answer was refused here for its size. etcd has the same code for other things.
fn is_too_large(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else {
        return false;
    };
    status.code() as i32 == code::OUT_OF_RANGE
        && status.message().contains("message length too large")
}

/// The first key behind all that begin with the prefix; `\0`, which is none, if there is no such.
fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

async fn within<T>(
    url: &BaseUrl,
    what: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    match timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(|error| failed(url, &error)),
        Err(_) => Err(Failure::new(
            Class::Timeout,
            format!("{url}: {what} within {PATIENCE:?}"),
        )),
    }
}

/// gRPC's numbers of status codes.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

fn failed(url: &BaseUrl, error: &Error) -> Failure {
    let (code, own, cause) = match error {
        Error::GRpcStatus(status) => (
            Some(status.code() as i32),
            status.message().to_owned(),
            innermost(status),
        ),
        Error::TransportError(error) => (None, error.to_string(), innermost(error)),
        Error::InvalidArgs(_) | Error::InvalidUri(_) => {
            return Failure::new(Class::Config, format!("{url}: {error}"));
        }
        error => (None, error.to_string(), None),
    };
    let mut text = match cause {
        Some(cause) if !own.contains(&cause) => format!("{own}: {cause}"),
        _ => own,
    };
    let class = class(code, &text);
    if class == Class::Malformed {
        text += "; does an etcd v3 answer there?";
    }
    Failure::new(class, format!("{url}: {text}"))
}

fn class(code: Option<i32>, text: &str) -> Class {
    let is_told_by_etcd = text.starts_with("etcdserver:");
    let lower = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    match code {
        Some(code::PERMISSION_DENIED | code::UNAUTHENTICATED) => Class::Denied,
        Some(code::INVALID_ARGUMENT) if has(&["auth", "user"]) => Class::Denied,
        _ if is_told_by_etcd => Class::Refused,
        _ if has(&["certificate", "handshake", "alert", "invalid peer"]) => Class::Denied,
        _ if has(&["timed out", "keep-alive", "keepalive", "deadline"]) => Class::Timeout,
        Some(code::DEADLINE_EXCEEDED) => Class::Timeout,
        // As a connection ends that was killed, or whose pings are not answered.
        _ if has(&["broken pipe", "reset by peer", "refused", "closed"]) => Class::Unreachable,
        _ if has(&["protocol error", "frame", "http/1", "content-type", "decod"]) => {
            Class::Malformed
        }
        Some(code::OUT_OF_RANGE) => Class::Malformed,
        _ if has(&["http status", "http code"]) => Class::Refused,
        _ => Class::Unreachable,
    }
}

/// The cause of causes, which says more than `transport error`.
fn innermost(error: &dyn std::error::Error) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

/// Blocks.
fn tls_options(tls: &Tls) -> Result<TlsOptions, Failure> {
    // Tells what is wrong with the files better than a handshake that fails.
    tls.client_config()?;
    let mut options = TlsOptions::new();
    options = match &tls.ca_file {
        Some(file) => options.ca_certificate(Certificate::from_pem(pem(file)?)),
        None => options.with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
        options = options.identity(Identity::from_pem(pem(cert)?, pem(key)?));
    }
    if let Some(name) = &tls.server_name {
        options = options.domain_name(name);
    }
    Ok(options)
}

fn pem(file: &Path) -> Result<Vec<u8>, Failure> {
    let fault = |what: String| Failure::new(Class::Config, format!("{}: {what}", file.display()));
    let length = fs::metadata(file).map_err(|error| fault(error.to_string()))?;
    if length.len() > MAX_KEY_FILE {
        return Err(fault("larger than 1 MiB".to_owned()));
    }
    fs::read(file).map_err(|error| fault(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        for (prefix, end) in [
            (&b"web/"[..], &b"web0"[..]),
            (b"a\xff", b"b"),
            (b"\xff\xff", b"\0"),
        ] {
            assert_eq!(behind(prefix), end);
        }
    }

    #[test]
    fn keys_are_read_up_to_a_bound() {
        let page =
            |count: usize, bytes: usize| vec![(vec![0; bytes], Vec::new()); count].into_iter();
        let (mut pairs, mut total) = (Vec::new(), 0);
        let mut more = |count, bytes| take(page(count, bytes), PAGE, &mut pairs, &mut total);
        let fault = more(PAGE + 1, 0).unwrap_err();
        assert!(fault.contains("1001 keys where 1000"), "{fault}");
        for _ in 0..MAX_INSTANCES / PAGE {
            more(PAGE, 0).unwrap();
        }
        let fault = more(1, 0).unwrap_err();
        assert!(fault.contains("more than 100000 keys"), "{fault}");

        let (mut pairs, mut total) = (Vec::new(), 0);
        let mut more = |count, bytes| take(page(count, bytes), PAGE, &mut pairs, &mut total);
        more(64, 1 << 20).unwrap();
        let fault = more(1, 1).unwrap_err();
        assert!(fault.contains("64 MiB"), "{fault}");
    }

    #[test]
    fn failures_have_classes() {
        for (code, text, wanted) in [
            (Some(14), "etcdserver: no leader", Class::Refused),
            (
                Some(14),
                "transport error: Connection refused",
                Class::Unreachable,
            ),
            (
                Some(3),
                "etcdserver: authentication failed, invalid user ID or password",
                Class::Denied,
            ),
            (Some(7), "etcdserver: permission denied", Class::Denied),
            (
                None,
                "transport error: invalid peer certificate: UnknownIssuer",
                Class::Denied,
            ),
            (Some(14), "keep-alive timed out", Class::Timeout),
            (
                Some(13),
                "h2 protocol error: error reading a body from connection: stream closed because \
                 of a broken pipe",
                Class::Unreachable,
            ),
            (Some(13), "h2 protocol error: http2 error", Class::Malformed),
        ] {
            assert_eq!(class(code, text), wanted, "{text}");
        }
    }
}
