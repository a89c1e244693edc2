//! Instances from DNS: the addresses of a name, or its SRV records.

mod exchange;
pub mod message;
pub mod resolv;
#[cfg(test)]
mod tests;
pub mod walk;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use self::{
    exchange::Client,
    message::{Answer, Question},
    resolv::{NDOTS, Resolv},
    walk::{Knowledge, Known, Outcome, Step, Wanted, too_many, walk},
};
use super::{Class, Configured, Failure, Feed, Snapshot, Source, rules::MAX_INSTANCES};
use crate::model::duration_text;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Questions under way at a time.
const AT_ONCE: usize = 32;

/// What is waited at least, and at most without `resync`, until a name is asked again.
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(86_400);

/// Time for all questions of a round: thousands of targets, each a second away.
const ROUND: Duration = Duration::from_secs(300);
/// Answers and addresses that are kept when a round fails, to begin the next one with.
const MAX_KEPT: usize = 2 * MAX_INSTANCES;

/// `dns:` of a service's `discovery`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    pub lookup: Lookup,
    pub family: Family,
    /// Tried one after another; none for those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// `None`: those of `/etc/resolv.conf` if the servers are from there, else none.
    pub search: Option<Vec<String>>,
    /// Dots from which on a name is asked as it stands before the search domains are tried.
    /// `None`: as `/etc/resolv.conf` says if the servers are from there, else 1.
    pub ndots: Option<u8>,
    /// A shorter TTL counts as this long.
    #[serde(with = "duration_text")]
    pub min_ttl: Duration,
    /// For one answer of one server.
    #[serde(with = "duration_text")]
    pub timeout: Duration,
}

/// What is looked up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lookup {
    /// The addresses of a name, with this port.
    Host { name: String, port: u16 },
    /// The targets of the SRV records of a name.
    Srv { name: String },
}

/// Addresses that are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Both,
    Ipv4,
    Ipv6,
}

impl Config {
    pub const MIN_TTL: Duration = Duration::from_secs(5);
    pub const TIMEOUT: Duration = Duration::from_secs(2);
    pub const MAX_NDOTS: u8 = resolv::MAX_NDOTS;

    /// With everything else as it is by default.
    pub fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            family: Family::Both,
            servers: Vec::new(),
            search: None,
            ndots: None,
            min_ttl: Self::MIN_TTL,
            timeout: Self::TIMEOUT,
        }
    }
}

impl Lookup {
    pub fn name(&self) -> &str {
        match self {
            Self::Host { name, .. } | Self::Srv { name } => name,
        }
    }
}

impl Configured for Config {
    type Source = Dns;

    fn target(&self) -> String {
        match &self.lookup {
            Lookup::Host { name, port } => format!("{}:{port}", name.to_ascii_lowercase()),
            Lookup::Srv { name } => format!("srv {}", name.to_ascii_lowercase()),
        }
    }

    fn files(&self) -> Vec<&Path> {
        Vec::new()
    }

    fn source(&self, _service: &str) -> Dns {
        Dns {
            config: self.clone(),
            resolv_conf: RESOLV_CONF.into(),
            first: Arc::default(),
            knowledge: Knowledge::default(),
            reported: None,
        }
    }
}

/// What is wrong with a name or a search domain, in words.
pub fn name_fault(name: &str) -> Option<String> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    if name.parse::<IpAddr>().is_ok() {
        return Some("is an address, not a name; list it under `backends`".to_owned());
    }
    if !name.is_ascii() {
        return Some("is not ASCII; write the form that begins with xn--".to_owned());
    }
    if bare.len() > 253 {
        return Some("is longer than 253 characters".to_owned());
    }
    let is_label = |label: &str| (1..=63).contains(&label.len());
    if !bare.split('.').all(is_label) {
        return Some("must be labels of 1 to 63 characters with dots between".to_owned());
    }
    let odd = |c: &char| !c.is_ascii_alphanumeric() && !"-_.".contains(*c);
    let odd = bare.chars().find(odd)?;
    Some(format!(
        "has a {odd:?}; letters, digits, `-`, `_` and dots make a name"
    ))
}

pub struct Dns {
    config: Config,
    resolv_conf: PathBuf,
    first: Arc<AtomicUsize>,
    knowledge: Knowledge,
    /// What was reported last.
    reported: Option<Snapshot>,
}

impl Source for Dns {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        loop {
            let again = self.round(feed).await?;
            sleep_until(again).await;
        }
    }
}

impl Dns {
    /// Asks what is due and reports what is known then; returns when the next is due.
    async fn round(&mut self, feed: &mut Feed) -> Result<Instant, Failure> {
        let (client, wanted) = self.prepare().await?;
        let latest = feed.resync_every().unwrap_or(LATEST);
        let now = Instant::now();
        self.knowledge.failures.clear();
        let asked = timeout_at(now + ROUND, self.ask(&client, &wanted, latest, now)).await;
        let asked = asked.unwrap_or_else(|_| {
            let name = self.config.lookup.name();
            let what = format!("{name}: not all answers were there within {ROUND:?}");
            Err(Failure::new(Class::Timeout, what))
        });
        match asked {
            Ok(outcome) => self.report(outcome, feed, now),
            Err(failure) => {
                // Names that are never the same again would be kept for ever.
                if self.knowledge.size() > MAX_KEPT {
                    self.knowledge = Knowledge::default();
                }
                Err(failure)
            }
        }
    }

    async fn ask(
        &mut self,
        client: &Client,
        wanted: &Wanted,
        latest: Duration,
        now: Instant,
    ) -> Result<Outcome, Failure> {
        let mut addresses = 0;
        loop {
            match walk(wanted, &self.knowledge, now) {
                Step::Ask(questions) => {
                    addresses += self.fetch(client, questions, latest).await;
                    if addresses > MAX_INSTANCES {
                        // They would be there again, and others with them.
                        self.knowledge = Knowledge::default();
                        return Err(too_many(self.config.lookup.name()));
                    }
                }
                Step::Failed(failure) => return Err(failure),
                Step::Done(outcome) => return Ok(outcome),
            }
        }
    }

    fn report(
        &mut self,
        outcome: Outcome,
        feed: &mut Feed,
        now: Instant,
    ) -> Result<Instant, Failure> {
        let Outcome {
            snapshot,
            used,
            until,
            failure,
        } = outcome;
        self.knowledge
            .answers
            .retain(|asked, _| used.contains(asked));
        // While something fails an answer counts only for what is new in it, so that the failure
        // stays to be seen.
        if failure.is_none() || self.reported.as_ref() != Some(&snapshot) {
            self.reported = Some(snapshot.clone());
            feed.snapshot(snapshot);
        }
        match failure {
            Some(failure) => Err(failure),
            None => {
                self.knowledge.complete = true;
                Ok(until.unwrap_or(now + LATEST))
            }
        }
    }

    /// Asks all questions, some at a time, and gives the number of addresses that they brought. If no server
    /// can be reached the rest is not asked, nor if there are more addresses than a source may have.
    async fn fetch(
        &mut self,
        client: &Client,
        questions: Vec<Question>,
        latest: Duration,
    ) -> usize {
        let mut waiting = questions.into_iter();
        let mut running = JoinSet::new();
        let mut begin = |running: &mut JoinSet<_>| {
            if let Some(question) = waiting.next() {
                let client = client.clone();
                running.spawn(async move {
                    let answer = client.ask(&question).await;
                    (question, answer)
                });
            }
        };
        for _ in 0..AT_ONCE {
            begin(&mut running);
        }
        let mut gone = None;
        let mut addresses = 0;
        while let Some(joined) = running.join_next().await {
            match joined {
                Ok((question, Ok(answer))) => {
                    addresses += answer.data.addresses();
                    self.learn(question, answer, latest);
                }
                Ok((question, Err(failure))) => {
                    if matches!(failure.class, Class::Timeout | Class::Unreachable) {
                        gone = Some(failure.clone());
                    }
                    self.knowledge.failures.insert(question, failure);
                }
                // Only a panic: the set is not aborted.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
            if addresses > MAX_INSTANCES {
                return addresses;
            }
            if gone.is_none() {
                begin(&mut running);
            }
        }
        if let Some(failure) = gone {
            let rest = waiting.map(|question| (question, failure.clone()));
            self.knowledge.failures.extend(rest);
        }
        addresses
    }

    fn learn(&mut self, question: Question, answer: Answer, latest: Duration) {
        let Answer { data, ttl } = answer;
        let shortest = self.config.min_ttl.max(SOONEST);
        let ttl = ttl.unwrap_or_default().min(latest).max(shortest);
        let until = Instant::now() + ttl;
        self.knowledge
            .answers
            .insert(question, Known { data, until });
    }

    /// Whom to ask for what.
    async fn prepare(&self) -> Result<(Client, Wanted), Failure> {
        let Config {
            lookup,
            family,
            servers,
            search,
            ndots,
            min_ttl: _,
            timeout,
        } = &self.config;
        let mut resolv = match servers.is_empty() {
            true => system(&self.resolv_conf).await?,
            false => Resolv {
                servers: servers.clone(),
                search: Vec::new(),
                ndots: NDOTS,
            },
        };
        if let Some(search) = search {
            resolv.search = search.clone();
        }
        if let Some(ndots) = ndots {
            resolv.ndots = *ndots;
        }
        let wanted = Wanted {
            names: candidates(lookup.name(), &resolv)?,
            port: match lookup {
                Lookup::Host { port, .. } => Some(*port),
                Lookup::Srv { .. } => None,
            },
            ipv4: *family != Family::Ipv6,
            ipv6: *family != Family::Ipv4,
        };
        let client = Client {
            servers: resolv.servers,
            timeout: *timeout,
            first: self.first.clone(),
        };
        Ok((client, wanted))
    }
}

/// Read anew each time: DHCP clients and VPNs write it as they please.
async fn system(path: &Path) -> Result<Resolv, Failure> {
    let shown = path.display();
    let text = tokio::fs::read(path).await.map_err(|error| {
        let message = format!("cannot read {shown}: {error}; list `servers` instead");
        Failure::new(Class::Config, message)
    })?;
    let resolv = resolv::parse(&String::from_utf8_lossy(&text));
    if resolv.servers.is_empty() {
        let message = format!("{shown} names no nameserver; list `servers` instead");
        return Err(Failure::new(Class::Config, message));
    }
    Ok(resolv)
}

/// The names that `name` may mean, in the order in which they are tried (resolv.conf(5)).
///
/// # Errors
/// If `name` is no name.
pub fn candidates(name: &str, resolv: &Resolv) -> Result<Vec<Name>, Failure> {
    let full = |name: &str| {
        let mut name = Name::from_ascii(name).map_err(|error| {
            Failure::new(Class::Config, format!("`{name}` is no name: {error}"))
        })?;
        name.set_fqdn(true);
        Ok(name.to_lowercase())
    };
    let own = full(name)?;
    if name.ends_with('.') {
        return Ok(vec![own]);
    }
    // A domain of resolv.conf with which there is no name (too long, odd) is passed over.
    let searched = resolv.search.iter().filter_map(|domain| {
        let domain = domain.trim_matches('.');
        (!domain.is_empty()).then(|| full(&format!("{name}.{domain}")).ok())?
    });
    let mut names: Vec<Name> = searched.collect();
    let first = name.matches('.').count() >= usize::from(resolv.ndots);
    names.insert(if first { 0 } else { names.len() }, own);
    Ok(names)
}
