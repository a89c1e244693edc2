//! Metrics of a real daemon to which everything happens that is counted: what is documented is there, and
//! what is there is documented, names and labels.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2      an API server, a file, and a DNS server that is not there
//!                            └── b3
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_tests::{
    clients::{Protocol, any_port, ask_once, burst, summary},
    cluster::{Cluster, Pod, endpoint, served, slice},
    daemon::{BPFFS, Config, Daemon, Service, replace_file},
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::{ECHO_PORT, start_all},
};
use lb_userspace::metrics::METRICS;

const LONG: Duration = Duration::from_secs(60);
const FILE: &str = "lbd/instances/found.yaml";
/// A port where no backend listens.
const CLOSED: u16 = 9;

type Labels = BTreeSet<String>;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// Each metric of the README's table with its labels: the words in backticks before a semicolon, but for
/// those in brackets, which are values.
fn documented() -> BTreeMap<String, Labels> {
    let readme = fs::read_to_string(repository("README.md")).unwrap();
    let (_, table) = readme
        .split_once("| metric | labels |\n|---|---|\n")
        .unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let mut metrics = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        let [_, names, labels, _] = cells[..] else {
            panic!("{row}");
        };
        let mut depth = 0;
        let plain = labels.split(';').next().unwrap().chars().filter(|c| {
            depth += i32::from(*c == '(') - i32::from(*c == ')');
            depth == 0
        });
        let labels: Labels = quoted(&plain.collect::<String>()).collect();
        for name in quoted(names) {
            let twice = metrics.insert(name, labels.clone());
            assert_eq!(twice, None, "{row}");
        }
    }
    metrics
}

/// A series of a page.
#[derive(Debug)]
struct Series {
    /// Of a histogram without what it ends in.
    name: String,
    labels: Labels,
    value: f64,
}

fn scraped(page: &str) -> Vec<Series> {
    let histograms: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram"))
        .collect();
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let series = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let of = |histogram: &&&str| name.starts_with(**histogram);
        Series {
            name: histograms
                .iter()
                .find(of)
                .copied()
                .unwrap_or(name)
                .to_owned(),
            // No value of this test's has a comma or a quotation mark in it.
            labels: labels
                .trim_end_matches('}')
                .split(',')
                .filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()))
                .collect(),
            value: value.parse().unwrap(),
        }
    });
    series.collect()
}

/// Services of every sort, each at an address of its own.
fn config(network: &Network) -> String {
    let service = |name: &str, n: u8| {
        let mut service = Service::new(name, Protocol::Tcp).listen(network, n, ECHO_PORT);
        service.policy = "round-robin";
        service
    };
    let web = service("web", 0).backends(network, ECHO_PORT, &[1, 1]);
    let found = service("found", 1).discovery(format!("{{file: {{path: /run/{FILE}}}}}"));
    // Nobody listens at that port of the node's.
    let lost = service("lost", 2)
        .discovery("{dns: {name: lost.example, port: 80, servers: [\"127.0.0.1:5399\"]}}");
    let mut refused = service("refused", 3).backends(network, CLOSED, &[1]);
    refused.health = "{type: none}";
    let failing = service("failing", 4).backends(network, CLOSED, &[1]);
    let none = service("none", 5);
    let mut config = Config::new(network, "native");
    config.services = vec![web, found, lost, refused, failing, none];
    let timeouts = "{tcp_established: 5s, tcp_closing: 5s, tcp_closed: 2s, udp: 5s}";
    config.node.push(("timeouts", timeouts.to_owned()));
    config.render() + "discovery: {kubernetes: {server: \"http://127.0.0.1:6443\"}}\n"
}

/// The daemon, and what has to live as long as it.
struct Bed {
    // Dropped in this order.
    daemon: Daemon,
    _agents: Vec<lb_tests::servers::Agent>,
    _cluster: Cluster,
    network: Network,
}

impl Bed {
    fn new() -> Self {
        let network = Network::new(Topology::default()).unwrap();
        let agents = start_all(&network.backends).unwrap();
        let cluster = Cluster::start(&network.node, ([127, 0, 0, 1], 6443).into()).unwrap();
        cluster.apply(served("shop", "api", "192.0.2.110", ECHO_PORT));
        let pod = vec![endpoint("10.1.3.2", "api-1", Pod::Ready)];
        cluster.apply(slice("shop", "api", "api-1", ("echo", ECHO_PORT), pod));
        let instance = format!("instances: [{{address: \"10.1.3.2:{ECHO_PORT}\"}}]\n");
        replace_file(&network.node, FILE, &instance).unwrap();
        let daemon = Daemon::start_with(&network.node, &config(&network)).unwrap();
        Self {
            daemon,
            _agents: agents,
            _cluster: cluster,
            network,
        }
    }

    fn target(&self, n: u8) -> SocketAddr {
        (self.network.vip(n, Family::V4), ECHO_PORT).into()
    }

    /// Waits until a series is more than it was, or than nothing.
    fn wait_more(&self, series: &str, than: f64) {
        let more = eventually(LONG, || {
            self.daemon.metric_or_zero(series).is_ok_and(|n| n > than)
        });
        let now = self.daemon.metric_or_zero(series);
        assert!(more, "{series}: {now:?}, not more than {than}");
    }

    /// Everything that is counted happens.
    fn live(&self) {
        let Self {
            daemon, network, ..
        } = self;
        let active = "lbd_backend_active_connections{backend=\"10.1.3.2:7000\",service=\"found\"}";
        daemon
            .wait_source("found", LONG, |s| s.instances == 1)
            .unwrap();
        daemon
            .wait_source("", LONG, |s| s.services == Some(1))
            .unwrap();
        daemon.wait_source("lost", LONG, |s| s.errors > 0).unwrap();
        let sources = network.client_addresses(Family::V4);
        for (n, service) in [(0, "web"), (1, "found")] {
            let serves = |service: &str| {
                let backends = daemon.backends().unwrap();
                let mut of = backends.iter().filter(|b| b.service == service);
                // Of the clients' family.
                of.any(|b| b.address.is_ipv4() && b.effective_weight > 0)
            };
            assert!(eventually(LONG, || serves(service)), "{service}");
            let port = 10_000 + 1000 * u16::from(n);
            let client = &network.client;
            let result = burst(client, &sources, port, 50, Protocol::Tcp, self.target(n));
            assert_eq!(summary(&result.failures), "none", "{service}");
        }
        for n in [3, 5] {
            let asked = || ask_once(Protocol::Tcp, any_port(sources[0]), self.target(n), "who");
            assert!(network.client.run(asked).is_err(), "service {n}");
        }
        daemon.ctl(&["reload"]).unwrap();
        let good = config(network);
        daemon.write_config("services: [{name: }]\n").unwrap();
        assert!(!daemon.lbctl(&["reload"]).status.success());
        daemon.write_config(&good).unwrap();
        let repairs = daemon.metric("lbd_repairs_total").unwrap();
        network
            .node
            .execute("sh", &["-ec", &format!("rm {BPFFS}/lbd/*/FLOWS4")])
            .unwrap();
        self.wait_more("lbd_repairs_total", repairs);
        // An open connection, by which a backend has one.
        let herd = lb_tests::clients::Herd::open(&network.client, &sources, self.target(1), 3);
        self.wait_more(active, 0.0);
        drop(herd);
        for series in [
            "lbd_flows_aged_total",
            r#"lbd_health_checks_total{backend="10.1.1.2:9",result="refused",service="failing"}"#,
            r#"lbd_backend_refused_connections_total{backend="10.1.1.2:9",service="refused"}"#,
            r#"lbd_drops_total{reason="no_backend"}"#,
            r#"lbd_reloads_total{result="error"}"#,
            r#"lbd_reloads_total{result="ok"}"#,
            r#"lbd_source_errors_total{class="unreachable",kind="dns",service="lost",target="lost.example:80"}"#,
            r#"lbd_map_entries{map="SERVICES4"}"#,
        ] {
            self.wait_more(series, 0.0);
        }
    }
}

/// Metrics of which no value but 0 shows that something happened in [`Bed::live`].
const MAY_BE_ZERO: [&str; 2] = [
    // Looked at while a connection is open.
    "lbd_backend_active_connections",
    "lbd_source_stale",
];

#[test]
fn a_daemon_emits_what_is_documented_and_nothing_else() {
    let bed = Bed::new();
    bed.live();
    let (status, page) = bed.daemon.http("/metrics").unwrap();
    assert_eq!(status, 200);
    let documented = documented();
    let mut highest: BTreeMap<String, f64> = BTreeMap::new();
    for Series {
        name,
        labels,
        value,
    } in scraped(&page)
    {
        if !name.starts_with("lbd_") {
            continue;
        }
        let Some(known) = documented.get(&name) else {
            panic!("the README's table has no {name}");
        };
        // Of a histogram only the buckets have one.
        let mut known = known.clone();
        if !labels.contains("le") {
            known.remove("le");
        }
        assert_eq!(
            labels, known,
            "labels of {name}, and those in the README's table"
        );
        let most = highest.entry(name).or_insert(0.0);
        *most = most.max(value);
    }
    for name in documented.keys() {
        let Some(most) = highest.get(name) else {
            panic!("{name} is documented, and not emitted:\n{page}");
        };
        let counts = *most > 0.0 || MAY_BE_ZERO.contains(&&**name);
        assert!(counts, "{name} counted nothing:\n{page}");
    }
    note(format!("{} metrics, each documented", highest.len()));
}

#[test]
fn the_documentation_has_every_metric_and_no_other() {
    let known: BTreeSet<String> = METRICS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(documented().into_keys().collect::<BTreeSet<_>>(), known);
}

/// Programs in the kernel, whose names begin as those of metrics do.
const PROGRAMS: [&str; 7] = [
    "lbd_clock",
    "lbd_egress",
    "lbd_handover",
    "lbd_tables",
    "lbd_tc",
    "lbd_xdp",
    "lbd_xdp_frags",
];

/// Dashboards, alerts and pages name metrics that there are.
#[test]
fn no_page_names_a_metric_that_there_is_not() {
    let known: BTreeSet<&str> = METRICS.iter().map(|(name, _)| *name).collect();
    let ends = ["_bucket", "_sum", "_count"];
    let mut seen = BTreeSet::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            // The name of a package is something else, and so is the beginning of several names.
            let is_one = word.starts_with("lbd_") && !word.ends_with('_');
            if !is_one || !word.chars().all(is_word) || PROGRAMS.contains(&word) {
                continue;
            }
            let is_series = |end: &str| word.strip_suffix(end).is_some_and(|w| known.contains(w));
            let is_known = known.contains(word) || ends.into_iter().any(is_series);
            assert!(is_known, "{}: {word}", page.display());
            seen.insert(word.to_owned());
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
}

/// All of the documentation and of what is deployed.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
    ]
    .map(repository)
    .into();
    let mut directories = vec![repository("docs"), repository("deploy")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if fs::read_to_string(&path).is_ok() {
                pages.push(path);
            }
        }
    }
    pages
}
