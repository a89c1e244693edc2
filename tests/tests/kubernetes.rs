//! The kubernetes source against an API server: what is asked, what is made of it, and every way in
//! which a watch ends.
//!
//! ```text
//!   source ──HTTP──▶ 127.0.0.1:6443          ─┐
//!          ──TLS───▶ 127.0.0.1:6444 (Front) ──┴─▶ Cluster
//! ```

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::mpsc::TryRecvError,
    time::{Duration, Instant},
};

use lb_tests::{
    cluster::{Cluster, Gone, Pod, endpoint, service, slice},
    eventually,
    host::Host,
    note,
    registry::Request,
    source::Running,
    tls::{Front, Pki},
};
use lb_userspace::discovery::{
    Class, Report, Secret,
    http::Tls,
    kubernetes::{Access, Config, Kubernetes, Select, Traffic, Wanted},
};

const LONG: Duration = Duration::from_secs(30);
const PLAIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 6443);
const SECURE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 6444);

fn start(host: &Host, config: Config, resync: Duration) -> Running {
    Running::of(host, move || Kubernetes::new(config), resync)
}

struct Bed {
    host: Host,
    cluster: Cluster,
}

fn wanted() -> Wanted {
    Wanted {
        namespace: "shop".to_owned(),
        select: Select::Name("web".to_owned()),
        port: Some("http".to_owned()),
        traffic: Traffic::External,
        node: None,
        zone: None,
    }
}

fn server(url: &str, token: Option<Secret>, tls: Tls) -> Config {
    Config {
        access: Access::Server {
            url: url.parse().unwrap(),
            token,
            tls,
        },
        wanted: wanted(),
        watch_timeout: Duration::from_secs(120),
    }
}

fn plain() -> Config {
    server("http://127.0.0.1:6443", None, Tls::default())
}

fn briefly() -> Config {
    Config {
        watch_timeout: Duration::from_secs(1),
        ..plain()
    }
}

fn pods_slice(name: &str, hosts: &[u8]) -> serde_json::Value {
    let pods = hosts
        .iter()
        .map(|n| endpoint(format!("10.0.0.{n}"), &format!("p{n}"), Pod::Ready));
    slice("shop", "web", name, ("http", 8080), pods.collect())
}

impl Bed {
    /// With the Service `web`, and pods at `10.0.0.1` and `10.0.0.2`.
    fn new() -> Self {
        let host = Host::new("kubernetes").unwrap();
        let cluster = Cluster::start(&host, PLAIN).unwrap();
        let bed = Self { host, cluster };
        bed.cluster
            .apply(service("shop", "web", &[("http", 80), ("metrics", 9100)]));
        bed.pods("web-a", &[1, 2]);
        // Of no interest to anybody here.
        bed.cluster.apply(service("shop", "other", &[("http", 80)]));
        let stranger = vec![endpoint("10.0.9.9", "o", Pod::Ready)];
        bed.cluster
            .apply(slice("shop", "other", "other-a", ("http", 8080), stranger));
        bed
    }

    fn pods(&self, name: &str, hosts: &[u8]) {
        self.cluster.apply(pods_slice(name, hosts));
    }

    fn run(&self, config: Config) -> Running {
        start(&self.host, config, Duration::ZERO)
    }
}

fn is_watch(request: &Request) -> bool {
    request.query.contains_key("watch")
}

#[test]
fn what_is_asked_is_as_little_as_possible() {
    let bed = Bed::new();
    let source = bed.run(plain());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    assert!(eventually(LONG, || bed.cluster.counts() == (2, 2)));
    let asked = bed.cluster.asked();
    let slices = "GET /apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?";
    let services = "GET /api/v1/namespaces/shop/services?";
    let label = "labelSelector=kubernetes.io%2Fservice-name%3Dweb";
    let field = "fieldSelector=metadata.name%3Dweb";
    assert_eq!(
        asked,
        [
            format!("{services}allowWatchBookmarks=true&{field}&timeoutSeconds=120&watch=true"),
            format!("{services}{field}&limit=50"),
            format!("{slices}allowWatchBookmarks=true&{label}&timeoutSeconds=120&watch=true"),
            format!("{slices}{label}&limit=50"),
        ]
    );
}

#[test]
fn what_changes_arrives_by_the_watches_alone() {
    let bed = Bed::new();
    let source = bed.run(plain());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    let began = Instant::now();
    bed.pods("web-b", &[2, 3]);
    source.has(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    note(format!("a slice comes: told {:.0?} later", began.elapsed()));
    bed.pods("web-a", &[1]);
    bed.pods("web-b", &[3]);
    source.has(&["10.0.0.1", "10.0.0.3"]);
    bed.cluster.delete("EndpointSlice", "shop", "web-a");
    source.has(&["10.0.0.3"]);
    // To another Service: to this watch it is gone.
    let pods = vec![endpoint("10.0.0.3", "p3", Pod::Ready)];
    bed.cluster
        .apply(slice("shop", "other", "web-b", ("http", 8080), pods));
    source.has(&[]);
    bed.pods("web-b", &[4]);
    source.has(&["10.0.0.4"]);
    // The Service itself counts as well.
    bed.cluster.apply(service("shop", "web", &[("web", 80)]));
    let failure = source.fails();
    assert!(
        failure.message.contains("no port http; it has web (80)"),
        "{failure}"
    );
    bed.cluster.delete("Service", "shop", "web");
    let failure = source.fails();
    assert_eq!(failure.class, Class::Missing);
    assert_eq!(failure.message, "there is no Service shop/web");
    bed.cluster.apply(service("shop", "web", &[("http", 80)]));
    source.has(&["10.0.0.4"]);
    assert_eq!(bed.cluster.counts().0, 2, "nothing was listed again");
}

#[test]
fn services_by_label_with_the_slices_of_the_namespace() {
    let bed = Bed::new();
    let mut config = plain();
    config.wanted.select = Select::Labels("app in (web)".to_owned());
    let source = bed.run(config);
    // This server knows no sets: what matters is that the selector gets there.
    let selects = |r: &Request| {
        r.query
            .get("labelSelector")
            .is_some_and(|s| s == "app+in+%28web%29")
    };
    bed.cluster.registry.wait_asked(LONG, selects).unwrap();
    drop(source);
    let mut config = plain();
    config.wanted.select = Select::Labels("app=web".to_owned());
    let source = bed.run(config);
    source.has(&["10.0.0.1", "10.0.0.2"]);
    let mut both = service("shop", "other", &[("http", 80)]);
    both["metadata"]["labels"]["app"] = "web".into();
    bed.cluster.apply(both);
    source.has(&["10.0.0.1", "10.0.0.2", "10.0.9.9"]);
}

#[test]
fn a_list_of_many_pages_is_whole_or_begun_anew() {
    let bed = Bed::new();
    for n in 3..=9 {
        bed.pods(&format!("web-{n}"), &[n]);
    }
    bed.cluster.set_page(2);
    let all: Vec<String> = (1..=9).map(|n| format!("10.0.0.{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let source = bed.run(plain());
    source.has(&all);
    // One page of Services, four of slices.
    assert_eq!(bed.cluster.counts().0, 5);
    drop(source);
    bed.cluster.lose_pages(1);
    let source = bed.run(plain());
    source.has(&all);
    assert_eq!(bed.cluster.counts().0, 5 + 7);
    drop(source);
    bed.cluster.lose_pages(100);
    let source = bed.run(plain());
    let failure = source.fails();
    assert!(
        failure.message.contains("became too old 3 times"),
        "{failure}"
    );
    bed.cluster.lose_pages(0);
    source.recovers();
}

#[test]
fn a_watch_that_ends_goes_on_from_its_bookmark() {
    let bed = Bed::new();
    bed.cluster.set_bookmarks(Duration::from_millis(100));
    let source = bed.run(briefly());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    // Much happens, and nothing of it here.
    bed.cluster.elsewhere(5000);
    bed.cluster.registry.take_asked();
    let late = |r: &Request| {
        let version = r.query.get("resourceVersion").and_then(|v| v.parse().ok());
        is_watch(r) && version.is_some_and(|version: u64| version > 6000)
    };
    bed.cluster.registry.wait_asked(LONG, late).unwrap();
    bed.pods("web-a", &[1, 2, 3]);
    source.has(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let (lists, watches) = bed.cluster.counts();
    assert_eq!(lists, 2, "a watch that ends is no reason to list");
    assert!(watches >= 4, "{watches}");
}

#[test]
fn a_version_that_is_too_old_is_listed_anew_whichever_way_it_is_told() {
    for gone in [Gone::Event, Gone::Status] {
        let bed = Bed::new();
        let source = bed.run(briefly());
        source.has(&["10.0.0.1", "10.0.0.2"]);
        assert!(eventually(LONG, || bed.cluster.counts().1 >= 2));
        let (lists, _) = bed.cluster.counts();
        // What changes is not in the log any more: nobody can hear of it by a watch.
        bed.cluster
            .change_and_compact(gone, pods_slice("web-a", &[2, 3]));
        source.has(&["10.0.0.2", "10.0.0.3"]);
        assert!(bed.cluster.counts().0 > lists, "{gone:?}");
        bed.pods("web-a", &[4]);
        source.has(&["10.0.0.4"]);
    }
}

/// 410 as the status of a watch that goes on after one that ended in good order.
#[test]
fn the_next_watch_refused_as_too_old_is_listed_anew() {
    let bed = Bed::new();
    bed.cluster.refuse_watches(Some((410, "Expired")));
    let source = bed.run(briefly());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    bed.pods("web-a", &[5]);
    // Every watch is refused: lists are all there is, with pauses in between.
    source.has(&["10.0.0.5"]);
    bed.cluster.refuse_watches(None);
    bed.pods("web-a", &[6]);
    source.has(&["10.0.0.6"]);
    let (_, before) = bed.cluster.counts();
    assert!(eventually(LONG, || bed.cluster.counts().1 > before));
    bed.pods("web-a", &[7]);
    source.has(&["10.0.0.7"]);
}

#[test]
fn connections_that_break_hide_nothing() {
    let bed = Bed::new();
    let source = bed.run(plain());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    for (round, n) in (1..).zip(3..6) {
        // Both are open: each time two more are begun.
        assert!(eventually(LONG, || bed.cluster.counts().1 >= 2 * round));
        bed.pods("web-a", &[n]);
        source.has(&[&format!("10.0.0.{n}")]);
        bed.cluster.registry.drop_connections();
        bed.pods("web-a", &[n, 9]);
        // A watch that has been of use may break: nobody is told if all goes on.
        source.has(&[&format!("10.0.0.{n}"), "10.0.0.9"]);
    }
}

#[test]
fn a_watch_that_hangs_is_noticed() {
    let bed = Bed::new();
    let source = bed.run(briefly());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    assert!(eventually(LONG, || bed.cluster.counts().1 >= 2));
    bed.cluster.set_silent(true);
    // So that no watch knows of it before it falls silent.
    std::thread::sleep(Duration::from_millis(50));
    bed.pods("web-a", &[3]);
    let began = Instant::now();
    source.has(&["10.0.0.3"]);
    note(format!(
        "a watch of 1 s falls silent: what changed is known {:.1?} later",
        began.elapsed()
    ));
    bed.cluster.set_silent(false);
    bed.pods("web-a", &[4]);
    source.has(&["10.0.0.4"]);
}

#[test]
fn nonsense_in_a_watch_is_told_and_got_over() {
    let bed = Bed::new();
    let source = bed.run(plain());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    for (n, (line, words)) in (3..).zip([
        ("<html>", "not a watch's event"),
        ("{\"type\": \"ADDED\"}", "missing field `object`"),
        (
            "{\"type\": \"ADDED\", \"object\": {\"kind\": \"Pod\"}}",
            "not the event expected",
        ),
        (
            "{\"type\": \"ERROR\", \"object\": {\"code\": 500, \"message\": \"etcd\"}}",
            "500: etcd",
        ),
    ]) {
        assert!(eventually(LONG, || bed
            .cluster
            .counts()
            .1
            .is_multiple_of(2)));
        std::thread::sleep(Duration::from_millis(200));
        bed.cluster.garble(line);
        bed.pods("web-a", &[n]);
        let failure = source.fails();
        assert!(failure.message.contains(words), "{line}: {failure}");
        source.has(&[&format!("10.0.0.{n}")]);
    }
}

#[test]
fn watches_that_are_forbidden_are_told_and_lists_go_on() {
    let bed = Bed::new();
    bed.cluster.refuse_watches(Some((403, "Forbidden")));
    let source = bed.run(plain());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    let failure = source.fails();
    assert_eq!(failure.class, Class::Denied);
    assert!(
        failure
            .message
            .starts_with("watching http://127.0.0.1:6443/"),
        "{failure}"
    );
    assert!(failure.message.contains("403 Forbidden"), "{failure}");
    let began = Instant::now();
    let (before, _) = bed.cluster.counts();
    std::thread::sleep(Duration::from_secs(3));
    let (after, _) = bed.cluster.counts();
    let lists = after - before;
    note(format!(
        "watches forbidden: {lists} lists in {:.1?}",
        began.elapsed()
    ));
    assert!(lists <= 12, "{lists} lists in {:?}", began.elapsed());
    bed.cluster.refuse_watches(None);
    source.recovers();
}

#[test]
fn everything_is_listed_anew_now_and_then() {
    let bed = Bed::new();
    let source = start(&bed.host, plain(), Duration::from_secs(1));
    source.has(&["10.0.0.1", "10.0.0.2"]);
    assert!(eventually(LONG, || bed.cluster.counts().0 >= 6));
    // A bookmark puts nothing off.
    bed.cluster.set_bookmarks(Duration::from_millis(100));
    let (before, _) = bed.cluster.counts();
    assert!(eventually(LONG, || bed.cluster.counts().0 >= before + 6));
    loop {
        match source.reports.try_recv() {
            Ok(Report::Failure(failure)) => panic!("{failure}"),
            Ok(Report::Snapshot(_)) => {}
            Err(TryRecvError::Empty) => break,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_server_that_forgot_everything_is_heard_anew() {
    let bed = Bed::new();
    bed.cluster.set_bookmarks(Duration::from_millis(100));
    let source = bed.run(plain());
    source.has(&["10.0.0.1", "10.0.0.2"]);
    assert!(eventually(LONG, || bed.cluster.counts().1 >= 2));
    std::thread::sleep(Duration::from_millis(300));
    // As from a backup: the same objects, and lower versions. Its watches just go on.
    bed.cluster.forget();
    bed.cluster.apply(service("shop", "web", &[("http", 80)]));
    bed.pods("web-a", &[7]);
    loop {
        match source.next() {
            Report::Snapshot(snapshot)
                if snapshot
                    .instances
                    .iter()
                    .any(|i| i.address.ip().to_string() == "10.0.0.7") =>
            {
                break;
            }
            // It may be seen in between, without its Service.
            Report::Failure(failure) => assert_eq!(failure.class, Class::Missing, "{failure}"),
            Report::Snapshot(_) => {}
        }
    }
}

/// Files of a host's own `/run`, as this process and as threads on the host find them.
fn files(host: &Host, pki: &Pki) -> PathBuf {
    pki.write(&host.run_path("pki")).unwrap();
    PathBuf::from("/run/pki")
}

#[test]
fn a_token_over_tls_is_read_whenever_it_is_used() {
    let bed = Bed::new();
    let pki = Pki::new().unwrap();
    let files = files(&bed.host, &pki);
    let _front = Front::start(&bed.host, &pki, &["127.0.0.1"], false, SECURE, PLAIN).unwrap();
    bed.cluster.set_token(Some("first"));
    let token = bed.host.run_path("token");
    std::fs::write(&token, "wrong\n").unwrap();
    let tls = Tls {
        ca_file: Some(files.join("ca.pem")),
        ..Tls::default()
    };
    let url = "https://127.0.0.1:6444";
    let secret = || Some(Secret::File("/run/token".into()));
    let mut config = server(url, secret(), tls);
    config.watch_timeout = Duration::from_secs(1);
    let source = bed.run(config);
    let failure = source.fails();
    assert_eq!(failure.class, Class::Denied);
    assert!(failure.message.contains("401 Unauthorized"), "{failure}");
    assert!(!failure.message.contains("wrong"), "{failure}");
    std::fs::write(&token, "first\n").unwrap();
    source.recovers();
    // The old one runs out, and the new one is there.
    std::fs::write(&token, "second").unwrap();
    bed.cluster.set_token(Some("second"));
    bed.pods("web-a", &[8]);
    let second = |r: &Request| {
        r.headers
            .get("authorization")
            .is_some_and(|t| t == "Bearer second")
    };
    bed.cluster.registry.wait_asked(LONG, second).unwrap();
    drop(source);

    // A CA that nobody knows.
    let stranger = Pki::new().unwrap();
    std::fs::write(bed.host.run_path("pki/other.pem"), stranger.ca_pem()).unwrap();
    let tls = Tls {
        ca_file: Some(files.join("other.pem")),
        ..Tls::default()
    };
    let source = bed.run(server(url, secret(), tls));
    let failure = source.fails();
    assert_eq!(failure.class, Class::Denied, "{failure}");
    drop(source);
    let tls = Tls {
        ca_file: Some(files.join("none.pem")),
        ..Tls::default()
    };
    let failure = bed.run(server(url, None, tls)).fails();
    assert_eq!(failure.class, Class::Config);
    assert!(failure.message.contains("/run/pki/none.pem"), "{failure}");
}

#[test]
fn a_kubeconfig_with_a_client_certificate() {
    let bed = Bed::new();
    let pki = Pki::new().unwrap();
    files(&bed.host, &pki);
    let _front = Front::start(&bed.host, &pki, &["api.example"], true, SECURE, PLAIN).unwrap();
    let kubeconfig = "\
apiVersion: v1
kind: Config
current-context: other
contexts:
- {name: other, context: {cluster: nowhere, user: lbd}}
- {name: east, context: {cluster: east, user: lbd}}
clusters:
- name: nowhere
  cluster: {server: \"http://127.0.0.1:1\"}
- name: east
  cluster:
    server: https://127.0.0.1:6444
    certificate-authority: pki/ca.pem
    tls-server-name: api.example
users:
- name: lbd
  user: {client-certificate: pki/client.pem, client-key: pki/client.key}
";
    let path = bed.host.run_path("kubeconfig");
    std::fs::write(&path, kubeconfig).unwrap();
    let with = |context: Option<&str>| Config {
        access: Access::Kubeconfig {
            path: "/run/kubeconfig".into(),
            context: context.map(str::to_owned),
        },
        ..plain()
    };
    let source = bed.run(with(Some("east")));
    source.has(&["10.0.0.1", "10.0.0.2"]);
    drop(source);
    let failure = bed.run(with(None)).fails();
    assert_eq!(failure.class, Class::Unreachable, "{failure}");
    let failure = bed.run(with(Some("west"))).fails();
    assert_eq!(failure.class, Class::Config, "{failure}");
    let without = kubeconfig.replace(
        "{client-certificate: pki/client.pem, client-key: pki/client.key}",
        "{}",
    );
    std::fs::write(&path, without).unwrap();
    let failure = bed.run(with(Some("east"))).fails();
    note(format!("without its certificate: {failure}"));
    assert!(
        [Class::Denied, Class::Unreachable].contains(&failure.class),
        "{failure}"
    );
    std::fs::write(&path, "{").unwrap();
    let failure = bed.run(with(None)).fails();
    assert_eq!(failure.class, Class::Config);
    assert!(
        failure.message.contains("/run/kubeconfig cannot be used"),
        "{failure}"
    );
}

#[test]
fn outside_a_pod_lbd_says_what_to_set() {
    let bed = Bed::new();
    let config = Config {
        access: Access::InCluster,
        ..plain()
    };
    let failure = bed.run(config).fails();
    assert_eq!(failure.class, Class::Config);
    assert!(
        failure.message.contains("set `kubeconfig` or `server`"),
        "{failure}"
    );
}
