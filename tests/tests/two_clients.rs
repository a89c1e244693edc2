//! Several clients of the API at once: what one was told is not undone by another, and everybody sees
//! a whole.
//!
//! ```text
//!   lbctl ──┐
//!   lbctl ──┼── socket ── lbd ── disk and kernel
//!   lbctl ──┘
//! ```

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lb_tests::{
    clients::Protocol,
    daemon::{Config, Daemon, Service},
    net::{Network, Topology},
    note,
    world::World,
};
use lb_userspace::{
    api::{
        client::{CallError, Client},
        types::{BackendItem, OverrideItem, Request, Response},
    },
    model::{BackendRef, Override, WeightOverride},
};

const BACKENDS: u8 = 16;
const WRITERS: u8 = 4;
const ROUNDS: u16 = 40;

fn address(number: u8) -> SocketAddr {
    (IpAddr::V4(Ipv4Addr::new(10, 1, 1, 10 + number)), 80).into()
}

fn backend(number: u8) -> BackendRef {
    BackendRef {
        service: "web".to_owned(),
        address: address(number),
    }
}

/// Backends that nobody is at, nor asks for.
fn config(network: &Network) -> Config {
    let mut service = Service::new("web", Protocol::Tcp).listen(network, 0, 80);
    service.health = "none";
    service.backends = (0..BACKENDS).map(|number| (address(number), 100)).collect();
    Config::new(network, "native").service(service)
}

/// A connection for each request, from a thread of one's own.
struct Caller {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Caller {
    fn new(socket: &Path) -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        Self {
            client: Client::new(socket),
            runtime: runtime.enable_all().build().expect("a runtime"),
        }
    }

    fn call(&self, request: &Request) -> Result<Response, CallError> {
        self.runtime.block_on(self.client.call(request))
    }

    fn set_weight(&self, number: u8, weight: u16) {
        let request = Request::SetWeight {
            backend: backend(number),
            weight: WeightOverride::Absolute(weight),
        };
        self.call(&request).expect("the weight is set");
    }

    fn backends(&self) -> Vec<BackendItem> {
        match self.call(&Request::GetBackends { service: None }) {
            Ok(Response::Backends { items }) => items,
            other => panic!("{other:?}"),
        }
    }
}

fn weight_of(item: &BackendItem) -> u32 {
    item.effective_weight
}

/// Each writer has backends of its own, and all write at once.
#[test]
fn no_update_is_lost() {
    let mut world = World::new(Topology::default(), config).unwrap();
    let socket = &world.daemon.socket_path();
    let (done, seen) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let caller = Caller::new(socket);
            let mut answers = 0;
            let mut latest = BTreeMap::new();
            while !done.load(Ordering::Relaxed) {
                let items = caller.backends();
                assert_eq!(items.len(), usize::from(BACKENDS), "a part of the whole");
                for item in &items {
                    // Each writer counts upwards.
                    let now = weight_of(item);
                    let before = latest.insert(item.address, now).unwrap_or(0);
                    assert!(now >= before, "{}: {now} after {before}", item.address);
                }
                answers += 1;
                seen.store(true, Ordering::Relaxed);
            }
            answers
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || {
                    let caller = Caller::new(socket);
                    for round in 1..=ROUNDS {
                        for number in (writer..BACKENDS).step_by(WRITERS.into()) {
                            caller.set_weight(number, 1000 * u16::from(1 + writer) + round);
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<bool> = writers.into_iter().map(|w| w.join().is_ok()).collect();
        let all_ended = !ended.contains(&false);
        done.store(true, Ordering::Relaxed);
        let answers = reader.join().expect("the reader is content");
        assert!(all_ended);
        let writes = u32::from(BACKENDS) * u32::from(ROUNDS);
        note(format!(
            "{writes} changes by {WRITERS} clients, {answers} answers to another"
        ));
    });
    assert!(seen.load(Ordering::Relaxed));
    all_are_as_told(&world.daemon);
    // What was answered is on disk.
    world.daemon.kill9();
    world.daemon.restart().unwrap();
    all_are_as_told(&world.daemon);
}

fn all_are_as_told(daemon: &Daemon) {
    let told = |number: u8| 1000 * u16::from(1 + number % WRITERS) + ROUNDS;
    let overrides: Vec<OverrideItem> = daemon.get("overrides").unwrap();
    let shown: BTreeMap<_, _> = overrides
        .into_iter()
        .map(|item| (item.backend.address, item.value))
        .collect();
    let wanted: BTreeMap<_, _> = (0..BACKENDS)
        .map(|number| {
            let weight = Some(WeightOverride::Absolute(told(number)));
            (
                address(number),
                Override {
                    weight,
                    mode: None,
                    deadline_ms: None,
                },
            )
        })
        .collect();
    assert_eq!(shown, wanted);
    for item in daemon.backends().unwrap() {
        let IpAddr::V4(ip) = item.address.ip() else {
            panic!("{}", item.address);
        };
        let number = ip.octets()[3] - 10;
        assert_eq!(
            weight_of(&item),
            u32::from(told(number)),
            "{}",
            item.address
        );
    }
}

/// Two `lbctl` that do the same at once: one does it, the other is told.
#[test]
fn one_of_two_gets_it() {
    const TIMES: usize = 12;
    let world = World::new(Topology::default(), config).unwrap();
    let daemon = &world.daemon;
    let both = |arguments: [Vec<&str>; 2]| {
        let started = arguments.map(|arguments| {
            let mut command = daemon.lbctl_command(&arguments);
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            command.spawn().expect("lbctl starts")
        });
        let mut codes = started.map(|child| {
            let output = child.wait_with_output().expect("lbctl ends");
            output.status.code().expect("no signal")
        });
        codes.sort();
        codes
    };
    for time in 0..TIMES {
        let [one, two] = ["192.0.2.200:80", "192.0.2.201:80"];
        let add = |listen| vec!["add", "service", "more", "--listen", listen];
        assert_eq!(both([add(one), add(two)]), [0, 6], "add, {time}");
        let services = daemon.services().unwrap();
        let listen = services.iter().find(|service| service.name == "more");
        let listen = listen.expect("it is there").listen[0].to_string();
        assert!([one, two].contains(&listen.as_str()), "{listen}");

        let add = vec!["add", "backend", "more", "10.1.2.2:80"];
        assert_eq!(both([add.clone(), add]), [0, 6], "add backend, {time}");

        // Both are obeyed, and one was the last, on disk as in the kernel.
        let set = |weight| vec!["set", "weight", "web/10.1.1.10:80", weight];
        assert_eq!(both([set("7"), set("9")]), [0, 0], "set weight, {time}");
        let items = daemon.backends().unwrap();
        let item = items.iter().find(|item| item.address == address(0));
        let weight = weight_of(item.expect("it is there"));
        assert!([7, 9].contains(&weight), "{weight}");
        let overrides: Vec<OverrideItem> = daemon.get("overrides").unwrap();
        let stored = overrides.first().and_then(|item| item.value.weight);
        assert_eq!(stored, Some(WeightOverride::Absolute(weight as u16)));

        let remove = vec!["remove", "service", "more"];
        assert_eq!(both([remove.clone(), remove]), [0, 5], "remove, {time}");
        assert_eq!(daemon.services().unwrap().len(), 1);
    }
}
