//! Backends from DNS: they come, weigh and go with the records of a real server (dnsmasq), and no
//! fault of a server takes one away.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2      example.internal
//!                  │         └── b3
//!                  └── dnsmasq at 127.0.0.1:53, or a scripted server
//! ```

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use hickory_proto::op::ResponseCode;
use lb_tests::{
    clients::{Protocol, burst, summary},
    daemon::{CONFIG, Daemon, has_label},
    discovered::{self, web_service},
    dnsmasq::{Dnsmasq, Records, use_local_resolver},
    docs::Page,
    eventually,
    names::{Asked, Names, Replies, Zone},
    net::{Family, Network, Topology},
    note,
    servers::{ECHO_PORT, HTTP_PORT, start_all},
};
use lb_userspace::api::types::BackendItem;

const WEB: &str = "web.example.internal";
const SRV: &str = "_echo._tcp.web.example.internal";
const LONG: Duration = Duration::from_secs(30);
/// Asked again after a second, the TTL, and a server is soon given up.
const QUICK: &str = "family: ipv4, min_ttl: 500ms, timeout: 1s, merge_window: 100ms";

type Scene = discovered::Scene<()>;

fn start(network: Network, dns: &str, health: Option<&'static str>) -> Scene {
    let mut service = web_service(&network, format!("{{dns: {{{dns}, {QUICK}}}}}"));
    if let Some(health) = health {
        service.health = health;
    }
    Scene::with(network, (), service)
}

/// Waits until exactly these hosts are backends that take connections.
fn wait_pool(scene: &Scene, hosts: &[usize]) {
    let mut wanted: Vec<_> = hosts.iter().map(|host| scene.address(*host)).collect();
    wanted.sort();
    let met = eventually(LONG, || {
        let backends = scene.daemon.backends().unwrap_or_default();
        backends.iter().all(|b| b.effective_weight > 0) && addresses(&backends) == wanted
    });
    assert!(met, "{:#?}", scene.daemon.backends());
}

fn addresses(backends: &[BackendItem]) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = backends.iter().map(|b| b.address).collect();
    addresses.sort();
    addresses
}

fn network() -> Network {
    Network::new(Topology::default()).unwrap()
}

fn ip(host: usize) -> String {
    format!("10.1.{host}.2")
}

/// Addresses of these hosts under one name.
fn web(hosts: &[usize]) -> Records {
    hosts.iter().fold(Records::default(), |records, host| {
        records.host(WEB, ip(*host))
    })
}

/// SRV records: host, priority and weight.
fn services(lines: &[(usize, u16, u16)]) -> Records {
    let hosts = (1..=3).fold(Records::default(), |records, host| {
        records.host(&format!("b{host}.example.internal"), ip(host))
    });
    lines
        .iter()
        .fold(hosts, |records, (host, priority, weight)| {
            records.service(format!(
                "{SRV},b{host}.example.internal,{ECHO_PORT},{priority},{weight}"
            ))
        })
}

fn by_name() -> String {
    format!("name: {WEB}, port: {ECHO_PORT}, servers: 127.0.0.1")
}

/// A server that is started anew may be missed meanwhile, and what leaves by the first answer after that
/// is held.
fn by_srv() -> String {
    format!("srv: {SRV}, servers: 127.0.0.1, empty_hold: 1s")
}

#[test]
fn an_address_comes_and_goes() {
    let network = network();
    let dnsmasq = Dnsmasq::start(&network.node, &web(&[1])).unwrap();
    let dns = by_name() + ", labels: {version: v1}, empty_hold: 1s";
    let scene = start(network, &dns, None);
    wait_pool(&scene, &[1]);
    let open = scene.connection_to(1);
    assert_eq!(scene.reached(), ["b1"]);

    dnsmasq.set_hosts(&web(&[1, 2])).unwrap();
    // TTL 1 s, and a health check.
    scene.wait_reached(2, "a second address under the name");
    scene.wait(2, |b| has_label(b, "version", "v1") && b.weight == 100);
    assert_eq!(scene.reached(), ["b1", "b2"]);

    dnsmasq.set_hosts(&web(&[2])).unwrap();
    let began = Instant::now();
    wait_pool(&scene, &[2]);
    note(format!(
        "the first address leaves: out of the pool {:.1?} later",
        began.elapsed()
    ));
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "its address left the name");
    open.close().unwrap();
}

#[test]
fn srv_records_weigh_and_their_priorities_count() {
    let network = network();
    let records = services(&[(1, 1, 100), (2, 1, 300), (3, 2, 900)]);
    let mut dnsmasq = Dnsmasq::start(&network.node, &records).unwrap();
    let scene = start(network, &by_srv(), None);
    wait_pool(&scene, &[1, 2]);
    scene.wait(2, |b| b.effective_weight == 300);
    let share = scene.burst(800).share("b2");
    assert!(
        (0.68..0.82).contains(&share),
        "weights 100 and 300: {share}"
    );

    dnsmasq
        .restart(&services(&[(1, 1, 300), (2, 1, 100)]))
        .unwrap();
    scene.wait(2, |b| b.effective_weight == 100);
    scene.wait(1, |b| b.effective_weight == 300);
    let share = scene.burst(800).share("b2");
    assert!(
        (0.18..0.32).contains(&share),
        "weights 300 and 100: {share}"
    );

    // The whole group of priority 1 left: the next one stands in.
    dnsmasq.restart(&services(&[(3, 2, 900)])).unwrap();
    wait_pool(&scene, &[3]);
    assert_eq!(scene.reached(), ["b3"]);
}

/// "Decidedly not available" (RFC 2782) is believed at once, though an empty answer is held for a minute.
#[test]
fn the_root_as_target_empties_the_pool() {
    let network = network();
    let b1 = "b1.example.internal";
    let records = Zone::new(1)
        .srv(SRV, 0, (0, 0), b1, ECHO_PORT)
        .address(b1, 0, &ip(1));
    let names = network.node.run(|| Names::of(records)).unwrap();
    let dns = format!("srv: {SRV}, servers: [\"{}\"]", names.address());
    let scene = start(network, &dns, None);
    wait_pool(&scene, &[1]);
    let open = scene.connection_to(1);
    scene.wait(1, |b| b.weight == 100);

    names.set_zone(Zone::new(1));
    let source = scene.wait_source(|s| s.held == 1);
    assert_eq!((source.state.as_str(), source.instances), ("synced", 1));
    assert_eq!(scene.reached(), ["b1"]);
    names.set_zone(Zone::new(1).srv(SRV, 0, (0, 0), ".", 0));
    let began = Instant::now();
    assert!(eventually(LONG, || scene.known().is_empty()));
    note(format!(
        "the target `.`: the pool is empty {:.1?} later",
        began.elapsed()
    ));
    scene.goes_on(&open, "the service is off");
    open.close().unwrap();
}

#[test]
fn a_server_that_dies_hangs_or_is_empty_takes_nothing_away() {
    let network = network();
    let mut dnsmasq = Dnsmasq::start(&network.node, &web(&[1, 2])).unwrap();
    let mut scene = start(network, &by_name(), None);
    wait_pool(&scene, &[1, 2]);
    let open = [scene.connection_to(1), scene.connection_to(2)];
    let stays = |what: &str, words: &str| {
        let source = scene.wait_source(|s| {
            s.state == "failing" && s.last_error.as_ref().is_some_and(|e| e.contains(words))
        });
        assert_eq!((source.instances, scene.known().len()), (2, 2), "{what}");
        assert_eq!(scene.reached(), ["b1", "b2"], "{what}");
        note(format!("{what}: {}", source.last_error.unwrap()));
    };
    dnsmasq.kill();
    stays("killed", "nobody listens there");
    dnsmasq.restart(&web(&[1, 2])).unwrap();
    scene.wait_source(|s| s.state == "synced");
    dnsmasq.hang(true);
    stays("hanging", "gives no answer within 1s");
    dnsmasq.hang(false);
    scene.wait_source(|s| s.state == "synced");

    // It does not know the name: an answer, which must stand for `empty_hold`.
    let before = scene.wait_source(|_| true).last_success_ms;
    dnsmasq.restart(&Records::default()).unwrap();
    let source = scene.wait_source(|s| s.state == "synced" && s.held == 2);
    assert!(source.last_success_ms > before);
    note(format!(
        "restarted empty: {} instances, {} held",
        source.instances, source.held
    ));
    assert_eq!(scene.reached(), ["b1", "b2"]);
    dnsmasq.restart(&web(&[1, 2, 3])).unwrap();
    wait_pool(&scene, &[1, 2, 3]);
    assert_eq!(scene.wait_source(|_| true).held, 0);
    for connection in open {
        scene.goes_on(&connection, "faults");
        connection.close().unwrap();
    }

    // Killed together with all that was in the kernel, and the server is down.
    dnsmasq.kill();
    // What is in force is on disk a second later at the latest.
    thread::sleep(Duration::from_millis(2500));
    scene.daemon.kill9();
    let cleanup = scene
        .daemon
        .lbd(&["--config", CONFIG, "--cleanup"])
        .unwrap();
    assert!(cleanup.status.success());
    scene.daemon.restart().unwrap();
    let source = scene.wait_source(|s| s.state == "stale");
    assert_eq!(source.instances, 3);
    wait_pool(&scene, &[1, 2, 3]);
    assert_eq!(scene.reached(), ["b1", "b2", "b3"]);
    let sources = scene.daemon.ctl(&["get", "sources"]).unwrap();
    note(format!("restarted while the server is down:\n{sources}"));
    dnsmasq.restart(&web(&[3])).unwrap();
    scene.wait_source(|s| s.state == "synced");
}

fn zone(hosts: &[usize]) -> Zone {
    hosts
        .iter()
        .fold(Zone::new(1), |zone, host| zone.address(WEB, 0, &ip(*host)))
}

fn failing(code: ResponseCode) -> impl Fn(&Asked) -> Replies {
    move |asked| vec![asked.code(code).to_vec().unwrap()]
}

#[test]
fn a_server_that_answers_nonsense_takes_nothing_away() {
    let network = network();
    let names = network.node.run(|| Names::of(zone(&[1, 2]))).unwrap();
    let dns = format!(
        "name: {WEB}, port: {ECHO_PORT}, servers: [\"{}\"]",
        names.address()
    );
    let scene = start(network, &dns, None);
    wait_pool(&scene, &[1, 2]);
    for (what, words) in [
        ("SERVFAIL", "SERVFAIL"),
        ("REFUSED", "REFUSED"),
        ("garbage", "no answer within 1s, but"),
        ("half", "ends the connection before"),
        ("another id", "another id"),
    ] {
        match what {
            "SERVFAIL" => names.set(failing(ResponseCode::ServFail)),
            "REFUSED" => names.set(failing(ResponseCode::Refused)),
            "garbage" => names.set(|_| vec![b"\xffgarbage".to_vec()]),
            "half" => names.set(|asked| {
                let mut bytes = zone(&[1]).replies(asked).remove(0);
                bytes[2] |= 0x02;
                // By TCP the connection ends without a word.
                if asked.by_tcp { vec![] } else { vec![bytes] }
            }),
            _ => names.set(|asked| {
                let mut other = asked.clone();
                other.id ^= 1;
                zone(&[3]).replies(&other)
            }),
        }
        let source = scene.wait_source(|s| {
            s.state == "failing" && s.last_error.as_ref().is_some_and(|e| e.contains(words))
        });
        assert_eq!((source.instances, scene.known().len()), (2, 2), "{what}");
        assert_eq!(scene.reached(), ["b1", "b2"], "{what}");
        note(format!("{what}: {}", source.last_error.unwrap()));
    }
    let status = scene.daemon.status().unwrap();
    assert!(
        status.problems[0].contains("is failing"),
        "{:?}",
        status.problems
    );
    names.set_zone(zone(&[1, 2, 3]));
    wait_pool(&scene, &[1, 2, 3]);
    scene.wait_source(|s| s.state == "synced");
    assert_eq!(scene.reached(), ["b1", "b2", "b3"]);
    assert_eq!(
        scene.daemon.status().unwrap().problems,
        Vec::<String>::new()
    );
    let refused = format!(
        "lbd_source_errors_total{{class=\"refused\",kind=\"dns\",service=\"web\",target=\"{WEB}:{ECHO_PORT}\"}}"
    );
    assert!(scene.daemon.metric(&refused).unwrap() >= 2.0);
}

/// More than a datagram holds, by a real server.
#[test]
fn a_truncated_answer_comes_by_tcp() {
    const COUNT: usize = 150;
    let network = network();
    let records = |count: usize| {
        (1..=count).fold(Records::default(), |records, n| {
            records.host(WEB, format!("10.9.0.{n}"))
        })
    };
    let dnsmasq = Dnsmasq::start(&network.node, &records(3)).unwrap();
    let scene = start(network, &by_name(), Some("{type: none}"));
    scene.wait_source(|s| s.instances == 3);
    dnsmasq.set_hosts(&records(COUNT)).unwrap();
    let source = scene.wait_source(|s| s.instances as usize == COUNT);
    assert_eq!((source.errors, scene.known().len()), (0, COUNT));
}

/// The examples of the documentation, as they stand; the minimal one with the node's own resolver.
#[test]
fn the_documented_examples_work() {
    let page = Page::read("discovery/dns.md").unwrap();
    let network = network();
    let _agents = start_all(&network.backends).unwrap();
    use_local_resolver(&network.node, "search example.internal\n").unwrap();
    let port = HTTP_PORT;
    let records = web(&[1, 2])
        .host("b1.example.internal", ip(1))
        .host("b3.example.internal", ip(3))
        .service(format!(
            "_http._tcp.web.example.internal,b1.example.internal,{port},1,10"
        ))
        .service(format!(
            "_http._tcp.web.example.internal,b3.example.internal,{port},1,30"
        ))
        .service(format!(
            "_http._tcp.web.example.internal,b2.example.internal,{port},2,10"
        ));
    let _dnsmasq = Dnsmasq::start(&network.node, &records).unwrap();
    let mut port = 10_000;
    let mut reached = || {
        port += 1000;
        let sources = network.client_addresses(Family::V4);
        let target = (network.vip(0, Family::V4), 80).into();
        let client = &network.client;
        let result = burst(client, &sources, port, 400, Protocol::Http, target);
        assert_eq!(summary(&result.failures), "none");
        result.by_backend
    };
    let backend = |host| SocketAddr::from(([10, 1, host, 2], HTTP_PORT));

    let config = page.config("minimal", &network, "native").unwrap();
    let daemon = Daemon::start_with(&network.node, &config).unwrap();
    for host in [1, 2] {
        daemon
            .wait_backend("web", backend(host), LONG, |b| b.effective_weight == 100)
            .unwrap();
    }
    assert_eq!(reached().into_keys().collect::<Vec<_>>(), ["b1", "b2"]);

    for (example, zone) in [("srv", None), ("complete", Some("a"))] {
        daemon
            .write_config(&page.config(example, &network, "native").unwrap())
            .unwrap();
        daemon.ctl(&["reload"]).unwrap();
        // The label tells the new source's own word from what it began with.
        for (host, weight) in [(1, 10), (3, 30)] {
            daemon
                .wait_backend("web", backend(host), LONG, |b| {
                    b.effective_weight == weight
                        && zone.is_none_or(|zone| has_label(b, "zone", zone))
                })
                .unwrap();
        }
        let by_backend = reached();
        assert!(
            by_backend["b3"] > by_backend["b1"],
            "{example}: {by_backend:?}"
        );
    }
    let one = daemon
        .backends()
        .unwrap()
        .into_iter()
        .find(|b| b.address == backend(3))
        .unwrap();
    assert_eq!(one.source, "discovery:dns");
}
