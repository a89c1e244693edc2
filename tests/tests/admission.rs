//! Whom a service lets in.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2
//!   8 addresses              └── b3
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Failure, LongLived, Protocol, any_port, ask as ask_for, ask_once},
    daemon::{Config, Service},
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::ECHO_PORT,
    world::World,
};

/// One echo service, with these lines of configuration.
fn config(network: &Network, xdp: &'static str, policy: &'static str, more: &[String]) -> Config {
    let mut service = Service::new("echo", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &vec![1; network.backends.len()]);
    service.policy = policy;
    service.more = more.to_vec();
    Config::new(network, xdp).service(service)
}

fn world(xdp: &'static str, policy: &'static str, more: &[String]) -> World {
    let topology = Topology::default();
    World::new(topology, |network| config(network, xdp, policy, more)).unwrap()
}

fn reload(world: &World, xdp: &'static str, policy: &'static str, more: &[String]) {
    let text = config(&world.network, xdp, policy, more).render();
    world.daemon.write_config(&text).unwrap();
    world.daemon.ctl(&["reload"]).unwrap();
}

fn target(world: &World, family: Family) -> SocketAddr {
    (world.network.vip(0, family), ECHO_PORT).into()
}

/// The name of the backend that answers.
fn ask(world: &World, client: IpAddr) -> Result<String, Failure> {
    let family = if client.is_ipv6() {
        Family::V6
    } else {
        Family::V4
    };
    let target = target(world, family);
    let answer = world
        .network
        .client
        .run(|| ask_once(Protocol::Tcp, any_port(client), target, "who?"));
    answer.map(|answer| answer.backend)
}

/// How many packets were dropped for a reason.
fn drops(world: &World, reason: &str) -> u64 {
    let (_, text) = world.daemon.http("/metrics").unwrap();
    let series = format!("lbd_drops_total{{reason=\"{reason}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.expect("the reason has a series").parse().unwrap()
}

fn lists(allowed: &[IpAddr], denied: &[IpAddr]) -> Vec<String> {
    let list = |name: &str, addresses: &[IpAddr]| {
        let words: Vec<_> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
        format!("{name}: [{}]", words.join(", "))
    };
    [("allow_sources", allowed), ("deny_sources", denied)]
        .into_iter()
        .filter(|(_, addresses)| !addresses.is_empty())
        .map(|(name, addresses)| list(name, addresses))
        .collect()
}

#[test]
fn xdp_source_lists_change_under_open_connections() {
    source_lists_change("native");
}

#[test]
fn tc_source_lists_change_under_open_connections() {
    source_lists_change("off");
}

fn source_lists_change(xdp: &'static str) {
    // The lists want the clients' addresses, which the network tells.
    let world = world(xdp, "maglev", &[]);
    let clients = |n: usize| Family::BOTH.map(|f| world.network.client_addresses(f)[n]);
    let (first, second) = (clients(0), clients(1));
    reload(&world, xdp, "maglev", &lists(&first, &[]));
    let open: Vec<_> = (Family::BOTH.into_iter().zip(first))
        .map(|(family, client)| {
            let (source, target) = (any_port(client), target(&world, family));
            LongLived::open(&world.network.client, Protocol::Tcp, source, target).unwrap()
        })
        .collect();
    for client in second {
        assert_eq!(ask(&world, client), Err(Failure::Timeout), "{client}");
    }
    assert!(drops(&world, "source_denied") >= 2);
    let shown = world.daemon.ctl(&["describe", "service", "echo"]).unwrap();
    assert!(shown.contains(&format!("{}/32", first[0])), "{shown}");

    reload(&world, xdp, "maglev", &lists(&second, &first));
    for client in second {
        ask(&world, client).unwrap();
    }
    for client in first {
        assert_eq!(ask(&world, client), Err(Failure::Timeout), "{client}");
    }
    reload(&world, xdp, "maglev", &lists(&[], &second));
    for client in first {
        ask(&world, client).unwrap();
    }
    for client in second {
        assert_eq!(ask(&world, client), Err(Failure::Timeout), "{client}");
    }
    // Whoever was let in stays, whatever the lists say later.
    for connection in open {
        assert!(connection.close().unwrap() > 3);
    }
    reload(&world, xdp, "maglev", &[]);
    for client in second {
        ask(&world, client).unwrap();
    }
}

/// Connections opened while many threads try as often as they can, and for how long they tried.
fn open_for(world: &World, clients: &[IpAddr], target: SocketAddr, time: Duration) -> (u64, f64) {
    // Shorter than the second after which a SYN is sent again.
    const PATIENCE: Duration = Duration::from_millis(100);
    let client = &world.network.client;
    client.run(|| {
        let begun = Instant::now();
        let attempt = |source: IpAddr| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let asked = ask_for(Protocol::Tcp, any_port(source), target, "who?", PATIENCE);
            runtime.block_on(asked).is_ok()
        };
        let opened = thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let source = clients[n % clients.len()];
                    scope.spawn(move || {
                        let mut opened = 0;
                        while begun.elapsed() < time {
                            opened += u64::from(attempt(source));
                        }
                        opened
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum::<u64>()
        });
        (opened, begun.elapsed().as_secs_f64())
    })
}

#[test]
fn rates_are_kept() {
    let world = world(
        "native",
        "maglev",
        &["rate: {connections_per_second: 40, burst: 10}".to_owned()],
    );
    let time = Duration::from_secs(4);
    // The second begins with the bucket that the first one emptied.
    for (family, burst) in Family::BOTH.into_iter().zip([10.0, 0.0]) {
        let (clients, target) = (
            world.network.client_addresses(family),
            target(&world, family),
        );
        let (opened, took) = open_for(&world, &clients, target, time);
        let (least, most) = (burst + 40.0 * took, 10.0 + 40.0 * took);
        note(format!(
            "{family}: {opened} opened in {took:.2} s, {least:.0} due"
        ));
        assert!(
            (0.7 * least..=1.2 * most).contains(&(opened as f64)),
            "{opened}"
        );
    }
    assert!(drops(&world, "rate_limited") > 0);

    // Of each client: two of them get twice as much.
    reload(
        &world,
        "native",
        "maglev",
        &["source_rate: {connections_per_second: 15, burst: 5}".to_owned()],
    );
    let clients = &world.network.client_addresses(Family::V4)[..2];
    let (opened, took) = open_for(&world, clients, target(&world, Family::V4), time);
    let most = 2.0 * (5.0 + 15.0 * took);
    note(format!(
        "two clients: {opened} opened in {took:.2} s, {most:.0} due"
    ));
    assert!(
        (0.7 * most..=1.2 * most).contains(&(opened as f64)),
        "{opened}"
    );
    assert!(drops(&world, "source_rate_limited") > 0);
}

#[test]
fn limits_of_connections_break_none() {
    let limit = |limit: u32| [format!("max_connections: {limit}")];
    let mut world = world("native", "maglev", &limit(2));
    for family in Family::BOTH {
        reload(&world, "native", "maglev", &limit(2));
        let client = world.network.client_addresses(family)[0];
        let target = target(&world, family);
        let connect = || {
            LongLived::open(
                &world.network.client,
                Protocol::Tcp,
                any_port(client),
                target,
            )
        };
        // Those of before are closed.
        assert!(eventually(Duration::from_secs(10), || ask(&world, client).is_ok()));
        let mut open: Vec<LongLived> = Vec::new();
        assert!(eventually(Duration::from_secs(10), || {
            open.extend(connect().ok());
            open.len() == 2
        }));
        assert_eq!(ask(&world, client), Err(Failure::Refused), "{family}");
        // The next daemon finds them counted.
        world.daemon.kill9();
        assert_eq!(ask(&world, client), Err(Failure::Refused), "{family}");
        world.daemon.restart().unwrap();
        assert_eq!(ask(&world, client), Err(Failure::Refused), "{family}");
        reload(&world, "native", "maglev", &limit(1));
        assert_eq!(ask(&world, client), Err(Failure::Refused), "{family}");
        reload(&world, "native", "maglev", &limit(3));
        ask(&world, client).unwrap();
        reload(&world, "native", "maglev", &limit(2));
        for connection in open {
            assert!(connection.close().unwrap() > 0, "{family}");
        }
        // Their places are free again.
        assert!(eventually(Duration::from_secs(10), || ask(&world, client).is_ok()));
    }
    assert!(drops(&world, "connection_limit") >= 4);
}

#[test]
fn clients_keep_their_backend_until_it_fails() {
    let mut world = world(
        "native",
        "round-robin",
        &["affinity: {client_ip: 1h}".to_owned()],
    );
    for family in Family::BOTH {
        let clients = world.network.client_addresses(family);
        let first: Vec<_> = clients.iter().map(|c| ask(&world, *c).unwrap()).collect();
        let spread: BTreeSet<_> = first.iter().collect();
        assert!(spread.len() > 1, "{family}: all at {spread:?}");
        for _ in 0..5 {
            for (client, backend) in clients.iter().zip(&first) {
                assert_eq!(
                    ask(&world, *client).as_ref(),
                    Ok(backend),
                    "{family} {client}"
                );
            }
        }
        let (client, lost) = (clients[0], first[0].clone());
        let number: usize = lost[1..].parse().unwrap();
        world.agents[number - 1].kill();
        let mut next = None;
        assert!(eventually(Duration::from_secs(20), || {
            next = ask(&world, client).ok().filter(|backend| *backend != lost);
            next.is_some()
        }));
        for _ in 0..5 {
            assert_eq!(ask(&world, client).ok(), next, "{family}");
        }
        world.agents[number - 1].restart().unwrap();
        world.daemon.wait_all_healthy().unwrap();
        assert_eq!(ask(&world, client).ok(), next, "{family}: for good");
    }
}
