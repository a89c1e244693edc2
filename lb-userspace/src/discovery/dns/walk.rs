//! From what is known of names to instances, or to what must be asked first. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
};

use hickory_proto::rr::{Name, RecordType};
use tokio::time::Instant;

use super::message::{Data, MAX_ALIASES, Question, Service};
use crate::discovery::{Class, Failure, Instance, Snapshot, rules::MAX_INSTANCES};

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Names to try one after another; the first that has anything counts.
    pub names: Vec<Name>,
    /// Of addresses without SRV.
    pub port: Option<u16>,
    pub ipv4: bool,
    pub ipv6: bool,
}

/// Answers so far.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    pub answers: HashMap<Question, Known>,
    /// Questions that were asked in this round and not answered.
    pub failures: HashMap<Question, Failure>,
    /// All was known at least once: a name of which nothing is known has no instance yet.
    pub complete: bool,
}

impl Knowledge {
    /// Questions that were answered and addresses, all together.
    pub fn size(&self) -> usize {
        let addresses = self.answers.values().map(|known| known.data.addresses());
        self.answers.len() + addresses.sum::<usize>()
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    pub data: Data,
    /// When it is to be asked again. What it said counts for as long as asking fails.
    pub until: Instant,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// These are to be asked first.
    Ask(Vec<Question>),
    Done(Outcome),
    Failed(Failure),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub snapshot: Snapshot,
    /// The questions it stands on.
    pub used: HashSet<Question>,
    /// When the first of them is to be asked again.
    pub until: Option<Instant>,
    /// A question that was not answered, in whose place an older answer stands, or nothing.
    pub failure: Option<Failure>,
}

/// `now` is when the round began: what was answered since is fresh.
pub fn walk(wanted: &Wanted, knowledge: &Knowledge, now: Instant) -> Step {
    let mut walk = Walk {
        wanted,
        knowledge,
        now,
        ask: Vec::new(),
        asked: HashSet::new(),
        used: HashSet::new(),
        until: None,
        failure: None,
    };
    let snapshot = match wanted.port {
        Some(port) => walk.hosts(port),
        None => walk.services(),
    };
    if !walk.ask.is_empty() {
        return Step::Ask(walk.ask);
    }
    match snapshot {
        Err(failure) => Step::Failed(failure),
        Ok(snapshot) => Step::Done(Outcome {
            snapshot: snapshot.unwrap_or_default(),
            used: walk.used,
            until: walk.until,
            failure: walk.failure,
        }),
    }
}

struct Walk<'a> {
    wanted: &'a Wanted,
    knowledge: &'a Knowledge,
    now: Instant,
    ask: Vec<Question>,
    /// The same, to find them.
    asked: HashSet<Question>,
    used: HashSet<Question>,
    until: Option<Instant>,
    failure: Option<Failure>,
}

/// What a name has more addresses than.
pub fn too_many(name: impl Display) -> Failure {
    let message = format!(
        "{name} has more than {MAX_INSTANCES} addresses, of which no source may have more; look up \
         fewer"
    );
    Failure::new(Class::Malformed, message)
}

/// `None`: something must be asked first.
type Found<T> = Result<Option<T>, Failure>;

impl<'a> Walk<'a> {
    fn hosts(&mut self, port: u16) -> Found<Snapshot> {
        for name in &self.wanted.names {
            let Some(addresses) = self.addresses(name)? else {
                return Ok(None);
            };
            if !addresses.is_empty() {
                let instances = addresses.into_iter().map(|ip| instance(ip, port, None));
                return Ok(Some(instances.collect::<Vec<_>>().into()));
            }
        }
        Ok(Some(Snapshot::default()))
    }

    fn services(&mut self) -> Found<Snapshot> {
        for name in &self.wanted.names {
            match self.look(name, RecordType::SRV)? {
                None => return Ok(None),
                Some(Data::Services(services)) => return self.targets(name, services),
                Some(_) => {}
            }
        }
        Ok(Some(Snapshot::default()))
    }

    fn targets(&mut self, name: &Name, services: &[Service]) -> Found<Snapshot> {
        let lowest = services.iter().map(|s| s.priority).min();
        let group = services.iter().filter(|s| Some(s.priority) == lowest);
        let group: Vec<_> = group.filter(|s| !s.target.is_root()).collect();
        if group.is_empty() {
            return Ok(Some(Snapshot {
                decided: true,
                ..Snapshot::default()
            }));
        }
        let weighted = group.iter().any(|s| s.weight > 0);
        let mut weights = BTreeMap::<SocketAddr, u16>::new();
        let mut snapshot = Snapshot::default();
        let mut failed = None;
        let mut incomplete = false;
        for service in &group {
            let addresses = match self.addresses(&service.target) {
                Ok(Some(addresses)) => addresses,
                Ok(None) => {
                    incomplete = true;
                    continue;
                }
                // Nothing was ever known of it, so nothing goes when it is passed over. A source
                // that begins does not know that.
                Err(failure) if self.knowledge.complete => {
                    let note = format!("{}: {failure}", service.target);
                    snapshot.left_out.push(note);
                    self.failure.get_or_insert(failure);
                    continue;
                }
                Err(failure) => {
                    failed.get_or_insert(failure);
                    continue;
                }
            };
            if addresses.is_empty() {
                let note = format!("{} has no address", service.target);
                snapshot.left_out.push(note);
            }
            for ip in addresses {
                let weight = weights.entry((ip, service.port).into()).or_default();
                *weight = weight.saturating_add(service.weight.max(1));
            }
            if weights.len() > MAX_INSTANCES {
                return Err(too_many(name));
            }
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        if incomplete {
            return Ok(None);
        }
        if weights.is_empty() {
            let targets = group.len();
            let failure = self.failure.take().unwrap_or_else(|| {
                let message = format!("SRV {name}: none of its {targets} targets has an address");
                Failure::new(Class::Missing, message)
            });
            return Err(failure);
        }
        let instances = weights.into_iter().map(|(address, weight)| {
            instance(address.ip(), address.port(), weighted.then_some(weight))
        });
        snapshot.instances = instances.collect();
        Ok(Some(snapshot))
    }

    fn addresses(&mut self, name: &Name) -> Found<Vec<IpAddr>> {
        let Wanted { ipv4, ipv6, .. } = *self.wanted;
        let kinds = [(RecordType::A, ipv4), (RecordType::AAAA, ipv6)];
        let mut addresses = Vec::new();
        let mut incomplete = false;
        let mut failed = None;
        for (kind, _) in kinds.into_iter().filter(|(_, wanted)| *wanted) {
            match self.look(name, kind) {
                Ok(Some(Data::Addresses(found))) => addresses.extend(found),
                Ok(Some(_)) => {}
                Ok(None) => incomplete = true,
                Err(failure) => failed = Some(failure),
            }
        }
        match (failed, incomplete) {
            (Some(failure), _) => Err(failure),
            (None, true) => Ok(None),
            (None, false) => Ok(Some(addresses)),
        }
    }

    /// What is known of a name, through its aliases.
    fn look(&mut self, name: &Name, kind: RecordType) -> Found<&'a Data> {
        let mut name = name;
        for _ in 0..=MAX_ALIASES {
            match self.known(name, kind)? {
                Some(Data::Alias(target)) => name = target,
                found => return Ok(found),
            }
        }
        let message = format!("{kind} {name}: aliases in a circle, or more than {MAX_ALIASES}");
        Err(Failure::new(Class::Malformed, message))
    }

    fn known(&mut self, name: &Name, kind: RecordType) -> Found<&'a Data> {
        let question = Question {
            name: name.clone(),
            kind,
        };
        let known = self.knowledge.answers.get(&question);
        let failure = self.knowledge.failures.get(&question);
        let known = match (known, failure) {
            (Some(known), _) if known.until > self.now => known,
            (Some(known), Some(failure)) => {
                self.failure.get_or_insert_with(|| failure.clone());
                known
            }
            (None, Some(failure)) => return Err(failure.clone()),
            (_, None) => {
                if self.asked.insert(question.clone()) {
                    self.ask.push(question);
                }
                return Ok(None);
            }
        };
        self.until = Some(self.until.map_or(known.until, |at| at.min(known.until)));
        self.used.insert(question);
        Ok(Some(&known.data))
    }
}

fn instance(ip: IpAddr, port: u16, weight: Option<u16>) -> Instance {
    let address = SocketAddr::from((ip, port));
    Instance {
        weight,
        ..Instance::new(address.to_string(), address)
    }
}
