//! Services of Kubernetes, and their backends from EndpointSlices.

mod api;
pub mod expose;
pub mod join;
mod pool;
pub mod services;
mod session;
#[cfg(test)]
mod tests;
pub mod wire;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::pool::Kubernetes;
use super::{
    Configured, Secret,
    http::{BaseUrl, Tls},
};
use crate::model::duration_text;

/// `watch_timeout` where the config leaves it out.
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(120);

/// `kubernetes:` of a service's `discovery`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    pub access: Access,
    pub wanted: Wanted,
    /// How long a watch is kept; the server is asked to end it then, whole seconds. One that is silent and
    /// does not end has hung.
    #[serde(with = "duration_text")]
    pub watch_timeout: Duration,
}

/// Where the API server is, and who lbd is to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// As the pod that lbd runs in: the service account's token and CA, read anew every minute.
    InCluster,
    Kubeconfig {
        path: PathBuf,
        /// Without: the file's current one.
        context: Option<String>,
    },
    Server {
        url: BaseUrl,
        token: Option<Secret>,
        tls: Tls,
    },
}

impl Access {
    /// In front of a target.
    fn name(&self) -> String {
        match self {
            Self::InCluster => String::new(),
            Self::Kubeconfig { path, context } => match context {
                Some(context) => format!("{}#{context}:", path.display()),
                None => format!("{}:", path.display()),
            },
            Self::Server { url, .. } => format!("{url}/"),
        }
    }
}

/// Whose backends, and which of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wanted {
    pub namespace: String,
    pub select: Select,
    /// The name or the number of a port of the Service. Without: its only one.
    pub port: Option<String>,
    pub traffic: Traffic,
    /// The node lbd runs on. Without: the variable `NODE_NAME`.
    pub node: Option<String>,
    /// The zone of that node. Without: the variable `NODE_ZONE`.
    pub zone: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    Name(String),
    /// All Services with these labels, as a label selector.
    Labels(String),
}

impl Select {
    fn name(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Labels(labels) => format!("[{labels}]"),
        }
    }
}

/// Takes the node and the zone from the environment where the config leaves them out.
fn here(node: &mut Option<String>, zone: &mut Option<String>) {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    *node = node.take().or_else(|| variable("NODE_NAME"));
    *zone = zone.take().or_else(|| variable("NODE_ZONE"));
}

/// Whose traffic comes here, which says which of a Service's traffic policies counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// From outside the cluster: `externalTrafficPolicy`.
    #[default]
    External,
    /// From pods and nodes: `internalTrafficPolicy`.
    Internal,
}

impl Traffic {
    pub const fn name(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Internal => "internal",
        }
    }
}

impl Configured for Config {
    type Source = Kubernetes;

    fn target(&self) -> String {
        let Wanted {
            namespace,
            select,
            port,
            ..
        } = &self.wanted;
        let (server, what) = (self.access.name(), select.name());
        let port = port.as_ref().map(|port| format!(":{port}"));
        format!("{server}{namespace}/{what}{}", port.unwrap_or_default())
    }

    fn files(&self) -> Vec<&Path> {
        match &self.access {
            Access::InCluster => Vec::new(),
            Access::Kubeconfig { path, .. } => vec![path],
            Access::Server { token, tls, .. } => tls
                .files()
                .chain(token.iter().filter_map(Secret::file))
                .collect(),
        }
    }

    fn source(&self, _service: &str) -> Kubernetes {
        Kubernetes::new(self.clone())
    }
}
