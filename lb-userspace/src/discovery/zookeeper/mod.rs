//! Instances from the nodes below one in ZooKeeper, as Curator's service discovery writes them.
//!
//! One persistent recursive watch is set before anything is read, so nothing falls in between; what it
//! tells is only that a node is to be read anew. It does not survive a lost connection without a gap
//! (ZOOKEEPER-4698), so a session of ZooKeeper is left as soon as its connection is, and all is read
//! anew in another: lbd owns no nodes that would keep it.

pub mod known;
pub mod parse;
pub mod relay;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, future::Future, io::ErrorKind, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::timeout};
use zookeeper_client::{
    AddWatchMode, Client, Error, EventType, PersistentWatcher, SessionState, WatchedEvent,
};

use self::{known::Known, relay::Relay};
use super::{Class, Configured, Failure, Feed, Secret, Settings, Source, rules::MAX_INSTANCES};
use crate::model::duration_text;

/// Time to connect, and for each answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Nodes read at once.
const BATCH: usize = 256;
const SEPARATOR: char = '/';

/// `zookeeper:` of a service's `discovery`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// `HOST:PORT` of members of one ensemble. One is asked; another if that fails.
    pub servers: Vec<String>,
    /// What all paths are below; absolute, and not `/`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chroot: Option<String>,
    /// The node whose children are the instances of the service: Curator's base path and name.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub password: Option<Secret>,
    /// Whether an instance's `sslPort` counts rather than its `port`.
    #[serde(default)]
    pub ssl_port: bool,
    /// As ZooKeeper is asked for; its servers may choose another.
    #[serde(with = "duration_text")]
    pub session_timeout: Duration,
}

impl Config {
    pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
}

impl Configured for Config {
    type Source = Zookeeper;

    fn target(&self) -> String {
        let chroot = self.chroot.as_deref().unwrap_or_default();
        format!("{}{chroot}{}", self.servers.join(","), self.path)
    }

    fn files(&self) -> Vec<&Path> {
        self.password.iter().filter_map(Secret::file).collect()
    }

    fn usual() -> Settings {
        Settings {
            // A registrar whose session expired deletes its node and creates it again.
            removal_hold: Duration::from_secs(2),
            ..Settings::default()
        }
    }

    fn source(&self, _service: &str) -> Zookeeper {
        Zookeeper {
            known: Known::new(self.ssl_port),
            next: 0,
            config: self.clone(),
        }
    }
}

pub struct Zookeeper {
    config: Config,
    known: Known,
    /// Which server is asked first, counted on and on.
    next: usize,
}

impl Source for Zookeeper {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        let mut failures: Vec<Failure> = Vec::new();
        for _ in 0..self.config.servers.len() {
            let server = self.config.servers[self.next % self.config.servers.len()].clone();
            let before = feed.snapshots();
            let Err(failure) = self.follow(&server, feed).await else {
                return Ok(());
            };
            self.next += 1;
            if feed.snapshots() > before {
                return Err(failure);
            }
            failures.push(failure);
        }
        let Some(first) = failures.first() else {
            return Err(Failure::new(Class::Config, "no server is configured"));
        };
        let messages: Vec<_> = failures.iter().map(|f| f.message.as_str()).collect();
        Err(Failure::new(first.class, messages.join("; ")))
    }
}

/// A session with one server.
struct Session {
    server: String,
    client: Client,
    relay: Relay,
    /// Bytes of the chroot, which the client takes off the paths of events.
    chroot: usize,
}

impl Zookeeper {
    /// Reads and watches by one server until that fails.
    async fn follow(&mut self, server: &str, feed: &mut Feed) -> Result<(), Failure> {
        let session = Session::begin(&self.config, server).await?;
        let followed = self.follow_in(&session, feed).await;
        followed.map_err(|failure| explained(failure, server, &session.relay))
    }

    async fn follow_in(&mut self, session: &Session, feed: &mut Feed) -> Result<(), Failure> {
        let path = self.config.path.clone();
        // Watched first, so that no change falls in between.
        let mut watcher = session.watch(&path).await?;
        session.read_all(&path, &mut self.known).await?;
        feed.snapshot(self.known.snapshot());
        let mut touched = BTreeSet::new();
        loop {
            tokio::select! {
                event = watcher.changed() => session.note(&path, event, &mut touched)?,
                () = feed.turn(), if !touched.is_empty() => {
                    let touched = std::mem::take(&mut touched);
                    match touched.len() > MAX_INSTANCES {
                        true => session.read_all(&path, &mut self.known).await?,
                        false => {
                            let names: Vec<String> = touched.into_iter().collect();
                            session.read(&path, &names, &mut self.known).await?;
                        }
                    }
                    feed.snapshot(self.known.snapshot());
                }
                () = feed.resync() => {
                    session.read_all(&path, &mut self.known).await?;
                    feed.snapshot(self.known.snapshot());
                }
            }
        }
    }
}

impl Session {
    async fn begin(config: &Config, server: &str) -> Result<Self, Failure> {
        let mut connector = Client::connector()
            .with_session_timeout(config.session_timeout)
            .with_fail_eagerly();
        if let (Some(user), Some(password)) = (&config.user, config.password.clone()) {
            let read = spawn_blocking(move || password.read()).await;
            let read = read.unwrap_or_else(|_| {
                Err(Failure::new(
                    Class::Internal,
                    "reading the password panicked",
                ))
            })?;
            let pair = format!("{user}:{}", read.expose());
            connector = connector.with_auth("digest", pair.as_bytes());
        }
        let chroot = config.chroot.as_deref().unwrap_or_default();
        let relay = timeout(PATIENCE, Relay::begin(server)).await;
        let relay = relay.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        let relay = relay.map_err(|error| {
            let what = format!("{server}: to connect: {error}");
            Failure::new(Class::Unreachable, what)
        })?;
        let whom = format!("{}{chroot}", relay.address);
        let client = within(server, "to connect", connector.connect(&whom)).await;
        Ok(Self {
            client: client.map_err(|failure| explained(failure, server, &relay))?,
            server: server.to_owned(),
            relay,
            chroot: chroot.len(),
        })
    }

    async fn within<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        within(&self.server, what, work).await
    }

    async fn watch(&self, path: &str) -> Result<PersistentWatcher, Failure> {
        let watch = self.client.watch(path, AddWatchMode::PersistentRecursive);
        self.within(&format!("to watch {path}"), watch).await
    }

    /// All children there are, as read one after another: what changes meanwhile, the watch tells.
    async fn read_all(&self, path: &str, known: &mut Known) -> Result<(), Failure> {
        let what = format!("to list {path}");
        self.relay.ask();
        let list = self.client.list_children(path);
        let list = async {
            match list.await {
                // Curator makes parents as containers, which the server removes once they are empty.
                Err(Error::NoNode) => Ok(Vec::new()),
                other => other,
            }
        };
        let names: BTreeSet<String> = self.within(&what, list).await?.into_iter().collect();
        known.keep(&names);
        let names: Vec<String> = names.into_iter().collect();
        self.read(path, &names, known).await
    }

    async fn read(&self, path: &str, names: &[String], known: &mut Known) -> Result<(), Failure> {
        for batch in names.chunks(BATCH) {
            self.relay.ask();
            // Each is sent as soon as it is made.
            let asked: Vec<_> = batch
                .iter()
                .map(|name| {
                    let child = format!("{}/{name}", path.trim_end_matches(SEPARATOR));
                    (name, self.client.get_data(&child), child)
                })
                .collect();
            for (name, asked, child) in asked {
                let asked = async {
                    match asked.await {
                        Ok((data, _)) => Ok(Some(data)),
                        Err(Error::NoNode) => Ok(None),
                        Err(error) => Err(error),
                    }
                };
                let data = self.within(&format!("to read {child}"), asked).await?;
                let read = known.read(name, data.as_deref());
                read.map_err(|failure| failure.context(format!("{}: below {path}", self.server)))?;
            }
        }
        Ok(())
    }

    /// Takes down which child an event is about.
    fn note(
        &self,
        path: &str,
        event: WatchedEvent,
        touched: &mut BTreeSet<String>,
    ) -> Result<(), Failure> {
        if event.event_type == EventType::Session {
            let (class, what) = match event.session_state {
                SessionState::SyncConnected | SessionState::ConnectedReadOnly => return Ok(()),
                SessionState::Disconnected => (Class::Unreachable, "the connection is lost"),
                SessionState::Expired => (Class::Timeout, "the session expired"),
                SessionState::AuthFailed => (Class::Denied, "the credentials are refused"),
                SessionState::Closed => (Class::Unreachable, "the session was closed"),
            };
            return Err(Failure::new(class, format!("{}: {what}", self.server)));
        }
        self.relay.taken(self.chroot + event.path.len());
        // Beyond that all are read, whoever they are.
        if let Some(name) = child(path, &event.path)
            && touched.len() <= MAX_INSTANCES
        {
            touched.insert(name.to_owned());
        }
        Ok(())
    }
}

/// The child of `path` that a path is of: neither the node itself nor what is below the child.
fn child<'a>(path: &str, of: &'a str) -> Option<&'a str> {
    let rest = of.strip_prefix(path.trim_end_matches(SEPARATOR))?;
    let name = rest.strip_prefix(SEPARATOR)?;
    (!name.is_empty() && !name.contains(SEPARATOR)).then_some(name)
}

/// By what the relay knows of the server, if that is why it ended.
fn explained(failure: Failure, server: &str, relay: &Relay) -> Failure {
    match relay.fault() {
        Some(fault) => Failure::new(Class::Malformed, format!("{server}: {fault}")),
        None => failure,
    }
}

async fn within<T>(
    server: &str,
    what: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    let failure = |class, why: &dyn std::fmt::Display| {
        Failure::new(class, format!("{server}: {what}: {why}"))
    };
    match timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(|error| failure(class(&error), &error)),
        Err(_) => Err(failure(
            Class::Timeout,
            &format!("nothing within {PATIENCE:?}"),
        )),
    }
}

fn class(error: &Error) -> Class {
    match error {
        Error::NoAuth | Error::AuthFailed => Class::Denied,
        Error::NoNode => Class::Missing,
        Error::Timeout | Error::SessionExpired => Class::Timeout,
        Error::NoHosts | Error::ConnectionLoss | Error::ClientClosed | Error::Custom(_) => {
            Class::Unreachable
        }
        Error::UnmarshalError { .. } | Error::UnexpectedError(_) => Class::Malformed,
        Error::BadArguments(_) => Class::Config,
        _ => Class::Refused,
    }
}
