//! The backends of one service of lbd: those of the Services that its source names.

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use super::{
    Config, Select, Wanted,
    api::Query,
    join::{SERVICE_LABEL, join},
    session::{Follow, Objects, Store},
    wire::Event,
};
use crate::discovery::{Failure, Feed, Snapshot, Source};

pub struct Kubernetes {
    follow: Follow,
    pool: Pool,
}

struct Pool {
    wanted: Wanted,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
}

impl Kubernetes {
    pub fn new(config: Config) -> Self {
        let Config {
            access,
            mut wanted,
            watch_timeout,
        } = config;
        super::here(&mut wanted.node, &mut wanted.zone);
        Self {
            follow: Follow::new(access, queries(&wanted), watch_timeout),
            pool: Pool {
                wanted,
                services: Store::new(),
                slices: Store::new(),
            },
        }
    }
}

/// What to ask for Services, and for slices.
fn queries(wanted: &Wanted) -> (Query, Query) {
    let query = |labels, fields| Query {
        namespace: Some(wanted.namespace.clone()),
        labels,
        fields,
    };
    match &wanted.select {
        Select::Name(name) => (
            query(None, Some(format!("metadata.name={name}"))),
            query(Some(format!("{SERVICE_LABEL}={name}")), None),
        ),
        // Slices need not have the labels of their Service.
        Select::Labels(labels) => (
            query(Some(labels.clone()), None),
            query(Some(SERVICE_LABEL.to_owned()), None),
        ),
    }
}

impl Objects<Snapshot> for Pool {
    fn begin(&mut self, services: Vec<Service>, slices: Vec<EndpointSlice>) -> Result<(), Failure> {
        self.services.fill(services)?;
        self.slices.fill(slices)
    }

    fn service(&mut self, event: Event<Service>) -> Result<(), Failure> {
        self.services.take(event)
    }

    fn slice(&mut self, event: Event<EndpointSlice>) -> Result<(), Failure> {
        self.slices.take(event)
    }

    fn tell(&mut self, feed: &mut Feed) {
        let (services, slices) = (self.services.0.values(), self.slices.0.values());
        match join(&self.wanted, services, slices) {
            Ok(snapshot) => feed.snapshot(snapshot),
            Err(failure) => feed.failure(failure),
        }
    }
}

impl Source for Kubernetes {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        self.follow.session(&mut self.pool, feed).await
    }
}
