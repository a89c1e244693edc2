//! Established connections outlive everything an operator, and fate, do to the daemon.
//!
//! ```text
//!                                   ┌── b1
//!   8 connections ──── node (lbd) ──┼── b2
//!   TCP and UDP, IPv4 and IPv6,     └── b3  added and removed
//!   with SNAT and without
//! ```

use std::{cell::Cell, net::SocketAddr, time::Duration};

use lb_tests::{
    clients::{LongLived, Protocol, any_port, burst, summary},
    daemon::{Config, Service},
    eventually,
    net::{Family, Network, Topology},
    servers::ECHO_PORT,
    stacks,
    world::World,
};

#[test]
fn xdp_established_connections_survive() {
    connections_survive("native");
}

#[test]
fn tc_established_connections_survive() {
    connections_survive("off");
}

/// Services `tcp-snat`, `udp-snat`, `tcp-plain`, `udp-plain`, each with `weights`.
fn config(network: &Network, xdp: &'static str, weights: &[u16]) -> Config {
    let mut config = Config::new(network, xdp);
    for (n, snat) in (0..).zip(["always", "never"]) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut service = Service::new(&service_name(protocol, snat), protocol)
                .listen(network, n, ECHO_PORT)
                .backends(network, ECHO_PORT, weights);
            service.snat = snat;
            config = config.service(service);
        }
    }
    config
}

fn service_name(protocol: Protocol, snat: &str) -> String {
    let end = if snat == "always" { "snat" } else { "plain" };
    format!("{protocol}-{end}").to_lowercase()
}

struct Established {
    connection: LongLived,
    service: String,
    family: Family,
    target: SocketAddr,
    protocol: Protocol,
}

struct Scene {
    world: World,
    established: Vec<Established>,
    /// Source ports are used once: a closed connection blocks its own for a minute.
    next_port: Cell<u16>,
}

impl Scene {
    fn new(xdp: &'static str) -> Self {
        let world = World::new(Topology::default(), |n| config(n, xdp, &[1, 1])).unwrap();
        let mut established = Vec::new();
        for (n, snat) in (0..).zip(["always", "never"]) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for family in Family::BOTH {
                    let source = any_port(world.network.client_addresses(family)[0]);
                    let target = (world.network.vip(n, family), ECHO_PORT).into();
                    let client = &world.network.client;
                    let connection = LongLived::open(client, protocol, source, target);
                    established.push(Established {
                        connection: connection.unwrap(),
                        service: service_name(protocol, snat),
                        family,
                        target,
                        protocol,
                    });
                }
            }
        }
        let scene = Self {
            world,
            established,
            next_port: Cell::new(10_000),
        };
        scene.still_alive("after opening");
        scene
    }

    /// Every connection makes a few more exchanges.
    fn still_alive(&self, when: &str) {
        for Established {
            connection,
            service,
            family,
            ..
        } in &self.established
        {
            let goal = connection.exchanges() + 4;
            let alive = eventually(Duration::from_secs(3), || {
                connection.exchanges() >= goal || !connection.is_alive()
            });
            let alive = alive && connection.is_alive();
            assert!(
                alive,
                "{when}: {service} {family} to {} broke",
                connection.backend()
            );
        }
    }

    /// New connections work, and by `avoided` not to the backends of the established ones.
    fn new_connections(&self, when: &str, avoided: bool) {
        for one in &self.established {
            let sources = &self.world.network.client_addresses(one.family)[1..];
            let client = &self.world.network.client;
            let port = self.next_port.get();
            self.next_port.set(port + 100);
            let before = stacks::lost(&self.world);
            let result = burst(client, sources, port, 30, one.protocol, one.target);
            let lost = stacks::lost(&self.world) - before;
            assert!(
                stacks::explain(lost, one.protocol, &result.failures),
                "{when}: {}: {}; dropped by hosts and cables {lost}",
                one.service,
                summary(&result.failures)
            );
            if avoided {
                let own = one.connection.backend();
                assert!(
                    !result.by_backend.contains_key(own),
                    "{when}: {own} still gets new ones"
                );
            }
        }
    }

    /// `lbctl ARGUMENTS` with the backend of every connection in place of `{}`.
    fn each(&self, arguments: &[&str]) {
        for Established {
            connection,
            service,
            family,
            ..
        } in &self.established
        {
            let i = connection.backend()[1..].parse().unwrap();
            let address = SocketAddr::new(self.world.network.backend(i, *family), ECHO_PORT);
            let named = format!("{service}/{address}");
            let arguments: Vec<_> = arguments.iter().map(|a| a.replace("{}", &named)).collect();
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            self.world.daemon.ctl(&arguments).unwrap();
        }
    }

    fn ctl(&self, arguments: &[&str]) {
        self.world.daemon.ctl(arguments).unwrap();
    }
}

fn connections_survive(xdp: &'static str) {
    let mut scene = Scene::new(xdp);

    scene.each(&["drain", "{}"]);
    scene.still_alive("drain");
    scene.new_connections("drain", true);
    scene.each(&["unset", "all", "{}"]);

    scene.each(&["set", "weight", "{}", "0"]);
    scene.still_alive("weight 0");
    scene.new_connections("weight 0", true);
    scene.each(&["set", "weight", "{}", "10"]);
    scene.still_alive("weight 10");
    scene.each(&["unset", "all", "{}"]);

    for service in ["tcp-snat", "udp-snat", "tcp-plain", "udp-plain"] {
        for family in Family::BOTH {
            let address = SocketAddr::new(scene.world.network.backend(3, family), ECHO_PORT);
            scene.ctl(&["add", "backend", service, &address.to_string()]);
        }
    }
    scene.world.daemon.wait_all_healthy().unwrap();
    scene.still_alive("others added");
    for service in ["tcp-snat", "udp-snat", "tcp-plain", "udp-plain"] {
        for family in Family::BOTH {
            let address = SocketAddr::new(scene.world.network.backend(3, family), ECHO_PORT);
            scene.ctl(&["remove", "backend", &format!("{service}/{address}")]);
        }
    }
    scene.still_alive("others removed");

    let changed = config(&scene.world.network, xdp, &[7, 3, 5]);
    scene.world.daemon.write_config(&changed.render()).unwrap();
    scene.ctl(&["reload"]);
    scene.world.daemon.wait_all_healthy().unwrap();
    scene.still_alive("reload");

    scene.world.daemon.kill9();
    scene.still_alive("killed");
    scene.new_connections("killed", false);
    scene.world.daemon.restart().unwrap();
    scene.still_alive("restarted");
    scene.world.daemon.wait_all_healthy().unwrap();
    scene.still_alive("healthy after restart");
    scene.new_connections("restarted", false);

    scene.world.daemon.stop().unwrap();
    scene.still_alive("stopped");
    scene.new_connections("stopped", false);
    scene.world.daemon.restart().unwrap();
    scene.still_alive("started again");

    for Established { connection, .. } in scene.established {
        connection.close().unwrap();
    }
}

/// What an operator said survives `kill -9`, and while the daemon is dead the kernel keeps to it.
#[test]
fn overrides_survive_the_daemons_death() {
    let mut world = World::new(Topology::default(), |n| config(n, "native", &[1, 1])).unwrap();
    let drained = SocketAddr::new(world.network.backend(1, Family::V4), ECHO_PORT);
    let only_b2 = |world: &World, port| {
        let sources = world.network.client_addresses(Family::V4);
        let target = (world.network.vip(0, Family::V4), ECHO_PORT).into();
        let client = &world.network.client;
        let result = burst(client, &sources, port, 100, Protocol::Tcp, target);
        assert_eq!(summary(&result.failures), "none");
        assert_eq!(result.by_backend.keys().collect::<Vec<_>>(), ["b2"]);
    };
    world
        .daemon
        .ctl(&["drain", &format!("tcp-snat/{drained}")])
        .unwrap();
    only_b2(&world, 10_000);
    world.daemon.kill9();
    only_b2(&world, 11_000);
    world.daemon.restart().unwrap();
    only_b2(&world, 12_000);
}
