//! A service is changed while it is used: no established connection breaks.
//!
//! ```text
//!                                   ┌── b1
//!   client ────── node (lbd) ───────┼── b2
//!   100 open connections, new ones  └── b3
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Attempt, Failure, Herd, Load, Protocol},
    daemon::{Config, Service},
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::ECHO_PORT,
    world::World,
};

/// Open connections of each family, and how often each speaks.
const OPEN: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// New connections of each family a second, and how long they wait: a SYN that the network lost is
/// sent again after a second.
const ARRIVALS: u32 = 40;
const PATIENCE: Duration = Duration::from_millis(2500);

/// New connections that are judged after each change.
const JUDGED: usize = 60;

/// What the service becomes. Forwarding and whatever else can be changed belong here as well.
struct Change {
    policy: &'static str,
    more: Vec<String>,
    /// What new connections meet then.
    new: New,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum New {
    Served,
    Fails(Failed),
    /// Some are served, some are not.
    Rationed,
}

/// [`Failure`]s that admission brings about.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Failed {
    Timeout,
    Refused,
}

impl New {
    fn agrees(self, attempts: &[Attempt]) -> bool {
        let count = |result: fn(&Attempt) -> bool| attempts.iter().filter(|a| result(a)).count();
        let served = count(|a| a.result.is_ok());
        match self {
            Self::Served => served == attempts.len(),
            Self::Fails(Failed::Timeout) => {
                count(|a| a.result == Err(Failure::Timeout)) == attempts.len()
            }
            Self::Fails(Failed::Refused) => {
                count(|a| a.result == Err(Failure::Refused)) == attempts.len()
            }
            Self::Rationed => served > 0 && served < attempts.len(),
        }
    }
}

fn changes(network: &Network) -> Vec<Change> {
    const STRANGERS: &str = "\"203.0.113.0/24\", \"2001:db8:ffff::/48\"";
    let clients = Family::BOTH.map(|family| network.client_addresses(family));
    let clients: Vec<_> = clients
        .iter()
        .flatten()
        .map(|a| format!("\"{a}\""))
        .collect();
    let clients = clients.join(", ");
    let change = |policy, more: &str, new| Change {
        policy,
        more: (!more.is_empty())
            .then(|| more.to_owned())
            .into_iter()
            .collect(),
        new,
    };
    let rate = |key, rate| format!("{key}: {{connections_per_second: {rate}}}");
    let (denied, refused) = (New::Fails(Failed::Timeout), New::Fails(Failed::Refused));
    vec![
        change("round-robin", "", New::Served),
        change("random", "", New::Served),
        change("random", &format!("allow_sources: [{STRANGERS}]"), denied),
        change(
            "maglev",
            &format!("allow_sources: [{clients}]"),
            New::Served,
        ),
        change("maglev", &format!("deny_sources: [{clients}]"), denied),
        change(
            "maglev",
            &format!("deny_sources: [{STRANGERS}]"),
            New::Served,
        ),
        change("maglev", "max_connections: 10", refused),
        change("maglev", "max_connections: 100000", New::Served),
        change("maglev", &rate("rate", 30), New::Rationed),
        // What was taken at the higher rate is no debt.
        change("maglev", &rate("rate", 2), New::Rationed),
        change("maglev", &rate("source_rate", 1), New::Rationed),
        change("maglev", "affinity: {client_ip: 1h}", New::Served),
        change("maglev", "", New::Served),
    ]
}

fn config(network: &Network, xdp: &'static str, policy: &'static str, more: &[String]) -> Config {
    let mut service = Service::new("echo", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &vec![1; network.backends.len()]);
    service.policy = policy;
    service.more = more.to_vec();
    Config::new(network, xdp).service(service)
}

#[test]
fn xdp_changes_of_a_live_service_break_no_connection() {
    changes_break_no_connection("native");
}

#[test]
fn tc_changes_of_a_live_service_break_no_connection() {
    changes_break_no_connection("off");
}

fn changes_break_no_connection(xdp: &'static str) {
    let world = World::new(Topology::default(), |network| {
        config(network, xdp, "maglev", &[])
    })
    .unwrap();
    let network = &world.network;
    let of = |family| -> (Vec<IpAddr>, SocketAddr) {
        let target = (network.vip(0, family), ECHO_PORT).into();
        (network.client_addresses(family), target)
    };
    let herds = Family::BOTH.map(|family| {
        let (sources, target) = of(family);
        Herd::open(&network.client, &sources, target, OPEN).unwrap()
    });
    let loads = Family::BOTH.map(|family| {
        let (sources, target) = of(family);
        let client = &network.client;
        Load::start(client, &sources, Protocol::Tcp, target, ARRIVALS, PATIENCE)
    });
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let speaking = herds.map(|herd| {
            let (over, rounds) = (&over, &rounds);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let failures = herd.failures(Duration::from_secs(5));
                    if failures != "none" {
                        return failures;
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PAUSE);
                }
                "none".to_owned()
            })
        });
        let wrong = carry_out(&world, xdp, &loads);
        over.store(true, Ordering::Relaxed);
        for (family, herd) in Family::BOTH.into_iter().zip(speaking) {
            assert_eq!(herd.join().unwrap(), "none", "xdp {xdp} {family}");
        }
        assert_eq!(wrong, Vec::<String>::new(), "xdp {xdp}");
    });
    let new: usize = loads.into_iter().map(|l| l.stop().attempts.len()).sum();
    note(format!(
        "xdp {xdp}: {} open connections made {} exchanges each and {new} new ones came, through {} \
         changes",
        2 * OPEN,
        rounds.load(Ordering::Relaxed) / 2,
        changes(&world.network).len(),
    ));
}

/// Makes the changes one after the other; tells of those under which new connections met something
/// else than they should.
fn carry_out(world: &World, xdp: &'static str, loads: &[Load; 2]) -> Vec<String> {
    let mut wrong = Vec::new();
    for Change { policy, more, new } in changes(&world.network) {
        let text = config(&world.network, xdp, policy, &more).render();
        world.daemon.write_config(&text).unwrap();
        world.daemon.ctl(&["reload"]).unwrap();
        let changed = Instant::now();
        for (family, load) in Family::BOTH.into_iter().zip(loads) {
            let mut attempts = Vec::new();
            let done = eventually(Duration::from_secs(30), || {
                attempts = load.so_far().attempts;
                attempts.retain(|attempt| attempt.began >= changed);
                // What is rationed is waited for.
                attempts.len() >= JUDGED && (new != New::Rationed || new.agrees(&attempts))
            });
            if !done || !new.agrees(&attempts) {
                let served = attempts.iter().filter(|a| a.result.is_ok()).count();
                wrong.push(format!(
                    "{family} {policy} {more:?}: {served} of {} served, not {new:?}",
                    attempts.len()
                ));
            }
        }
    }
    wrong
}
