//! An API server of Kubernetes, as far as a client that lists and watches can tell: versions, pages,
//! selectors, watches with bookmarks, compaction with 410 both ways, bearer tokens. Faults that any
//! HTTP server has are the [`Registry`]'s. Built from the public documents ("Kubernetes API
//! Concepts"); what it serves is made here.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    host::Host,
    registry::{Chunks, Registry, Reply, Request},
};

/// How a watch is told that its version is too old.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gone {
    /// Status 200 and an event of type ERROR.
    Event,
    /// Status 410 when the next watch would begin; one that is open falls silent, and ends in time.
    Status,
}

/// Kind, namespace and name.
type Key = (String, String, String);

struct Entry {
    version: u64,
    key: Key,
    /// As it was, and as it is.
    before: Option<Value>,
    after: Option<Value>,
}

struct State {
    version: u64,
    /// Watches may begin here and later.
    floor: u64,
    objects: BTreeMap<Key, Value>,
    log: VecDeque<Entry>,
    /// What continue tokens go on with, by token.
    pages: BTreeMap<String, Vec<Value>>,
    /// The most items of a page, whatever is asked.
    page: usize,
    /// Continue tokens that will have become too old.
    lost_pages: u32,
    token: Option<String>,
    gone: Gone,
    bookmarks: Duration,
    /// Watches open, and then nothing.
    silent: bool,
    /// What the next event is replaced with.
    garble: Option<String>,
    /// Statuses with which watches are refused.
    refuse: Option<(u16, &'static str)>,
    lists: u32,
    watches: u32,
}

/// The server. Killed when dropped.
pub struct Cluster {
    pub registry: Registry,
    state: Arc<Mutex<State>>,
}

impl Cluster {
    /// Serves plain HTTP on `address` of `host`. There is nothing in it.
    pub fn start(host: &Host, address: SocketAddr) -> anyhow::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            version: 1000,
            floor: 1000,
            objects: BTreeMap::new(),
            log: VecDeque::new(),
            pages: BTreeMap::new(),
            page: usize::MAX,
            lost_pages: 0,
            token: None,
            gone: Gone::Event,
            bookmarks: Duration::from_secs(60),
            silent: false,
            garble: None,
            refuse: None,
            lists: 0,
            watches: 0,
        }));
        let shared = state.clone();
        let registry = Registry::start(host, address, move |request| answer(&shared, request))?;
        Ok(Self { registry, state })
    }

    /// Creates or replaces an object, by its kind, namespace and name.
    pub fn apply(&self, object: Value) {
        self.lock().apply(object);
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.lock().change(key, None);
    }

    /// Something happens elsewhere in the cluster: the version grows.
    pub fn elsewhere(&self, count: u64) {
        self.lock().version += count;
    }

    /// Applies an object, and forgets what happened so far, this included: no watch that begins before
    /// now, or is open now, hears of it.
    pub fn change_and_compact(&self, gone: Gone, object: Value) {
        let mut state = self.lock();
        state.apply(object);
        state.version += 1;
        state.floor = state.version;
        state.gone = gone;
        state.log.clear();
        state.pages.clear();
    }

    /// Its disk is lost: nothing in it, and versions begin anew.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.objects.clear();
        state.log.clear();
        state.pages.clear();
        state.version = 1;
        state.floor = 1;
    }

    /// The most items of a page.
    pub fn set_page(&self, most: usize) {
        self.lock().page = most;
    }

    /// So many lists become too old while they are read.
    pub fn lose_pages(&self, lists: u32) {
        self.lock().lost_pages = lists;
    }

    /// What a client must say to be let in.
    pub fn set_token(&self, token: Option<&str>) {
        self.lock().token = token.map(str::to_owned);
    }

    /// Time between bookmarks.
    pub fn set_bookmarks(&self, every: Duration) {
        self.lock().bookmarks = every;
    }

    /// Whether watches tell nothing, and do not end either.
    pub fn set_silent(&self, silent: bool) {
        self.lock().silent = silent;
    }

    /// Sends this once in place of an event.
    pub fn garble(&self, line: &str) {
        self.lock().garble = Some(line.to_owned());
    }

    /// Refuses watches, and not lists.
    pub fn refuse_watches(&self, status: Option<(u16, &'static str)>) {
        self.lock().refuse = status;
    }

    /// Each request since the last time, without its version, in alphabetical order.
    pub fn asked(&self) -> Vec<String> {
        let requests = self.registry.take_asked();
        let asked = requests.iter().map(|r| {
            let query: Vec<_> = r
                .query
                .iter()
                .filter(|(key, _)| *key != "resourceVersion")
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            format!("{} {}?{}", r.method, r.path, query.join("&"))
        });
        let mut asked: Vec<String> = asked.collect();
        asked.sort();
        asked
    }

    /// Lists and watches that were begun.
    pub fn counts(&self) -> (u32, u32) {
        let state = self.lock();
        (state.lists, state.watches)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn apply(&mut self, object: Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (
            text(&object["kind"]),
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"]),
        );
        assert!(!key.0.is_empty() && !key.2.is_empty(), "{object}");
        self.change(key, Some(object));
    }

    fn change(&mut self, key: Key, object: Option<Value>) {
        let before = self.objects.remove(&key);
        if before.is_none() && object.is_none() {
            return;
        }
        self.version += 1;
        let version = self.version;
        let after = object.map(|mut object| {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            object["metadata"]["managedFields"] =
                json!([{"manager": "lb-tests", "operation": "Update"}]);
            object
        });
        if let Some(object) = &after {
            self.objects.insert(key.clone(), object.clone());
        }
        self.log.push_back(Entry {
            version,
            key,
            before,
            after,
        });
    }
}

/// What a request is about.
struct Wanted {
    kind: &'static str,
    group_version: &'static str,
    /// `None` for all.
    namespace: Option<String>,
    labels: Vec<(String, Option<String>)>,
    name: Option<String>,
}

impl Wanted {
    fn of(request: &Request) -> Option<Self> {
        let parts: Vec<&str> = request.path.split('/').skip(1).collect();
        let (kind, group_version, namespace) = match &parts[..] {
            ["api", "v1", "namespaces", namespace, "services"] => {
                ("Service", "v1", Some(*namespace))
            }
            ["api", "v1", "services"] => ("Service", "v1", None),
            ["apis", "discovery.k8s.io", "v1", "endpointslices"] => {
                ("EndpointSlice", "discovery.k8s.io/v1", None)
            }
            [
                "apis",
                "discovery.k8s.io",
                "v1",
                "namespaces",
                namespace,
                "endpointslices",
            ] => ("EndpointSlice", "discovery.k8s.io/v1", Some(*namespace)),
            _ => return None,
        };
        let parameter = |key: &str| request.query.get(key).map(|text| unescape(text));
        let labels = parameter("labelSelector").unwrap_or_default();
        let labels = labels.split(',').filter(|part| !part.is_empty());
        let fields = parameter("fieldSelector").unwrap_or_default();
        Some(Self {
            kind,
            group_version,
            namespace: namespace.map(str::to_owned),
            labels: labels
                .map(|part| match part.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (part.to_owned(), None),
                })
                .collect(),
            name: fields.strip_prefix("metadata.name=").map(str::to_owned),
        })
    }

    fn matches(&self, key: &Key, object: &Value) -> bool {
        let (kind, namespace, name) = key;
        *kind == self.kind
            && self
                .namespace
                .as_ref()
                .is_none_or(|wanted| wanted == namespace)
            && self.name.as_ref().is_none_or(|wanted| wanted == name)
            && self.labels.iter().all(|(key, wanted)| {
                let value = object["metadata"]["labels"][key].as_str();
                value.is_some() && (wanted.is_none() || wanted.as_deref() == value)
            })
    }

    /// As one event of a watch, if it matters to it.
    fn event(&self, entry: &Entry) -> Option<Value> {
        let matching =
            |object: &Option<Value>| object.clone().filter(|o| self.matches(&entry.key, o));
        let (kind, object) = match (matching(&entry.before), matching(&entry.after)) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            // Its last version is the one of the deletion.
            (Some(mut before), None) => {
                before["metadata"]["resourceVersion"] = json!(entry.version.to_string());
                ("DELETED", before)
            }
        };
        Some(json!({"type": kind, "object": object}))
    }

    fn bookmark(&self, version: u64) -> Value {
        json!({"type": "BOOKMARK", "object": {
            "kind": self.kind,
            "apiVersion": self.group_version,
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
            "addressType": "",
            "endpoints": null,
        }})
    }
}

/// RFC 3986, with `+` for a space as forms have it.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let digits = std::str::from_utf8(&digits).unwrap_or("00");
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn refused(code: u16, reason: &str, message: &str) -> Reply {
    Reply::status(code, status(code, reason, message).to_string())
}

fn answer(shared: &Arc<Mutex<State>>, request: &Request) -> Reply {
    let mut state = lock(shared);
    if let Some(token) = &state.token {
        let said = request.headers.get("authorization");
        if said != Some(&format!("Bearer {token}")) {
            return refused(401, "Unauthorized", "Unauthorized");
        }
    }
    let Some(wanted) = Wanted::of(request) else {
        return Reply::status(404, "404 page not found\n");
    };
    let watches = request.query.get("watch");
    if watches.is_some_and(|value| ["true", "1"].contains(&value.as_str())) {
        state.watches += 1;
        return watch(shared, &state, wanted, request);
    }
    state.lists += 1;
    list(&mut state, &wanted, request)
}

fn list(state: &mut State, wanted: &Wanted, request: &Request) -> Reply {
    let token = request.query.get("continue").map(|text| unescape(text));
    let (version, mut items) = match token {
        Some(token) => match state.pages.remove(&token) {
            Some(items) => {
                let version = token.split(':').next().unwrap_or_default();
                (version.to_owned(), items)
            }
            None => return refused(410, "Expired", "The provided continue parameter is too old"),
        },
        None => {
            let objects = state.objects.iter();
            let items = objects.filter(|(key, object)| wanted.matches(key, object));
            // Items of a list do not say what they are.
            let items = items.map(|(_, object)| {
                let mut object = object.clone();
                let map = object.as_object_mut().expect("an object");
                map.remove("kind");
                map.remove("apiVersion");
                object
            });
            (state.version.to_string(), items.collect::<Vec<_>>())
        }
    };
    let limit = request.query.get("limit").and_then(|l| l.parse().ok());
    let rest = items.split_off(items.len().min(state.page.min(limit.unwrap_or(usize::MAX))));
    let mut metadata = json!({"resourceVersion": version});
    if !rest.is_empty() {
        let token = format!("{version}:{}:{}", wanted.kind, rest.len());
        metadata["continue"] = json!(token);
        metadata["remainingItemCount"] = json!(rest.len());
        match state.lost_pages {
            0 => _ = state.pages.insert(token, rest),
            _ => state.lost_pages -= 1,
        }
    }
    let list = json!({
        "kind": format!("{}List", wanted.kind), "apiVersion": wanted.group_version,
        "metadata": metadata, "items": items,
    });
    Reply::json(list.to_string())
}

fn watch(shared: &Arc<Mutex<State>>, state: &State, wanted: Wanted, request: &Request) -> Reply {
    if let Some((code, reason)) = state.refuse {
        return refused(code, reason, "watches are refused");
    }
    let number = |key: &str| request.query.get(key).and_then(|v| v.parse::<u64>().ok());
    let from = number("resourceVersion").unwrap_or(state.version);
    if from < state.floor && state.gone == Gone::Status {
        return refused(410, "Expired", &format!("too old resource version: {from}"));
    }
    let end = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(1800));
    let wants_bookmarks = request
        .query
        .get("allowWatchBookmarks")
        .is_some_and(|value| value == "true");
    let shared = shared.clone();
    Reply::Stream(Box::new(move |chunks| {
        follow(&shared, chunks, &wanted, from, end, wants_bookmarks)
    }))
}

fn follow(
    shared: &Mutex<State>,
    chunks: &mut Chunks<'_>,
    wanted: &Wanted,
    from: u64,
    end: Instant,
    wants_bookmarks: bool,
) -> std::io::Result<()> {
    let mut at = from;
    let mut marked = Instant::now();
    while chunks.is_open() {
        let mut lines = String::new();
        let mut ends = false;
        {
            let mut state = lock(shared);
            if !state.silent {
                if at < state.floor && state.gone == Gone::Status {
                    // It hears nothing any more; the next request will.
                    ends = Instant::now() >= end;
                } else if at < state.floor {
                    let message = format!("too old resource version: {at} ({})", state.floor);
                    let object = status(410, "Expired", &message);
                    lines += &format!("{}\n", json!({"type": "ERROR", "object": object}));
                    ends = true;
                } else {
                    let news = state.log.iter().filter(|entry| entry.version > at);
                    let events: Vec<Value> = news.filter_map(|e| wanted.event(e)).collect();
                    // One that begins in the future waits until the present is there.
                    at = at.max(state.version);
                    for event in events {
                        let line = state.garble.take().unwrap_or_else(|| event.to_string());
                        lines += &format!("{line}\n");
                    }
                    ends = Instant::now() >= end;
                    if wants_bookmarks && (ends || marked.elapsed() >= state.bookmarks) {
                        marked = Instant::now();
                        lines += &format!("{}\n", wanted.bookmark(state.version));
                    }
                }
            }
        }
        if !lines.is_empty() {
            // Not where lines end: chunks have nothing to do with that.
            let (first, second) = lines.as_bytes().split_at(lines.len() / 2);
            for part in [first, second] {
                chunks.send(part)?;
            }
        }
        if ends {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A Service with ports by name.
pub fn service(namespace: &str, name: &str, ports: &[(&str, u16)]) -> Value {
    let ports = ports.iter().map(
        |(name, port)| json!({"name": name, "port": port, "protocol": "TCP", "targetPort": name}),
    );
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10",
            "selector": {"app": name}, "ports": ports.collect::<Vec<_>>()},
    })
}

/// A Service that lbd is to serve by itself, with one port `echo` at an address of the cluster.
pub fn served(namespace: &str, name: &str, address: impl std::fmt::Display, port: u16) -> Value {
    let mut service = service(namespace, name, &[("echo", port)]);
    service["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("lbd");
    service["spec"]["clusterIP"] = json!(address.to_string());
    service["spec"]["clusterIPs"] = json!([address.to_string()]);
    service
}

/// A slice of a service with one port.
pub fn slice(
    namespace: &str,
    service: &str,
    name: &str,
    (port, number): (&str, u16),
    endpoints: Vec<Value>,
) -> Value {
    let is_v6 = endpoints
        .iter()
        .any(|e| e["addresses"][0].as_str().is_some_and(|a| a.contains(':')));
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"namespace": namespace, "name": name, "labels": {
            "kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        }},
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": port, "port": number, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// How a pod is to its slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pod {
    Ready,
    /// Terminating, and answering.
    Leaving,
    Unready,
}

/// An endpoint of a pod.
pub fn endpoint(address: impl std::fmt::Display, pod: &str, state: Pod) -> Value {
    json!({
        "addresses": [address.to_string()],
        "conditions": {
            "ready": state == Pod::Ready,
            "serving": state != Pod::Unready,
            "terminating": state == Pod::Leaving,
        },
        "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"},
        "nodeName": "n1",
        "zone": "a",
    })
}
