//! The dns source against a scripted server: how long answers count, and what no fault of a server
//! may do. All on the loopback device.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RecordType},
};
use lb_tests::{
    names::{Asked, Names, Replies, Zone},
    note, patience,
};
use lb_userspace::discovery::{
    Class, Configured as _, Failure, Feed, Report, Settings, Snapshot, Source as _,
    dns::{Config, Family, Lookup},
};
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle, time::timeout};

const WEB: &str = "web.example.internal";
const SRV: &str = "_http._tcp.web.example.internal";
const LONG: Duration = Duration::from_secs(60);

/// A running source and what it reports.
struct Bed {
    reports: UnboundedReceiver<Report>,
    task: JoinHandle<()>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn config(lookup: Lookup, servers: &[SocketAddr]) -> Config {
    Config {
        family: Family::Ipv4,
        servers: servers.to_vec(),
        min_ttl: Duration::from_millis(100),
        timeout: patience(Duration::from_secs(2)),
        ..Config::new(lookup)
    }
}

fn web() -> Lookup {
    Lookup::Host {
        name: WEB.to_owned(),
        port: 80,
    }
}

fn srv() -> Lookup {
    Lookup::Srv {
        name: SRV.to_owned(),
    }
}

impl Bed {
    fn start(config: &Config) -> Self {
        let settings = Settings {
            resync: Duration::ZERO,
            ..Settings::default()
        };
        Self::with(config, &settings)
    }

    fn with(config: &Config, settings: &Settings) -> Self {
        let (mut feed, reports) = Feed::open(settings);
        let mut source = config.source("web");
        let task = tokio::spawn(async move {
            loop {
                if let Err(failure) = source.session(&mut feed).await {
                    feed.failure(failure);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { reports, task }
    }

    async fn report(&mut self) -> Report {
        let report = timeout(LONG, self.reports.recv()).await;
        report.expect("no report").expect("the source lives")
    }

    async fn snapshot(&mut self) -> Snapshot {
        match self.report().await {
            Report::Snapshot(snapshot) => snapshot,
            Report::Failure(failure) => panic!("{failure}"),
        }
    }

    async fn ids(&mut self) -> Vec<String> {
        let instances = self.snapshot().await.instances.into_iter();
        instances.map(|i| i.id).collect()
    }

    async fn failure(&mut self) -> Failure {
        loop {
            if let Report::Failure(failure) = self.report().await {
                return failure;
            }
        }
    }

    /// Waits for a snapshot with these ids, whatever comes before.
    async fn until(&mut self, ids: &[&str]) {
        loop {
            if let Report::Snapshot(snapshot) = self.report().await
                && snapshot
                    .instances
                    .iter()
                    .map(|i| &*i.id)
                    .eq(ids.iter().copied())
            {
                return;
            }
        }
    }
}

fn zone(ttl: u32) -> Zone {
    Zone::new(1)
        .address(WEB, ttl, "10.0.0.1")
        .address(WEB, ttl, "10.0.0.2")
}

/// Time between the first two questions of a kind.
async fn gap(names: &Names, kind: RecordType) -> Duration {
    let mut times: Vec<Instant> = Vec::new();
    let end = Instant::now() + LONG;
    while times.len() < 2 {
        assert!(Instant::now() < end, "not asked twice");
        let asked = names.take_asked().into_iter().filter(|a| a.kind() == kind);
        times.extend(asked.map(|a| a.at));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times[1] - times[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_asked_again_when_their_ttl_is_over() {
    let names = Names::of(zone(1)).unwrap();
    let mut bed = Bed::start(&config(web(), &[names.address()]));
    assert_eq!(bed.ids().await, ["10.0.0.1:80", "10.0.0.2:80"]);
    let first = &names.take_asked()[0];
    assert_eq!(
        (first.name().as_str(), first.edns, first.by_tcp),
        (WEB, Some(1232), false)
    );
    names.set_zone(Zone::new(1).address(WEB, 0, "10.0.0.3"));
    assert_eq!(bed.ids().await, ["10.0.0.3:80"]);

    // The shortest wait is `min_ttl`, also where the TTL is 0.
    let mut config = config(web(), &[names.address()]);
    for (ttl, min_ttl) in [(1, 100), (0, 300), (1, 1500)] {
        config.min_ttl = Duration::from_millis(min_ttl);
        names.set_zone(zone(ttl));
        drop(bed);
        names.take_asked();
        bed = Bed::start(&config);
        let waited = gap(&names, RecordType::A).await;
        note(format!(
            "TTL {ttl} s, min_ttl {min_ttl} ms: asked again after {waited:.0?}"
        ));
        let due = Duration::from_secs(ttl.into()).max(config.min_ttl);
        assert!(waited + Duration::from_millis(20) >= due, "{waited:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_holds_as_long_as_the_soa_says_and_resync_is_the_longest() {
    let names = Names::of(Zone::new(1)).unwrap();
    let mut bed = Bed::start(&config(web(), &[names.address()]));
    assert_eq!(bed.snapshot().await, Snapshot::default());
    let waited = gap(&names, RecordType::A).await;
    note(format!("negative TTL 1 s: asked again after {waited:.0?}"));
    assert!(
        waited + Duration::from_millis(20) >= Duration::from_secs(1),
        "{waited:?}"
    );
    names.set_zone(zone(1));
    bed.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;

    names.set_zone(zone(100_000));
    let settings = Settings {
        resync: Duration::from_secs(1),
        ..Settings::default()
    };
    names.take_asked();
    drop(bed);
    let mut bed = Bed::with(&config(web(), &[names.address()]), &settings);
    bed.snapshot().await;
    gap(&names, RecordType::A).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_of_services_are_asked_again_by_their_own_ttl() {
    let services = |ip: &str| {
        Zone::new(1)
            .srv(SRV, 1000, (1, 60), "a.example.internal", 8080)
            .srv(SRV, 1000, (1, 40), "b.example.internal", 8080)
            .srv(SRV, 1000, (1, 40), "b.example.internal", 8081)
            .srv(SRV, 1000, (2, 10), "c.example.internal", 8080)
            .address("a.example.internal", 0, ip)
            .address("b.example.internal", 1000, "10.0.0.2")
            .address("c.example.internal", 1000, "10.0.0.9")
    };
    let names = Names::of(services("10.0.0.1")).unwrap();
    let mut bed = Bed::start(&config(srv(), &[names.address()]));
    let weights = |snapshot: Snapshot| {
        let instances = snapshot.instances.into_iter();
        instances
            .map(|i| format!("{} {:?}", i.id, i.weight))
            .collect::<Vec<_>>()
    };
    let expected = [
        "10.0.0.1:8080 Some(60)",
        "10.0.0.2:8080 Some(40)",
        "10.0.0.2:8081 Some(40)",
    ];
    assert_eq!(weights(bed.snapshot().await), expected);
    names.set_zone(services("10.0.0.7"));
    bed.until(&["10.0.0.2:8080", "10.0.0.2:8081", "10.0.0.7:8080"])
        .await;
    let asked = names.take_asked();
    let count = |name: &str| asked.iter().filter(|a| a.name() == name).count();
    assert!(count("a.example.internal") >= 2);
    assert_eq!(
        (
            count(SRV),
            count("b.example.internal"),
            count("c.example.internal")
        ),
        (1, 1, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_as_target_is_decided_and_no_records_are_not() {
    let names = Names::of(Zone::new(1).srv(SRV, 0, (0, 0), ".", 0)).unwrap();
    let mut bed = Bed::start(&config(srv(), &[names.address()]));
    let snapshot = bed.snapshot().await;
    assert!(snapshot.decided && snapshot.instances.is_empty());
    names.set_zone(Zone::new(1));
    while bed.snapshot().await.decided {}
}

fn code(code: ResponseCode) -> impl Fn(&Asked) -> Replies {
    move |asked| vec![asked.code(code).to_vec().unwrap()]
}

fn truncated(asked: &Asked) -> Replies {
    let mut message = asked.code(ResponseCode::NoError);
    message.metadata.truncation = true;
    vec![message.to_vec().unwrap()]
}

fn changed(asked: &Asked, change: impl Fn(&mut Asked)) -> Replies {
    let mut other = asked.clone();
    change(&mut other);
    zone(0).replies(&other)
}

type Script = Box<dyn Fn(&Asked) -> Replies + Send + Sync>;

/// Each fault is told in words of its own, takes nothing away, and is over when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_a_server_is_an_answer() {
    let names = Names::of(zone(0)).unwrap();
    // So short that even a good answer may come too late.
    let config = Config {
        timeout: Duration::from_millis(250),
        ..config(web(), &[names.address()])
    };
    let mut bed = Bed::start(&config);
    bed.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    let faults: Vec<(&str, Script, Class, &str)> = vec![
        (
            "SERVFAIL",
            Box::new(code(ResponseCode::ServFail)),
            Class::Refused,
            "SERVFAIL",
        ),
        (
            "REFUSED",
            Box::new(code(ResponseCode::Refused)),
            Class::Refused,
            "REFUSED",
        ),
        (
            "silence",
            Box::new(|_| vec![]),
            Class::Timeout,
            "no answer within 250ms",
        ),
        (
            "garbage",
            Box::new(|asked| {
                vec![
                    [
                        &asked.id.to_be_bytes()[..],
                        b"\x80\0\0\x01\0\x09\xff\xff garbage",
                    ]
                    .concat(),
                ]
            }),
            Class::Malformed,
            "no answer within 250ms, but",
        ),
        (
            "a few bytes",
            Box::new(|_| vec![b"!".to_vec()]),
            Class::Malformed,
            "no DNS message",
        ),
        (
            "another id",
            Box::new(|asked| changed(asked, |a| a.id ^= 1)),
            Class::Malformed,
            "another id",
        ),
        (
            "another name",
            Box::new(|asked| {
                changed(asked, |a| {
                    a.query
                        .set_name(Name::from_ascii("other.example.internal.").unwrap());
                })
            }),
            Class::Malformed,
            "another question",
        ),
        (
            "half an answer",
            Box::new(|asked| {
                let whole = zone(0).replies(asked).remove(0);
                vec![whole[..whole.len() - 9].to_vec()]
            }),
            Class::Malformed,
            "no answer within 250ms, but",
        ),
        (
            "truncated by TCP too",
            Box::new(truncated),
            Class::Malformed,
            "short even by TCP",
        ),
        (
            "truncated, and TCP ends at once",
            Box::new(|asked| {
                if asked.by_tcp {
                    vec![]
                } else {
                    truncated(asked)
                }
            }),
            Class::Malformed,
            "ends the connection before",
        ),
    ];
    for (what, script, class, words) in faults {
        names.set(script);
        let failure = loop {
            let failure = bed.failure().await;
            if failure.message.contains(words) {
                break failure;
            }
        };
        assert_eq!(failure.class, class, "{what}: {failure}");
        note(format!("{what}: {failure}"));
        names.set_zone(zone(0));
        bed.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_send_in_between_is_passed_over() {
    let names = Names::start(|asked| {
        let mut all = changed(asked, |a| a.id ^= 1);
        all.extend(changed(asked, |a| {
            a.query
                .set_name(Name::from_ascii("other.example.internal.").unwrap());
        }));
        all.push(b"garbage".to_vec());
        all.extend(zone(0).replies(asked));
        all
    })
    .unwrap();
    let mut bed = Bed::start(&config(web(), &[names.address()]));
    assert_eq!(bed.ids().await, ["10.0.0.1:80", "10.0.0.2:80"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_truncated_is_asked_by_tcp_and_who_does_not_know_edns_without() {
    let names = Names::start(|asked| match asked.by_tcp {
        true => (1..=200)
            .fold(Zone::new(1), |zone, n| {
                zone.address(WEB, 0, &format!("10.0.1.{n}"))
            })
            .replies(asked),
        // Cut where no record ends.
        false => {
            let mut bytes = zone(0).replies(asked).remove(0);
            bytes.truncate(bytes.len() - 5);
            bytes[2] |= 0x02;
            vec![bytes]
        }
    })
    .unwrap();
    let mut bed = Bed::start(&config(web(), &[names.address()]));
    assert_eq!(bed.ids().await.len(), 200);
    assert!(names.take_asked().iter().any(|a| a.by_tcp));

    names.set(|asked| match asked.edns {
        Some(_) => code(ResponseCode::FormErr)(asked),
        None => zone(0).replies(asked),
    });
    bed.until(&["10.0.0.1:80", "10.0.0.2:80"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_tried_in_turn_and_one_that_answers_stays_first() {
    let silent = Names::start(|_| vec![]).unwrap();
    let failing = Names::start(code(ResponseCode::ServFail)).unwrap();
    let good = Names::of(zone(0)).unwrap();
    let dead = {
        let gone = Names::of(zone(0)).unwrap();
        gone.address()
    };
    let servers = [silent.address(), dead, failing.address(), good.address()];
    let mut bed = Bed::start(&config(web(), &servers));
    for _ in 0..5 {
        assert_eq!(bed.ids().await.len(), 2);
    }
    let counts = [&silent, &failing].map(|names| names.take_asked().len());
    assert_eq!(counts, [1, 1], "each was tried once");

    good.set(code(ResponseCode::Refused));
    let told = bed.failure().await.message;
    note(&told);
    for word in [
        "gives no answer",
        "nobody listens there",
        "SERVFAIL",
        "REFUSED",
    ] {
        assert!(told.contains(word), "{told}");
    }
    // NXDOMAIN is an answer: no other server is asked.
    silent.take_asked();
    good.set_zone(Zone::new(1));
    bed.until(&[]).await;
    silent.take_asked();
    assert_eq!(bed.ids().await.len(), 0);
    assert_eq!(silent.take_asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fails_keeps_its_addresses_and_new_ones_come() {
    let services = |more: &[&str]| {
        let zone = Zone::new(1)
            .address("a.example.internal", 0, "10.0.0.1")
            .address("b.example.internal", 0, "10.0.0.2")
            .address("c.example.internal", 0, "10.0.0.3");
        more.iter()
            .fold(zone, |zone, target| zone.srv(SRV, 0, (0, 1), target, 80))
    };
    let [a, b, c] = [
        "a.example.internal",
        "b.example.internal",
        "c.example.internal",
    ];
    let names = Names::of(services(&[a, b])).unwrap();
    let mut bed = Bed::start(&config(srv(), &[names.address()]));
    assert_eq!(bed.ids().await, ["10.0.0.1:80", "10.0.0.2:80"]);
    let more = services(&[a, b, c]);
    names.set(move |asked| match asked.name() == b {
        true => code(ResponseCode::ServFail)(asked),
        false => more.replies(asked),
    });
    bed.until(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"])
        .await;
    let failure = bed.failure().await;
    assert!(
        failure.message.starts_with("A b.example.internal.: "),
        "{failure}"
    );
    // One that begins knows nothing of b, and so nothing at all.
    let mut other = Bed::start(&config(srv(), &[names.address()]));
    assert!(matches!(other.report().await, Report::Failure(_)));
    names.set_zone(services(&[a, b, c]));
    bed.until(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"])
        .await;
    other
        .until(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_families_aliases_and_search_domains() {
    let zone = Zone::new(1)
        .alias("web.example.internal", 0, "pool.example.internal")
        .address("pool.example.internal", 0, "10.0.0.1")
        .address("pool.example.internal", 0, "fd00::1");
    let names = Names::of(zone).unwrap();
    let lookup = Lookup::Host {
        name: "web".to_owned(),
        port: 80,
    };
    let config = Config {
        family: Family::Both,
        search: Some(vec![
            "no.example.internal".to_owned(),
            "example.internal".to_owned(),
        ]),
        ..config(lookup, &[names.address()])
    };
    let mut bed = Bed::start(&config);
    assert_eq!(bed.ids().await, ["10.0.0.1:80", "[fd00::1]:80"]);
    let mut asked: Vec<_> = names.take_asked().iter().map(Asked::name).collect();
    asked.dedup();
    assert_eq!(
        asked[..2],
        ["web.no.example.internal", "web.example.internal"]
    );
    // Half of what is asked for is not all of it.
    names.set(move |asked| match asked.kind() {
        RecordType::AAAA => code(ResponseCode::ServFail)(asked),
        _ => Zone::new(1).replies(asked),
    });
    let failure = bed.failure().await;
    assert!(failure.message.starts_with("AAAA "), "{failure}");
}
