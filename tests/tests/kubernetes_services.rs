//! The source of services against an API server; what it has in common with that of backends is tested
//! there (`kubernetes.rs`).
//!
//! ```text
//!   source ──HTTP──▶ 127.0.0.1:6443 Cluster
//! ```

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    cluster::{Cluster, Gone, Pod, endpoint, served, service, slice},
    eventually,
    host::Host,
    source::Running,
};
use lb_userspace::discovery::{
    Catalogue, Class, Report,
    http::Tls,
    kubernetes::{
        Access, Select,
        services::{Config, SELECTOR},
    },
};
use serde_json::json;

const LONG: Duration = Duration::from_secs(30);

struct Bed {
    // Dropped in this order.
    source: Running<Catalogue>,
    cluster: Cluster,
    _host: Host,
}

impl Bed {
    /// The Service `shop/api`, which is meant for lbd, and another one, which is not.
    fn new() -> Self {
        let host = Host::new("kubernetes").unwrap();
        let cluster = Cluster::start(&host, SocketAddr::from(([127, 0, 0, 1], 6443))).unwrap();
        cluster.apply(service("shop", "web", &[("http", 80)]));
        cluster.apply(served("shop", "api", "10.96.0.1", 80));
        let config = Config {
            access: Access::Server {
                url: "http://127.0.0.1:6443".parse().unwrap(),
                token: None,
                tls: Tls::default(),
            },
            namespace: None,
            select: Select::Labels(SELECTOR.to_owned()),
            nodeport_addresses: Vec::new(),
            node: None,
            zone: None,
            watch_timeout: Duration::from_secs(120),
        };
        Self {
            source: Running::of(&host, move || config.source(), Duration::ZERO),
            cluster,
            _host: host,
        }
    }

    /// Waits for an answer with these services, each with the number of its backends.
    fn offers(&self, wanted: &[(&str, usize)]) {
        let mut last = Vec::new();
        let end = Instant::now() + LONG;
        while let Ok(report) = self
            .source
            .reports
            .recv_timeout(end - Instant::now().min(end))
        {
            let Report::Snapshot(Catalogue { services, backends }) = report else {
                panic!("waiting for {wanted:?}: {report:?}");
            };
            let names = services
                .instances
                .into_iter()
                .map(|offer| offer.name.clone());
            let found = names.map(|name| {
                let count = backends[&name].instances.len();
                (name, count)
            });
            last = found.collect();
            if last
                .iter()
                .map(|(name, count)| (&**name, *count))
                .eq(wanted.iter().copied())
            {
                return;
            }
        }
        panic!("waiting for {wanted:?}: last {last:?}");
    }
}

#[test]
fn services_of_all_namespaces_come_by_one_pair_of_watches() {
    let bed = Bed::new();
    bed.offers(&[("shop.api.echo", 0)]);
    assert!(eventually(LONG, || bed.cluster.counts() == (2, 2)));
    let slices = "GET /apis/discovery.k8s.io/v1/endpointslices?";
    let of_services = "GET /api/v1/services?";
    let all = "labelSelector=kubernetes.io%2Fservice-name";
    let lbd = "labelSelector=service.kubernetes.io%2Fservice-proxy-name%3Dlbd";
    assert_eq!(
        bed.cluster.asked(),
        [
            format!("{of_services}allowWatchBookmarks=true&{lbd}&timeoutSeconds=120&watch=true"),
            format!("{of_services}{lbd}&limit=50"),
            format!("{slices}allowWatchBookmarks=true&{all}&timeoutSeconds=120&watch=true"),
            format!("{slices}{all}&limit=50"),
        ]
    );
    let pods = |namespace: &str, service: &str, hosts: &[u8]| {
        let pods = hosts
            .iter()
            .map(|n| endpoint(format!("10.0.1.{n}"), &format!("p{n}"), Pod::Ready));
        slice(
            namespace,
            service,
            &format!("{service}-a"),
            ("echo", 80),
            pods.collect(),
        )
    };
    bed.cluster.apply(pods("shop", "api", &[1, 2]));
    bed.offers(&[("shop.api.echo", 2)]);
    // Its slices were there before.
    bed.cluster.apply(pods("test", "api", &[3]));
    bed.cluster.apply(served("test", "api", "10.96.0.2", 80));
    bed.offers(&[("shop.api.echo", 2), ("test.api.echo", 1)]);
    // No longer meant for lbd.
    let mut other = served("shop", "api", "10.96.0.1", 80);
    other["metadata"]["labels"] = json!({});
    bed.cluster.apply(other);
    bed.offers(&[("test.api.echo", 1)]);
    assert_eq!(bed.cluster.counts(), (2, 2));
}

#[test]
fn services_survive_whatever_ends_a_watch() {
    let bed = Bed::new();
    bed.offers(&[("shop.api.echo", 0)]);
    for (n, gone) in (0..).zip([Gone::Event, Gone::Status]) {
        // Both are open: each time two more are begun.
        assert!(eventually(LONG, || bed.cluster.counts().1 >= 2 * (n + 1)));
        let name = format!("next-{n}");
        let address = format!("10.96.0.1{n}");
        let next = served("shop", &name, address, 80);
        bed.cluster.change_and_compact(gone, next);
        if gone == Gone::Status {
            bed.cluster.registry.drop_connections();
        }
        let both = [("shop.api.echo", 0), (&*format!("shop.{name}.echo"), 0)];
        bed.offers(&both);
        bed.cluster.delete("Service", "shop", &name);
        bed.offers(&both[..1]);
    }
    bed.cluster.garble("nonsense");
    bed.cluster.apply(served("shop", "api", "10.96.0.3", 80));
    let failure = bed.source.fails();
    assert_eq!(failure.class, Class::Malformed, "{failure}");
    bed.source.recovers();
}
