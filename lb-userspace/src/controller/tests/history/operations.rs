//! What can happen to a controller, and how often it does.

use std::{net::SocketAddr, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::{
    api::types::UnsetWhat,
    controller::testing,
    discovery::{Instance, InstanceState, Kind, Settings, SourceSpec, dns, file},
    model::{
        Admission, BackendRef, BackendSpec, Health, HealthCheck, Mode, NoBackend, OnBackendDown,
        Policy, Protocol, ServiceSpec, Snat, WeightOverride,
    },
};

pub(super) const NAMES: [&str; 3] = ["web", "api", "dns"];

/// Of each service, the one that it listens on at least and one that it may listen on: two of them
/// want the same.
const LISTENS: [[&str; 2]; 3] = [
    ["192.0.2.1:80", "[2001:db8:1::1]:80"],
    ["192.0.2.1:81", "192.0.2.2:80"],
    ["[2001:db8:1::2]:53", "192.0.2.2:80"],
];

const HOSTS: [&str; 5] = [
    "10.0.0.1:80",
    "10.0.0.2:80",
    "10.0.0.2:8080",
    "10.0.0.3:80",
    "[2001:db8::1]:80",
];

#[derive(Clone, Debug)]
pub(super) struct History {
    pub first: File,
    pub operations: Vec<Operation>,
}

/// The services of a config file. Two may want one address, and then nobody may use it.
#[derive(Clone, Debug)]
pub(super) struct File(pub Vec<Draft>);

/// What is said of a service.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    name: usize,
    both_listens: bool,
    protocol: Protocol,
    policy: Policy,
    /// Rise and fall, where its backends are probed.
    probed: Option<(u32, u32)>,
    resets: bool,
    backends: Vec<(usize, u16, Option<u32>)>,
    source: Option<Query>,
    limit: Option<u32>,
    allows: Option<&'static str>,
    denies: Option<&'static str>,
}

/// A source; times in seconds.
#[derive(Clone, Debug)]
struct Query {
    /// Of two files and a name.
    asks: usize,
    empty_hold: u64,
    removal_hold: u64,
    merge_window: u64,
    weight: u16,
}

#[derive(Clone, Debug)]
pub(super) enum Operation {
    Reload(File),
    /// With a line at its end that does not belong there.
    ReloadFaulty(File, &'static str),
    /// A reload after which the source of a service asks for something else.
    AskElsewhere(usize, usize),
    AddService(Draft),
    RemoveService(usize),
    AddBackend(Place, u16),
    RemoveBackend(Place),
    SetWeight(Place, WeightOverride),
    /// With the seconds until its deadline.
    SetMode(Place, Mode, Option<u64>),
    Unset(Place, UnsetWhat),
    Apply(File),
    /// By the source of a service.
    Report(usize, Said),
    /// One probe of every backend, with its result by host.
    Probe(Vec<Option<bool>>),
    /// Seconds.
    Wait(u64),
    /// Somebody sets the wall clock forward by so many seconds, or back.
    SetClock(i64),
    /// Connections of slots in use; those that take no new ones lose what is not among these.
    Flows(u16),
    ScanBegins,
    ScanEnds,
    FailCall(u64),
    BreakAtCall(u64),
    Mend,
    Retry,
    Verify,
    DiskFills,
    DiskEmpties,
    SaveSources,
    /// The daemon dies; before it starts again the file may be edited. The kernel's calls fail from
    /// the first pass of the next life on as said.
    Crash(Option<File>, u64),
    /// All is mended and comes to rest.
    Quiet,
}

/// A backend: service, host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(pub usize, pub usize);

#[derive(Clone, Debug)]
pub(super) enum Said {
    /// Id, host, weight and state of each; whether the registry says that these are all.
    Instances(Vec<(usize, usize, Option<u16>, InstanceState)>, bool),
    Failure,
}

impl Draft {
    /// A service of these hosts, whom one success or failure decides.
    pub(super) fn probed(name: usize, hosts: &[usize]) -> Self {
        Self {
            probed: Some((1, 1)),
            ..Self::trusted(name, hosts)
        }
    }

    /// A service of these hosts, which are not probed.
    pub(super) fn trusted(name: usize, hosts: &[usize]) -> Self {
        Self {
            name,
            both_listens: false,
            protocol: Protocol::Tcp,
            policy: Policy::RoundRobin,
            probed: None,
            resets: false,
            backends: hosts.iter().map(|host| (*host, 100, None)).collect(),
            source: None,
            limit: None,
            allows: None,
            denies: None,
        }
    }

    pub(super) fn spec(&self) -> ServiceSpec {
        let listens = &LISTENS[self.name][..1 + usize::from(self.both_listens)];
        let prefix = |text: &&str| text.parse().unwrap();
        ServiceSpec {
            listen: listens.iter().map(|l| l.parse().unwrap()).collect(),
            protocol: self.protocol,
            policy: self.policy,
            // The routes are another matter.
            snat: Snat::Never,
            no_backend: match self.resets {
                true => NoBackend::Drop,
                false => NoBackend::Reject,
            },
            on_backend_down: match self.resets {
                true => OnBackendDown::Reset,
                false => OnBackendDown::Keep,
            },
            health: match self.probed {
                Some((rise, fall)) => Health {
                    rise,
                    fall,
                    ..Health::default()
                },
                None => Health {
                    check: HealthCheck::None,
                    ..Health::default()
                },
            },
            admission: Admission {
                max_connections: self.limit,
                allow_sources: self.allows.iter().map(prefix).collect(),
                deny_sources: self.denies.iter().map(prefix).collect(),
                ..Admission::default()
            },
            backends: self.backends.iter().map(|b| backend(*b)).collect(),
            discovery: self.source.iter().map(Query::spec).collect(),
            ..testing::service(NAMES[self.name], "192.0.2.1:80", &[])
        }
    }
}

impl Query {
    fn spec(&self) -> SourceSpec {
        let seconds = Duration::from_secs;
        let of_file = |path: &str| Kind::File(file::Config { path: path.into() });
        SourceSpec {
            kind: match self.asks {
                0 => of_file("/etc/lbd/instances.yaml"),
                1 => of_file("/etc/lbd/others.yaml"),
                _ => Kind::Dns(dns::Config::new(dns::Lookup::Host {
                    name: "instances.example".to_owned(),
                    port: 80,
                })),
            },
            settings: Settings {
                empty_hold: seconds(self.empty_hold),
                removal_hold: seconds(self.removal_hold),
                merge_window: seconds(self.merge_window),
                weight: self.weight,
                ..Settings::default()
            },
        }
    }
}

impl Place {
    pub(super) fn reference(self) -> BackendRef {
        BackendRef {
            service: NAMES[self.0].to_owned(),
            address: host(self.1),
        }
    }
}

impl File {
    pub(super) fn specs(&self) -> Vec<ServiceSpec> {
        self.0.iter().map(Draft::spec).collect()
    }

    /// The same, but that the source of a service asks for something else.
    pub(super) fn asking(&self, name: usize, asks: usize) -> Self {
        let mut file = self.clone();
        let drafts = file.0.iter_mut().filter(|draft| draft.name == name);
        for query in drafts.filter_map(|draft| draft.source.as_mut()) {
            query.asks = asks;
        }
        file
    }
}

impl Said {
    pub(super) fn instances(&self) -> Vec<Instance> {
        let Self::Instances(instances, _) = self else {
            return Vec::new();
        };
        let instance = |(id, at, weight, state): &(usize, usize, Option<u16>, InstanceState)| {
            let mut instance = Instance::new(format!("i{id}"), host(*at));
            (instance.weight, instance.state) = (*weight, *state);
            instance
        };
        instances.iter().map(instance).collect()
    }
}

pub(super) fn host(at: usize) -> SocketAddr {
    HOSTS[at].parse().unwrap()
}

/// Which one it is.
pub(super) fn host_number(address: SocketAddr) -> usize {
    let mut hosts = 0..HOSTS.len();
    hosts.find(|at| host(*at) == address).unwrap()
}

pub(super) fn backend((at, weight, limit): (usize, u16, Option<u32>)) -> BackendSpec {
    BackendSpec {
        max_connections: limit,
        ..testing::backend(HOSTS[at], weight)
    }
}

/// Boxed, as below: what many others are made of must not all be on the stack.
pub(super) fn history() -> BoxedStrategy<History> {
    (file(0.9), vec(operation(), 20..60))
        .prop_map(|(first, operations)| History { first, operations })
        .boxed()
}

fn operation() -> BoxedStrategy<Operation> {
    use Operation as O;
    prop_oneof![
        4 => file(0.8).prop_map(O::Reload),
        1 => (file(0.5), slip()).prop_map(|(file, slip)| O::ReloadFaulty(file, slip)),
        6 => (0..NAMES.len(), asks()).prop_map(|(name, asks)| O::AskElsewhere(name, asks)),
        2 => (0..NAMES.len()).prop_flat_map(draft).prop_map(O::AddService),
        2 => (0..NAMES.len()).prop_map(O::RemoveService),
        3 => (place(), weight()).prop_map(|(place, weight)| O::AddBackend(place, weight)),
        3 => place().prop_map(O::RemoveBackend),
        4 => (place(), overweight()).prop_map(|(place, weight)| O::SetWeight(place, weight)),
        7 => (place(), mode()).prop_map(|(place, (mode, time))| O::SetMode(place, mode, time)),
        3 => (place(), unset()).prop_map(|(place, what)| O::Unset(place, what)),
        2 => file(0.4).prop_map(O::Apply),
        14 => (0..NAMES.len(), said()).prop_map(|(name, said)| O::Report(name, said)),
        8 => vec(answer(), HOSTS.len()).prop_map(O::Probe),
        5 => select(vec![1, 5, 20, 60]).prop_map(O::Wait),
        2 => select(vec![-3600, -20, 20, 3600]).prop_map(O::SetClock),
        4 => any::<u16>().prop_map(O::Flows),
        1 => Just(O::Flows(0)),
        3 => Just(O::ScanBegins),
        4 => Just(O::ScanEnds),
        4 => (1..20u64).prop_map(O::FailCall),
        1 => (1..20u64).prop_map(O::BreakAtCall),
        2 => Just(O::Mend),
        4 => Just(O::Retry),
        1 => Just(O::Verify),
        1 => Just(O::DiskFills),
        2 => Just(O::DiskEmpties),
        8 => Just(O::SaveSources),
        2 => (option::weighted(0.4, file(0.8)), fail()).prop_map(|(file, n)| O::Crash(file, n)),
        3 => Just(O::Quiet),
    ]
    .boxed()
}

/// 0 for never.
fn fail() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 1 => 1..20u64]
}

fn slip() -> impl Strategy<Value = &'static str> {
    select(vec!["nonsense: 1\n", "services: 7\n", "  - [\n"])
}

fn place() -> impl Strategy<Value = Place> {
    (0..NAMES.len(), 0..HOSTS.len()).prop_map(|(name, host)| Place(name, host))
}

fn weight() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(100), 1 => Just(50), 1 => Just(20), 1 => Just(0)]
}

fn overweight() -> impl Strategy<Value = WeightOverride> {
    use WeightOverride::{Absolute, Percent};
    prop_oneof![
        select(vec![0, 10, 100]).prop_map(Absolute),
        select(vec![0, 1, 25, 100, 250, 1001]).prop_map(Percent),
    ]
}

fn mode() -> impl Strategy<Value = (Mode, Option<u64>)> {
    prop_oneof![
        2 => Just((Mode::Drain, None)),
        4 => select(vec![0, 5, 20, 60]).prop_map(|seconds| (Mode::Drain, Some(seconds))),
        2 => Just((Mode::Maintenance, None)),
        1 => Just((Mode::Maintenance, Some(5))),
        2 => Just((Mode::Ready, None)),
    ]
}

fn unset() -> impl Strategy<Value = UnsetWhat> {
    select(vec![UnsetWhat::Weight, UnsetWhat::Mode, UnsetWhat::All])
}

fn answer() -> impl Strategy<Value = Option<bool>> {
    prop_oneof![6 => Just(Some(true)), 3 => Just(Some(false)), 1 => Just(None)]
}

fn said() -> impl Strategy<Value = Said> {
    let state = prop_oneof![
        4 => Just(InstanceState::Up),
        1 => Just(InstanceState::Drain),
        1 => Just(InstanceState::Down),
    ];
    let instance = (
        0..4usize,
        0..HOSTS.len(),
        option::weighted(0.3, weight()),
        state,
    );
    let decided = prop_oneof![4 => Just(false), 1 => Just(true)];
    prop_oneof![
        6 => (vec(instance, 1..5), decided.clone())
            .prop_map(|(instances, decided)| Said::Instances(instances, decided)),
        2 => decided.prop_map(|decided| Said::Instances(Vec::new(), decided)),
        2 => Just(Said::Failure),
    ]
}

fn file(each: f64) -> BoxedStrategy<File> {
    let one = move |name| option::weighted(each, draft(name));
    (one(0), one(1), one(2))
        .prop_map(|(web, api, dns)| File([web, api, dns].into_iter().flatten().collect()))
        .boxed()
}

fn draft(name: usize) -> BoxedStrategy<Draft> {
    let rarely = || prop_oneof![4 => Just(false), 1 => Just(true)];
    let protocol = prop_oneof![4 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)];
    let policy = prop_oneof![
        4 => Just(Policy::RoundRobin),
        1 => Just(Policy::Random),
        1 => Just(Policy::Maglev),
    ];
    let probed = option::weighted(0.6, (1..4u32, 1..4u32));
    let one =
        move |host| option::weighted(0.4, (Just(host), weight(), option::weighted(0.1, 5..7u32)));
    let backends = (one(0), one(1), one(2), one(3), one(4));
    let backends =
        backends.prop_map(|(a, b, c, d, e)| [a, b, c, d, e].into_iter().flatten().collect());
    let limits = (
        option::weighted(0.2, 1..3u32),
        option::weighted(0.2, select(vec!["10.0.0.0/8", "2001:db8::/32"])),
        option::weighted(0.2, select(vec!["10.1.0.0/16", "::/0"])),
    );
    let manners = (rarely(), protocol, policy, probed, rarely());
    (manners, backends, option::weighted(0.7, query()), limits)
        .prop_map(move |(manners, backends, source, limits)| {
            let (both_listens, protocol, policy, probed, resets) = manners;
            let (limit, allows, denies) = limits;
            Draft {
                name,
                both_listens,
                protocol,
                policy,
                probed,
                resets,
                backends,
                source,
                limit,
                allows,
                denies,
            }
        })
        .boxed()
}

fn asks() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0), 2 => Just(1), 2 => Just(2)]
}

fn query() -> impl Strategy<Value = Query> {
    (
        asks(),
        select(vec![0, 20, 60]),
        prop_oneof![3 => Just(0), 1 => Just(20)],
        prop_oneof![3 => Just(0), 1 => Just(5)],
        weight(),
    )
        .prop_map(
            |(asks, empty_hold, removal_hold, merge_window, weight)| Query {
                asks,
                empty_hold,
                removal_hold,
                merge_window,
                weight,
            },
        )
}
