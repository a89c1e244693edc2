//! The scripted registry does what it says, as the sources' own HTTP client sees it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lb_tests::{
    host::Host,
    registry::{Fault, Registry, Reply, Request as Asked},
};
use lb_userspace::discovery::{
    Class, Failure,
    http::{Answer, Auth, Client, Request, Tls},
};

/// With a registry that does not answer in time.
const PATIENCE: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(15);

struct Bed {
    host: Host,
    registry: Registry,
}

impl Bed {
    fn new(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let host = Host::new("registry").unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 8500));
        let registry = Registry::start(&host, address, script).unwrap();
        Self { host, registry }
    }

    fn fetch(&self, path: &str) -> Result<Answer, Failure> {
        self.fetch_within(LONG, path)
    }

    fn fetch_within(&self, patience: Duration, path: &str) -> Result<Answer, Failure> {
        let url = format!("http://{}", self.registry.address());
        let client = Client::new(url.parse().unwrap(), Tls::default(), Auth::None);
        self.run(async { client.fetch(Request::get(path, patience)).await?.success() })
    }

    fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.host.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(work)
        })
    }
}

fn list(request: &Asked) -> Reply {
    let index = request.query.get("index").map_or("0", String::as_str);
    Reply::json(format!(
        "[{{\"path\": {:?}, \"index\": {index}}}]",
        request.path
    ))
    .header("x-index", 7)
}

#[test]
fn it_answers_by_its_script_and_remembers() {
    let bed = Bed::new(list);
    let answer = bed.fetch("/v1/health?index=5&wait=1s").unwrap();
    assert_eq!(answer.header("x-index"), Some("7"));
    let json: serde_json::Value = answer.json().unwrap();
    assert_eq!(
        (&json[0]["path"], &json[0]["index"]),
        (&"/v1/health".into(), &5.into())
    );
    let asked = bed
        .registry
        .wait_asked(LONG, |r| r.path == "/v1/health")
        .unwrap();
    assert_eq!((&*asked.method, &*asked.query["wait"]), ("GET", "1s"));
    assert!(asked.headers["user-agent"].starts_with("lbd/"));
    assert_eq!(bed.registry.take_asked().len(), 1);
    assert!(bed.registry.wait_asked(Duration::ZERO, |_| true).is_err());
}

#[test]
fn each_fault_is_a_failure_of_its_class_and_passes() {
    let bed = Bed::new(list);
    for (fault, class) in [
        (Fault::Status(500), Class::Refused),
        (Fault::Status(403), Class::Denied),
        (Fault::HalfBody, Class::Unreachable),
        (Fault::NoHttp, Class::Malformed),
        (Fault::Drop, Class::Unreachable),
        (Fault::Hang, Class::Timeout),
        (Fault::Drip, Class::Timeout),
        (Fault::Endless, Class::Malformed),
    ] {
        bed.registry.set_fault(fault.clone());
        let patience = match fault {
            Fault::Hang | Fault::Drip => PATIENCE,
            _ => LONG,
        };
        let failure = bed.fetch_within(patience, "/v1/health").unwrap_err();
        // How far a body without end comes in time depends on the machine.
        let endless = fault == Fault::Endless && failure.class == Class::Timeout;
        assert!(failure.class == class || endless, "{fault:?}: {failure:?}");
        bed.registry.set_fault(None);
        bed.fetch("/v1/health").unwrap();
    }
    for fault in [Fault::Garbage, Fault::Nothing] {
        bed.registry.set_fault(fault);
        let answer = bed.fetch("/v1/health").unwrap();
        let failure = answer.json::<serde_json::Value>().unwrap_err();
        assert_eq!(failure.class, Class::Malformed);
    }
}

#[test]
fn it_dies_and_comes_back() {
    let mut bed = Bed::new(list);
    bed.fetch("/").unwrap();
    bed.registry.kill();
    let failure = bed.fetch("/").unwrap_err();
    assert!(failure.message.contains("refused"), "{failure}");
    bed.registry.restart().unwrap();
    bed.fetch("/").unwrap();
}

/// A watch goes on until the registry dies, and the script hears that.
#[test]
fn a_stream_ends_with_the_registry() {
    let ended = Arc::new(AtomicU32::new(0));
    let count = ended.clone();
    let mut bed = Bed::new(move |_| {
        let count = count.clone();
        Reply::Stream(Box::new(move |chunks| {
            chunks.send("first\n")?;
            while chunks.is_open() {
                std::thread::sleep(Duration::from_millis(10));
            }
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }))
    });
    let url = format!("http://{}", bed.registry.address())
        .parse()
        .unwrap();
    let client = Client::new(url, Tls::default(), Auth::None);
    let host = bed.host.clone();
    let (sender, first) = std::sync::mpsc::channel();
    let reader = host.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let mut stream = client.open(Request::get("/", LONG)).await.unwrap();
            sender.send(stream.line(LONG).await.unwrap()).unwrap();
            stream.line(LONG).await
        })
    });
    assert_eq!(first.recv().unwrap(), Some(b"first".to_vec()));
    bed.registry.kill();
    let end = reader.join().unwrap().unwrap_err();
    assert_eq!(end.class, Class::Unreachable, "{end}");
    assert!(lb_tests::eventually(LONG, || ended.load(Ordering::Relaxed) == 1));
}
