//! Backends, and whole services, from wherever services register.
//!
//! A source ([`Source`]) asks one registry and reports whole sets of instances, or a failure. What
//! becomes of that is decided by one rule set ([`rules`], pure) that all share; [`Sources`] runs
//! sources, keeps what they said on disk ([`saved`]) and hands the controller the sets in force.
//!
//! A kind of source is a module here, a decoder in `config/discovery/`, and a line in
//! [`for_each_kind`].

mod backoff;
mod bounds;
pub mod consul;
pub mod dns;
pub mod etcd;
pub mod eureka;
pub mod file;
mod heirs;
pub mod http;
mod instance;
mod item;
pub mod kubernetes;
mod offer;
mod resolve;
pub mod rules;
mod run;
pub mod saved;
mod secret;
mod source;
mod spec;
pub(crate) mod text;
pub mod zookeeper;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use self::{
    backoff::Backoff,
    heirs::heirs,
    instance::{Instance, InstanceState, Snapshot},
    item::SourceItem,
    offer::{Catalogue, Offer},
    run::{Asked, Clock, Sources, system_clock},
    secret::{Revealed, Secret},
    source::{Class, Failure, Feed, Report, Source, jittered},
    spec::{ServicesKind, ServicesSpec, Settings, SourceName, SourceSpec},
};
use crate::model::{BackendSpec, ServiceSpec};

/// Every kind of source: its key in the config, its variant of [`Kind`], and its module, which has
/// a `Config` that implements [`Configured`].
macro_rules! for_each_kind {
    ($callback:ident) => {
        $callback! {
            "file" File file,
            "dns" Dns dns,
            "etcd" Etcd etcd,
            "zookeeper" Zookeeper zookeeper,
            "consul" Consul consul,
            "eureka" Eureka eureka,
            "kubernetes" Kubernetes kubernetes,
        }
    };
}
pub(crate) use for_each_kind;

/// The configuration of one kind of source.
pub trait Configured {
    type Source: Source;

    /// What is asked for, as people name it and without secrets. A service has no two sources of
    /// one kind with one target.
    fn target(&self) -> String;

    /// The files that it names, which lbd reads with its own rights.
    fn files(&self) -> Vec<&Path>;

    /// The common keys where the config leaves them out.
    fn usual() -> Settings {
        Settings::default()
    }

    /// The source, which begins to ask only in its first session. Called anew if it panics.
    fn source(&self, service: &str) -> Self::Source;
}

macro_rules! kinds {
    ($($key:literal $variant:ident $module:ident,)+) => {
        /// What is asked, and how.
        #[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Kind {
            $($variant($module::Config),)+
        }

        impl Kind {
            /// Its key in the config.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $key,)+
                }
            }

            pub fn target(&self) -> String {
                match self {
                    $(Self::$variant(config) => config.target(),)+
                }
            }

            /// The files that it names, which lbd reads with its own rights.
            pub fn files(&self) -> Vec<&Path> {
                match self {
                    $(Self::$variant(config) => config.files(),)+
                }
            }

            /// The common keys where the config leaves them out.
            pub fn usual(&self) -> Settings {
                match self {
                    $(Self::$variant(_) => <$module::Config as Configured>::usual(),)+
                }
            }

            /// Runs the source for ever.
            async fn run(self, service: String, feed: Feed) {
                match self {
                    $(Self::$variant(config) => run::run(|| config.source(&service), feed).await,)+
                }
            }
        }
    };
}
for_each_kind!(kinds);

/// One backend as a source has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The instance it is.
    pub id: String,
    pub spec: BackendSpec,
    pub state: InstanceState,
}

/// The backends of one source, by address, each address once.
pub type Set = Arc<Vec<Found>>;

/// One service as a source has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundService {
    /// Without backends.
    pub spec: ServiceSpec,
    /// Where its backends are among the sets.
    pub backends: SourceName,
}

/// The services of one source, from the oldest to the youngest.
pub type Services = Arc<Vec<FoundService>>;

/// What is in force.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Discovered {
    pub sets: BTreeMap<SourceName, Set>,
    pub services: BTreeMap<SourceName, Services>,
    /// Sources of which nothing is known, of this life or an earlier one: their sets are empty and
    /// mean nothing.
    pub unknown: BTreeSet<SourceName>,
    /// These, and sources that never answered and have what others knew: the source in whose place
    /// they came, or the kernel.
    pub unheard: BTreeSet<SourceName>,
}
