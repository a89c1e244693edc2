//! `POST /v1/call` on the unix socket.

use std::{future::Future, sync::Arc};

use hyper::{Method, StatusCode, body::Bytes};
use tokio::net::UnixListener;

use super::types::{Fault, FaultCode, Request, Response};
use crate::{
    controller::Handle,
    http::{self, Limits, Reply, Route, Site},
};

pub const PATH: &str = "/v1/call";

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

/// Errors say what a request looks like, or which verb, field or value is wrong.
fn parse(body: &[u8]) -> Result<Request, String> {
    let value: serde_json::Value = serde_json::from_slice(body).map_err(|error| {
        format!(r#"the body is no JSON: {error}; expected an object such as {{"verb":"status"}}"#)
    })?;
    let Some(fields) = value.as_object() else {
        return Err(r#"expected an object such as {"verb":"status"}"#.to_owned());
    };
    let place = match fields.get("verb").and_then(|verb| verb.as_str()) {
        Some(verb) => format!("verb `{}`: ", verb.chars().take(40).collect::<String>()),
        None => String::new(),
    };
    serde_json::from_value(value).map_err(|error| format!("{place}{error}"))
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
