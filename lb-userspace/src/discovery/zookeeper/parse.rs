//! What the data of one node says: the JSON of Apache Curator's service discovery. Pure.
//!
//! The format is that of `org.apache.curator.x.discovery.ServiceInstance`; see
//! <https://curator.apache.org/docs/service-discovery>.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::discovery::{Instance, InstanceState};

/// Characters of a faulty value that are shown.
const SHOWN: usize = 60;

/// Of what Curator writes, what matters here; programs add keys.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registered {
    address: String,
    port: Option<u16>,
    ssl_port: Option<u16>,
    #[serde(default)]
    payload: Value,
    /// Absent in what Curator before 3.0 wrote.
    enabled: Option<bool>,
}

/// The instance that a node means. Its id is the node's name, which Curator makes the instance's id.
///
/// # Errors
/// Why it means none, in words.
pub fn instance(node: &str, data: &[u8], ssl_port: bool) -> Result<Instance, String> {
    let fault = |what: String| format!("`{node}`: {what}");
    let registered: Registered = serde_json::from_slice(data).map_err(|error| {
        let shown: String = String::from_utf8_lossy(&data[..data.len().min(4 * SHOWN)])
            .chars()
            .take(SHOWN)
            .flat_map(char::escape_debug)
            .collect();
        fault(format!("not an instance: {error}: {shown}"))
    })?;
    let Registered {
        address,
        port,
        ssl_port: secure,
        payload,
        enabled,
    } = registered;
    let ip: IpAddr = address.parse().map_err(|_| {
        let shown: String = address.chars().take(SHOWN).collect();
        fault(format!(
            "`address` {shown:?} is no IP address; names are not resolved"
        ))
    })?;
    let (key, wanted) = match ssl_port {
        true => ("sslPort", secure),
        false => ("port", port),
    };
    let port = wanted.ok_or_else(|| fault(format!("it has no `{key}`")))?;
    let mut instance = Instance::new(node, (ip, port).into());
    if enabled == Some(false) {
        instance.state = InstanceState::Drain;
    }
    if let Some(texts) = texts(payload) {
        take(texts, &mut instance);
    }
    Ok(instance.fitting())
}

/// The pairs of a payload that is a map, or, as Spring Cloud's, has one under `metadata`.
fn texts(payload: Value) -> Option<BTreeMap<String, String>> {
    let Value::Object(mut map) = payload else {
        return None;
    };
    let inner: Option<Map<String, Value>> = match map.remove("metadata") {
        Some(Value::Object(inner)) => Some(inner),
        _ => None,
    };
    let pairs = inner.unwrap_or(map).into_iter();
    let pairs = pairs.filter_map(|(key, value)| match value {
        // A class name, for Jackson.
        _ if key == "@class" => None,
        Value::String(text) => Some((key, text)),
        Value::Number(number) => Some((key, number.to_string())),
        Value::Bool(value) => Some((key, value.to_string())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    });
    Some(pairs.collect())
}

fn take(texts: BTreeMap<String, String>, instance: &mut Instance) {
    for (key, text) in texts {
        match &*key {
            "weight" => instance.weight = text.parse().ok(),
            // The first is lbd's word, the second Spring Cloud's.
            "state" | "instance_status" => {
                let state = match &*text {
                    "drain" | "OUT_OF_SERVICE" => InstanceState::Drain,
                    "down" | "DOWN" => InstanceState::Down,
                    _ => InstanceState::Up,
                };
                instance.state = instance.state.max(state);
            }
            _ => {
                instance.labels.insert(key, text);
            }
        }
    }
}
