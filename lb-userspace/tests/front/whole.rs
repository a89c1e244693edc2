//! lbctl, the socket and the metrics with the real controller, on a data path that only remembers.

use std::{fs, path::PathBuf, process::Output, sync::Arc};

use lb_userspace::{
    api::{server, socket},
    config, controller,
    datapath::{Capacity, memory::Memory},
    http::Limits,
    metrics,
};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    common::Directory,
    lbctl::{code, lbctl, stderr, stdout},
};

struct Node {
    directory: Directory,
    socket: PathBuf,
    file: PathBuf,
    http: std::net::SocketAddr,
    _file: socket::SocketFile,
}

const FILE: &str = "\
node: {interfaces: [eth0], state_dir: STATE}
services:
  - name: web
    listen: \"192.0.2.10:80\"
    health: none
    backends:
      - {address: \"10.1.0.11:8080\"}
      - {address: \"10.1.0.12:8080\", weight: 50}
";

impl Node {
    async fn start() -> Self {
        let directory = Directory::new();
        let file = directory.join("lbd.yaml");
        let state = directory.join("state");
        let text = FILE.replace("STATE", state.to_str().unwrap());
        fs::write(&file, &text).unwrap();
        let config = config::parse(&text, "lbd.yaml").unwrap().config;
        let datapath = Arc::new(Memory::new(Capacity {
            services: 64,
            backends: 256,
            sources: 1000,
        }));
        let controller = controller::start(config, Some(file.clone()), datapath).unwrap();
        let socket = directory.join("lbd.sock");
        let (listener, socket_file) = socket::listen(&socket).unwrap();
        let limits = Limits::default();
        tokio::spawn(server::serve(listener, controller.clone(), limits));
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = http.local_addr().unwrap();
        tokio::spawn(metrics::serve(http, controller, limits));
        Self {
            directory,
            socket,
            file,
            http: address,
            _file: socket_file,
        }
    }

    async fn run(&self, arguments: &str) -> Output {
        lbctl(&self.socket, arguments).await
    }

    async fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments).await;
        assert_eq!(code(&output), 0, "{arguments}: {}", stderr(&output));
        stdout(&output).to_owned()
    }

    async fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.ok(arguments).await).unwrap()
    }
}

#[tokio::test]
async fn an_operator_s_day() {
    let node = Node::start().await;
    node.ok("status --wait 10s").await;

    node.ok(
        "add service api --listen [2001:db8::10]:443 --health none --backend [2001:db8::1]:443",
    )
    .await;
    node.ok("add backend api [2001:db8::2]:443 --weight 7 --label version=v2")
        .await;
    let items = node.json("get backends api -o json").await;
    assert_eq!(items["items"].as_array().unwrap().len(), 2);
    assert_eq!(items["items"][1]["address"], "[2001:db8::2]:443");
    assert_eq!(items["items"][1]["labels"]["version"], "v2");

    node.ok("set weight web/10.1.0.11:8080 50%").await;
    assert!(node.ok("get overrides").await.contains("50%"));
    node.ok("drain web/10.1.0.12:8080 --wait --timeout 10s")
        .await;
    let items = node.json("get be web -o json").await;
    assert_eq!(items["items"][0]["effectiveWeight"], 50);
    assert_eq!(items["items"][1]["state"], "draining");
    assert_eq!(items["items"][1]["effectiveWeight"], 0);
    node.ok("ready web/10.1.0.12:8080 --wait --timeout 10s")
        .await;
    node.ok("unset all web/10.1.0.12:8080").await;
    assert!(
        node.ok("describe service web")
            .await
            .contains("10.1.0.12:8080")
    );
    assert!(node.ok("get events").await.lines().count() > 1);

    let exported = node.directory.join("export.yaml");
    fs::write(&exported, node.ok("export").await).unwrap();
    node.ok(&format!("check {}", exported.display())).await;
    let diff = node.run(&format!("diff {}", node.file.display())).await;
    assert!(matches!(code(&diff), 0 | 1), "{}", stderr(&diff));
    node.ok("reload").await;
    node.ok("remove backend api/[2001:db8::2]:443").await;
    node.ok("remove service api").await;
}

#[tokio::test]
async fn faults_have_their_exit_codes() {
    let node = Node::start().await;
    let cases = [
        ("describe service nope", 5),
        ("drain web/10.9.9.9:1", 5),
        ("get backends nope", 5),
        ("add service web --listen 192.0.2.99:80", 6),
        ("add service other --listen 192.0.2.10:80", 6),
        ("remove service web", 7),
    ];
    for (arguments, exit) in cases {
        let output = node.run(arguments).await;
        assert_eq!(code(&output), exit, "{arguments}: {}", stderr(&output));
    }
    fs::write(&node.file, "services: 5\n").unwrap();
    let output = node.run("reload").await;
    assert!(matches!(code(&output), 2 | 3), "{}", stderr(&output));
    node.ok("get services web").await;
}

#[tokio::test]
async fn metrics_come_from_the_controller() {
    let node = Node::start().await;
    node.ok("status --wait 10s").await;
    let mut stream = TcpStream::connect(node.http).await.unwrap();
    let page = crate::metrics::exchange_on(&mut stream, b"GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(page.contains("\nlbd_ready 1\n"), "{page}");
    let series = r#"lbd_backend_effective_weight{backend="10.1.0.12:8080",service="web"} 50"#;
    assert!(page.contains(series), "{page}");
}
