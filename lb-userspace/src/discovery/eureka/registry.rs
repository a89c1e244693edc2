//! What Eureka says, understood: applications, their instances, and deltas.
//!
//! Eureka's JSON was XML once: a list of one may be an object, a number a text, and a truth value
//! either.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::Deserialize;
use serde_json::Value;

use super::Port;
use crate::discovery::{Instance, InstanceState, Snapshot};

/// Answer of `/apps` and `/apps/delta`.
#[derive(Deserialize)]
pub struct Envelope {
    applications: Applications,
}

#[derive(Deserialize)]
struct Applications {
    #[serde(rename = "apps__hashcode")]
    hash: Option<String>,
    application: Option<OneOrMany<Application>>,
}

/// Answer of `/apps/NAME`.
#[derive(Deserialize)]
pub struct AppEnvelope {
    application: Application,
}

#[derive(Deserialize)]
struct Application {
    name: String,
    instance: Option<OneOrMany<Entry>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

impl<T> OneOrMany<T> {
    fn into_list(self) -> Vec<T> {
        match self {
            Self::Many(list) => list,
            Self::One(one) => vec![one],
        }
    }
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    instance_id: Option<String>,
    host_name: Option<String>,
    ip_addr: Option<String>,
    status: String,
    action_type: Option<String>,
    port: Option<PortEntry>,
    secure_port: Option<PortEntry>,
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    data_center_info: Value,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum PortEntry {
    Full {
        #[serde(rename = "$")]
        number: Value,
        #[serde(rename = "@enabled")]
        enabled: Option<Value>,
    },
    Number(Value),
}

/// How instances are read.
#[derive(Clone, Debug)]
pub struct Reading {
    pub port: Port,
    /// Key of the metadata that has the weight.
    pub weight_key: String,
}

/// What one server said: of one application everything, of the others what the hash needs.
pub struct Registry {
    app: String,
    /// The application's instances by their ids.
    entries: BTreeMap<String, Entry>,
    /// Status of every instance, by application and id.
    statuses: BTreeMap<(String, String), &'static str>,
}

impl Registry {
    /// From `/apps`. `app` is in upper case.
    ///
    /// # Errors
    /// Why this cannot be all that a Eureka holds, in words.
    pub fn of_all(app: &str, envelope: Envelope) -> Result<Self, String> {
        let Applications { hash, application } = envelope.applications;
        let applications = application.map_or_else(Vec::new, OneOrMany::into_list);
        if applications.is_empty() && hash.is_none() {
            return Err("neither applications nor their hash; is this Eureka?".to_owned());
        }
        let mut registry = Self::empty(app);
        for application in applications {
            registry.add(application)?;
        }
        Ok(registry)
    }

    /// From `/apps/NAME`. `app` is in upper case.
    ///
    /// # Errors
    /// Why this cannot be the application, in words.
    pub fn of_app(app: &str, envelope: AppEnvelope) -> Result<Self, String> {
        let application = envelope.application;
        if application.name.to_uppercase() != app {
            let name: String = application.name.escape_debug().take(60).collect();
            return Err(format!("asked for {app}, the answer is of `{name}`"));
        }
        if application.instance.is_none() {
            return Err("an application without `instance`".to_owned());
        }
        let mut registry = Self::empty(app);
        registry.add(application)?;
        Ok(registry)
    }

    fn empty(app: &str) -> Self {
        Self {
            app: app.to_owned(),
            entries: BTreeMap::new(),
            statuses: BTreeMap::new(),
        }
    }

    fn add(&mut self, application: Application) -> Result<(), String> {
        let name = application.name.to_uppercase();
        let entries = application
            .instance
            .map_or_else(Vec::new, OneOrMany::into_list);
        for entry in entries {
            let id = id(&entry).ok_or_else(|| format!("an instance of {name} without an id"))?;
            self.put(&name, id, entry);
        }
        Ok(())
    }

    fn put(&mut self, app: &str, id: String, entry: Entry) {
        let status = status(&entry.status);
        self.statuses.insert((app.to_owned(), id.clone()), status);
        if app == self.app {
            self.entries.insert(id, entry);
        }
    }

    /// From `/apps/delta` of the same server. False if it does not lead to what the server holds,
    /// by its hash, or is not understood: then this is worth nothing any more.
    pub fn apply(&mut self, envelope: Envelope) -> bool {
        let Applications { hash, application } = envelope.applications;
        for application in application.map_or_else(Vec::new, OneOrMany::into_list) {
            let app = application.name.to_uppercase();
            let entries = application
                .instance
                .map_or_else(Vec::new, OneOrMany::into_list);
            for entry in entries {
                let Some(id) = id(&entry) else {
                    return false;
                };
                match entry.action_type.as_deref() {
                    Some("ADDED" | "MODIFIED") => self.put(&app, id, entry),
                    Some("DELETED") => {
                        if app == self.app {
                            self.entries.remove(&id);
                        }
                        self.statuses.remove(&(app.clone(), id));
                    }
                    _ => return false,
                }
            }
        }
        hash.is_some_and(|hash| hash == self.hash())
    }

    /// Instances of each status, as Eureka's own clients count them: `DOWN_1_UP_2_`.
    pub fn hash(&self) -> String {
        let mut counts = BTreeMap::new();
        for status in self.statuses.values() {
            *counts.entry(status).or_insert(0_u32) += 1;
        }
        let counts = counts.into_iter();
        counts
            .map(|(status, count)| format!("{status}_{count}_"))
            .collect()
    }

    /// The application's instances.
    pub fn snapshot(&self, reading: &Reading) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (id, entry) in &self.entries {
            match instance(id, entry, reading) {
                Ok(instance) => snapshot.instances.push(instance),
                Err(fault) => snapshot.left_out.push(fault),
            }
        }
        snapshot
    }
}

/// As Eureka's own clients find it: `instanceId`, which old servers do not tell, else the data
/// centre's, else the host's name.
fn id(entry: &Entry) -> Option<String> {
    let of_center = entry.data_center_info.pointer("/metadata/instance-id");
    let given = |id: &&str| !id.is_empty();
    entry
        .instance_id
        .as_deref()
        .filter(given)
        .or_else(|| of_center.and_then(Value::as_str).filter(given))
        .or_else(|| entry.host_name.as_deref().filter(given))
        .map(str::to_owned)
}

/// What Eureka's own clients do not know is `UNKNOWN` to them, in the hash too.
fn status(text: &str) -> &'static str {
    const KNOWN: [&str; 4] = ["UP", "DOWN", "STARTING", "OUT_OF_SERVICE"];
    let known = KNOWN
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(text));
    known.unwrap_or("UNKNOWN")
}

fn instance(id: &str, entry: &Entry, reading: &Reading) -> Result<Instance, String> {
    let address = |text: &Option<String>| text.as_deref()?.parse::<IpAddr>().ok();
    let ip = address(&entry.ip_addr)
        .or_else(|| address(&entry.host_name))
        .ok_or_else(|| {
            let shown = entry.ip_addr.as_deref().unwrap_or_default();
            format!("`{id}`: its ipAddr `{shown}` is no IP address")
        })?;
    let (plain, secure) = (port(&entry.port), port(&entry.secure_port));
    let port = match reading.port {
        Port::Any => plain.or(secure),
        Port::Plain => plain,
        Port::Secure => secure,
    };
    let port = port.ok_or_else(|| {
        let which = super::word(&Port::ALL, &reading.port);
        format!("`{id}`: no port ({which}) that is enabled and from 1 to 65535")
    })?;
    let labels: BTreeMap<String, String> = match &entry.metadata {
        Value::Object(map) => map
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), scalar(value)?)))
            .collect(),
        _ => BTreeMap::new(),
    };
    let weight = labels.get(&reading.weight_key);
    let weight = weight.and_then(|weight| weight.trim().parse::<u64>().ok());
    Ok(Instance {
        weight: weight.map(|weight| weight.min(u16::MAX.into()) as u16),
        labels,
        state: match status(&entry.status) {
            "UP" => InstanceState::Up,
            "OUT_OF_SERVICE" => InstanceState::Drain,
            _ => InstanceState::Down,
        },
        ..Instance::new(id, SocketAddr::new(ip, port))
    })
}

/// A port that is enabled.
fn port(entry: &Option<PortEntry>) -> Option<u16> {
    let (number, enabled) = match entry.as_ref()? {
        PortEntry::Full { number, enabled } => (number, enabled.as_ref()),
        PortEntry::Number(number) => (number, None),
    };
    if enabled.is_some_and(|enabled| scalar(enabled).as_deref() != Some("true")) {
        return None;
    }
    let number = scalar(number)?.trim().parse().ok();
    number.filter(|number| *number != 0)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}
