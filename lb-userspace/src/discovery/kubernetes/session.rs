//! List, then watch from there on; list anew when a watch cannot go on.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Access,
    api::{Api, Query, Waiting},
    wire::{Event, Object},
};
use crate::discovery::{Backoff, Class, Failure, Feed, bounds::Bounded};

/// Watches that lasted this long did some good, even if nothing happened.
const GOOD: Duration = Duration::from_secs(5);
/// Watches that may break in a row before anybody is told.
const BREAKS: u32 = 3;
/// Shortest time between two watches of one kind: a server may end them at once.
const BETWEEN: Duration = Duration::from_millis(500);
/// Events on their way to the source; a watch waits beyond that.
const QUEUE: usize = 256;

/// What is made of the objects of a cluster; `A` is a source's whole answer.
pub(super) trait Objects<A> {
    /// These are all, whatever was there before.
    ///
    /// # Errors
    /// If there are more than a source may hold, as in the others.
    fn begin(&mut self, services: Vec<Service>, slices: Vec<EndpointSlice>) -> Result<(), Failure>;
    fn service(&mut self, event: Event<Service>) -> Result<(), Failure>;
    fn slice(&mut self, event: Event<EndpointSlice>) -> Result<(), Failure>;
    /// Reports what comes to.
    fn tell(&mut self, feed: &mut Feed<A>);
}

/// Both kinds of objects, listed and watched.
pub(super) struct Follow {
    pub(super) access: Access,
    pub(super) for_services: Query,
    pub(super) for_slices: Query,
    pub(super) watch_timeout: Duration,
    /// Of watches that fail, while lists do not.
    pub(super) backoff: Backoff,
    /// Watches in a row that broke before they were of any use.
    pub(super) breaks: u32,
}

/// What a watch tells the source.
#[expect(
    clippy::large_enum_variant,
    reason = "they are few, and each is moved once"
)]
enum Word {
    Service(Event<Service>, Waiting),
    Slice(Event<EndpointSlice>, Waiting),
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

/// Namespace and name.
pub(super) type Key = (String, String);

pub(super) fn key<K: Object>(item: &K) -> Option<Key> {
    let metadata = item.metadata();
    let namespace = metadata.namespace.clone().unwrap_or_default();
    Some((namespace, metadata.name.clone()?))
}

/// Objects of one kind.
pub(super) struct Store<K>(pub(super) Bounded<Key, K>);

impl<K: Object> Store<K> {
    pub(super) fn new() -> Self {
        Self(Bounded::new(K::URL_PATH_SEGMENT))
    }

    /// All there are, in place of those before.
    pub(super) fn fill(&mut self, items: Vec<K>) -> Result<(), Failure> {
        *self = Self::new();
        items.into_iter().try_for_each(|item| self.put(item))
    }

    fn put(&mut self, item: K) -> Result<(), Failure> {
        let Some(key) = key(&item) else {
            return Ok(());
        };
        let weight = item.weight();
        self.0.insert(key, item, weight)
    }

    pub(super) fn take(&mut self, event: Event<K>) -> Result<(), Failure> {
        match event {
            Event::Put(item) => self.put(item)?,
            Event::Gone(item) => {
                if let Some(key) = key(&item) {
                    self.0.remove(&key);
                }
            }
            Event::Bookmark(_) | Event::Expired => {}
        }
        Ok(())
    }
}

impl Follow {
    pub(super) fn new(
        access: Access,
        (for_services, for_slices): (Query, Query),
        watch_timeout: Duration,
    ) -> Self {
        Self {
            access,
            for_services,
            for_slices,
            watch_timeout,
            backoff: Backoff::default(),
            breaks: 0,
        }
    }

    /// A source's session.
    pub(super) async fn session<A: Clone + Send + 'static>(
        &mut self,
        objects: &mut (impl Objects<A> + Send),
        feed: &mut Feed<A>,
    ) -> Result<(), Failure> {
        let api = Api::connect(&self.access).await?;
        loop {
            self.round(&api, objects, feed).await?;
        }
    }

    /// Lists, and follows until what is known has to be listed anew.
    async fn round<A: Clone + Send + 'static>(
        &mut self,
        api: &Api,
        objects: &mut (impl Objects<A> + Send),
        feed: &mut Feed<A>,
    ) -> Result<(), Failure> {
        let (services, slices) = tokio::try_join!(
            api.list::<Service>(&self.for_services),
            api.list::<EndpointSlice>(&self.for_slices)
        )?;
        let (sender, mut words) = mpsc::channel(QUEUE);
        let api = Arc::new(api.clone());
        let duration = self.watch_timeout;
        let mut watches = JoinSet::new();
        watches.spawn(
            Follower {
                api: api.clone(),
                query: self.for_services.clone(),
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
                query: self.for_slices.clone(),
                version: slices.version,
                duration,
                words: sender,
                wrap: Word::Slice,
            }
            .run(),
        );
        objects.begin(services.items, slices.items)?;
        let began = Instant::now();
        objects.tell(feed);
        // Each snapshot puts the feed's own clock off.
        let listed = feed.clone();
        let mut untold = false;
        loop {
            let word = tokio::select! {
                () = listed.resync() => return Ok(()),
                () = feed.turn(), if untold => {
                    objects.tell(feed);
                    untold = false;
                    continue;
                }
                word = words.recv() => word,
                // Those that end otherwise say so by a word.
                Some(Err(_)) = watches.join_next() => None,
            };
            match word {
                Some(Word::Service(event, _waiting)) => objects.service(event)?,
                Some(Word::Slice(event, _waiting)) => objects.slice(event)?,
                Some(Word::Alive) => {}
                Some(Word::Ended(ended)) => {
                    if untold {
                        objects.tell(feed);
                    }
                    return self.ended(ended, began.elapsed(), feed).await;
                }
                None => return Err(Failure::new(Class::Internal, "a watch's task ended")),
            }
            untold = true;
        }
    }

    /// Waits as long as it is good for the server before everything is listed anew.
    async fn ended<A: Clone + Send + 'static>(
        &mut self,
        ended: Ended,
        lasted: Duration,
        feed: &mut Feed<A>,
    ) -> Result<(), Failure> {
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
        }
        // One event is of use, but a server that has all listed for each must not set the pace.
        if good && lasted >= GOOD {
            self.backoff.reset();
            return Ok(());
        }
        let pause = self.backoff.pause(&mut rand::rng());
        sleep(pause).await;
        Ok(())
    }
}

/// Watches one kind of object for as long as that is possible without a list.
struct Follower<K> {
    api: Arc<Api>,
    query: Query,
    version: String,
    duration: Duration,
    words: mpsc::Sender<Word>,
    wrap: fn(Event<K>, Waiting) -> Word,
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
                let (event, waiting) = match event {
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
                    event => (self.wrap)(event, waiting),
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
