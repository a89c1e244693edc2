//! Instances from the keys below a prefix in etcd (API v3).
//!
//! A session reads all keys as of one revision and watches from the next one on, so that nothing
//! falls in between. It always begins by reading: what happened while nobody watched may have been
//! compacted, and a cluster restored from a backup may be older than what is known.

mod client;
#[cfg(test)]
mod hostile;
pub mod known;
pub mod parse;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

use etcd_client::WatchResponse;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, sleep_until};

use self::{
    client::{Member, PATIENCE},
    known::{Known, Pair},
};
use super::{
    Backoff, Class, Configured, Failure, Feed, Secret, Source,
    http::{BaseUrl, Tls},
};

/// A watch that lasted this long was of use.
const GOOD: Duration = Duration::from_secs(5);

/// `etcd:` of a service's `discovery`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Members of one cluster. One is asked; the next if that fails.
    pub endpoints: Vec<BaseUrl>,
    /// Of the keys: all that begin with it are instances of the service.
    pub prefix: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub password: Option<Secret>,
    #[serde(skip_serializing_if = "Tls::is_default", default)]
    pub tls: Tls,
}

impl Configured for Config {
    type Source = Etcd;

    fn target(&self) -> String {
        let endpoints: Vec<_> = self.endpoints.iter().map(BaseUrl::authority).collect();
        format!("{}/{}", endpoints.join(","), self.prefix)
    }

    fn files(&self) -> Vec<&Path> {
        self.tls
            .files()
            .chain(self.password.iter().filter_map(Secret::file))
            .collect()
    }

    fn source(&self, _service: &str) -> Etcd {
        Etcd {
            known: Known::new(self.prefix.as_bytes()),
            config: self.clone(),
            next: 0,
        }
    }
}

pub struct Etcd {
    config: Config,
    known: Known,
    /// Which endpoint is asked, counted on and on.
    next: usize,
}

impl Source for Etcd {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        let mut failures: Vec<Failure> = Vec::new();
        for _ in 0..self.config.endpoints.len() {
            let url = self.config.endpoints[self.next % self.config.endpoints.len()].clone();
            let before = feed.snapshots();
            let Err(failure) = self.follow(&url, feed).await else {
                return Ok(());
            };
            self.next += 1;
            if feed.snapshots() > before {
                return Err(failure);
            }
            failures.push(failure);
        }
        let Some(first) = failures.first() else {
            return Err(Failure::new(Class::Config, "no endpoint is configured"));
        };
        let messages: Vec<_> = failures.iter().map(|f| f.message.as_str()).collect();
        Err(Failure::new(first.class, messages.join("; ")))
    }
}

/// How a watch ended that was no failure.
enum End {
    /// What it was to begin with is no longer kept.
    Compacted,
}

impl Etcd {
    /// Reads and watches by one member until that fails.
    async fn follow(&mut self, url: &BaseUrl, feed: &mut Feed) -> Result<(), Failure> {
        let member = Member::connect(&self.config, url).await?;
        let mut backoff = Backoff::default();
        let mut compactions = 0;
        loop {
            self.read(&member, feed).await?;
            let began = Instant::now();
            match self.watch(&member, feed).await? {
                End::Compacted if began.elapsed() >= GOOD => {
                    backoff.reset();
                    compactions = 0;
                }
                End::Compacted => {
                    compactions += 1;
                    // Once is chance. A member that compacts what it has just told has all read for ever.
                    if compactions > 1 {
                        let what = format!(
                            "what was to be watched was compacted {compactions} times, each within \
                             {GOOD:?} after all was read"
                        );
                        feed.failure(member.failure(Class::Refused, what));
                    }
                    let pause = backoff.pause(&mut rand::rng());
                    sleep(pause).await;
                }
            }
        }
    }

    async fn read(&mut self, member: &Member, feed: &mut Feed) -> Result<(), Failure> {
        let before = self.known.latest();
        member.read(&self.config.prefix, &mut self.known).await?;
        let now = self.known.revision();
        if now < before {
            // Reported, so that instances the older state lacks are held: their registrars, which
            // still live, are about to find out.
            let what = format!(
                "the cluster's revision went back from {before} to {now}: it was restored or emptied"
            );
            feed.failure(member.failure(Class::Refused, what));
        }
        feed.snapshot(self.known.snapshot());
        Ok(())
    }

    async fn watch(&mut self, member: &Member, feed: &mut Feed) -> Result<End, Failure> {
        let mut from = self.known.revision() + 1;
        let mut stream = member.watch(&self.config.prefix, from).await?;
        let created_by = Instant::now() + PATIENCE;
        let mut is_created = false;
        let mut is_changed = false;
        loop {
            tokio::select! {
                message = stream.message() => {
                    let message = message.map_err(|error| member.failed(&error))?;
                    let Some(message) = message else {
                        let what = "the watch ended; does the member stop?";
                        return Err(member.failure(Class::Unreachable, what));
                    };
                    if message.canceled() {
                        return canceled(member, &message, from);
                    }
                    if message.created() {
                        is_created = true;
                        check_age(member, &message, from)?;
                    }
                    for pair in message.events().iter().filter_map(|event| event.kv()) {
                        let changed = self.known.change(&Pair {
                            key: pair.key(),
                            // A deletion resets the version; a key that is there has one.
                            value: (pair.version() > 0).then(|| pair.value()),
                            mod_revision: pair.mod_revision(),
                        });
                        is_changed |= changed
                            .map_err(|failure| failure.context(member.below(&self.config.prefix)))?;
                        from = from.max(pair.mod_revision());
                    }
                }
                () = feed.turn(), if is_changed => {
                    feed.snapshot(self.known.snapshot());
                    is_changed = false;
                }
                () = feed.resync() => {
                    self.read(member, feed).await?;
                    is_changed = false;
                }
                () = sleep_until(created_by), if !is_created => {
                    let what = format!("no watch within {PATIENCE:?}");
                    return Err(member.failure(Class::Timeout, what));
                }
            }
        }
    }
}

fn canceled(member: &Member, message: &WatchResponse, from: i64) -> Result<End, Failure> {
    let compacted = message.compact_revision();
    if compacted > 0 {
        tracing::info!(
            from,
            compacted,
            "etcd compacted what was to be watched: all is read anew"
        );
        return Ok(End::Compacted);
    }
    let reason = match message.cancel_reason() {
        "" => "no reason given",
        reason => reason,
    };
    let class = match reason.contains("permission") || reason.contains("auth") {
        true => Class::Denied,
        false => Class::Refused,
    };
    Err(member.failure(class, format!("the watch was canceled: {reason}")))
}

/// A watch from a revision that the cluster has not reached would be silent until it has. This
/// happens behind a proxy, when the connection came to another cluster or a restored one.
fn check_age(member: &Member, message: &WatchResponse, from: i64) -> Result<(), Failure> {
    let revision = message.header().map_or(from, |header| header.revision());
    if revision + 1 < from {
        let what = format!(
            "the cluster's revision went back from {} to {revision}: it was restored or emptied",
            from - 1
        );
        return Err(member.failure(Class::Refused, what));
    }
    Ok(())
}
