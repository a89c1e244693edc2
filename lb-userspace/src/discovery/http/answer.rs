//! Answers, whole or as they come.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{
    HeaderMap, StatusCode,
    body::{Body, Bytes, Incoming},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::{Call, Driver, Lines, MAX_BODY, words};
use crate::{
    discovery::{Class, Failure},
    json,
};

/// Values in a JSON answer, each of which takes memory of its own: some hundred for each of ten thousand
/// instances.
const MAX_VALUES: usize = 1_000_000;
/// Characters of a faulty answer that are shown.
const SHOWN: usize = 120;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What was asked, for messages.
    name: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// # Errors
    /// If the status is not 2xx.
    pub fn success(self) -> Result<Self, Failure> {
        match refusal(&self.name, self.status, &self.body) {
            None => Ok(self),
            Some(failure) => Err(failure),
        }
    }

    /// The body as JSON, which may be nested 128 deep.
    ///
    /// # Errors
    /// If it is something else, with the place, or has more than [`MAX_VALUES`] values.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        if json::values(&self.body) > MAX_VALUES {
            let message = format!("{}: JSON of more than {MAX_VALUES} values", self.name);
            return Err(Failure::new(Class::Malformed, message));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            let shown = shown(&self.body);
            let message = format!("{}: not the JSON expected: {error}: {shown}", self.name);
            Failure::new(Class::Malformed, message)
        })
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

fn refusal(name: &str, status: StatusCode, body: &[u8]) -> Option<Failure> {
    if status.is_success() {
        return None;
    }
    let class = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Class::Denied,
        StatusCode::NOT_FOUND => Class::Missing,
        _ => Class::Refused,
    };
    let shown = shown(body);
    Some(Failure::new(
        class,
        format!("{name}: HTTP status {status}: {shown}"),
    ))
}

/// The beginning of what a server sent, on one line.
fn shown(body: &[u8]) -> String {
    let head = String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN)]);
    let mut text: String = head
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if text.is_empty() {
        return "(nothing)".to_owned();
    }
    if body.len() > SHOWN {
        text.push('…');
    }
    text
}

/// Reads to the end, in the call's time.
pub(super) async fn read(
    call: &Call,
    response: hyper::Response<Incoming>,
) -> Result<Answer, Failure> {
    let (head, mut body) = response.into_parts();
    let too_large = || {
        let what = format!("the answer is larger than {} MiB", MAX_BODY >> 20);
        call.failure(Class::Malformed, what)
    };
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    loop {
        let frame = call.within(call.end, "not the whole answer", body.frame());
        let Some(frame) = frame.await? else {
            break;
        };
        let frame = frame.map_err(|error| {
            let what = format!("the answer breaks off: {}", words(&error));
            call.failure(Class::Unreachable, what)
        })?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > MAX_BODY {
                return Err(too_large());
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(Answer {
        name: call.name.clone(),
        status: head.status,
        headers: head.headers,
        body: bytes.into(),
    })
}

/// An answer whose body is read as it comes.
pub struct Stream {
    call: Call,
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    lines: Lines,
    _driver: Driver,
}

impl Stream {
    pub(super) fn new(call: Call, response: hyper::Response<Incoming>, driver: Driver) -> Self {
        let (head, body) = response.into_parts();
        Self {
            call,
            status: head.status,
            headers: head.headers,
            body,
            lines: Lines::default(),
            _driver: driver,
        }
    }

    /// # Errors
    /// If the status is not 2xx, with the beginning of the body if that comes soon.
    pub async fn success(mut self) -> Result<Self, Failure> {
        if self.status.is_success() {
            return Ok(self);
        }
        let body = self.line(Duration::from_secs(1)).await;
        let body = body.ok().flatten().unwrap_or_default();
        let refused = refusal(&self.call.name, self.status, &body);
        refused.map_or(Ok(self), Err)
    }

    /// The next line, without its end; `None` at the end of the answer. Cancel safe.
    ///
    /// # Errors
    /// If nothing comes for `idle`, the connection breaks, or a line is longer than [`MAX_BODY`].
    pub async fn line(&mut self, idle: Duration) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(line) = self.lines.line() {
                return Ok(Some(line.to_vec()));
            }
            if self.lines.waiting() > MAX_BODY {
                let what = format!("a line longer than {} MiB", MAX_BODY >> 20);
                return Err(self.call.failure(Class::Malformed, what));
            }
            match self.chunk(idle).await? {
                Some(bytes) => self.lines.push(&bytes),
                None if self.lines.waiting() == 0 => return Ok(None),
                None => return Ok(Some(self.lines.rest())),
            }
        }
    }

    async fn chunk(&mut self, idle: Duration) -> Result<Option<Bytes>, Failure> {
        let end = Instant::now() + idle;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let frame = timeout(left, self.body.frame()).await.map_err(|_| {
                let what = format!("nothing came for {idle:.0?}");
                self.call.failure(Class::Timeout, what)
            })?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| {
                let what = format!("the answer breaks off: {}", words(&error));
                self.call.failure(Class::Unreachable, what)
            })?;
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_too_many_values_is_not_read() {
        let answer = |values: usize| Answer {
            name: "http://registry".to_owned(),
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: format!("[{}1]", "1,".repeat(values - 2)).into(),
        };
        let read = answer(MAX_VALUES).json::<Vec<u8>>().unwrap();
        assert_eq!(read.len(), MAX_VALUES - 1);
        let refused = answer(MAX_VALUES + 1).json::<Vec<u8>>().unwrap_err();
        assert!(
            refused.message.contains("more than 1000000 values"),
            "{refused}"
        );
    }
}
