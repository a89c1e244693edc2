//! Backends from a file: they come, change, drain and go with it, and no fault of the file takes one
//! away.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2      /run/lbd/instances/web.yaml
//!                  │         └── b3
//!                  └── reads the file
//! ```

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_tests::{
    clients::{Protocol, burst, summary},
    daemon::{CONFIG, Config, Daemon, Service, has_label, replace_file},
    discovered::{self, web_service},
    docs::Page,
    eventually,
    net::{Family, Network, Topology},
    note,
    servers::{ECHO_PORT, HTTP_PORT, start_all},
};
use lb_userspace::model::BackendState;

const FILE: &str = "lbd/instances/web.yaml";
const LONG: Duration = Duration::from_secs(15);

type Scene = discovered::Scene<()>;

/// One line of the file: host of the network, and more keys.
type Line<'a> = (usize, &'a str);

fn instances(lines: &[Line<'_>]) -> String {
    let mut text = "instances:\n".to_owned();
    for (host, more) in lines {
        text += &format!("- {{id: i{host}, address: \"10.1.{host}.2:{ECHO_PORT}\"{more}}}\n");
    }
    text
}

fn service(network: &Network, keys: &str) -> Service {
    web_service(network, format!("{{file: {{path: /run/{FILE}{keys}}}}}"))
}

fn start(lines: &[Line<'_>], keys: &str) -> Scene {
    let network = Network::new(Topology::default()).unwrap();
    replace_file(&network.node, FILE, &instances(lines)).unwrap();
    let service = service(&network, keys);
    let scene = Scene::with(network, (), service);
    scene.daemon.wait_all_healthy().unwrap();
    scene
}

fn write(scene: &Scene, lines: &[Line<'_>]) {
    scene.daemon.replace_file(FILE, &instances(lines)).unwrap();
}

#[test]
fn an_instance_comes_changes_drains_and_leaves() {
    let scene = start(&[(1, "")], "");
    let open = scene.connection_to(1);
    assert_eq!(scene.reached(), ["b1"]);

    write(
        &scene,
        &[(1, ""), (2, ", weight: 300, labels: {version: v2}")],
    );
    scene.wait_reached(2, "an instance appears in the file");
    scene.wait(2, |b| {
        b.weight == 300 && has_label(b, "version", "v2") && b.effective_weight == 300
    });
    let share = scene.burst(800).share("b2");
    assert!(
        (0.68..0.82).contains(&share),
        "weights 100 and 300: {share}"
    );

    write(&scene, &[(1, ", weight: 300"), (2, ", weight: 100")]);
    scene.wait(2, |b| b.effective_weight == 100);
    let share = scene.burst(800).share("b2");
    assert!(
        (0.18..0.32).contains(&share),
        "weights 300 and 100: {share}"
    );

    write(&scene, &[(1, ", state: drain"), (2, "")]);
    scene.wait(1, |b| {
        b.state == BackendState::Draining && b.reasons[0] == "file: drain"
    });
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "drained");

    write(&scene, &[(1, ", state: down"), (2, "")]);
    scene.wait(1, |b| {
        b.state == BackendState::Unhealthy && b.reasons[0] == "file: down"
    });
    assert_eq!(scene.reached(), ["b2"]);

    write(&scene, &[(2, "")]);
    scene.wait_gone(1);
    assert_eq!(scene.reached(), ["b2"]);
    scene.goes_on(&open, "removed");
    open.close().unwrap();
}

#[test]
fn what_lbctl_says_stands_above_and_outlives_an_absence() {
    let scene = start(&[(1, ""), (2, "")], "");
    let name = format!("web/{}", scene.address(1));
    scene.daemon.ctl(&["drain", &name]).unwrap();
    assert_eq!(scene.reached(), ["b2"]);
    write(&scene, &[(2, "")]);
    scene.wait_gone(1);
    assert_eq!(
        scene.daemon.status().unwrap().problems,
        Vec::<String>::new()
    );
    write(&scene, &[(1, ", weight: 200"), (2, "")]);
    scene.wait(1, |b| b.weight == 200 && b.state == BackendState::Draining);
    assert_eq!(scene.reached(), ["b2"]);
    scene.daemon.ctl(&["unset", "all", &name]).unwrap();
    scene.daemon.ctl(&["set", "weight", &name, "50%"]).unwrap();
    scene.wait(1, |b| b.effective_weight == 100);

    let refused = scene.daemon.lbctl(&["remove", "backend", &name]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        told.contains("found by the service's file source"),
        "{told}"
    );
    let export = scene.daemon.ctl(&["export"]).unwrap();
    assert!(export.contains(&format!("path: /run/{FILE}")), "{export}");
    assert!(
        !export.contains("10.1.1.2"),
        "what is found is not configured: {export}"
    );
}

/// Each fault of the file is told in words, and changes nothing.
#[test]
fn no_fault_of_the_file_takes_a_backend_away() {
    let scene = start(&[(1, ""), (2, "")], "");
    let open = [scene.connection_to(1), scene.connection_to(2)];
    let file = scene.network.node.run_path(FILE);
    let whole = instances(&[(1, ""), (2, ""), (3, "")]);
    let mut told = Vec::new();
    for (what, words) in [
        ("empty", "there is nothing in it"),
        ("garbage", "not allowed in YAML"),
        ("cut", "invalid YAML"),
        ("misspelt", "did you mean `address`?"),
        ("gone", "there is no /run/lbd/instances/web.yaml"),
    ] {
        match what {
            // Written in place, as by a shell.
            "empty" => fs::write(&file, "").unwrap(),
            "garbage" => scene.daemon.replace_file(FILE, "\u{1}\u{2}{{{").unwrap(),
            "cut" => scene
                .daemon
                .replace_file(FILE, &whole[..whole.len() - 9])
                .unwrap(),
            "misspelt" => scene
                .daemon
                .replace_file(FILE, &whole.replace("address", "adress"))
                .unwrap(),
            _ => fs::remove_file(&file).unwrap(),
        }
        let source = scene
            .daemon
            .wait_source("web", LONG, |s| {
                s.state == "failing" && s.last_error.as_ref().is_some_and(|e| e.contains(words))
            })
            .unwrap();
        assert_eq!(source.instances, 2, "{what}");
        assert_eq!(scene.known().len(), 2, "{what}");
        assert_eq!(scene.reached(), ["b1", "b2"], "{what}");
        told.push(source.last_error.unwrap());
    }
    for words in told {
        note(format!("told: {words}"));
    }
    let status = scene.daemon.status().unwrap();
    assert!(
        status.problems[0].contains("is failing"),
        "{:?}",
        status.problems
    );
    for connection in &open {
        scene.goes_on(connection, "faults");
    }
    // It recovers by itself.
    write(&scene, &[(1, ""), (2, ""), (3, "")]);
    scene
        .daemon
        .wait_source("web", LONG, |s| s.state == "synced" && s.instances == 3)
        .unwrap();
    scene.daemon.wait_all_healthy().unwrap();
    assert_eq!(scene.reached(), ["b1", "b2", "b3"]);
    assert_eq!(
        scene.daemon.status().unwrap().problems,
        Vec::<String>::new()
    );
    let malformed = r#"lbd_source_errors_total{class="malformed",kind="file",service="web",target="/run/lbd/instances/web.yaml"}"#;
    assert!(scene.daemon.metric(malformed).unwrap() >= 4.0);
    scene.daemon.replace_file(FILE, "instances: []\n").unwrap();
    assert!(
        eventually(LONG, || scene.known().is_empty()),
        "an empty list is meant"
    );
    for connection in open {
        scene.goes_on(&connection, "all instances gone");
        connection.close().unwrap();
    }
}

/// Killed, and all that was in the kernel removed as by a restart of the node; the file is gone.
#[test]
fn a_daemon_that_starts_without_its_file_serves_what_it_knew() {
    let mut scene = start(&[(1, ""), (2, ", weight: 300")], "");
    write(
        &scene,
        &[
            (1, ""),
            (2, ""),
            (3, ", state: drain, labels: {version: v3}"),
        ],
    );
    scene.wait(3, |b| b.state == BackendState::Draining);
    scene.wait(2, |b| b.effective_weight == 100);
    // The last change is on disk a second later at the latest.
    std::thread::sleep(Duration::from_millis(2500));
    scene.daemon.kill9();
    fs::remove_file(scene.network.node.run_path(FILE)).unwrap();
    let cleanup = scene
        .daemon
        .lbd(&["--config", CONFIG, "--cleanup"])
        .unwrap();
    assert!(cleanup.status.success());
    scene.daemon.restart().unwrap();
    let source = scene
        .daemon
        .wait_source("web", LONG, |s| s.state == "stale")
        .unwrap();
    assert_eq!(source.instances, 3);
    assert!(source.last_success_ms.is_some());
    scene.wait(2, |b| b.effective_weight == 100);
    scene.wait(1, |b| b.effective_weight == 100);
    scene.wait(3, |b| {
        has_label(b, "version", "v3") && b.reasons[0] == "file: drain"
    });
    assert_eq!(scene.reached(), ["b1", "b2"]);
    let sources = scene.daemon.ctl(&["get", "sources"]).unwrap();
    note(format!(
        "lbctl get sources, restarted without the file:\n{sources}"
    ));

    write(&scene, &[(3, "")]);
    scene
        .daemon
        .wait_source("web", LONG, |s| s.state == "synced" && s.instances == 1)
        .unwrap();
    scene.wait(3, |b| b.effective_weight == 100);
    assert_eq!(scene.reached(), ["b3"]);
}

/// One damaged file of what was known is told, and hurts nothing else.
#[test]
fn a_damaged_state_is_told_and_no_more() {
    let mut scene = start(&[(1, "")], "");
    scene.daemon.stop().unwrap();
    let directory = scene.network.node.run_path("lbd/state/discovery");
    let files: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .flatten()
        .map(|f| f.path())
        .collect();
    let [file] = &files[..] else {
        panic!("{files:?}");
    };
    let text = fs::read_to_string(file).unwrap();
    fs::write(file, &text[..text.len() / 2]).unwrap();
    scene.daemon.restart().unwrap();
    scene
        .daemon
        .wait_source("web", LONG, |s| s.state == "synced")
        .unwrap();
    assert!(
        scene.daemon.log().contains("cannot be used"),
        "{}",
        scene.daemon.log()
    );
    scene.daemon.wait_all_healthy().unwrap();
    assert_eq!(scene.reached(), ["b1"]);
}

#[test]
fn a_reload_touches_only_sources_that_changed() {
    let scene = start(&[(1, ""), (2, "")], "");
    let reload = |services: Vec<Service>| {
        let mut config = Config::new(&scene.network, "native");
        config.services = services;
        scene.daemon.write_config(&config.render()).unwrap();
        scene.daemon.ctl(&["reload"]).unwrap();
    };
    let saved = || {
        let directory = scene.network.node.run_path("lbd/state/discovery");
        let files = fs::read_dir(directory).unwrap().flatten();
        files
            .filter(|f| f.path().extension().is_some_and(|e| e == "json"))
            .count()
    };
    scene
        .daemon
        .replace_file("lbd/instances/more.yaml", &instances(&[(3, "")]))
        .unwrap();
    let mut other = Service::new("other", Protocol::Tcp)
        .listen(&scene.network, 1, ECHO_PORT)
        .discovery("{file: {path: /run/lbd/instances/more.yaml}}");
    reload(vec![service(&scene.network, ""), other.clone()]);
    scene
        .daemon
        .wait_source("other", LONG, |s| s.state == "synced")
        .unwrap();
    let source = scene.daemon.wait_source("web", LONG, |_| true).unwrap();
    assert_eq!(source.updates, 1, "it went on undisturbed: {source:?}");

    // Other keys: it keeps what it knows, though its file is gone.
    fs::remove_file(scene.network.node.run_path(FILE)).unwrap();
    scene
        .daemon
        .wait_source("web", LONG, |s| s.state == "failing")
        .unwrap();
    reload(vec![service(&scene.network, ", weight: 7"), other.clone()]);
    scene.wait(1, |b| b.weight == 7);
    assert_eq!(scene.reached(), ["b1", "b2"]);
    assert!(eventually(LONG, || saved() == 2), "{} files", saved());

    // Out of the config: its backends go, and so does what was kept.
    other.discovery = String::new();
    other.backends = vec![(scene.address(3), 1)];
    reload(vec![service(&scene.network, ", weight: 7"), other]);
    assert!(eventually(LONG, || saved() == 1), "{} files", saved());
    assert_eq!(scene.daemon.sources().unwrap().len(), 1);
    let page = scene.daemon.http("/metrics").unwrap().1;
    assert!(!page.contains("more.yaml"), "{page}");
}

fn passes(daemon: &Daemon) -> (f64, f64) {
    let passes = daemon
        .metric("lbd_reconcile_duration_seconds_count")
        .unwrap();
    (passes, daemon.metric("lbd_tables_written_total").unwrap())
}

#[test]
fn five_thousand_instances_in_a_second_are_few_passes() {
    const COUNT: usize = 5000;
    let network = Network::new(Topology::default()).unwrap();
    let text = |count: usize| {
        let mut text = "instances:\n".to_owned();
        for n in 0..count {
            text += &format!("- {{address: \"10.9.{}.{}:80\"}}\n", n / 250, n % 250 + 1);
        }
        text
    };
    replace_file(&network.node, FILE, &text(1)).unwrap();
    let mut web = service(&network, "");
    web.health = "{type: none}";
    web.snat = "never";
    let config = Config::new(&network, "native").service(web);
    let daemon = Daemon::start(&network.node, &config).unwrap();
    daemon
        .wait_source("web", LONG, |s| s.instances == 1)
        .unwrap();
    let (passes_before, tables_before) = passes(&daemon);
    let memory_before = daemon.resident_bytes().unwrap();
    let mut peak = memory_before;
    let began = Instant::now();
    // Fifty registrations every ten milliseconds.
    for step in 1..=100 {
        daemon
            .replace_file(FILE, &text(step * COUNT / 100))
            .unwrap();
        peak = peak.max(daemon.resident_bytes().unwrap());
        let next = began + Duration::from_millis(10) * step as u32;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let registered = began.elapsed();
    let all = eventually(LONG, || {
        peak = peak.max(daemon.resident_bytes().unwrap());
        let services = daemon.services().unwrap();
        services[0].healthy_backends as usize == COUNT
    });
    assert!(all, "{:?}", daemon.sources());
    let done = began.elapsed();
    // Whatever else there was to do comes now.
    std::thread::sleep(Duration::from_secs(1));
    let (passes_after, tables_after) = passes(&daemon);
    let (passes, tables) = (passes_after - passes_before, tables_after - tables_before);
    note(format!(
        "{COUNT} instances within {registered:.1?}: all in the kernel {:.0?} after the last, in {passes} passes, \
         {tables} tables written; resident {} → at most {} MiB",
        done.saturating_sub(registered),
        memory_before >> 20,
        peak >> 20
    ));
    let source = &daemon.sources().unwrap()[0];
    assert_eq!(source.errors, 0, "{source:?}");
    // Half a second a merge window.
    let windows = done.as_secs_f64() / 0.5 + 1.0;
    assert!(
        (1.0..=2.0 * windows).contains(&passes),
        "{passes} passes in {windows} windows"
    );
    assert!(
        tables <= 2.0 * windows,
        "{tables} tables in {windows} windows"
    );
}

#[test]
fn a_flapping_instance_is_few_passes() {
    let scene = start(&[(1, ""), (2, "")], "");
    let mut config = Config::new(&scene.network, "native");
    let mut web = service(&scene.network, "");
    web.health = "{type: none}";
    config.services = vec![web];
    scene.daemon.write_config(&config.render()).unwrap();
    scene.daemon.ctl(&["reload"]).unwrap();
    let open = scene.connection_to(1);
    let (passes_before, tables_before) = passes(&scene.daemon);
    let began = Instant::now();
    const FLAPS: usize = 50;
    for flap in 1..=2 * FLAPS {
        match flap % 2 {
            1 => write(&scene, &[(1, "")]),
            _ => write(&scene, &[(1, ""), (2, "")]),
        }
        let next = began + Duration::from_millis(100) * flap as u32;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let took = began.elapsed();
    let (passes_after, tables_after) = passes(&scene.daemon);
    let (passes, tables) = (passes_after - passes_before, tables_after - tables_before);
    note(format!(
        "an instance that left and came back {FLAPS} times within {took:.1?}: {passes} passes, {tables} tables written"
    ));
    // A pass for each merge window, one to free the slot at most behind each, and the second's scan.
    let windows = took.as_secs_f64() / 0.5 + 1.0;
    assert!(
        passes <= 2.0 * windows,
        "{passes} passes in {windows} windows"
    );
    assert!(
        tables <= 2.0 * windows,
        "{tables} tables in {windows} windows"
    );
    scene.goes_on(&open, "flapping");
    open.close().unwrap();
}

/// The examples of the documentation, as they stand.
#[test]
fn the_documented_examples_work() {
    let page = Page::read("discovery/file.md").unwrap();
    let network = Network::new(Topology::default()).unwrap();
    let _agents = start_all(&network.backends).unwrap();
    let reached = || {
        let sources = network.client_addresses(Family::V4);
        let target = (network.vip(0, Family::V4), 80).into();
        let result = burst(
            &network.client,
            &sources,
            20_000,
            200,
            Protocol::Http,
            target,
        );
        assert_eq!(summary(&result.failures), "none");
        result.by_backend
    };
    let backend = |host| SocketAddr::from(([10, 1, host, 2], HTTP_PORT));

    let text = page.example("minimal-instances").unwrap();
    replace_file(&network.node, FILE, &text).unwrap();
    let config = page.config("minimal", &network, "native").unwrap();
    let daemon = Daemon::start_with(&network.node, &config).unwrap();
    daemon.wait_all_healthy().unwrap();
    assert_eq!(reached().into_keys().collect::<Vec<_>>(), ["b1", "b2"]);

    let text = page.example("complete-instances").unwrap();
    daemon.replace_file(FILE, &text).unwrap();
    daemon
        .write_config(&page.config("complete", &network, "native").unwrap())
        .unwrap();
    daemon.ctl(&["reload"]).unwrap();
    daemon
        .wait_backend("web", backend(1), LONG, |b| b.effective_weight == 200)
        .unwrap();
    let one = daemon
        .backends()
        .unwrap()
        .into_iter()
        .find(|b| b.address == backend(1))
        .unwrap();
    assert_eq!((&*one.labels["zone"], &*one.labels["version"]), ("a", "v2"));
    assert_eq!(one.source, "discovery:file");
    daemon
        .wait_backend("web", backend(2), LONG, |b| {
            b.weight == 50 && b.state == BackendState::Draining
        })
        .unwrap();
    daemon
        .wait_backend("web", backend(3), LONG, |b| b.effective_weight == 10)
        .unwrap();
    let by_backend = reached();
    assert!(
        by_backend["b1"] > by_backend["b3"] && !by_backend.contains_key("b2"),
        "{by_backend:?}"
    );
}
