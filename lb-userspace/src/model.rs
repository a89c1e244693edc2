//! What an operator configures, in the daemon's own words. Shared by the config file, the socket
//! API, the state directory and `export`, so one serialised form serves them all.

mod admission;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::discovery::{ServicesSpec, SourceSpec};

pub use admission::{Admission, Affinity, Prefix, Prefixes, Rate, Sources};

/// Highest weight; 0 means no new connections.
pub const MAX_WEIGHT: u16 = u16::MAX;

#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    #[default]
    Nat,
    /// Direct server return: to the backend's Ethernet address, otherwise as it came.
    DsrL2,
    /// Direct server return: in an IP header of the node's.
    DsrIpip,
}

/// When the source of a connection becomes a node address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Snat {
    /// Where replies would not come back through this node (see `datapath::route`).
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    #[default]
    Maglev,
    RoundRobin,
    Random,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoBackend {
    /// TCP reset, ICMP port unreachable.
    #[default]
    Reject,
    Drop,
}

/// What becomes of a TCP connection whose backend fails. UDP flows move to another one in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBackendDown {
    /// It goes on, should the backend come back in time.
    #[default]
    Keep,
    /// The client's next packet is answered with a TCP reset.
    Reset,
}

macro_rules! lowercase_names {
    ($($type:ty),+) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.serialize(f)
            }
        }
    )+};
}
lowercase_names!(Protocol, Forwarding, Snat, Policy, NoBackend, OnBackendDown);

/// How a backend is probed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum HealthCheck {
    /// Never probed, always healthy.
    None,
    /// A TCP connection is accepted.
    Tcp,
    /// `GET path` answers with an expected status.
    Http {
        path: String,
        /// Value of the Host header; the backend's address if absent.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        host: Option<String>,
        expect_status: Vec<u16>,
    },
}

/// `health:` of a service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Health {
    #[serde(flatten)]
    pub check: HealthCheck,
    /// Port to probe, if not the backend's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// Time between probes while nothing changes.
    #[serde(with = "duration_text")]
    pub interval: Duration,
    /// Time between probes while rise or fall is being counted.
    #[serde(with = "duration_text")]
    pub fast_interval: Duration,
    #[serde(with = "duration_text")]
    pub timeout: Duration,
    /// Successes in a row until healthy, at least 1. A backend never seen before needs one.
    pub rise: u32,
    /// Failures in a row until unhealthy, at least 1.
    pub fall: u32,
}

impl Default for Health {
    /// Defaults as in HAProxy (rise 2, fall 3), with an interval of 5 s and a timeout of 2 s.
    fn default() -> Self {
        Self {
            check: HealthCheck::Tcp,
            port: None,
            interval: Duration::from_secs(5),
            fast_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackendSpec {
    pub address: SocketAddr,
    pub weight: u16,
    /// Open connections beyond which it takes no new ones.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_connections: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// 1–63 characters `[a-z0-9-]`, beginning and ending with a letter or digit.
    pub name: String,
    /// At least one.
    pub listen: Vec<SocketAddr>,
    pub protocol: Protocol,
    pub forwarding: Forwarding,
    pub snat: Snat,
    /// Where packets in a tunnel come from, at most one per family; the node's own address if
    /// there is none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tunnel_source: Vec<Prefix>,
    pub policy: Policy,
    pub no_backend: NoBackend,
    #[serde(default)]
    pub on_backend_down: OnBackendDown,
    #[serde(flatten)]
    pub admission: Admission,
    pub health: Health,
    pub backends: Vec<BackendSpec>,
    /// Where more backends come from. What is found there is no part of the spec.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub discovery: Vec<SourceSpec>,
}

/// How XDP is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native, else generic, else TC.
    #[default]
    Auto,
    Native,
    Generic,
    /// TC only.
    Off,
}

/// Sizes of the kernel maps, fixed when the maps are first created.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Established connections per address family.
    pub connections: u32,
    /// Connections not answered yet, per address family.
    pub handshakes: u32,
    pub services: u32,
    /// (service, backend) pairs.
    pub backends: u32,
    /// Source prefixes of all services, per address family.
    pub sources: u32,
    /// Clients remembered for `source_rate`, and for `affinity` per address family.
    pub clients: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 262_144,
            handshakes: 65_536,
            services: 4096,
            backends: 32_768,
            sources: 65_536,
            clients: 65_536,
        }
    }
}

/// Time without packets after which a connection is forgotten. Whole seconds count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timeouts {
    #[serde(with = "duration_text")]
    pub tcp_established: Duration,
    /// One side closed.
    #[serde(with = "duration_text")]
    pub tcp_closing: Duration,
    /// Both sides closed, or one reset.
    #[serde(with = "duration_text")]
    pub tcp_closed: Duration,
    #[serde(with = "duration_text")]
    pub udp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self {
            // Not less than 2 hours 4 minutes (RFC 5382, REQ-5).
            tcp_established: minutes(124),
            // The transitory timeout (RFC 5382, REQ-5).
            tcp_closing: minutes(4),
            // Retransmitted last packets still find their way.
            tcp_closed: Duration::from_secs(10),
            // Not less than 2 minutes (RFC 4787, REQ-5).
            udp: minutes(2),
        }
    }
}

/// Names of the devices to attach to, or `auto`: those that carry a default route, else all
/// Ethernet devices that are up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Interfaces {
    Named(Vec<String>),
    /// The word `auto`.
    Auto(AutoWord),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoWord {
    Auto,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub interfaces: Interfaces,
    pub xdp: XdpMode,
    pub state_dir: std::path::PathBuf,
    pub bpffs: std::path::PathBuf,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub snat: SnatPool,
}

/// What the source of a connection may become.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SnatPool {
    /// Addresses of the node, of both families. Of a family that has none: the one that the route
    /// chooses.
    pub addresses: Vec<IpAddr>,
    /// First and last port. `None`: all that the node's own outgoing connections leave.
    pub ports: Option<(u16, u16)>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Admin {
    pub socket: std::path::PathBuf,
    pub http: SocketAddr,
}

/// The whole config file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    pub node: Node,
    pub admin: Admin,
    pub services: Vec<ServiceSpec>,
    /// Where more services come from. What is found there is no part of the config.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub discovery: Vec<ServicesSpec>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            interfaces: Interfaces::Auto(AutoWord::Auto),
            xdp: XdpMode::Auto,
            state_dir: "/var/lib/lbd".into(),
            bpffs: "/sys/fs/bpf".into(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            snat: SnatPool::default(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            socket: "/run/lbd/lbd.sock".into(),
            http: SocketAddr::from(([127, 0, 0, 1], 9464)),
        }
    }
}

/// What an operator said about one backend with `lbctl`, on top of configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Override {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<WeightOverride>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mode: Option<Mode>,
    /// Of a drain: when the connections that are left end, in milliseconds since 1970 (UTC). Wall
    /// clock, because it must hold across restarts of the daemon and of the node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deadline_ms: Option<u64>,
}

impl Override {
    pub fn is_empty(&self) -> bool {
        self.weight.is_none() && self.mode.is_none()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightOverride {
    /// Replaces the configured weight.
    Absolute(u16),
    /// Of the configured weight, 0–1000 %, rounded to nearest, at least 1 unless 0 %.
    Percent(u16),
}

/// Operator's mode of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No new connections, existing ones continue.
    Drain,
    /// Like drain, and health checks stop.
    Maintenance,
    /// Takes traffic whatever the health checks say.
    Ready,
}

/// State of a backend as shown to people.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Not probed yet; takes no traffic.
    Unknown,
    Healthy,
    Unhealthy,
    Ejected,
    Draining,
    Maintenance,
}

lowercase_names!(BackendState);

/// `SERVICE/ADDR:PORT`, how one backend is named on the command line.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendRef {
    pub service: String,
    pub address: SocketAddr,
}

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.address)
    }
}

impl FromStr for BackendRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, address) = text.split_once('/').ok_or_else(|| {
            format!("`{text}`: expected SERVICE/ADDR:PORT, e.g. web/10.1.0.11:8080")
        })?;
        let address = address.parse().map_err(|_| {
            format!("`{address}`: expected ADDR:PORT, e.g. 10.1.0.11:8080 or [2001:db8::1]:8080")
        })?;
        Ok(Self {
            service: service.to_owned(),
            address,
        })
    }
}

impl Serialize for BackendRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackendRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Address family of a socket address' IP, as the packet path counts them.
pub const fn is_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(_))
}

/// Durations as people write them: `500ms`, `5s`, `10m`, `2h`, `1d`.
pub mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Parses `500ms`, `1.5s`, `5s`, `10m`, `2h`, `1d`, `2h4m`; units are required, and the larger
    /// ones come first.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let fault = || format!("`{text}` is no duration; write e.g. 500ms, 5s, 10m, 2h");
        let (mut rest, mut sum, mut last) = (text, 0.0, f64::INFINITY);
        loop {
            let letters = |c: char| c.is_ascii_alphabetic();
            let (number, tail) = rest.split_at(rest.find(letters).ok_or_else(fault)?);
            let end = tail.find(|c| !letters(c)).unwrap_or(tail.len());
            let scale = match &tail[..end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return Err(fault()),
            };
            let digits = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            if number.is_empty() || !digits || scale >= last {
                return Err(fault());
            }
            let number: f64 = number.parse().map_err(|_| fault())?;
            (sum, last, rest) = (sum + number * scale, scale, &tail[end..]);
            if rest.is_empty() {
                return Duration::try_from_secs_f64(sum).map_err(|_| fault());
            }
        }
    }

    /// The shortest form that [`parse`] reads back exactly, to a millisecond.
    pub fn format(duration: Duration) -> String {
        let ms = duration.as_millis();
        match ms {
            0 => "0s".to_owned(),
            _ if ms.is_multiple_of(86_400_000) => format!("{}d", ms / 86_400_000),
            _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
            _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
            _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
            _ => format!("{ms}ms"),
        }
    }

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
