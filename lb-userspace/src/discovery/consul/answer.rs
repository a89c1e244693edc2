//! Answers of `/v1/health/service/NAME`, understood.
//!
//! <https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service>

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::Deserialize;

use super::{Answer, Class, Failure};
use crate::discovery::{Instance, InstanceState, Snapshot};

/// Label that holds the tags which are no `key=value`, with commas between.
const TAGS: &str = "tags";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    // Go writes an empty list as null.
    checks: Option<Vec<Check>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: String,
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: i64,
    tags: Option<Vec<String>>,
    meta: Option<BTreeMap<String, String>>,
    weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: i64,
    warning: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    status: String,
}

/// The instances of an answer's body; `unit` is what one of Consul's weights is.
///
/// # Errors
/// If it is not the list that Consul documents.
pub fn parse(body: &[u8], unit: u16) -> serde_json::Result<Snapshot> {
    serde_json::from_slice(body).map(|entries| snapshot(entries, unit))
}

/// The instances of an answer.
///
/// # Errors
/// If it is something else, or does not say what there is: from a server that knows no leader, or
/// for a token that may see nothing.
pub(super) fn read(answer: &Answer, unit: u16) -> Result<Snapshot, Failure> {
    if answer.header("x-consul-knownleader") == Some("false") {
        let what = "Consul knows no leader; what it holds may be old, or not all there is";
        return Err(Failure::new(Class::Refused, what));
    }
    let mut snapshot = snapshot(answer.json()?, unit);
    if answer.header("x-consul-results-filtered-by-acls") == Some("true") {
        let what = "the token may not see all instances; it needs `service:read` and `node:read`";
        if snapshot.instances.is_empty() {
            return Err(Failure::new(Class::Denied, what));
        }
        snapshot.left_out.push(what.to_owned());
    }
    Ok(snapshot)
}

/// The index that an answer stands for.
///
/// # Errors
/// If it has none: then whoever answered is not Consul.
pub(super) fn index(answer: &Answer) -> Result<u64, Failure> {
    let index = answer.header("x-consul-index").map(str::parse);
    index.and_then(Result::ok).ok_or_else(|| {
        let what = "an answer without the header X-Consul-Index; is this Consul?";
        Failure::new(Class::Malformed, what)
    })
}

fn snapshot(entries: Vec<Entry>, unit: u16) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for entry in entries {
        match instance(entry, unit) {
            Ok(instance) => snapshot.instances.push(instance),
            Err(fault) => snapshot.left_out.push(fault),
        }
    }
    snapshot
}

fn instance(entry: Entry, unit: u16) -> Result<Instance, String> {
    let Entry {
        node,
        service,
        checks,
    } = entry;
    // Ids of services are unique on a node only.
    let id = format!("{}/{}", node.node, service.id);
    let host = match service.address.is_empty() {
        true => &node.address,
        false => &service.address,
    };
    let ip: IpAddr = host
        .parse()
        .map_err(|_| format!("`{id}`: its address `{host}` is no IP address"))?;
    let port =
        u16::try_from(service.port).map_err(|_| format!("`{id}`: {} is no port", service.port))?;
    let health = health(checks.as_deref().unwrap_or_default());
    let weight = |weights: Weights| {
        let own = match health {
            Health::Warning => weights.warning,
            _ => weights.passing,
        };
        own.saturating_mul(unit.into()).clamp(0, u16::MAX.into()) as u16
    };
    Ok(Instance {
        weight: service.weights.map(weight),
        labels: labels(
            service.tags.unwrap_or_default(),
            service.meta.unwrap_or_default(),
        ),
        state: match health {
            Health::Passing | Health::Warning => InstanceState::Up,
            Health::Maintenance => InstanceState::Drain,
            Health::Critical => InstanceState::Down,
        },
        ..Instance::new(id, SocketAddr::new(ip, port))
    })
}

/// What the checks of an instance and its node say together. From best to worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Passing,
    Warning,
    Critical,
    /// Worst, as Consul has it: who maintains a server need not mind that its checks fail too.
    Maintenance,
}

fn health(checks: &[Check]) -> Health {
    let of = |check: &Check| match (check.id.as_str(), check.status.as_str()) {
        ("_node_maintenance", _) => Health::Maintenance,
        (id, _) if id.starts_with("_service_maintenance") => Health::Maintenance,
        (_, "passing") => Health::Passing,
        (_, "warning") => Health::Warning,
        _ => Health::Critical,
    };
    checks.iter().map(of).max().unwrap_or(Health::Passing)
}

/// Tags `key=value` and metadata, which wins; other tags together.
fn labels(tags: Vec<String>, meta: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut plain = Vec::new();
    for tag in tags {
        match tag.split_once('=') {
            Some((key, value)) => {
                labels.insert(key.to_owned(), value.to_owned());
            }
            None => plain.push(tag),
        }
    }
    if !plain.is_empty() {
        labels.insert(TAGS.to_owned(), plain.join(","));
    }
    labels.extend(meta);
    labels
}
