//! `POST /v1/call` on the unix socket.

use std::{future::Future, sync::Arc};

use hyper::{Method, StatusCode, body::Bytes};
use serde::Deserialize;
use tokio::net::UnixListener;

use super::types::{Fault, FaultCode, Request, Response};
use crate::{
    controller::Handle,
    http::{self, Limits, Reply, Route, Site},
    json,
};

pub const PATH: &str = "/v1/call";

/// Values in a request: six for each backend of the largest service, and some. Each takes up to forty
/// times its length in memory while serde looks for the verb.
const MAX_VALUES: usize = 200_000;

/// Carries out requests.
pub trait Service: Send + Sync + 'static {
    fn call(&self, request: Request) -> impl Future<Output = Result<Response, Fault>> + Send;
}

impl Service for Handle {
    async fn call(&self, request: Request) -> Result<Response, Fault> {
        Handle::call(self, request).await
    }
}

/// Serves until the future is dropped.
pub async fn serve(listener: UnixListener, service: impl Service, limits: Limits) {
    http::serve(listener, Arc::new(Api(service)), limits).await;
}

struct Api<S>(S);

impl<S: Service> Site for Api<S> {
    const ROUTES: &'static [Route] = &[(PATH, &[Method::POST])];

    async fn answer(&self, _path: &str, body: Bytes) -> Reply {
        let request = match parse(&body) {
            Ok(request) => request,
            Err(message) => {
                return Reply::fault(StatusCode::BAD_REQUEST, FaultCode::Invalid, message);
            }
        };
        drop(body);
        match self.0.call(request).await {
            Ok(response) => Reply::json(StatusCode::OK, &response),
            Err(fault) => Reply::json(status(fault.code), &fault),
        }
    }
}

/// A request as it stands in a body.
///
/// # Errors
/// They say what a request looks like, or which verb, field or value is wrong.
pub fn parse(body: &[u8]) -> Result<Request, String> {
    if json::values(body) > MAX_VALUES {
        return Err(format!("the body holds more than {MAX_VALUES} values"));
    }
    serde_json::from_slice(body).map_err(|error| match verb(body) {
        Some(verb) => format!("verb `{verb}`: {error}"),
        None => format!(r#"{error}; expected an object such as {{"verb":"status"}}"#),
    })
}

/// The verb of a request that may be wrong otherwise, short enough for a message.
fn verb(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Verb {
        verb: String,
    }
    let Verb { verb } = serde_json::from_slice(body).ok()?;
    Some(verb.chars().take(40).collect())
}

fn status(code: FaultCode) -> StatusCode {
    match code {
        FaultCode::Invalid => StatusCode::BAD_REQUEST,
        FaultCode::NotFound => StatusCode::NOT_FOUND,
        FaultCode::Conflict => StatusCode::CONFLICT,
        FaultCode::Refused => StatusCode::FORBIDDEN,
        FaultCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_nothing_but_values_is_refused() {
        let bomb = format!(r#"{{"verb":"export","a":[{}1]}}"#, "[],".repeat(MAX_VALUES));
        let error = parse(bomb.as_bytes()).unwrap_err();
        assert!(error.contains("more than 200000 values"), "{error}");
    }
}
