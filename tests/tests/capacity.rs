//! What happens when there is no room: whoever is served already stays served.
//!
//! ```text
//!                                      ┌── b1
//!   client ──── node (lbd, small) ─────┼── b2
//!   live connections, new ones, floods └── b3
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use lb_tests::{
    capture::Wire,
    clients::{Failure, Herd, Protocol, any_port, ask_once, burst, datagrams, summary},
    daemon::{Config, Service},
    eventually, frames,
    net::{Family, Network, Topology},
    note,
    servers::ECHO_PORT,
    world::World,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Room for so many connections, or so many ports.
const ROOM: usize = 8;

/// Seconds of the flood, unless `LBT_FLOOD_SECONDS` says otherwise.
const FLOOD_SECONDS: u64 = 10;
/// SYNs a second, 2 million in a minute.
const FLOOD_RATE: u64 = 33_334;
/// What the flood missed when it stood still for longer does not follow: all at once it would fill a
/// device's queue of 256 frames.
const STALL: Duration = Duration::from_millis(5);

fn world(
    xdp: &'static str,
    backends: &[u16],
    snat: &'static str,
    node: impl FnOnce(&Network) -> Vec<(&'static str, String)>,
) -> World {
    World::new(Topology::default(), |network| {
        let mut service = Service::new("echo", Protocol::Tcp)
            .listen(network, 0, ECHO_PORT)
            .backends(network, ECHO_PORT, backends);
        service.snat = snat;
        let mut config = Config::new(network, xdp).service(service);
        config.node = node(network);
        config
    })
    .unwrap()
}

fn target(world: &World, family: Family) -> SocketAddr {
    (world.network.vip(0, family), ECHO_PORT).into()
}

fn herd(world: &World, family: Family, count: usize) -> Result<Herd, Failure> {
    let network = &world.network;
    let sources = network.client_addresses(family);
    Herd::open(&network.client, &sources, target(world, family), count)
}

fn another(world: &World, family: Family) -> Result<(), Failure> {
    let source = any_port(world.network.client_addresses(family)[0]);
    let target = target(world, family);
    let client = &world.network.client;
    let answer = client.run(|| ask_once(Protocol::Tcp, source, target, "room?"));
    answer.map(|_| ())
}

/// A counter of `lbd_drops_total`.
fn drops(world: &World, reason: &str) -> u64 {
    let metrics = world.daemon.http("/metrics").unwrap().1;
    let name = format!("lbd_drops_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.and_then(|v| v.parse().ok()).unwrap_or(0)
}

#[test]
fn xdp_full_flow_table_refuses_and_spares_the_living() {
    full_flow_table("native", Family::V4);
}

#[test]
fn tc_full_flow_table_refuses_and_spares_the_living() {
    full_flow_table("off", Family::V6);
}

fn full_flow_table(xdp: &'static str, family: Family) {
    let world = world(xdp, &[1, 1, 1], "auto", |_| {
        vec![
            ("limits", format!("{{connections: {ROOM}}}")),
            ("timeouts", "{tcp_closed: 1s, tcp_closing: 1s}".to_owned()),
        ]
    });
    let living = herd(&world, family, ROOM).unwrap();
    assert_eq!(living.failures(PATIENCE), "none", "while there is room");
    for _ in 0..20 {
        let refused = another(&world, family);
        assert!(
            matches!(refused, Err(Failure::Refused | Failure::Reset)),
            "{xdp}: {refused:?}"
        );
    }
    let counted = drops(&world, "flow_table_full");
    assert!(counted >= 20, "{xdp}: {counted}");
    assert_eq!(living.failures(PATIENCE), "none", "{xdp}: when full");
    // Who leaves makes room.
    living.close(1);
    let room = eventually(Duration::from_secs(20), || another(&world, family).is_ok());
    assert!(room, "{xdp}: no room after one left");
    assert_eq!(living.failures(PATIENCE), "none", "{xdp}: in the end");
    note(format!(
        "xdp {xdp} {family}: {ROOM} of {ROOM} connections live on, flow_table_full {counted}"
    ));
}

#[test]
fn xdp_many_udp_flows_leave_room_for_tcp() {
    many_udp_flows("native", Family::V4);
}

#[test]
fn tc_many_udp_flows_leave_room_for_tcp() {
    many_udp_flows("off", Family::V6);
}

/// More UDP flows than the table holds connections, all of which would stay in it.
fn many_udp_flows(xdp: &'static str, family: Family) {
    const CONNECTIONS: usize = 256;
    const UDP_FLOWS: usize = 300;
    // Half of the table; a CPU may be at work on a datagram when the places are counted.
    const TCP: usize = CONNECTIONS / 2 - 4;
    let world = World::new(Topology::default(), |network| {
        let service = |name, protocol| {
            Service::new(name, protocol)
                .listen(network, 0, ECHO_PORT)
                .backends(network, ECHO_PORT, &[1, 1, 1])
        };
        let mut config = Config::new(network, xdp)
            .service(service("lines", Protocol::Tcp))
            .service(service("datagrams", Protocol::Udp));
        config.node = vec![("limits", format!("{{connections: {CONNECTIONS}}}"))];
        config
    })
    .unwrap();
    let network = &world.network;
    let source = network.client_addresses(family)[0];
    let to = target(&world, family);
    let speak = || {
        network.client.run(|| {
            for port in (20_000..).take(UDP_FLOWS) {
                datagrams((source, port).into(), to, 3)
                    .unwrap_or_else(|error| panic!("xdp {xdp}: UDP from port {port}: {error:#}"));
            }
        });
    };
    // UDP gets places by and by, as they are counted, which a busy machine does late.
    let began = Instant::now();
    let mut of_udp = 0;
    let has_places = eventually(Duration::from_secs(60), || {
        speak();
        of_udp = flow_entries(&world, family);
        of_udp > 0 && began.elapsed() > Duration::from_secs(6)
    });
    assert!(has_places, "xdp {xdp}");
    let living = herd(&world, family, TCP);
    let living = living.unwrap_or_else(|f| panic!("xdp {xdp}: TCP beside {of_udp} entries: {f}"));
    speak();
    assert_eq!(living.failures(PATIENCE), "none", "xdp {xdp}");
    assert_eq!(drops(&world, "flow_table_full"), 0, "xdp {xdp}");
    assert!(of_udp <= CONNECTIONS as u64, "{of_udp}");
    note(format!(
        "xdp {xdp} {family}: {UDP_FLOWS} UDP flows had {of_udp} of {} entries, {TCP} TCP connections \
         were opened beside them",
        2 * CONNECTIONS
    ));
}

#[test]
fn xdp_exhausted_ports_refuse_and_spare_the_living() {
    exhausted_ports("native", Family::V4);
}

#[test]
fn tc_exhausted_ports_refuse_and_spare_the_living() {
    exhausted_ports("off", Family::V6);
}

/// One address has `ROOM` ports towards the one backend; with a second one, added to the list while
/// connections are open, there are twice as many.
fn exhausted_ports(xdp: &'static str, family: Family) {
    let ports = || ("snat_ports", format!("20000-{}", 20_000 + ROOM - 1));
    let world = world(xdp, &[1], "always", |_| vec![ports()]);
    let living = herd(&world, family, ROOM).unwrap();
    let refused = another(&world, family);
    assert_eq!(refused, Err(Failure::Timeout), "{xdp}: the SYN is dropped");
    let counted = drops(&world, "source_ports_exhausted");
    assert!(counted >= 1, "{xdp}");
    assert_eq!(living.failures(PATIENCE), "none", "{xdp}: when exhausted");

    let network = &world.network;
    let segment = |family| match (network.backend(1, family), family) {
        (IpAddr::V4(v4), _) => IpAddr::from(Ipv4Addr::from(u32::from(v4) - 1)),
        (IpAddr::V6(v6), _) => IpAddr::from(std::net::Ipv6Addr::from(u128::from(v6) - 1)),
    };
    let own = [network.node_address(family), segment(family)];
    let foreign = network.backend(2, family);
    let service = Service::new("echo", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &[1]);
    let mut config = Config::new(network, xdp).service(Service {
        snat: "always",
        ..service
    });
    let list = format!("[\"{}\", \"{}\", \"{foreign}\"]", own[0], own[1]);
    config.node = vec![ports(), ("snat_addresses", list)];
    world.daemon.write_config(&config.render()).unwrap();
    world.daemon.ctl(&["reload"]).unwrap();
    let problems = world.daemon.status().unwrap().problems;
    let told = |problem: &String| problem.contains(&format!("{foreign} is no address of this"));
    assert!(problems.iter().any(told), "{problems:?}");

    let more = herd(&world, family, ROOM).unwrap();
    let refused = another(&world, family);
    assert_eq!(refused, Err(Failure::Timeout), "{xdp}: both have run out");
    for herd in [&living, &more] {
        assert_eq!(herd.failures(PATIENCE), "none", "{xdp}: two addresses");
    }
    note(format!(
        "xdp {xdp} {family}: {} connections by 2 addresses of {ROOM} ports, \
         source_ports_exhausted {}",
        2 * ROOM,
        drops(&world, "source_ports_exhausted")
    ));
}

#[test]
fn xdp_syn_flood_disturbs_nobody() {
    syn_flood("native", "lbd_xdp");
}

#[test]
fn tc_syn_flood_disturbs_nobody() {
    syn_flood("off", "lbd_tc");
}

/// Addresses that exist nowhere, of a network whose packets the client's host throws away.
const FORGED: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);

fn syn_flood(xdp: &'static str, program: &str) {
    const LIVING: usize = 200;
    const NEW: usize = 5;
    // So many new connections that some may be lost, and so many SYNs that they fill the handshakes.
    const LEAST: usize = 25;
    const HANDSHAKES: u64 = 65_536;
    let seconds = std::env::var("LBT_FLOOD_SECONDS").ok();
    let seconds = seconds
        .and_then(|s| s.parse().ok())
        .unwrap_or(FLOOD_SECONDS);
    let world = world(xdp, &[1, 1, 1], "auto", |_| Vec::new());
    let network = &world.network;
    // As a router that has a way back to everybody.
    let way_back = network.client_addresses(Family::V4)[0];
    let lines = format!("route add {FORGED}/16 via {way_back}");
    network.node.ip(&lines).unwrap();
    let living = herd(&world, Family::V4, LIVING).unwrap();

    let _counting = enable_stats(Stats::RunTime).unwrap();
    let before = runs(program);
    let flood = Flood::start(&world);
    let began = Instant::now();
    let (mut rounds, mut tried, mut first_port) = (0, 0, 20_000);
    let mut lost = Vec::new();
    let sources = network.client_addresses(Family::V4);
    // A busy machine does not send as many as it is told, nor try as often.
    let enough = |tried: usize| tried >= LEAST && flood.sent.load(Ordering::Relaxed) > HANDSHAKES;
    let lasts = |seconds| began.elapsed() < Duration::from_secs(seconds);
    while lasts(seconds) || (lasts(10 * seconds) && !enough(tried)) {
        let next = began + Duration::from_secs(rounds + 1);
        let failures = living.failures(PATIENCE);
        assert_eq!(failures, "none", "xdp {xdp}: second {rounds} of the flood");
        let to = target(&world, Family::V4);
        let new = burst(
            &network.client,
            &sources,
            first_port,
            NEW,
            Protocol::Tcp,
            to,
        );
        lost.extend(new.failures);
        (rounds, tried, first_port) = (rounds + 1, tried + NEW, first_port + 1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let lasted = began.elapsed();
    let sent = flood.stop();
    let spent = busiest(&before, &runs(program));
    assert_eq!(
        living.failures(PATIENCE),
        "none",
        "xdp {xdp}: after the flood"
    );
    let per_second = sent as f64 / lasted.as_secs_f64();
    assert!(sent > HANDSHAKES, "only {sent} SYNs were sent");
    assert!(tried >= LEAST, "only {tried} connections were tried");
    // Queues that are full of the flood's packets may drop one connection's SYN three times, and a
    // backend may still remember a forged SYN that came from the same port.
    assert!(lost.len() * 5 <= tried, "{} of {tried}", summary(&lost));
    // Nearly every port is a forged SYN's; those older than a second give way.
    let refused = drops(&world, "source_ports_exhausted");
    assert!(refused * 100 < sent, "xdp {xdp}: {refused} of {sent}");
    let (time, count) = spent.unwrap_or_default();
    let served = tried - lost.len();
    note(format!(
        "xdp {xdp}: {sent} forged SYNs in {:.1} s ({per_second:.0}/s); {LIVING} connections made \
         {rounds} exchanges each, {served} of {tried} new ones were served; {program}: {count} packets, {:.0} \
         ns each; {refused} found no source port; entries in the flow tables: {}",
        lasted.as_secs_f64(),
        time.as_nanos() as f64 / count.max(1) as f64,
        flow_entries(&world, Family::V4),
    ));
    // Both directions of those that are real, and of the new ones that have not aged yet.
    assert!(flow_entries(&world, Family::V4) <= 2 * (LIVING + tried) as u64);
}

/// Each forged address has a bucket, and the table holds a few of them: real clients are forgotten too,
/// which refuses none of them, and nothing is left of it afterwards.
#[test]
fn forged_sources_use_up_no_limit_of_sources() {
    const NEW: usize = 40;
    let world = World::new(Topology::default(), |network| {
        let mut service = Service::new("echo", Protocol::Tcp)
            .listen(network, 0, ECHO_PORT)
            .backends(network, ECHO_PORT, &[1, 1, 1]);
        service.more = vec!["source_rate: {connections_per_second: 20}".to_owned()];
        let mut config = Config::new(network, "native").service(service);
        config.node = vec![("limits", "{clients: 64}".to_owned())];
        config
    })
    .unwrap();
    let network = &world.network;
    let sources = network.client_addresses(Family::V4);
    let flood = Flood::start(&world);
    let many = || flood.sent.load(Ordering::Relaxed) > 10_000;
    assert!(eventually(Duration::from_secs(20), many));
    let to = target(&world, Family::V4);
    let new = burst(&network.client, &sources, 20_000, NEW, Protocol::Tcp, to);
    let sent = flood.stop();
    let limited = drops(&world, "source_rate_limited");
    note(format!(
        "{sent} forged SYNs; {} of {NEW} connections failed, {limited} over the limit of sources",
        new.failures.len()
    ));
    assert_eq!(limited, 0);
    // As in `syn_flood`: queues are full.
    assert!(new.failures.len() * 5 <= NEW, "{}", summary(&new.failures));
    // More than one client may: some are refused.
    let one = &sources[..1];
    burst(&network.client, one, 30_000, 100, Protocol::Tcp, to);
    assert!(drops(&world, "source_rate_limited") > 0);
}

fn flow_entries(world: &World, family: Family) -> u64 {
    let metrics = world.daemon.http("/metrics").unwrap().1;
    let map = match family {
        Family::V4 => "FLOWS4",
        Family::V6 => "FLOWS6",
    };
    let name = format!("lbd_map_entries{{map=\"{map}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.and_then(|v| v.parse().ok()).expect("a number")
}

/// Run time and runs of each program whose name begins so, other networks' included.
fn runs(name: &str) -> Vec<(u32, Duration, u64)> {
    let programs = loaded_programs().filter_map(Result::ok);
    let named = programs.filter(|p| p.name_as_str().is_some_and(|n| n.starts_with(name)));
    named
        .map(|p| (p.id(), p.run_time(), p.run_count()))
        .collect()
}

/// What the program spent that ran most.
fn busiest(
    before: &[(u32, Duration, u64)],
    after: &[(u32, Duration, u64)],
) -> Option<(Duration, u64)> {
    let spent = after.iter().filter_map(|(id, time, count)| {
        let (_, time_before, count_before) = before.iter().find(|(known, ..)| known == id)?;
        Some((*time - *time_before, count - count_before))
    });
    spent.max_by_key(|(_, count)| *count)
}

/// SYNs from addresses that nobody has.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(world: &World) -> Self {
        let network = &world.network;
        let wire = Wire::open(&network.client, "eth0").unwrap();
        let (to, from) = (network.node.mac("client"), network.client.mac("eth0"));
        let (to, from) = (to.unwrap(), from.unwrap());
        let target = target(world, Family::V4);
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let mut began = Instant::now();
            for number in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let due = began + Duration::from_nanos(number * 1_000_000_000 / FLOOD_RATE);
                let now = Instant::now();
                let late = now.saturating_duration_since(due);
                if late > STALL {
                    began += late;
                }
                let early = due.saturating_duration_since(now);
                if early > Duration::from_millis(1) {
                    std::thread::sleep(early);
                }
                // Every address and port is another one for as long as a flood lasts.
                let address = u32::from(FORGED) | (number as u32 & 0xffff);
                let port = 1024 + (number >> 16) as u16;
                let source = (IpAddr::from(Ipv4Addr::from(address)), port);
                let segment = frames::tcp(source, (target.ip(), target.port()), frames::SYN, &[]);
                let packet = frames::ip(source.0, target.ip(), frames::TCP, &segment);
                let frame = frames::ethernet(to, from, frames::IPV4, &packet);
                // A full queue is the flood's own loss.
                if wire.send(&frame).is_ok() {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self {
            stop,
            sent,
            thread: Some(thread),
        }
    }

    /// Number of frames sent.
    fn stop(mut self) -> u64 {
        self.end();
        self.sent.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end();
    }
}
