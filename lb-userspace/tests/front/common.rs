//! A daemon's front with a scripted service behind it.

use std::{
    collections::BTreeMap,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use lb_userspace::{
    api::{
        server::{self, Service},
        socket::{self, SocketFile},
        types::{BackendItem, Fault, FaultCode, Request, Response, ServiceItem, StatusItem},
    },
    discovery::SourceItem,
    http::Limits,
    model::BackendState,
};
use tokio::task::JoinHandle;

type Answer = dyn Fn(&Request) -> Result<Response, Fault> + Send + Sync;

/// Answers from a closure, and remembers what it was asked.
#[derive(Clone)]
pub(crate) struct Scripted {
    answer: Arc<Answer>,
    pub(crate) asked: Arc<Mutex<Vec<Request>>>,
}

impl Service for Scripted {
    async fn call(&self, request: Request) -> Result<Response, Fault> {
        let answer = (self.answer)(&request);
        self.asked.lock().unwrap().push(request);
        answer
    }
}

/// A served socket in a directory of its own.
pub(crate) struct Daemon {
    directory: Directory,
    pub(crate) socket: PathBuf,
    pub(crate) asked: Arc<Mutex<Vec<Request>>>,
    server: JoinHandle<()>,
    _file: SocketFile,
}

impl Daemon {
    pub(crate) fn start(
        answer: impl Fn(&Request) -> Result<Response, Fault> + Send + Sync + 'static,
    ) -> Self {
        Self::with_limits(Limits::default(), answer)
    }

    pub(crate) fn with_limits(
        limits: Limits,
        answer: impl Fn(&Request) -> Result<Response, Fault> + Send + Sync + 'static,
    ) -> Self {
        let directory = Directory::new();
        let socket = directory.join("lbd.sock");
        let (listener, file) = socket::listen(&socket).unwrap();
        let service = Scripted {
            answer: Arc::new(answer),
            asked: Arc::default(),
        };
        let asked = service.asked.clone();
        let server = tokio::spawn(server::serve(listener, service, limits));
        Self {
            directory,
            socket,
            asked,
            server,
            _file: file,
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An empty directory, removed at the end of the test, also of one that fails.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lbd-front-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Deref for Directory {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn fault(code: FaultCode, message: &str) -> Result<Response, Fault> {
    Err(Fault {
        code,
        message: message.to_owned(),
    })
}

pub(crate) fn done(message: &str) -> Result<Response, Fault> {
    Ok(Response::Done {
        message: message.to_owned(),
    })
}

pub(crate) fn service(name: &str) -> ServiceItem {
    ServiceItem {
        name: name.to_owned(),
        listen: vec!["192.0.2.10:80".parse().unwrap()],
        protocol: "tcp".to_owned(),
        forwarding: "nat".to_owned(),
        policy: "maglev".to_owned(),
        snat: "auto".to_owned(),
        no_backend: "reject".to_owned(),
        on_backend_down: "keep".to_owned(),
        backends: 2,
        healthy_backends: 1,
        active_connections: 5,
        total_connections: 120,
        source: "file".to_owned(),
    }
}

pub(crate) fn backend(service: &str, address: &str, state: BackendState) -> BackendItem {
    let healthy = state == BackendState::Healthy;
    BackendItem {
        service: service.to_owned(),
        address: address.parse().unwrap(),
        weight: 100,
        effective_weight: if healthy { 100 } else { 0 },
        state,
        reasons: match healthy {
            true => vec![],
            false => vec!["health: connection refused (3 of 3)".to_owned()],
        },
        labels: BTreeMap::from([("version".to_owned(), "v1".to_owned())]),
        active_connections: 5,
        total_connections: 60,
        failed_connections: 2,
        packets_in: 1_234_567,
        bytes_in: 5 << 20,
        packets_out: 999,
        bytes_out: 1536,
        source: "file".to_owned(),
    }
}

pub(crate) fn source(state: &str) -> SourceItem {
    SourceItem {
        service: "web".to_owned(),
        kind: "consul".to_owned(),
        target: "web".to_owned(),
        state: state.to_owned(),
        services: None,
        instances: 2,
        held: 1,
        last_success_ms: Some(1_700_000_000_123),
        updates: 7,
        errors: 3,
        errors_by_class: BTreeMap::from([("unreachable".to_owned(), 3)]),
        last_error: Some("cannot connect to 10.0.0.5:8500: connection refused".to_owned()),
        last_error_ms: Some(1_700_000_060_000),
        left_out: vec!["`x`: 0.0.0.0:80 is the unspecified address".to_owned()],
    }
}

pub(crate) fn status() -> StatusItem {
    StatusItem {
        version: "0.1.0".to_owned(),
        ready: true,
        problems: vec![],
        uptime_seconds: 3700,
        config_file: Some("/etc/lbd/lbd.yaml".to_owned()),
        last_reload: "ok".to_owned(),
        interfaces: BTreeMap::from([("eth0".to_owned(), "xdp native".to_owned())]),
        services: 1,
        backends: 2,
        healthy_backends: 1,
        active_connections: 5,
    }
}
