//! The API's socket: who may use it, and what they cannot have root do.
//!
//! ```text
//!   node: lbd, /etc/group of its own, a user of the group lbd and one of none
//! ```

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixStream,
    },
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use lb_tests::{
    clients::Protocol,
    daemon::{Config, Daemon, SOCKET, Service, replace_file},
    eventually,
    host::Host,
    net::{Family, Network, Topology},
    servers::ECHO_PORT,
};
use lb_userspace::{api::types::Request, config, model::ServiceSpec};

/// The number of the group `lbd`, and of nobody's.
const GROUP: u32 = 4242;
const NOBODY: u32 = 65_534;
const LONG: Duration = Duration::from_secs(30);

fn config(network: &Network) -> Config {
    let service = Service::new("web", Protocol::Tcp)
        .listen(network, 0, ECHO_PORT)
        .backends(network, ECHO_PORT, &[1]);
    Config::new(network, "native").service(service)
}

fn network() -> Network {
    let topology = Topology {
        backends: 1,
        ..Topology::default()
    };
    Network::new(topology).unwrap()
}

/// Puts a program where everybody may run it. A process of its own writes it: what this one has open for
/// writing, a child that begins meanwhile has open too, and nobody can run it then.
fn install(node: &Host, program: &Path, to: &str) {
    let program = program.to_str().unwrap();
    node.execute("cp", &[program, &format!("/run/{to}")])
        .unwrap();
    fs::set_permissions(node.run_path(to), fs::Permissions::from_mode(0o755)).unwrap();
}

/// What somebody gets who runs `lbctl status`.
fn status_as(daemon: &Daemon, network: &Network, user: u32, group: u32) -> Output {
    if !network.node.run_path("lbctl").exists() {
        install(&network.node, &daemon.sibling("lbctl"), "lbctl");
    }
    let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
    let mut command = network.node.command("setpriv");
    command
        .args([&user, &group, "--clear-groups", "--", "/run/lbctl"])
        .args(["--socket", SOCKET, "status"])
        .stdin(Stdio::null());
    command.output().expect("setpriv runs (package util-linux)")
}

#[test]
fn the_socket_is_for_root_and_the_group_and_for_nobody_else() {
    let network = network();
    // The node's own, which no other host sees.
    let groups = format!("root:x:0:\nlbd-old:x:77:\nlbd:x:{GROUP}:alice\n");
    fs::write(network.node.run_path("group"), groups).unwrap();
    let bind = ["--bind", "/run/group", "/etc/group"];
    network.node.execute("mount", &bind).unwrap();
    let mut daemon = Daemon::start(&network.node, &config(&network)).unwrap();
    for what in ["begun", "restarted"] {
        let socket = fs::metadata(daemon.socket_path()).unwrap();
        assert_eq!((socket.uid(), socket.gid()), (0, GROUP), "{what}");
        assert_eq!(socket.permissions().mode() & 0o7777, 0o660, "{what}");
        let member = status_as(&daemon, &network, NOBODY, GROUP);
        assert!(
            String::from_utf8_lossy(&member.stdout).contains("State:"),
            "{what}: {member:?}"
        );
        let stranger = status_as(&daemon, &network, NOBODY, NOBODY);
        assert!(!stranger.status.success(), "{what}: {stranger:?}");
        let told = String::from_utf8_lossy(&stranger.stderr).into_owned();
        assert!(told.contains("ermission"), "{what}: {told}");
        // What a killed one leaves is replaced.
        daemon.kill9();
        daemon.restart().unwrap();
    }
    assert!(
        !daemon.log().contains("cannot give the socket"),
        "{}",
        daemon.log()
    );
    // No group, no member.
    daemon.stop().unwrap();
    network.node.execute("umount", &["/etc/group"]).unwrap();
    fs::write(network.node.run_path("group"), "root:x:0:\n").unwrap();
    network.node.execute("mount", &bind).unwrap();
    daemon.restart().unwrap();
    let socket = fs::metadata(daemon.socket_path()).unwrap();
    assert_eq!((socket.uid(), socket.gid()), (0, 0));
    assert_eq!(socket.permissions().mode() & 0o7777, 0o660);
}

/// Whatever the umask of who starts it, nobody else may write to what it makes.
#[test]
fn a_daemon_without_an_umask_makes_nothing_that_others_may_write_to() {
    let network = network();
    let mut daemon = Daemon::start(&network.node, &config(&network)).unwrap();
    daemon.stop().unwrap();
    for made in ["lbd/state", "lbd/lbd.sock"] {
        let path = network.node.run_path(made);
        let _ = fs::remove_dir_all(path);
    }
    // Another directory for the socket, which has to be made.
    let text = config(&network)
        .render()
        .replace(SOCKET, "/run/lbd/new/lbd.sock");
    daemon.write_config(&text).unwrap();
    let program = daemon.program();
    let script = format!("#!/bin/sh\numask 0\nexec {} \"$@\"\n", program.display());
    fs::write(network.node.run_path("script"), script).unwrap();
    install(&network.node, Path::new("/run/script"), "lbd-without-umask");
    daemon.set_program("/run/lbd-without-umask".into());
    daemon.restart().unwrap();
    let found = network.node.execute(
        "find",
        &[
            "/run/lbd/new",
            "/run/lbd/state",
            "-ignore_readdir_race",
            "-perm",
            "/o=w",
            "-not",
            "-type",
            "l",
        ],
    );
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    assert_eq!(found, "", "others may write to these");
    daemon.stop().unwrap();
    daemon.set_program(program);
    daemon.write_config(&config(&network).render()).unwrap();
    daemon.restart().unwrap();
}

/// Asks as a program of its own would, past what lbctl looks at.
fn call(daemon: &Daemon, request: &Request) -> (u16, String) {
    let body = serde_json::to_string(request).unwrap();
    let mut peer = UnixStream::connect(daemon.socket_path()).unwrap();
    let head = format!(
        "POST /v1/call HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    peer.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    peer.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

/// A service whose backends are in this file, as a config has it and as a request has it, which no
/// config's rules need have seen.
fn found_in(network: &Network, path: &str) -> (String, ServiceSpec) {
    const HERE: &str = "/run/lbd/here.yaml";
    let listen = network.vip(3, Family::V4);
    let file = format!("{{file: {{path: {HERE}}}}}");
    let text =
        format!("services: [{{name: stolen, listen: \"{listen}:80\", discovery: {file}}}]\n");
    let parsed = config::parse(&text, "f").unwrap();
    let service = serde_json::to_string(&parsed.config.services[0]).unwrap();
    assert!(service.contains(HERE), "{service}");
    let service = serde_json::from_str(&service.replace(HERE, path)).unwrap();
    (text.replace(HERE, path), service)
}

/// A member of the group can name the files that are lbd's, and no others.
#[test]
fn no_request_has_root_read_a_file_of_others() {
    let network = network();
    let daemon = Daemon::start(&network.node, &config(&network)).unwrap();
    let node = &network.node;
    let secret = "instances: [{address: \"10.1.1.2:7000\", id: secret}]\n";
    fs::write(node.run_path("secret.yaml"), secret).unwrap();
    let before = daemon.services().unwrap().len();
    for path in [
        "/etc/shadow",
        "/run/secret.yaml",
        "/run/lbd/../secret.yaml",
        "/run/lbd/state/../../secret.yaml",
        "/run/lbdx/secret.yaml",
        "/proc/self/environ",
        "/",
    ] {
        let (text, service) = found_in(&network, path);
        let (status, answer) = call(&daemon, &Request::AddService { service });
        assert_eq!(status, 403, "{path}: {answer}");
        assert!(answer.contains("is no file of lbd's"), "{path}: {answer}");
        // A config with `..` in it is wrong already.
        let (refused, code, words) = match path.contains("..") {
            true => (400, 2, "contains `..`"),
            false => (403, 7, "is no file of lbd's"),
        };
        for dry_run in [false, true] {
            let text = text.clone();
            let (status, answer) = call(&daemon, &Request::Apply { text, dry_run });
            assert_eq!(status, refused, "{path}: {answer}");
            assert!(answer.contains(words), "{path}: {answer}");
        }
        replace_file(node, "applied.yaml", &text).unwrap();
        let applied = daemon.lbctl(&["apply", "/run/applied.yaml"]);
        assert_eq!(applied.status.code(), Some(code), "{path}: {applied:?}");
    }
    assert_eq!(daemon.services().unwrap().len(), before);
    assert_eq!(daemon.sources().unwrap(), []);

    // Where links lead is for root to say, who alone can make one there: they are followed.
    symlink("/run/secret.yaml", node.run_path("lbd/link.yaml")).unwrap();
    let (_, service) = found_in(&network, "/run/lbd/link.yaml");
    let (status, answer) = call(&daemon, &Request::AddService { service });
    assert_eq!(status, 200, "{answer}");
    let source = daemon.wait_source("stolen", LONG, |s| s.instances == 1);
    source.unwrap();
    daemon.ctl(&["remove", "service", "stolen"]).unwrap();
    let owner = fs::metadata(node.run_path("lbd")).unwrap();
    assert_eq!((owner.uid(), owner.mode() & 0o022), (0, 0));
}

/// What a request names becomes part of no path that is written to.
#[test]
fn no_request_has_root_write_a_file_elsewhere() {
    let network = network();
    let daemon = Daemon::start(&network.node, &config(&network)).unwrap();
    let node = &network.node;
    let listed = || {
        // Not by a time alone: somebody may set the clock.
        let which = ["/run", "-ignore_readdir_race", "-type", "f"];
        let form = ["-printf", "%p\\t%i %s %T@\\n"];
        let listed = node.execute("find", &[&which[..], &form].concat()).unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let lines = listed.lines().map(str::to_owned);
        lines.collect::<BTreeSet<_>>()
    };
    let before = listed();
    // New or written to since then.
    let files = || {
        let now = listed();
        let changed = now
            .difference(&before)
            .filter_map(|line| line.split('\t').next());
        changed.map(str::to_owned).collect::<Vec<_>>()
    };
    let (_, good) = found_in(&network, "/run/lbd/found.yaml");
    for name in [
        "../../escaped",
        "/run/escaped",
        "a/../../b",
        ".",
        "",
        "a\0b",
    ] {
        let mut service = good.clone();
        service.name = name.to_owned();
        let (status, answer) = call(&daemon, &Request::AddService { service });
        assert!([400, 403].contains(&status), "{name}: {answer}");
    }
    // One whose target, which is part of its source's name, looks like a path.
    fs::write(
        node.run_path("lbd/found.yaml"),
        "instances: [{address: \"10.1.1.2:7000\"}]",
    )
    .unwrap();
    let (status, answer) = call(&daemon, &Request::AddService { service: good });
    assert_eq!(status, 200, "{answer}");
    daemon
        .wait_source("stolen", LONG, |s| s.instances == 1)
        .unwrap();
    let saved = || {
        files()
            .iter()
            .any(|file| file.starts_with("/run/lbd/state/discovery/"))
    };
    assert!(eventually(LONG, saved), "{:?}", files());
    let elsewhere: Vec<_> = files()
        .into_iter()
        .filter(|file| !file.starts_with("/run/lbd/"))
        .collect();
    assert_eq!(elsewhere, Vec::<String>::new());
}
