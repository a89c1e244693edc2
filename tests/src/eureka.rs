//! A scripted Eureka server, after the public description of its REST operations: the whole registry,
//! one application, and deltas with the hash of what they lead to.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    host::Host,
    registry::{Registry, Reply, Request},
};

/// An instance as it is registered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    /// In upper case.
    pub app: &'static str,
    pub id: String,
    pub address: SocketAddr,
    pub status: &'static str,
    pub metadata: BTreeMap<String, String>,
}

impl Instance {
    /// One of `WEB` that is up.
    pub fn new(id: impl Into<String>, address: SocketAddr) -> Self {
        Self {
            app: "WEB",
            id: id.into(),
            address,
            status: "UP",
            metadata: BTreeMap::new(),
        }
    }
}

/// What is odd about a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Oddities {
    /// `/eureka`, as Spring's, or `/eureka/v2`, as Netflix's.
    pub base: &'static str,
    /// Answers 403 to deltas, as with `disable-delta`.
    pub no_delta: bool,
    /// Deltas leave changes out, as those of a server that was not told of them.
    pub forgets_changes: bool,
    /// Lists of one as objects, and ports as texts.
    pub like_xml: bool,
    /// The value of `Authorization` without which it answers 401.
    pub authorization: Option<&'static str>,
}

impl Default for Oddities {
    fn default() -> Self {
        Self {
            base: "/eureka",
            no_delta: false,
            forgets_changes: false,
            like_xml: false,
            authorization: None,
        }
    }
}

#[derive(Default)]
struct State {
    instances: Vec<Instance>,
    /// What a delta tells, with the action.
    changes: Vec<(&'static str, Instance)>,
    odd: Oddities,
}

/// A server. Killed when dropped.
pub struct Eureka {
    pub registry: Registry,
    state: Arc<Mutex<State>>,
}

impl Eureka {
    /// At this address of the host, with nothing registered.
    pub fn start(host: &Host, address: SocketAddr, odd: Oddities) -> anyhow::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            odd,
            ..State::default()
        }));
        let shared = state.clone();
        let script = move |request: &Request| answer(&lock(&shared), request);
        Ok(Self {
            registry: Registry::start(host, address, script)?,
            state,
        })
    }

    /// Registers an instance, or changes one that is.
    pub fn put(&self, instance: Instance) {
        let mut state = lock(&self.state);
        let known = state
            .instances
            .iter_mut()
            .find(|i| (i.app, &i.id) == (instance.app, &instance.id));
        let action = match known {
            Some(known) => {
                *known = instance.clone();
                "MODIFIED"
            }
            None => {
                state.instances.push(instance.clone());
                "ADDED"
            }
        };
        state.changes.push((action, instance));
    }

    /// Deregisters an instance.
    pub fn remove(&self, id: &str) {
        let mut state = lock(&self.state);
        let gone: Vec<_> = state.instances.extract_if(.., |i| i.id == id).collect();
        state
            .changes
            .extend(gone.into_iter().map(|i| ("DELETED", i)));
    }

    /// As it is after a restart: nothing is registered.
    pub fn empty(&self) {
        let mut state = lock(&self.state);
        state.instances.clear();
        state.changes.clear();
    }

    pub fn set_oddities(&self, odd: Oddities) {
        lock(&self.state).odd = odd;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(state: &State, request: &Request) -> Reply {
    let odd = &state.odd;
    let given = request.headers.get("authorization").map(String::as_str);
    if odd.authorization.is_some() && odd.authorization != given {
        return Reply::status(401, "who are you?");
    }
    let Some(path) = request.path.strip_prefix(odd.base) else {
        return Reply::status(404, "<html>no such page</html>");
    };
    match path {
        "/apps" => Reply::json(state.applications(&state.instances, None)),
        "/apps/delta" if odd.no_delta => Reply::status(403, ""),
        "/apps/delta" => {
            let (actions, changed): (Vec<_>, Vec<_>) = match odd.forgets_changes {
                true => (Vec::new(), Vec::new()),
                false => state.changes.iter().cloned().unzip(),
            };
            Reply::json(state.applications(&changed, Some(&actions)))
        }
        _ => {
            let app = path.strip_prefix("/apps/").unwrap_or_default();
            let of_app: Vec<_> = state.instances.iter().filter(|i| i.app == app).collect();
            match of_app.is_empty() {
                true => Reply::status(404, ""),
                false => {
                    let list = of_app.iter().map(|i| state.instance(i, None));
                    let list = state.list(list.collect());
                    let name = format!(r#"{{"name": "{app}", "instance": {list}}}"#);
                    Reply::json(format!(r#"{{"application": {name}}}"#))
                }
            }
        }
    }
}

impl State {
    fn applications(&self, instances: &[Instance], actions: Option<&[&str]>) -> String {
        let mut apps: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (n, instance) in instances.iter().enumerate() {
            let action = actions.and_then(|actions| actions.get(n)).copied();
            let text = self.instance(instance, action);
            apps.entry(instance.app).or_default().push(text);
        }
        let apps = apps
            .into_iter()
            .map(|(app, list)| format!(r#"{{"name": "{app}", "instance": {}}}"#, self.list(list)));
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for instance in &self.instances {
            *counts.entry(instance.status).or_default() += 1;
        }
        let counts = counts.into_iter();
        let hash: String = counts.map(|(status, n)| format!("{status}_{n}_")).collect();
        format!(
            r#"{{"applications": {{"versions__delta": "1", "apps__hashcode": "{hash}",
                "application": {}}}}}"#,
            self.list(apps.collect())
        )
    }

    fn list(&self, mut items: Vec<String>) -> String {
        match items.len() {
            1 if self.odd.like_xml => items.remove(0),
            _ => format!("[{}]", items.join(", ")),
        }
    }

    fn instance(&self, instance: &Instance, action: Option<&str>) -> String {
        let Instance {
            app,
            id,
            address,
            status,
            metadata,
        } = instance;
        let port = match self.odd.like_xml {
            true => format!(r#"{{"@enabled": "true", "$": "{}"}}"#, address.port()),
            false => format!(r#"{{"$": {}, "@enabled": "true"}}"#, address.port()),
        };
        let metadata: Vec<_> = metadata
            .iter()
            .map(|(key, value)| format!("{key:?}: {value:?}"))
            .collect();
        let action = action.map_or(String::new(), |a| format!(r#", "actionType": "{a}""#));
        format!(
            r#"{{"instanceId": "{id}", "hostName": "{id}.example", "app": "{app}",
                "ipAddr": "{}", "status": "{status}", "overriddenstatus": "UNKNOWN",
                "port": {port}, "securePort": {{"$": 443, "@enabled": "false"}}, "countryId": 1,
                "dataCenterInfo": {{"name": "MyOwn"}},
                "leaseInfo": {{"renewalIntervalInSecs": 30, "durationInSecs": 90}},
                "metadata": {{{}}}, "vipAddress": "web"{action}}}"#,
            address.ip(),
            metadata.join(", ")
        )
    }
}
