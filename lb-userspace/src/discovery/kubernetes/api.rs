//! Requests to the API server: lists in pages, and watches. The `kube` crate knows where the server
//! is and who lbd is; what comes back is read here, with an end in time and size.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{
    HeaderMap, StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT},
    http,
};
use kube::{
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
    core::{
        params::{ListParams, WatchParams},
        request::Request,
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{
    Access,
    wire::{self, Event, Object, Page, Status, shown},
};
use crate::{
    discovery::{
        Class, Failure, Secret,
        bounds::Room,
        http::{BaseUrl, Lines, Tls},
        resolve,
        rules::MAX_INSTANCES,
    },
    json,
};

/// Largest page, in bytes: [`PAGE`] slices of the most endpoints that a slice may have.
const MAX_PAGE: usize = 32 << 20;
/// Longest event; etcd holds no object of more than 1.5 MiB.
const MAX_EVENT: usize = 8 << 20;
/// Objects a page.
const PAGE: u32 = 50;
/// Most pages of a list. A server may send pages with few objects, or none, where it sifts out most.
const MAX_PAGES: usize = 2 * MAX_INSTANCES / PAGE as usize;
/// Time until a page is there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time until all pages of a list are there. A server's pages are too old after five minutes.
const ALL: Duration = Duration::from_secs(300);
/// Events that were read and not taken yet, of both watches: as [`json::text_weight`] has it, in bytes.
const MAX_WAITING: u32 = 32 << 20;
/// Time until the client is made, which reads files and may run the kubeconfig's program.
const PREPARE: Duration = Duration::from_secs(15);
/// Programs of one kubeconfig at a time: of several sources that have it, and of one whose program
/// hangs.
const PROGRAMS: usize = 4;
/// Time beyond its own end after which a watch is silent for ever.
const GRACE: Duration = Duration::from_secs(5);
/// Lists begun anew because their pages became too old.
const LISTS: usize = 3;

/// What is listed and watched.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// `None` for all.
    pub(super) namespace: Option<String>,
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

/// A client of one API server.
#[derive(Clone)]
pub(super) struct Api {
    client: kube::Client,
    token: Option<Secret>,
    /// For messages: `https://10.0.0.1:6443`.
    name: String,
    /// For events on their way to the source.
    waiting: Arc<Semaphore>,
}

/// All objects there are.
pub(super) struct Listed<K> {
    pub(super) items: Vec<K>,
    pub(super) version: String,
}

/// What a request comes to.
enum Answer {
    Body(Body),
    /// 410: the version or the token is too old.
    Expired,
}

impl Api {
    /// A client, with certificates and credentials as they are now.
    ///
    /// # Errors
    /// If the kubeconfig, the service account or a certificate cannot be used.
    pub(super) async fn connect(access: &Access) -> Result<Self, Failure> {
        Self::connect_within(access, PREPARE).await
    }

    async fn connect_within(access: &Access, patience: Duration) -> Result<Self, Failure> {
        let end = Instant::now() + patience;
        let late = |what: &str| {
            let what = format!("the credentials were not there within {patience:.0?}{what}");
            Failure::new(Class::Timeout, what)
        };
        let turn = timeout_at(end, turn(access)).await.map_err(|_| {
            late("; the kubeconfig's programs that were started before still run: end them, or see why")
        })?;
        let made = timeout_at(end, Self::make(access.clone(), turn)).await;
        made.map_err(|_| late(""))?
    }

    async fn make(access: Access, turn: Option<OwnedSemaphorePermit>) -> Result<Self, Failure> {
        let panicked = |_| Failure::new(Class::Internal, "making the client panicked");
        let token = match &access {
            Access::Server { token, .. } => token.clone(),
            _ => None,
        };
        let handle = tokio::runtime::Handle::current();
        // Reads files.
        let read = spawn_blocking(move || handle.block_on(config(&access)));
        let mut config = read.await.map_err(panicked)??;
        known(&config).await?;
        // Sources have their own rules for asking again.
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = None;
        let name = config.cluster_url.to_string();
        let handle = tokio::runtime::Handle::current();
        // A kubeconfig may name a program to ask for a token.
        let made = spawn_blocking(move || {
            // Until the program ended, whoever gave up waiting for it.
            let _turn = turn;
            let _guard = handle.enter();
            kube::Client::try_from(config)
        });
        let made = made.await.map_err(panicked)?;
        Ok(Self {
            client: made.map_err(|error| Failure::new(Class::Config, words(&error)))?,
            token,
            name: name.trim_end_matches('/').to_owned(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING as usize)),
        })
    }

    /// Lists all, page by page, as of now.
    pub(super) async fn list<K: Object>(&self, query: &Query) -> Result<Listed<K>, Failure> {
        for _ in 0..LISTS {
            if let Some(listed) = self.pages(query).await? {
                return Ok(listed);
            }
        }
        let what = format!("the pages of a list became too old {LISTS} times");
        Err(Failure::new(Class::Refused, what).context(self.what::<K>(query)))
    }

    /// `None` if its pages became too old: whatever was read is of no use then.
    async fn pages<K: Object>(&self, query: &Query) -> Result<Option<Listed<K>>, Failure> {
        let what = self.what::<K>(query);
        let mut items = Vec::new();
        let mut room = Room::new(K::URL_PATH_SEGMENT);
        let mut token = None;
        let all = Instant::now() + ALL;
        for _ in 0..MAX_PAGES {
            let mut parameters = ListParams {
                label_selector: query.labels.clone(),
                field_selector: query.fields.clone(),
                ..ListParams::default()
            };
            parameters.limit = Some(PAGE);
            parameters.continue_token = token.clone();
            let request = Request::new(path::<K>(query)).list(&parameters);
            let end = all.min(Instant::now() + PATIENCE);
            let body = match self.send(request, end, &what).await? {
                Answer::Body(body) => body,
                Answer::Expired if token.is_some() => return Ok(None),
                Answer::Expired => {
                    let failure = Failure::new(Class::Refused, "410: a list without a version");
                    return Err(failure.context(what));
                }
            };
            let bytes = read(body, MAX_PAGE, end)
                .await
                .map_err(|f| f.context(&what))?;
            let page: Page<K> = wire::page(&bytes).map_err(|f| f.context(&what))?;
            for item in page.items {
                room = room.with(item.weight()).map_err(|f| f.context(&what))?;
                items.push(item);
            }
            token = page.next;
            if token.is_none() {
                return Ok(Some(Listed {
                    items,
                    version: page.version,
                }));
            }
        }
        let many = format!("a list of more than {MAX_PAGES} pages; does the server count them?");
        Err(Failure::new(Class::Malformed, many).context(what))
    }

    /// Opens a watch that tells what happened behind `version`. The server ends it after
    /// `duration`. `None` if the version is too old.
    pub(super) async fn watch<K: Object>(
        &self,
        query: &Query,
        version: &str,
        duration: Duration,
    ) -> Result<Option<Watch>, Failure> {
        let what = format!("watching {}", self.what::<K>(query));
        let parameters = WatchParams {
            label_selector: query.labels.clone(),
            field_selector: query.fields.clone(),
            timeout: Some(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(path::<K>(query)).watch(&parameters, version);
        let now = Instant::now();
        Ok(match self.send(request, now + PATIENCE, &what).await? {
            Answer::Body(body) => Some(Watch {
                what,
                body,
                lines: Lines::default(),
                end: now + duration + GRACE,
                waiting: self.waiting.clone(),
            }),
            Answer::Expired => None,
        })
    }

    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
        end: Instant,
        what: &str,
    ) -> Result<Answer, Failure> {
        let fault = |class, words: String| Failure::new(class, words).context(what);
        let mut request = request
            .map_err(|error| fault(Class::Config, error.to_string()))?
            .map(Body::from);
        let headers = request.headers_mut();
        self.authorize(headers).await?;
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let agent = concat!("lbd/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        let silence = || fault(Class::Timeout, "no answer in time".to_owned());
        let sent = timeout_at(end, self.client.send(request)).await;
        let response = sent
            .map_err(|_| silence())?
            .map_err(|error| told(&error).context(what))?;
        let (head, body) = response.into_parts();
        match head.status {
            status if status.is_success() => Ok(Answer::Body(body)),
            StatusCode::GONE => Ok(Answer::Expired),
            status => {
                let body = read(body, 64 << 10, end).await.unwrap_or_default();
                Err(refusal(status, &body).context(what))
            }
        }
    }

    /// Read whenever it is used: it may be exchanged meanwhile.
    async fn authorize(&self, headers: &mut HeaderMap) -> Result<(), Failure> {
        let Some(token) = self.token.clone() else {
            return Ok(());
        };
        let read = spawn_blocking(move || token.read()).await;
        let read = read.map_err(|_| Failure::new(Class::Internal, "reading a secret panicked"))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", read?.expose()))
            .map_err(|_| Failure::new(Class::Config, "the token has characters no token has"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        Ok(())
    }

    fn what<K: Object>(&self, query: &Query) -> String {
        format!("{}{}", self.name, path::<K>(query))
    }
}

/// `/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices`
fn path<K: Object>(query: &Query) -> String {
    let group = match K::GROUP {
        "" => "/api".to_owned(),
        group => format!("/apis/{group}"),
    };
    let (version, kinds) = (K::VERSION, K::URL_PATH_SEGMENT);
    match &query.namespace {
        Some(namespace) => format!("{group}/{version}/namespaces/{namespace}/{kinds}"),
        None => format!("{group}/{version}/{kinds}"),
    }
}

/// A turn to read a kubeconfig, and to run the program it may name: one that hangs is neither ended nor
/// left behind again and again.
async fn turn(access: &Access) -> Option<OwnedSemaphorePermit> {
    static TURNS: LazyLock<Mutex<HashMap<PathBuf, Arc<Semaphore>>>> = LazyLock::new(Mutex::default);

    let Access::Kubeconfig { path, .. } = access else {
        return None;
    };
    let turns = {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        let turns = turns.entry(path.clone());
        turns
            .or_insert_with(|| Arc::new(Semaphore::new(PROGRAMS)))
            .clone()
    };
    turns.acquire_owned().await.ok()
}

/// Asks for the server's address, so that the client's own resolver is asked only for names that are
/// known.
async fn known(config: &kube::Config) -> Result<(), Failure> {
    let url = &config.cluster_url;
    if let (Some(host), None) = (url.host(), &config.proxy_url) {
        let known = resolve::addresses(host, 0).await;
        known.map_err(|error| {
            Failure::new(
                Class::Unreachable,
                format!("{host} has no address: {error}"),
            )
        })?;
    }
    Ok(())
}

async fn config(access: &Access) -> Result<kube::Config, Failure> {
    let fault = |what: String| Failure::new(Class::Config, what);
    match access {
        Access::InCluster => kube::Config::incluster().map_err(|error| {
            let why = words(&error);
            fault(format!(
                "lbd does not run in a pod with a service account ({why}); set `kubeconfig` or \
                 `server`"
            ))
        }),
        Access::Kubeconfig { path, context } => {
            let shown = path.display();
            let unusable = |error| fault(format!("{shown} cannot be used: {}", words(&error)));
            let file = Kubeconfig::read_from(path).map_err(&unusable)?;
            let options = KubeConfigOptions {
                context: context.clone(),
                ..KubeConfigOptions::default()
            };
            kube::Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(unusable)
        }
        Access::Server { url, tls, .. } => server(url, tls),
    }
}

fn server(url: &BaseUrl, tls: &Tls) -> Result<kube::Config, Failure> {
    let fault = |what: String| Failure::new(Class::Config, what);
    let parsed = url.to_string().parse();
    let parsed = parsed.map_err(|error| fault(format!("{url} is no URL: {error}")))?;
    let mut config = kube::Config::new(parsed);
    // `Some` keeps kube from looking for the system's CA certificates, which need not be there.
    if !url.is_tls {
        config.root_cert = Some(Vec::new());
        return Ok(config);
    }
    let text = |path: &PathBuf| path.to_str().map(str::to_owned);
    // The same words about a file that cannot be used as in other sources.
    tls.client_config()?;
    if let Some(file) = &tls.ca_file {
        config.root_cert_file = Some(file.clone());
        config.root_cert = Some(Vec::new());
    }
    config.auth_info.client_certificate = tls.cert_file.as_ref().and_then(text);
    config.auth_info.client_key = tls.key_file.as_ref().and_then(text);
    config.tls_server_name = tls.server_name.clone();
    Ok(config)
}

/// A watch that is open.
pub(super) struct Watch {
    what: String,
    body: Body,
    lines: Lines,
    end: Instant,
    waiting: Arc<Semaphore>,
}

/// Room that an event takes until it is dropped.
pub(super) type Waiting = OwnedSemaphorePermit;

impl Watch {
    /// The next event; `None` at the end that the server made. Waits while too much was read that the
    /// source did not come to.
    ///
    /// # Errors
    /// If the connection breaks, the server does not end the watch when it should, or sends what is no
    /// event.
    pub(super) async fn next<K: Object>(&mut self) -> Result<Option<(Event<K>, Waiting)>, Failure> {
        let event = self.event().await;
        event.map_err(|failure| failure.context(&self.what))
    }

    async fn event<K: Object>(&mut self) -> Result<Option<(Event<K>, Waiting)>, Failure> {
        let Some(line) = self.line().await? else {
            return Ok(None);
        };
        let weight = u32::try_from(json::text_weight(&line, wire::VALUE)).unwrap_or(u32::MAX);
        let waiting = self
            .waiting
            .clone()
            .acquire_many_owned(weight.min(MAX_WAITING));
        let waiting = waiting
            .await
            .map_err(|_| Failure::new(Class::Internal, "the watch's room is closed"))?;
        Ok(Some((wire::event(&line)?, waiting)))
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            while let Some(line) = self.lines.line() {
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line.to_vec()));
                }
            }
            if self.lines.waiting() > MAX_EVENT {
                let what = format!("an event of more than {} MiB", MAX_EVENT >> 20);
                return Err(Failure::new(Class::Malformed, what));
            }
            let frame = timeout_at(self.end, self.body.frame()).await.map_err(|_| {
                Failure::new(
                    Class::Timeout,
                    "silent, and beyond the end that was asked for",
                )
            })?;
            match frame {
                // The rest of an event that was cut off is nothing.
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.lines.push(data);
                    }
                }
                Some(Err(error)) => return Err(broken(&error)),
            }
        }
    }
}

async fn read(mut body: Body, most: usize, end: Instant) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    loop {
        let frame = timeout_at(end, body.frame())
            .await
            .map_err(|_| Failure::new(Class::Timeout, "not the whole answer in time"))?;
        let Some(frame) = frame else {
            return Ok(bytes);
        };
        if let Some(data) = frame.map_err(|error| broken(&error))?.data_ref() {
            if bytes.len() + data.len() > most {
                let what = format!("the answer is larger than {} MiB", most >> 20);
                return Err(Failure::new(Class::Malformed, what));
            }
            bytes.extend_from_slice(data);
        }
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let mut said: Status = serde_json::from_slice(body).unwrap_or_default();
    if said.message.is_empty() {
        said.message = shown(body);
    }
    said.code = status.as_u16();
    said.failure()
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Class::Unreachable, format!("breaks off: {}", words(error)))
}

/// What a request that got no answer failed of.
fn told(error: &kube::Error) -> Failure {
    let words = words(error);
    let mut class = Class::Unreachable;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<rustls::Error>() {
            class = Class::Denied;
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_parse() || error.is_parse_too_large())
        {
            class = Class::Malformed;
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            if is_of_tls(error) {
                class = Class::Denied;
            }
            if error.kind() == std::io::ErrorKind::TimedOut {
                class = Class::Timeout;
            }
        }
        cause = error.source();
    }
    if matches!(error, kube::Error::Auth(_)) {
        class = Class::Denied;
    }
    Failure::new(class, words)
}

/// Whether an error of TLS is within, at any depth: `source` leaves out what such an error wraps.
fn is_of_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| {
        inner.is::<rustls::Error>() || inner.downcast_ref().is_some_and(is_of_tls)
    })
}

/// An error with its causes, each said once.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    // The name of a layer, which says nothing to anybody.
    if let Some(rest) = text.strip_prefix("ServiceError: ") {
        text = rest.to_owned();
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    shown(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::testing::Directory;

    #[tokio::test]
    async fn a_program_that_hangs_is_not_started_for_ever() {
        let directory = Directory::new("hangs");
        let [program, log, path] = ["token", "log", "kubeconfig"].map(|n| directory.path().join(n));
        // Until the directory goes, with the test.
        let script = format!(
            "#!/bin/sh\necho >> {}\nwhile [ -e {} ]; do sleep 0.1; done\n",
            log.display(),
            program.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             clusters: [{{name: a, cluster: {{server: \"http://127.0.0.1:1\"}}}}]\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
             users: [{{name: a, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, \
             command: {}, interactiveMode: Never}}}}}}]\n",
            program.display()
        );
        fs::write(&path, text).unwrap();
        let context = None;
        let access = Access::Kubeconfig { path, context };
        let mut last = String::new();
        for _ in 0..10 {
            let made = Api::connect_within(&access, Duration::from_millis(200)).await;
            last = made.err().unwrap().message;
        }
        assert!(last.contains("still run"), "{last}");
        let started = fs::read_to_string(&log).unwrap().lines().count();
        assert_eq!(started, PROGRAMS);
    }
}
