//! An operator restarts, upgrades, downgrades and resizes lbd at noon: nobody notices.
//!
//! ```text
//!   500 open connections that speak,                ┌── b1
//!   1,000 new ones a second,       ── node (lbd) ───┼── b2
//!   1,000 datagrams a second                        └── b3
//! ```

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Herd, Load, Protocol, any_port, ask_once, summary},
    daemon::{BPFFS, Config, Service},
    eventually,
    host::Host,
    less,
    net::{Family, Network, Topology},
    note, patience,
    servers::ECHO_PORT,
    sockets, stacks,
    world::World,
};

/// Open connections to each of the four targets.
const OPEN: u32 = 125;
/// New connections to each of them a second.
const ARRIVALS: u32 = 250;
/// Many times what a lost packet costs on a machine that is busy otherwise: whoever waits longer has
/// been left alone.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two steps.
const PAUSE: Duration = Duration::from_secs(1);

#[test]
fn xdp_nobody_notices_an_upgrade() {
    nobody_notices("native");
}

#[test]
fn tc_nobody_notices_an_upgrade() {
    nobody_notices("off");
}

/// Datagrams are not counted: a veth device throws away what waits in it when XDP comes or goes.
#[test]
fn nobody_notices_another_hook() {
    const CONNECTIONS: u32 = 100_000;
    let mut world =
        World::new(Topology::default(), |n| config(n, "native", CONNECTIONS, 1)).unwrap();
    let mut watched = Watched::start(&world);
    for (xdp, how) in [
        ("off", "tc"),
        ("native", "xdp native"),
        ("generic", "xdp generic"),
        ("off", "tc"),
        ("generic", "xdp generic"),
        // The other ends of these veth devices have XDP, and generic is not for them unasked.
        ("auto", "xdp native"),
        ("off", "tc"),
        ("auto", "xdp native"),
        ("native", "xdp native"),
    ] {
        watched.step(&mut world, &format!("xdp: {xdp}"), &mut |world| {
            let text = config(&world.network, xdp, CONNECTIONS, 1).render();
            world.daemon.write_config(&text).unwrap();
            world.daemon.stop().unwrap();
            world.daemon.restart().unwrap();
            let interfaces = world.daemon.status().unwrap().interfaces;
            assert!(!interfaces.is_empty());
            let as_asked = interfaces.iter().all(|(_, served)| served == how);
            assert!(as_asked, "xdp: {xdp}: {interfaces:?}");
        });
    }
    watched.end();
}

/// Has `lbd_tc` look at what comes in, in place of what lbd put there.
const TC_IN_PLACE: &str = "
for pin in lbd/programs/*; do
  if bpftool prog show pinned $pin | grep -q 'name lbd_tc '; then program=$pin; fi
done
for device in client b1 b2 b3; do
  link=lbd/links/$(cat /sys/class/net/$device/ifindex)-tc
  if [ -e $link ]; then
    bpftool link detach pinned $link
    # With what an attempt before left there.
    tc qdisc del dev $device clsact 2>/dev/null || true
    tc qdisc add dev $device clsact
  else
    tc filter del dev $device ingress
  fi
  tc filter add dev $device ingress bpf direct-action object-pinned $program
done";

/// While a device goes over to TC its XDP leaves packets there that have nowhere else to go: those to
/// neighbours that nobody asked for yet.
#[test]
fn what_xdp_began_tc_ends() {
    let world = World::new(Topology::default(), |n| config(n, "native", 1000, 1)).unwrap();
    let Network { node, client, .. } = &world.network;
    let shell = |script: &str| {
        let done = node.execute("sh", &["-ec", script]).unwrap();
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{script}: {errors}");
    };
    let repairs = || world.daemon.metric("lbd_repairs_total").unwrap();
    let devices = world.network.node_devices();
    let lines = devices
        .iter()
        .map(|device| format!("neigh flush dev {device}\n"));
    let forget: String = lines.collect();
    // lbd mends it, every ten seconds.
    let in_time = (0..5).any(|_| {
        let before = repairs();
        shell(&format!("cd {BPFFS}; {TC_IN_PLACE}"));
        let mut untouched = 0;
        for _ in 0..20 {
            for family in Family::BOTH {
                node.ip(&forget).unwrap();
                let source = any_port(world.network.client_addresses(family)[0]);
                let target = (world.network.vip(0, family), ECHO_PORT).into();
                client.run(|| ask_once(Protocol::Udp, source, target, "hello").unwrap());
                untouched += u32::from(repairs() == before);
            }
        }
        assert!(eventually(Duration::from_secs(20), || repairs() > before));
        // Five of each family.
        untouched >= 10
    });
    assert!(in_time, "lbd was always faster");
}

/// TCP services with and without SNAT, and one for datagrams, on maps for so many connections.
fn config(network: &Network, xdp: &'static str, connections: u32, weight: u16) -> Config {
    let mut config = Config::new(network, xdp);
    config.node.push((
        "limits",
        format!("{{connections: {connections}, handshakes: {connections}}}"),
    ));
    for (n, snat) in (0..).zip(["always", "never"]) {
        let mut service = Service::new(snat, Protocol::Tcp)
            .listen(network, n, ECHO_PORT)
            .backends(network, ECHO_PORT, &[1, weight, 1]);
        service.snat = snat;
        config = config.service(service);
    }
    let datagrams = Service::new("datagrams", Protocol::Udp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &[1, 1, 1]);
    config.service(datagrams)
}

/// Everything that goes on meanwhile.
struct Traffic {
    loads: Vec<Load>,
    herds: Vec<Running>,
    streams: Vec<Running>,
}

/// The traffic, and what was seen of it so far.
struct Watched {
    traffic: Traffic,
    before: Tally,
    resent: u64,
}

impl Watched {
    fn start(world: &World) -> Self {
        let traffic = Traffic::start(world);
        Self {
            before: traffic.tally(),
            resent: stacks::counter(world, "Tcp:", "RetransSegs"),
            traffic,
        }
    }

    /// Does something that no connection may notice.
    fn step(&mut self, world: &mut World, what: &str, act: &mut dyn FnMut(&mut World)) {
        let began = Instant::now();
        act(world);
        let took = began.elapsed();
        std::thread::sleep(PAUSE);
        let after = self.traffic.tally();
        let resent = stacks::counter(world, "Tcp:", "RetransSegs");
        note(format!(
            "{what} ({:.1} s): {} new connections, {} exchanges of {} open ones, {} datagrams; \
             {} segments sent again; failed so far: {}, {} broken, {} datagrams unanswered",
            took.as_secs_f64(),
            after.connections - self.before.connections,
            after.exchanges - self.before.exchanges,
            4 * less(OPEN),
            after.datagrams - self.before.datagrams,
            resent - self.resent,
            after.failures,
            after.broken,
            after.lost,
        ));
        assert_eq!(
            (after.failures.as_str(), after.broken),
            ("none", 0),
            "{what}; backends and client: {}; the node: {}",
            stacks::of_the_ends(world),
            stacks::of_the_node(world)
        );
        (self.before, self.resent) = (after, resent);
    }

    /// Everything, with no connection failed.
    fn end(mut self) -> Tally {
        self.traffic.herds.iter_mut().for_each(Running::end);
        self.traffic.streams.iter_mut().for_each(Running::end);
        let total = self.traffic.tally();
        note(format!("all in all: {total:?}"));
        assert_eq!((total.failures.as_str(), total.broken), ("none", 0));
        total
    }
}

/// A thread that counts what it tries and what fails.
struct Running {
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// How much was tried, and what went wrong.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Tally {
    connections: u64,
    exchanges: u64,
    datagrams: u64,
    /// Connections that failed, by kind.
    failures: String,
    broken: u64,
    lost: u64,
}

impl Traffic {
    fn start(world: &World) -> Self {
        let network = &world.network;
        let (mut loads, mut herds, mut streams) = (Vec::new(), Vec::new(), Vec::new());
        for family in Family::BOTH {
            let sources = &network.client_addresses(family);
            for n in [0, 1] {
                let target: SocketAddr = (network.vip(n, family), ECHO_PORT).into();
                let herd = Herd::open(&network.client, sources, target, less(OPEN) as usize);
                herds.push(Running::herd(herd.expect("all open")));
                loads.push(Load::start(
                    &network.client,
                    sources,
                    Protocol::Tcp,
                    target,
                    less(ARRIVALS),
                    patience(PATIENCE),
                ));
            }
            let target = (network.vip(0, family), ECHO_PORT).into();
            streams.push(Running::stream(&network.client, sources[0], target));
        }
        Self {
            loads,
            herds,
            streams,
        }
    }

    /// Since the beginning.
    fn tally(&self) -> Tally {
        let reports: Vec<_> = self.loads.iter().map(Load::so_far).collect();
        let failures = reports.iter().flat_map(|report| report.failures());
        let failures = failures.filter_map(|attempt| attempt.result.as_ref().err());
        let sum = |all: &[Running], of: fn(&Running) -> &AtomicU64| {
            all.iter().map(|one| of(one).load(Ordering::Relaxed)).sum()
        };
        Tally {
            connections: reports.iter().map(|r| r.attempts.len() as u64).sum(),
            failures: summary(failures),
            exchanges: sum(&self.herds, |one| &one.tried),
            broken: sum(&self.herds, |one| &one.failed),
            datagrams: sum(&self.streams, |one| &one.tried),
            lost: sum(&self.streams, |one| &one.failed),
        }
    }
}

impl Running {
    fn start(
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> JoinHandle<()>,
        work: impl FnOnce(&AtomicBool, &AtomicU64, &AtomicU64) + Send + 'static,
    ) -> Self {
        let (stop, tried, failed) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let (stopped, trying, failing) = (stop.clone(), tried.clone(), failed.clone());
        let thread = spawn(Box::new(move || work(&stopped, &trying, &failing)));
        Self {
            stop,
            tried,
            failed,
            thread: Some(thread),
        }
    }

    /// Open connections that all speak ten times a second.
    fn herd(herd: Herd) -> Self {
        Self::start(std::thread::spawn, move |stop, tried, failed| {
            while !stop.load(Ordering::Relaxed) {
                let outcome = herd.exchange(PATIENCE);
                tried.fetch_add(outcome.len() as u64, Ordering::Relaxed);
                let broken = outcome.iter().filter(|one| one.is_err()).count();
                failed.fetch_add(broken as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        })
    }

    /// A datagram a millisecond, each to be echoed.
    fn stream(client: &Host, source: IpAddr, target: SocketAddr) -> Self {
        let spawn = |work: Box<dyn FnOnce() + Send>| client.spawn(work);
        Self::start(spawn, move |stop, tried, failed| {
            let socket = UdpSocket::bind(any_port(source)).expect("a socket");
            sockets::hold_much(&socket).expect("root");
            socket.connect(target).expect("a route");
            socket.set_nonblocking(true).expect("a socket's option");
            let (mut sent, mut received) = (0u64, 0u64);
            let mut buffer = [0; 512];
            let mut receive = |received: &mut u64| {
                while socket.recv(&mut buffer).is_ok() {
                    *received += 1;
                }
            };
            while !stop.load(Ordering::Relaxed) {
                match socket.send(format!("number {sent}\n").as_bytes()) {
                    Ok(_) => sent += 1,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // What ICMP says of an earlier one, whose answer will be missing.
                    Err(_) => {}
                }
                tried.store(sent, Ordering::Relaxed);
                std::thread::sleep(patience(Duration::from_millis(1)));
                receive(&mut received);
                // Those on their way included.
                failed.store(sent - received.min(sent), Ordering::Relaxed);
            }
            let end = Instant::now() + patience(PATIENCE);
            while received < sent && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
                receive(&mut received);
            }
            failed.store(sent - received.min(sent), Ordering::Relaxed);
        })
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread does not panic");
        }
    }
}

fn nobody_notices(xdp: &'static str) {
    const CONNECTIONS: u32 = 100_000;
    let topology = Topology::default();
    let mut world = World::new(topology, |n| config(n, xdp, CONNECTIONS, 1)).unwrap();
    let mut watched = Watched::start(&world);
    let (now, next) = (world.daemon.program(), world.daemon.sibling("lbd-next"));
    let mut step = |world: &mut World, what: &str, act: &mut dyn FnMut(&mut World)| {
        watched.step(world, what, act);
    };

    step(&mut world, "nothing", &mut |_| {});
    step(&mut world, "kill -9 and start", &mut |world| {
        world.daemon.kill9();
        world.daemon.restart().unwrap();
    });
    step(&mut world, "SIGTERM and start", &mut |world| {
        world.daemon.stop().unwrap();
        world.daemon.restart().unwrap();
    });
    step(&mut world, "reload", &mut |world| {
        let text = config(&world.network, xdp, CONNECTIONS, 3).render();
        world.daemon.write_config(&text).unwrap();
        world.daemon.ctl(&["reload"]).unwrap();
    });
    // Programs that log are other programs.
    step(&mut world, "upgrade with other programs", &mut |world| {
        world.daemon.stop().unwrap();
        world.daemon.set_environment("LBD_DATAPATH_LOG", "error");
        world.daemon.restart().unwrap();
    });
    for (what, connections) in [("larger", 3 * CONNECTIONS), ("smaller", CONNECTIONS)] {
        step(&mut world, &format!("{what} maps"), &mut |world| {
            let text = config(&world.network, xdp, connections, 1).render();
            world.daemon.write_config(&text).unwrap();
            world.daemon.stop().unwrap();
            world.daemon.restart().unwrap();
            let capacity = "lbd_map_capacity{map=\"FLOWS4\"}";
            let wanted = f64::from(2 * connections);
            let is_resized = || world.daemon.metric(capacity).is_ok_and(|n| n == wanted);
            assert!(
                eventually(Duration::from_secs(30), is_resized),
                "{capacity}"
            );
        });
    }
    let mut takeovers = 2;
    for (what, program) in [("upgrade", next), ("downgrade", now)] {
        step(
            &mut world,
            &format!("{what} with another layout"),
            &mut |world| {
                world.daemon.stop().unwrap();
                world.daemon.set_program(program.clone());
                world.daemon.restart().unwrap();
                let took_over = world.daemon.log().matches("took over the maps").count();
                takeovers += 1;
                assert_eq!(took_over, takeovers, "{what}");
            },
        );
    }

    let total = watched.end();
    // Hosts and cables that have no time drop datagrams themselves.
    let (overflown, fallen) = (stacks::overflown(&world), stacks::dropped_by_cables(&world));
    let told = format!(
        "{} datagrams of {} lost; {overflown} dropped by the hosts, {fallen} packets by cables; the node: {}",
        total.lost,
        total.datagrams,
        stacks::of_the_node(&world)
    );
    note(&told);
    assert!(total.lost <= overflown + fallen, "{told}");
}
