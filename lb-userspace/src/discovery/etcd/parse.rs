//! What the value of one key says. Pure.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Deserialize;
use serde_json::Value;

use crate::discovery::{Instance, InstanceState};

/// Bytes of a faulty value that are shown.
const SHOWN: usize = 60;

/// lbd's own form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    address: SocketAddr,
    weight: Option<u16>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    state: InstanceState,
}

/// What etcd's own naming for gRPC writes (`clientv3/naming`): an update with an address.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Naming {
    /// 0 adds the address, 1 takes it away.
    #[serde(default)]
    op: u64,
    addr: String,
    #[serde(default)]
    metadata: Value,
}

/// The instance that a key and its value mean; `None` for one that says that it is gone.
///
/// # Errors
/// Why it means none, in words.
pub fn instance(prefix: &[u8], key: &[u8], value: &[u8]) -> Result<Option<Instance>, String> {
    let id = id(prefix, key);
    let fault = |what: String| format!("`{id}`: {what}");
    let no_json = |error: serde_json::Error| {
        let shown: String = String::from_utf8_lossy(&value[..value.len().min(4 * SHOWN)])
            .chars()
            .take(SHOWN)
            .flat_map(char::escape_debug)
            .collect();
        fault(format!("not an instance: {error}: {shown}"))
    };
    // Straight into one of the two, so that an error tells the place in the text.
    let is_naming = serde_json::from_slice::<BTreeMap<String, serde::de::IgnoredAny>>(value)
        .map_err(no_json)?
        .contains_key("Addr");
    if !is_naming {
        let own: Own = serde_json::from_slice(value).map_err(no_json)?;
        return Ok(Some(
            Instance {
                id,
                address: own.address,
                weight: own.weight,
                labels: own.labels,
                state: own.state,
            }
            .fitting(),
        ));
    }
    let naming: Naming = serde_json::from_slice(value).map_err(no_json)?;
    match naming.op {
        0 => {}
        1 => return Ok(None),
        op => return Err(fault(format!("`Op` {op} is neither 0 nor 1"))),
    }
    let address = naming.addr.parse().map_err(|_| {
        let shown: String = naming.addr.chars().take(SHOWN).collect();
        fault(format!("`Addr` {shown:?} is no IP:PORT"))
    })?;
    let mut instance = Instance::new(id, address);
    if let Value::Object(metadata) = naming.metadata {
        for (key, value) in metadata {
            let text = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Bool(value) => value.to_string(),
                // Whatever a program keeps there for itself.
                Value::Null | Value::Array(_) | Value::Object(_) => continue,
            };
            match &*key {
                "weight" => instance.weight = text.parse().ok(),
                "state" => instance.state = state(&text),
                _ => {
                    instance.labels.insert(key, text);
                }
            }
        }
    }
    Ok(Some(instance.fitting()))
}

/// What is behind the prefix, which is what registrars choose; all of it if that is nothing.
pub(super) fn id(prefix: &[u8], key: &[u8]) -> String {
    let rest = key.strip_prefix(prefix).filter(|rest| !rest.is_empty());
    match std::str::from_utf8(rest.unwrap_or(key)) {
        Ok(text) => text.to_owned(),
        Err(_) => rest.unwrap_or(key).escape_ascii().to_string(),
    }
}

/// Foreign metadata: a word that lbd does not know says nothing.
fn state(word: &str) -> InstanceState {
    match word {
        "drain" => InstanceState::Drain,
        "down" => InstanceState::Down,
        _ => InstanceState::Up,
    }
}
