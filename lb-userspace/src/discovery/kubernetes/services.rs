//! The Services of a cluster, or of a namespace, and the backends of each, by one pair of watches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde::{Deserialize, Serialize};

use super::{
    Access, Select, Traffic, Wanted,
    api::Query,
    expose::{Exposed, expose},
    join::{SERVICE_LABEL, join_port},
    session::{Follow, Key, Objects, key},
    wire::{Event, Object as _},
};
use crate::{
    datapath,
    discovery::{Catalogue, Failure, Feed, Instance, Offer, Snapshot, Source, bounds::Bounded},
    model::{Prefix, duration_text},
};

/// `selector` where the config leaves it out: the label that keeps kube-proxy away from a Service.
pub const SELECTOR: &str = "service.kubernetes.io/service-proxy-name=lbd";

/// `kubernetes:` of the config's own `discovery`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    pub access: Access,
    /// `None` for all.
    pub namespace: Option<String>,
    pub select: Select,
    /// Where node ports listen: at the node's own addresses in these.
    pub nodeport_addresses: Vec<Prefix>,
    /// The node lbd runs on. Without: the variable `NODE_NAME`.
    pub node: Option<String>,
    /// The zone of that node. Without: the variable `NODE_ZONE`.
    pub zone: Option<String>,
    #[serde(with = "duration_text")]
    pub watch_timeout: Duration,
}

impl Config {
    pub fn target(&self) -> String {
        let (server, what) = (self.access.name(), self.select.name());
        let namespace = self.namespace.as_deref().unwrap_or("*");
        format!("{server}{namespace}/{what}")
    }

    pub fn source(&self) -> Cluster {
        Cluster::new(self.clone())
    }

    /// What to ask for Services, and for slices.
    fn queries(&self) -> (Query, Query) {
        let query = |labels, fields| Query {
            namespace: self.namespace.clone(),
            labels,
            fields,
        };
        match &self.select {
            Select::Name(name) => (
                query(None, Some(format!("metadata.name={name}"))),
                query(Some(format!("{SERVICE_LABEL}={name}")), None),
            ),
            // A Service may be selected later on, when its slices have been there for long.
            Select::Labels(labels) => (
                query(Some(labels.clone()), None),
                query(Some(SERVICE_LABEL.to_owned()), None),
            ),
        }
    }
}

/// The source.
pub struct Cluster {
    follow: Follow,
    market: Market,
}

impl Cluster {
    fn new(mut config: Config) -> Self {
        super::here(&mut config.node, &mut config.zone);
        let queries = config.queries();
        let addresses = match config.nodeport_addresses.is_empty() {
            true => || Ok(Vec::new()),
            false => datapath::own_addresses,
        };
        Self {
            follow: Follow::new(config.access, queries, config.watch_timeout),
            market: Market::new(
                Place {
                    node: config.node,
                    zone: config.zone,
                    nodeport_addresses: config.nodeport_addresses,
                },
                addresses,
            ),
        }
    }
}

impl Source<Catalogue> for Cluster {
    async fn session(&mut self, feed: &mut Feed<Catalogue>) -> Result<(), Failure> {
        self.follow.session(&mut self.market, feed).await
    }
}

/// Where lbd runs.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub node: Option<String>,
    pub zone: Option<String>,
    pub nodeport_addresses: Vec<Prefix>,
}

/// All objects, and what each Service comes to: only what changed is looked at anew.
pub struct Market {
    place: Place,
    /// The addresses of the node.
    addresses: fn() -> std::io::Result<Vec<IpAddr>>,
    /// Those at which node ports listen.
    nodes: Vec<IpAddr>,
    services: Bounded<Key, Service>,
    /// By the Service that they belong to, then by name.
    slices: Bounded<(Key, String), EndpointSlice>,
    /// The Service that each slice belongs to.
    owners: HashMap<Key, Key>,
    stalls: BTreeMap<Key, Stall>,
    /// Services of which some object changed.
    changed: BTreeSet<Key>,
}

/// What one Service comes to.
#[derive(Default)]
struct Stall {
    offers: Vec<(Arc<Offer>, Arc<Snapshot>)>,
    left_out: Vec<String>,
}

impl Market {
    pub fn new(place: Place, addresses: fn() -> std::io::Result<Vec<IpAddr>>) -> Self {
        Self {
            place,
            addresses,
            nodes: Vec::new(),
            services: Bounded::new("services"),
            slices: Bounded::new("endpointslices"),
            owners: HashMap::new(),
            stalls: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// # Errors
    /// If there are more than a source may hold.
    pub fn put_service(&mut self, service: Service) -> Result<(), Failure> {
        let Some(key) = key(&service) else {
            return Ok(());
        };
        self.changed.insert(key.clone());
        let weight = service.weight();
        self.services.insert(key, service, weight)
    }

    pub fn drop_service(&mut self, service: &Service) {
        if let Some(key) = key(service) {
            self.services.remove(&key);
            self.changed.insert(key);
        }
    }

    /// # Errors
    /// If there are more than a source may hold.
    pub fn put_slice(&mut self, slice: EndpointSlice) -> Result<(), Failure> {
        self.drop_slice(&slice);
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_LABEL)).cloned();
        let (Some(key), Some(service)) = (key(&slice), service) else {
            return Ok(());
        };
        let owner = (key.0.clone(), service);
        self.changed.insert(owner.clone());
        let weight = slice.weight();
        let place = (owner.clone(), key.1.clone());
        self.slices.insert(place, slice, weight)?;
        self.owners.insert(key, owner);
        Ok(())
    }

    pub fn drop_slice(&mut self, slice: &EndpointSlice) {
        let Some(key) = key(slice) else {
            return;
        };
        let Some(owner) = self.owners.remove(&key) else {
            return;
        };
        let place = (owner, key.1);
        self.slices.remove(&place);
        self.changed.insert(place.0);
    }

    /// All services and their backends, as of now.
    pub fn catalogue(&mut self) -> Catalogue {
        self.look_at_node();
        for key in std::mem::take(&mut self.changed) {
            match self.services.get(&key) {
                Some(service) => {
                    let before = self.stalls.remove(&key).unwrap_or_default();
                    let slices = self.slices.range((key.clone(), String::new())..);
                    let slices = slices.take_while(|((owner, _), _)| *owner == key);
                    let slices: Vec<_> = slices.map(|(_, slice)| slice).collect();
                    let stall = self.place.stall(service, &slices, &self.nodes, &before);
                    self.stalls.insert(key, stall);
                }
                None => _ = self.stalls.remove(&key),
            }
        }
        let mut catalogue = Catalogue::default();
        for Stall { offers, left_out } in self.stalls.values() {
            let notes = left_out.iter().cloned();
            catalogue.services.left_out.extend(notes);
            for (offer, backends) in offers {
                catalogue.services.instances.push(offer.clone());
                let name = offer.name.clone();
                catalogue.backends.insert(name, backends.clone());
            }
        }
        catalogue
    }

    /// Node ports follow the node's addresses.
    fn look_at_node(&mut self) {
        let all = match (self.addresses)() {
            Ok(all) => all,
            Err(error) => {
                // Those known before are as good a guess as there is.
                tracing::warn!("cannot read the node's addresses: {error}");
                return;
            }
        };
        let wanted = &self.place.nodeport_addresses;
        let is_wanted =
            |ip: &IpAddr| !ip.is_loopback() && wanted.iter().any(|prefix| prefix.covers(*ip));
        let mut nodes: Vec<IpAddr> = all.into_iter().filter(is_wanted).collect();
        nodes.sort_unstable();
        nodes.dedup();
        if nodes != self.nodes {
            self.nodes = nodes;
            self.changed.extend(self.services.keys().cloned());
        }
    }
}

impl Place {
    /// What `before` has and is still the same stays the same `Arc`.
    fn stall(
        &self,
        service: &Service,
        slices: &[&EndpointSlice],
        nodes: &[IpAddr],
        before: &Stall,
    ) -> Stall {
        let Exposed { groups, left_out } = expose(service, nodes);
        let offers = groups.into_iter().map(|group| {
            let wanted = self.wanted(service, group.traffic);
            let mut backends = join_port(&wanted, service, group.port, slices);
            // Those of a family that it does not listen on would never be drawn.
            let listens = &group.offer.listen;
            let is_drawn =
                |i: &Instance| listens.iter().any(|l| l.is_ipv4() == i.address.is_ipv4());
            backends.instances.retain(is_drawn);
            let former = before.offers.iter();
            let mut former = former.filter(|(offer, _)| offer.name == group.offer.name);
            let Some((offer, snapshot)) = former.next() else {
                return (Arc::new(group.offer), Arc::new(backends));
            };
            let offer = match **offer == group.offer {
                true => offer.clone(),
                false => Arc::new(group.offer),
            };
            let backends = match **snapshot == backends {
                true => snapshot.clone(),
                false => Arc::new(backends),
            };
            (offer, backends)
        });
        Stall {
            offers: offers.collect(),
            left_out,
        }
    }

    fn wanted(&self, service: &Service, traffic: Traffic) -> Wanted {
        let metadata = &service.metadata;
        Wanted {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            select: Select::Name(metadata.name.clone().unwrap_or_default()),
            port: None,
            traffic,
            node: self.node.clone(),
            zone: self.zone.clone(),
        }
    }
}

impl Objects<Catalogue> for Market {
    fn begin(&mut self, services: Vec<Service>, slices: Vec<EndpointSlice>) -> Result<(), Failure> {
        self.changed.extend(self.services.take().keys().cloned());
        self.slices.take();
        self.owners.clear();
        services
            .into_iter()
            .try_for_each(|service| self.put_service(service))?;
        slices
            .into_iter()
            .try_for_each(|slice| self.put_slice(slice))
    }

    fn service(&mut self, event: Event<Service>) -> Result<(), Failure> {
        match event {
            Event::Put(service) => return self.put_service(service),
            Event::Gone(service) => self.drop_service(&service),
            Event::Bookmark(_) | Event::Expired => {}
        }
        Ok(())
    }

    fn slice(&mut self, event: Event<EndpointSlice>) -> Result<(), Failure> {
        match event {
            Event::Put(slice) => return self.put_slice(slice),
            Event::Gone(slice) => self.drop_slice(&slice),
            Event::Bookmark(_) | Event::Expired => {}
        }
        Ok(())
    }

    fn tell(&mut self, feed: &mut Feed<Catalogue>) {
        let catalogue = self.catalogue();
        feed.snapshot(catalogue);
    }
}

#[cfg(test)]
mod tests;
