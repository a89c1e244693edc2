//! List, then watch from there on; list anew when a watch cannot go on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Config, Select, Wanted,
    api::{Api, Query},
    join::{SERVICE_LABEL, join},
    wire::{Event, Object},
};
use crate::discovery::{Backoff, Class, Failure, Feed, Source};

/// Watches that lasted this long did some good, even if nothing happened.
const GOOD: Duration = Duration::from_secs(5);
/// Watches that may break in a row before anybody is told.
const BREAKS: u32 = 3;
/// Shortest time between two watches of one kind: a server may end them at once.
const BETWEEN: Duration = Duration::from_millis(500);
/// Events on their way to the source; a watch waits beyond that.
const QUEUE: usize = 256;

pub struct Kubernetes {
    config: Config,
    /// Of watches that fail, while lists do not.
    backoff: Backoff,
    /// Watches in a row that broke before they were of any use.
    breaks: u32,
}

/// What a watch tells the source.
#[expect(
    clippy::large_enum_variant,
    reason = "they are few, and each is moved once"
)]
enum Word {
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
    /// A watch is open, or told that nothing happened.
    Alive,
    /// It cannot go on.
    Ended(Ended),
}

enum Ended {
    /// What it would go on with is too old, or of a server that forgot.
    Expired { good: bool },
    Failed {
        failure: Failure,
        good: bool,
        /// It was open before.
        opened: bool,
    },
}

/// Objects of one kind, by name.
struct Store<K>(BTreeMap<String, K>);

impl<K: Object> Store<K> {
    fn new(items: Vec<K>) -> Self {
        let mut store = Self(BTreeMap::new());
        items.into_iter().for_each(|item| store.put(item));
        store
    }

    fn put(&mut self, item: K) {
        if let Some(name) = item.metadata().name.clone() {
            self.0.insert(name, item);
        }
    }

    fn take(&mut self, event: Event<K>) {
        match event {
            Event::Put(item) => self.put(item),
            Event::Gone(item) => {
                if let Some(name) = &item.metadata().name {
                    self.0.remove(name);
                }
            }
            Event::Bookmark(_) | Event::Expired => {}
        }
    }
}

impl Kubernetes {
    pub fn new(mut config: Config) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Wanted { node, zone, .. } = &mut config.wanted;
        *node = node.take().or_else(|| variable("NODE_NAME"));
        *zone = zone.take().or_else(|| variable("NODE_ZONE"));
        Self {
            config,
            backoff: Backoff::default(),
            breaks: 0,
        }
    }

    /// What to ask for Services, and for slices.
    fn queries(&self) -> (Query, Query) {
        let Wanted {
            namespace, select, ..
        } = &self.config.wanted;
        let query = |labels, fields| Query {
            namespace: namespace.clone(),
            labels,
            fields,
        };
        match select {
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

    /// Lists, and follows until what is known has to be listed anew.
    async fn round(&mut self, api: &Api, feed: &mut Feed) -> Result<(), Failure> {
        let (for_services, for_slices) = self.queries();
        let (services, slices) = tokio::try_join!(
            api.list::<Service>(&for_services),
            api.list::<EndpointSlice>(&for_slices)
        )?;
        let (sender, mut words) = mpsc::channel(QUEUE);
        let api = Arc::new(api.clone());
        let duration = self.config.watch_timeout;
        let mut watches = JoinSet::new();
        watches.spawn(
            Follower {
                api: api.clone(),
                query: for_services,
                version: services.version,
                duration,
                words: sender.clone(),
                wrap: Word::Service,
            }
            .run(),
        );
        watches.spawn(
            Follower {
                api,
                query: for_slices,
                version: slices.version,
                duration,
                words: sender,
                wrap: Word::Slice,
            }
            .run(),
        );
        let mut services = Store::new(services.items);
        let mut slices = Store::new(slices.items);
        self.tell(&services, &slices, feed);
        // Each snapshot puts the feed's own clock off.
        let listed = feed.clone();
        let mut untold = false;
        loop {
            let word = tokio::select! {
                () = listed.resync() => return Ok(()),
                () = feed.turn(), if untold => {
                    self.tell(&services, &slices, feed);
                    untold = false;
                    continue;
                }
                word = words.recv() => word,
            };
            match word {
                Some(Word::Service(event)) => services.take(event),
                Some(Word::Slice(event)) => slices.take(event),
                Some(Word::Alive) => {}
                Some(Word::Ended(ended)) => {
                    if untold {
                        self.tell(&services, &slices, feed);
                    }
                    return self.ended(ended, feed).await;
                }
                None => return Err(Failure::new(Class::Internal, "a watch's task ended")),
            }
            untold = true;
        }
    }

    fn tell(&self, services: &Store<Service>, slices: &Store<EndpointSlice>, feed: &mut Feed) {
        match join(&self.config.wanted, services.0.values(), slices.0.values()) {
            Ok(snapshot) => feed.snapshot(snapshot),
            Err(failure) => feed.failure(failure),
        }
    }

    /// Waits as long as it is good for the server before everything is listed anew.
    async fn ended(&mut self, ended: Ended, feed: &mut Feed) -> Result<(), Failure> {
        let good = match ended {
            Ended::Expired { good } => good,
            Ended::Failed {
                failure,
                good,
                opened,
            } => {
                self.breaks += 1;
                // A connection that breaks is the way of the world, unless each does at once; where the
                // server is away, the list will tell.
                let breaks = [Class::Unreachable, Class::Timeout].contains(&failure.class);
                if !(opened && breaks) || self.breaks > BREAKS {
                    feed.failure(failure);
                }
                good
            }
        };
        if good {
            self.breaks = 0;
            self.backoff.reset();
            return Ok(());
        }
        let pause = self.backoff.pause(&mut rand::rng());
        sleep(pause).await;
        Ok(())
    }
}

impl Source for Kubernetes {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        let api = Api::connect(&self.config.access).await?;
        loop {
            self.round(&api, feed).await?;
        }
    }
}

/// Watches one kind of object for as long as that is possible without a list.
struct Follower<K> {
    api: Arc<Api>,
    query: Query,
    version: String,
    duration: Duration,
    words: mpsc::Sender<Word>,
    wrap: fn(Event<K>) -> Word,
}

impl<K: Object + 'static> Follower<K> {
    async fn run(mut self) {
        let words = self.words.clone();
        let ended = self.follow().await;
        // Nobody listens any more if the source was stopped.
        let _ = words.send(Word::Ended(ended)).await;
    }

    async fn follow(&mut self) -> Ended {
        let mut good = false;
        let began = Instant::now();
        loop {
            let opened = Instant::now();
            let api = self.api.clone();
            let watch = api.watch::<K>(&self.query, &self.version, self.duration);
            let mut watch = match watch.await {
                Ok(Some(watch)) => watch,
                Ok(None) => return Ended::Expired { good },
                Err(failure) => {
                    return Ended::Failed {
                        failure,
                        good,
                        opened: false,
                    };
                }
            };
            let _ = self.words.send(Word::Alive).await;
            loop {
                let event = watch.next::<K>().await;
                good |= began.elapsed() >= GOOD;
                let event = match event {
                    Ok(Some(event)) => event,
                    Ok(None) => break,
                    Err(failure) => {
                        return Ended::Failed {
                            failure,
                            good,
                            opened: true,
                        };
                    }
                };
                let version = match &event {
                    Event::Put(item) | Event::Gone(item) => {
                        good = true;
                        item.metadata().resource_version.clone()
                    }
                    Event::Bookmark(version) => Some(version.clone()),
                    Event::Expired => return Ended::Expired { good },
                };
                let version = version.unwrap_or_default();
                // It lost what it knew, and counts from the start.
                if is_before(&version, &self.version) {
                    return Ended::Expired { good };
                }
                self.version = version;
                let word = match event {
                    Event::Bookmark(_) => Word::Alive,
                    event => (self.wrap)(event),
                };
                if self.words.send(word).await.is_err() {
                    return Ended::Expired { good };
                }
            }
            let rest = BETWEEN.saturating_sub(opened.elapsed());
            sleep(rest).await;
        }
    }
}

/// Whether a version is older than another, where both are numbers.
fn is_before(version: &str, other: &str) -> bool {
    match (version.parse::<u128>(), other.parse::<u128>()) {
        (Ok(version), Ok(other)) => version < other,
        _ => false,
    }
}
