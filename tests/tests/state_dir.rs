//! The state directory cut off, unreadable, read-only, full: lbd starts, keeps out of traffic what was
//! taken out of it, and says what is wrong.
//!
//! ```text
//!   client ──── node (lbd) ──── b1 (drained), b2 (weight 7), b3, and one removed
//! ```

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use lb_tests::{
    clients::Protocol,
    daemon::{Config, STATE, Service, replace_file},
    net::{Family, Network, Topology},
    note,
    servers::ECHO_PORT,
    world::World,
};
use lb_userspace::model::BackendState;

/// What discovery says of the service `found`.
const INSTANCES: &str = "/run/lbd/found.yaml";

/// A backend that lbctl added and removed.
const REMOVED: &str = "10.99.0.1:80";

fn config(network: &Network) -> Config {
    let web = Service::new("web", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &[1, 1, 1]);
    let found = Service::new("found", Protocol::Tcp)
        .listen(network, 1, ECHO_PORT)
        .discovery(format!("{{file: {{path: {INSTANCES}}}}}"));
    Config::new(network, "off").service(web).service(found)
}

struct Scene {
    world: World,
    /// IPv4 addresses of the backends.
    addresses: [SocketAddr; 3],
}

impl Scene {
    /// A daemon that was told all kinds of things, and stopped.
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(prepare: impl FnOnce(&Network)) -> Self {
        let mut world = World::new(Topology::default(), |network| {
            prepare(network);
            let instance = network.backend(1, Family::V4);
            let text = format!("instances:\n  - {{address: \"{instance}:{ECHO_PORT}\"}}\n");
            let file = INSTANCES.strip_prefix("/run/").unwrap();
            replace_file(&network.node, file, &text).unwrap();
            config(network)
        })
        .unwrap();
        let address = |i| (world.network.backend(i, Family::V4), ECHO_PORT).into();
        let addresses: [SocketAddr; 3] = [1, 2, 3].map(address);
        let ctl = |arguments: &[&str]| world.daemon.ctl(arguments).unwrap();
        let [one, two, three] = &addresses;
        ctl(&["add", "backend", "web", REMOVED]);
        ctl(&["drain", &format!("web/{one}")]);
        ctl(&["set", "weight", &format!("web/{two}"), "7"]);
        ctl(&["remove", "backend", &format!("web/{REMOVED}")]);
        ctl(&["maint", &format!("web/{three}")]);
        world.daemon.stop().unwrap();
        Self { world, addresses }
    }

    fn directory(&self) -> PathBuf {
        let inside = Path::new(STATE).strip_prefix("/run").unwrap();
        self.world.network.node.run_path(inside.to_str().unwrap())
    }

    /// Starts the daemon: what was out of traffic is out of it.
    fn start_and_check(&mut self, what: &str) {
        let began = self.world.daemon.log().len();
        self.world
            .daemon
            .restart()
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let backends = self.world.daemon.backends().unwrap();
        let find = |address: &SocketAddr| {
            let mut backends = backends.iter().filter(|b| b.service == "web");
            let found = backends.find(|b| b.address == *address);
            found.unwrap_or_else(|| panic!("{what}: {address} is gone: {backends:#?}"))
        };
        let [one, two, three] = &self.addresses;
        let (drained, weighed, maintained) = (find(one), find(two), find(three));
        assert_eq!(drained.state, BackendState::Draining, "{what}: {drained:?}");
        assert_eq!(
            maintained.state,
            BackendState::Maintenance,
            "{what}: {maintained:?}"
        );
        assert_eq!(
            (drained.effective_weight, maintained.effective_weight),
            (0, 0),
            "{what}"
        );
        assert_eq!(weighed.effective_weight, 7, "{what}: {weighed:?}");
        let removed: SocketAddr = REMOVED.parse().unwrap();
        assert!(backends.iter().all(|b| b.address != removed), "{what}");
        let log = self.world.daemon.log();
        assert!(
            !log[began..].contains("panicked"),
            "{what}: {}",
            &log[began..]
        );
    }
}

/// All files in a directory and below, with what is in them.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn files_cut_at_every_64th_byte_put_nobody_back_into_traffic() {
    let mut scene = Scene::new();
    let whole = files(&scene.directory());
    let mut starts = 0;
    for (path, bytes) in &whole {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for cut in (0..bytes.len()).step_by(64) {
            for (path, _) in files(&scene.directory()) {
                fs::remove_file(path).unwrap();
            }
            for (path, bytes) in &whole {
                fs::write(path, bytes).unwrap();
            }
            fs::write(path, &bytes[..cut]).unwrap();
            let began = scene.world.daemon.log().len();
            scene.start_and_check(&format!("{name} cut at {cut}"));
            if name.starts_with("state.json") {
                let log = scene.world.daemon.log();
                let told = format!("{name} is damaged");
                // The copy is read only if the file is gone or damaged.
                assert!(
                    log[began..].contains(&told) || name.ends_with("bak"),
                    "{name}, {cut}"
                );
            }
            scene.world.daemon.kill9();
            starts += 1;
        }
    }
    note(format!(
        "{starts} starts, each with a cut file of {}",
        whole.len()
    ));
    assert!(starts > 10, "{whole:?}");
}

#[test]
fn a_file_of_an_older_or_newer_version_is_not_guessed_at() {
    let mut scene = Scene::new();
    for name in ["state.json", "state.json.bak"] {
        fs::write(
            scene.directory().join(name),
            "{\"version\": 99, \"state\": {}}",
        )
        .unwrap();
    }
    scene.world.daemon.launch().unwrap();
    let refused = scene.world.daemon.wait_ready().unwrap_err().to_string();
    assert!(
        refused.contains("version 99") && refused.contains("state.json.bak"),
        "{refused}"
    );
}

#[test]
fn a_disk_that_takes_nothing_keeps_nobody_from_balancing() {
    let mount = |network: &Network, options: &str| {
        fs::create_dir_all(network.node.run_path("lbd/state")).unwrap();
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs", STATE];
        network.node.execute("mount", &arguments).unwrap();
    };
    let mut scene = Scene::with(|network| mount(network, "size=128k"));
    for state in ["read-only", "full"] {
        let node = scene.world.network.node.clone();
        match state {
            "read-only" => {
                node.execute("mount", &["-o", "remount,ro", STATE]).unwrap();
            }
            _ => {
                node.execute("mount", &["-o", "remount,rw", STATE]).unwrap();
                let filled = fs::write(scene.directory().join("ballast"), vec![0; 1 << 20]);
                assert!(filled.is_err(), "the disk is not full");
            }
        }
        scene.start_and_check(state);
        // What cannot be kept is refused, and nothing changes.
        let target = format!("web/{}", scene.addresses[1]);
        let refused = scene.world.daemon.lbctl(&["drain", &target]);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && words.contains("cannot write"),
            "{state}: {words}"
        );
        scene.world.daemon.stop().unwrap();
    }
    fs::remove_file(scene.directory().join("ballast")).unwrap();
    scene.start_and_check("room again");
    let target = format!("web/{}", scene.addresses[1]);
    scene.world.daemon.ctl(&["drain", &target]).unwrap();
}
