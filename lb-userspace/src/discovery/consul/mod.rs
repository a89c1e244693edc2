//! Instances of a Consul service, by blocking queries of `/v1/health/service/NAME`.
//!
//! The rules of blocking queries, index and pause included, are those of
//! <https://developer.hashicorp.com/consul/api-docs/features/blocking>.

mod answer;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;

pub use self::answer::parse;
use super::{
    Class, Configured, Failure, Feed, Secret, Source,
    http::{Answer, Auth, BaseUrl, Client, Request, Tls, escaped},
};
use crate::model::duration_text;

/// Time for an answer that need not wait for a change, and for one to arrive that did.
const PATIENCE: Duration = Duration::from_secs(5);
/// Shortest time between two queries, whatever `merge_window` is: a cluster whose index runs on
/// without changes, or one with a fault, is not asked all the time.
const PAUSE: Duration = Duration::from_millis(100);
/// Consul adds up to a sixteenth of the wait by chance.
const JITTER: u32 = 16;

/// `consul:` of a service's `discovery`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Of an agent or a server.
    pub url: BaseUrl,
    /// As it is registered.
    pub service: String,
    /// An instance must have them all.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tags: Vec<String>,
    /// An expression in Consul's own language.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub filter: Option<String>,
    /// `None`: the agent's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub datacenter: Option<String>,
    /// `None`: the token's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Secret>,
    #[serde(skip_serializing_if = "Tls::is_default", default)]
    pub tls: Tls,
    pub consistency: Consistency,
    /// How long Consul holds a query back if nothing changes; 1 s to 10 min.
    #[serde(with = "duration_text")]
    pub wait: Duration,
    /// What one unit of Consul's weights is in lbd's; Consul's own default is one.
    pub weight_unit: u16,
}

/// Which of Consul's servers may answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// The leader, which may for a moment be a former one.
    #[default]
    Default,
    /// Any, however far it is behind.
    Stale,
    /// The leader, once it has made sure that it is.
    Consistent,
}

impl Consistency {
    pub const ALL: [(&'static str, Self); 3] = [
        ("default", Self::Default),
        ("stale", Self::Stale),
        ("consistent", Self::Consistent),
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Stale => "stale",
            Self::Consistent => "consistent",
        }
    }
}

impl Config {
    /// What tells instances apart from others of the service, as parameters of the query.
    fn selection(&self) -> Vec<(&'static str, &str)> {
        let tags = self.tags.iter().map(|tag| ("tag", tag.as_str()));
        let single = [
            ("filter", &self.filter),
            ("dc", &self.datacenter),
            ("ns", &self.namespace),
        ];
        let single = single.into_iter();
        tags.chain(single.filter_map(|(key, value)| Some((key, value.as_deref()?))))
            .collect()
    }
}

impl Configured for Config {
    type Source = Consul;

    fn target(&self) -> String {
        let mut target = format!("{}@{}{}", self.service, self.url.authority(), self.url.path);
        for (n, (key, value)) in self.selection().into_iter().enumerate() {
            let mark = if n == 0 { '?' } else { '&' };
            target += &format!("{mark}{key}={value}");
        }
        target
    }

    fn files(&self) -> Vec<&Path> {
        self.tls
            .files()
            .chain(self.token.iter().filter_map(Secret::file))
            .collect()
    }

    fn source(&self, _service: &str) -> Consul {
        let token = self.token.clone();
        let auth = token.map_or(Auth::None, |token| Auth::Header("x-consul-token", token));
        Consul {
            client: Client::new(self.url.clone(), self.tls.clone(), auth),
            path: path(self),
            wait: self.wait,
            weight_unit: self.weight_unit,
            is_stale: self.consistency == Consistency::Stale,
        }
    }
}

pub struct Consul {
    client: Client,
    /// Of the query, with all its parameters but the index.
    path: String,
    wait: Duration,
    weight_unit: u16,
    /// Any server may answer, also one that is behind the one that answered before.
    is_stale: bool,
}

impl Consul {
    /// Asks for what there is, or, with an index, for what there is once it has changed.
    async fn ask(&self, index: Option<u64>) -> Result<Answer, Failure> {
        let request = match index {
            None => Request::get(self.path.clone(), PATIENCE),
            Some(index) => {
                let Self { path, wait, .. } = self;
                let mark = if path.contains('?') { '&' } else { '?' };
                let path = format!("{path}{mark}index={index}&wait={}ms", wait.as_millis());
                Request::get(path, *wait + *wait / JITTER + PATIENCE)
            }
        };
        self.client.fetch(request).await?.success()
    }
}

impl Source for Consul {
    async fn session(&mut self, feed: &mut Feed) -> Result<(), Failure> {
        // Without an index, what changed meanwhile is answered at once.
        let mut index = None;
        loop {
            let answer = tokio::select! {
                answer = self.ask(index) => answer?,
                () = feed.resync(), if index.is_some() => {
                    index = None;
                    continue;
                }
            };
            let snapshot = answer::read(&answer, self.weight_unit)?;
            let answered = answer::index(&answer)?;
            if let Some(last) = index
                && answered < last
                && !self.is_stale
            {
                // Reported, so that instances the older state lacks are held: who registered them, and still
                // lives, is about to do so again.
                let what = format!(
                    "the index went back from {last} to {answered}: the cluster was restored or emptied"
                );
                let what = format!("{}: {what}", self.client.url());
                feed.failure(Failure::new(Class::Refused, what));
            }
            index = next_index(index, answered);
            feed.snapshot(snapshot);
            tokio::join!(feed.turn(), sleep(PAUSE));
        }
    }
}

fn path(config: &Config) -> String {
    let mut path = format!("/v1/health/service/{}", escaped(&config.service));
    let mut mark = '?';
    for (key, value) in config.selection() {
        path += &format!("{mark}{key}={}", escaped(value));
        mark = '&';
    }
    if config.consistency != Consistency::Default {
        path += &format!("{mark}{}", config.consistency.name());
    }
    path
}

/// What to wait for after an answer with this index; `None` to ask without waiting.
///
/// An index of 0 would never wait, and 1 is always safe. One that is lower than the last is of
/// another life of the cluster (restored from a snapshot, restarted empty), whose changes the old index
/// would miss.
fn next_index(last: Option<u64>, answered: u64) -> Option<u64> {
    let answered = answered.max(1);
    match last {
        Some(last) if answered < last => None,
        _ => Some(answered),
    }
}
