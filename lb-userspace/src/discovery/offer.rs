//! What a source says of one service.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Settings, Snapshot, rules::Item};
use crate::model::{
    Admission, Affinity, Health, HealthCheck, Prefixes, Protocol, ServiceSpec, duration_text,
};

/// Longest name, in bytes: that of a domain.
const MAX_NAME: usize = 253;

/// One service, as its registry knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// What lbd's service is called; unique within a source. Has a dot, which a configured name has
    /// not.
    pub name: String,
    /// At least one.
    pub listen: Vec<SocketAddr>,
    pub protocol: Protocol,
    /// If there are any, all others are refused.
    #[serde(skip_serializing_if = "<[_]>::is_empty", default)]
    pub allow_sources: Prefixes,
    /// `None`: the source's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub affinity: Option<Affinity>,
    /// Since when there is such a service, in seconds since 1970. Where not all can be had, the
    /// older ones are.
    #[serde(default)]
    pub since: i64,
}

/// A source's whole answer about services.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Catalogue {
    pub services: Snapshot<Arc<Offer>>,
    /// The backends of each, by name. One that is the same `Arc` as in the last answer is the same.
    pub backends: BTreeMap<String, Arc<Snapshot>>,
}

impl Offer {
    /// The service of lbd that it becomes; what it does not say, `defaults` do.
    pub(super) fn serve(&self, defaults: &ServiceSpec) -> ServiceSpec {
        let Self {
            name,
            listen,
            protocol,
            allow_sources,
            affinity,
            since: _,
        } = self;
        // There is no telling how a datagram is answered.
        let check = match protocol {
            Protocol::Tcp => defaults.health.check.clone(),
            Protocol::Udp => HealthCheck::None,
        };
        ServiceSpec {
            name: name.clone(),
            listen: listen.clone(),
            protocol: *protocol,
            admission: Admission {
                allow_sources: allow_sources.clone(),
                affinity: affinity.or(defaults.admission.affinity),
                ..defaults.admission.clone()
            },
            health: Health {
                check,
                ..defaults.health.clone()
            },
            ..defaults.clone()
        }
    }
}

impl Item for Arc<Offer> {
    const PLURAL: &'static str = "services";
    const PURPOSE: &'static str = "a service";

    /// From the oldest to the youngest.
    type Set = Arc<Vec<Self>>;

    fn id(&self) -> &str {
        &self.name
    }

    fn admissible(mut self) -> Result<Self, String> {
        if let Some(fault) = name_fault(&self.name) {
            return Err(fault);
        }
        let name = &self.name;
        if let Some(affinity) = self.affinity
            && let Some(fault) = crate::config::affinity_fault(affinity)
        {
            let time = duration_text::format(affinity.client_ip);
            return Err(format!("`{name}`: an affinity of {time} {fault}"));
        }
        let sound = |listen: &SocketAddr| crate::config::listen_fault(*listen).is_none();
        if self.listen.iter().all(sound) && !self.listen.is_empty() {
            return Ok(self);
        }
        let listens = self.listen.clone();
        let faults = listens.iter().find_map(|listen| {
            let fault = crate::config::listen_fault(*listen)?;
            Some(format!("`{name}`: {listen} {fault}"))
        });
        let faults = faults.unwrap_or_else(|| format!("`{name}` listens nowhere"));
        Arc::make_mut(&mut self).listen.retain(sound);
        match self.listen.is_empty() {
            true => Err(faults),
            false => Ok(self),
        }
    }

    fn set<'a>(known: impl Iterator<Item = (&'a Self, bool)>, _: &Settings) -> Self::Set {
        let mut set: Vec<Self> = known.map(|(offer, _)| offer.clone()).collect();
        set.sort_by(|a, b| (a.since, &a.name).cmp(&(b.since, &b.name)));
        Arc::new(set)
    }
}

fn name_fault(name: &str) -> Option<String> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let fits = name.len() <= MAX_NAME && name.contains('.') && name.bytes().all(sound);
    (!fits).then(|| {
        let name: String = name.escape_debug().take(60).collect();
        format!("`{name}` is no name of a service")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn offer(name: &str, listen: &[&str]) -> Arc<Offer> {
        Arc::new(Offer {
            name: name.to_owned(),
            listen: listen.iter().map(|l| l.parse().unwrap()).collect(),
            protocol: Protocol::Tcp,
            allow_sources: Prefixes::default(),
            affinity: None,
            since: 0,
        })
    }

    #[test]
    fn what_nobody_can_listen_on_goes() {
        let sound = offer("shop.web.http", &["10.96.0.1:80"]);
        assert!(Arc::ptr_eq(&sound.clone().admissible().unwrap(), &sound));
        let partly = offer("shop.web.http", &["127.0.0.1:80", "10.96.0.1:80"]);
        assert_eq!(partly.admissible(), Ok(sound));
        for (faulty, words) in [
            (offer("shop.web.http", &["127.0.0.1:80"]), "loopback"),
            (offer("shop.web.http", &["10.0.0.1:0"]), "port 0"),
            (offer("shop.web.http", &[]), "listens nowhere"),
            (offer("shop", &["10.0.0.1:80"]), "no name"),
            (offer("shop/a.b", &["10.0.0.1:80"]), "no name"),
        ] {
            let fault = faulty.admissible().unwrap_err();
            assert!(fault.contains(words), "{fault}");
        }
        let mut long = offer("shop.web.http", &["10.0.0.1:80"]);
        Arc::make_mut(&mut long).affinity = Some(Affinity {
            client_ip: Duration::from_secs(86_401),
        });
        assert!(long.admissible().unwrap_err().contains("86401s"));
    }

    #[test]
    fn the_older_come_first() {
        let mut old = offer("shop.z.http", &["10.0.0.1:80"]);
        Arc::make_mut(&mut old).since = -1;
        let young = [
            offer("shop.b.http", &["10.0.0.1:80"]),
            offer("shop.a.http", &["10.0.0.1:80"]),
        ];
        let known = young.iter().chain([&old]).map(|offer| (offer, false));
        let set = <Arc<Offer> as Item>::set(known, &Settings::default());
        let names: Vec<_> = set.iter().map(|offer| &*offer.name).collect();
        assert_eq!(names, ["shop.z.http", "shop.a.http", "shop.b.http"]);
    }
}
