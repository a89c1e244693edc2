//! Messages to answers, answers to instances. How servers fail is tried in `tests/tests/dns.rs`.

use std::{collections::HashMap, str::FromStr as _};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, SOA, SRV},
    },
};

use super::{
    message::{Data, Reply, Service, Wrong, ask, read},
    *,
};

fn full(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}

fn question(name: &str, kind: RecordType) -> Question {
    let name = full(name);
    Question { name, kind }
}

const ID: u16 = 77;

fn response(question: &Question, code: ResponseCode) -> Message {
    let mut message = Message::new(ID, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.add_query(Query::query(question.name.clone(), question.kind));
    message
}

fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(full(name), ttl, data)
}

fn a(ip: &str) -> RData {
    RData::A(A::from_str(ip).unwrap())
}

fn said(message: &Message, question: &Question) -> Result<Reply, Wrong> {
    read(&message.to_vec().unwrap(), ID, question)
}

fn answered(message: &Message, question: &Question) -> (Data, Option<u64>) {
    match said(message, question) {
        Ok(Reply::Answer(Answer { data, ttl })) => (data, ttl.map(|ttl| ttl.as_secs())),
        other => panic!("{other:?}"),
    }
}

fn ips(list: &[&str]) -> Data {
    Data::Addresses(list.iter().map(|ip| ip.parse().unwrap()).collect())
}

#[test]
fn a_question_offers_edns_and_wants_recursion() {
    let bytes = ask(&question("web.example", RecordType::A), ID, true).unwrap();
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!(message.edns.unwrap().max_payload(), 1232);
    assert!(message.metadata.recursion_desired);
    let bytes = ask(&question("web.example", RecordType::A), ID, false).unwrap();
    assert_eq!(Message::from_vec(&bytes).unwrap().edns, None);
}

#[test]
fn addresses_come_through_aliases_and_hold_as_long_as_the_shortest() {
    let asked = question("web.example", RecordType::A);
    let mut message = response(&asked, ResponseCode::NoError);
    for record in [
        record("web.example", 50, RData::CNAME(CNAME(full("Lb.Example")))),
        record("lb.example", 40, RData::CNAME(CNAME(full("pool.example")))),
        record("pool.example", 30, a("10.0.0.2")),
        record("POOL.example", 60, a("10.0.0.1")),
        record("pool.example", 60, a("10.0.0.1")),
        // Nobody asked for these.
        record(
            "pool.example",
            1,
            RData::AAAA(AAAA::from_str("fd00::1").unwrap()),
        ),
        record("other.example", 1, a("10.6.6.6")),
    ] {
        message.add_answer(record);
    }
    let expected = (ips(&["10.0.0.1", "10.0.0.2"]), Some(30));
    assert_eq!(answered(&message, &asked), expected);

    let mut circle = response(&asked, ResponseCode::NoError);
    circle.add_answer(record(
        "web.example",
        5,
        RData::CNAME(CNAME(full("b.example"))),
    ));
    let mut half = circle.clone();
    circle.add_answer(record(
        "b.example",
        5,
        RData::CNAME(CNAME(full("web.example"))),
    ));
    assert!(matches!(said(&circle, &asked), Err(Wrong::Malformed(_))));
    // An authority that does not hold the alias's zone.
    assert_eq!(
        answered(&half, &asked),
        (Data::Alias(full("b.example")), Some(5))
    );
    half.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(answered(&half, &asked), (Data::Nothing, None));
    half.add_answer(record("b.example", 5, a("10.0.0.1")));
    assert!(matches!(said(&half, &asked), Err(Wrong::Malformed(_))));
}

#[test]
fn nothing_holds_as_long_as_the_zone_says() {
    let asked = question("web.example", RecordType::AAAA);
    let soa = |minimum| RData::SOA(SOA::new(full("ns"), full("a"), 1, 1, 1, 1, minimum));
    for (code, owner, ttl, minimum, expected) in [
        (ResponseCode::NXDomain, "example", 3600, 20, Some(20)),
        (ResponseCode::NoError, "example", 10, 20, Some(10)),
        (ResponseCode::NoError, ".", 10, 20, Some(10)),
        // Of another zone, so it says nothing of this name.
        (ResponseCode::NoError, "example2", 10, 20, None),
        // RFC 2181: a TTL with the highest bit set is none.
        (ResponseCode::NXDomain, "example", u32::MAX, 20, Some(0)),
    ] {
        let mut message = response(&asked, code);
        message.add_authority(record(owner, ttl, soa(minimum)));
        assert_eq!(
            answered(&message, &asked),
            (Data::Nothing, expected),
            "{owner} {ttl}"
        );
    }
    let bare = response(&asked, ResponseCode::NXDomain);
    assert_eq!(answered(&bare, &asked), (Data::Nothing, None));
}

#[test]
fn a_referral_is_not_nothing() {
    let asked = question("web.example", RecordType::A);
    let mut message = response(&asked, ResponseCode::NoError);
    message.add_authority(record("example", 60, RData::NS(NS(full("ns.example")))));
    assert_eq!(said(&message, &asked), Ok(Reply::Referral));
    message.metadata.authoritative = true;
    assert_eq!(answered(&message, &asked), (Data::Nothing, None));
}

#[test]
fn what_does_not_belong_to_the_question_is_no_answer() {
    let asked = question("web.example", RecordType::A);
    let mut message = response(&asked, ResponseCode::NoError);
    message.add_answer(record("web.example", 60, a("10.0.0.1")));
    assert!(said(&message, &asked).is_ok());
    let bytes = message.to_vec().unwrap();
    let wrong = |bytes: &[u8]| read(bytes, ID, &asked).unwrap_err().to_string();
    assert!(
        read(&bytes, ID + 1, &asked)
            .unwrap_err()
            .to_string()
            .contains("another id")
    );
    let others = [
        question("web2.example", RecordType::A),
        question("web.example", RecordType::SRV),
    ];
    for other in others {
        assert!(
            read(&bytes, ID, &other)
                .unwrap_err()
                .to_string()
                .contains("another question")
        );
    }
    assert!(wrong(&ask(&asked, ID, true).unwrap()).contains("a question"));
    assert!(wrong(&bytes[..11]).contains("no DNS message"));
    assert!(matches!(
        read(&bytes[..bytes.len() - 3], ID, &asked),
        Err(Wrong::Malformed(_))
    ));
    let mut cut = bytes[..bytes.len() - 3].to_vec();
    cut[2] |= 0x02;
    assert_eq!(read(&cut, ID, &asked), Ok(Reply::Truncated));
    message.queries.clear();
    assert!(
        said(&message, &asked)
            .unwrap_err()
            .to_string()
            .contains("another question")
    );
}

#[test]
fn refusals_need_not_repeat_the_question() {
    let asked = question("web.example", RecordType::A);
    for code in [
        ResponseCode::ServFail,
        ResponseCode::Refused,
        ResponseCode::FormErr,
    ] {
        let mut message = response(&asked, code);
        assert_eq!(said(&message, &asked), Ok(Reply::Error(code)));
        message.queries.clear();
        assert_eq!(said(&message, &asked), Ok(Reply::Error(code)));
    }
}

/// What is known, all of it fresh for a minute.
struct Book {
    knowledge: Knowledge,
    now: Instant,
}

impl Book {
    fn new(entries: impl IntoIterator<Item = (Question, Data)>) -> Self {
        let now = Instant::now();
        let until = now + Duration::from_secs(60);
        let known = |(question, data)| (question, Known { data, until });
        let knowledge = Knowledge {
            answers: entries.into_iter().map(known).collect::<HashMap<_, _>>(),
            ..Knowledge::default()
        };
        Self { knowledge, now }
    }

    fn age(&mut self, question: &Question) {
        self.knowledge.answers.get_mut(question).unwrap().until = self.now;
    }

    fn fail(&mut self, question: Question) {
        let failure = Failure::new(Class::Refused, "SERVFAIL");
        self.knowledge.failures.insert(question, failure);
    }

    fn walk(&self, wanted: &Wanted) -> Step {
        walk(wanted, &self.knowledge, self.now)
    }

    fn done(&self, wanted: &Wanted) -> Outcome {
        match self.walk(wanted) {
            Step::Done(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn instances(&self, wanted: &Wanted) -> Vec<(String, Option<u16>)> {
        let instances = self.done(wanted).snapshot.instances.into_iter();
        instances.map(|i| (i.id, i.weight)).collect()
    }
}

fn wanted(names: &[&str], port: Option<u16>) -> Wanted {
    Wanted {
        names: names.iter().map(|name| full(name)).collect(),
        port,
        ipv4: true,
        ipv6: false,
    }
}

fn service(priority: u16, weight: u16, target: &str, port: u16) -> Service {
    Service {
        priority,
        weight,
        port,
        target: full(target),
    }
}

#[test]
fn all_that_is_missing_is_asked_at_once() {
    let mut both = wanted(&["web.example"], Some(80));
    both.ipv6 = true;
    let asked = |step| match step {
        Step::Ask(questions) => questions
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let first = asked(Book::new([]).walk(&both));
    assert_eq!(first, ["A web.example.", "AAAA web.example."]);
    let services = ["a", "b"].map(|target| service(0, 1, target, 80));
    let srv = question("web.example", RecordType::SRV);
    let book = Book::new([(srv, Data::Services(services.to_vec()))]);
    let second = asked(book.walk(&wanted(&["web.example"], None)));
    assert_eq!(second, ["A a.", "A b."]);
}

#[test]
fn search_goes_on_where_there_is_nothing_and_stops_where_it_fails() {
    let names = wanted(&["web.a.example", "web.b.example"], Some(80));
    let [first, second] = ["web.a.example", "web.b.example"].map(|n| question(n, RecordType::A));
    let mut book = Book::new([
        (first.clone(), Data::Nothing),
        (second, ips(&["10.0.0.1", "10.0.0.2"])),
    ]);
    let expected = ["10.0.0.1:80", "10.0.0.2:80"].map(|id| (id.to_owned(), None));
    assert_eq!(book.instances(&names), expected);
    assert_eq!(
        book.done(&names).used.len(),
        2,
        "both are asked again in time"
    );
    // What the first name may have is not known: the second is not what is meant.
    book.knowledge.answers.remove(&first);
    book.fail(first);
    assert!(matches!(book.walk(&names), Step::Failed(_)));
    let nothing = Book::new([(question("web.a.example", RecordType::A), Data::Nothing)]);
    let outcome = nothing.done(&wanted(&["web.a.example"], Some(80)));
    assert_eq!(outcome.snapshot, Snapshot::default());
    assert!(outcome.failure.is_none() && outcome.until.is_some());
}

#[test]
fn the_lowest_priority_counts_and_ports_make_instances() {
    let srv = question("_http._tcp.web", RecordType::SRV);
    let services = vec![
        service(5, 70, "a.example", 8080),
        service(5, 30, "a.example", 8081),
        service(5, 0, "b.example", 8080),
        service(9, 100, "c.example", 8080),
    ];
    let book = Book::new([
        (srv, Data::Services(services)),
        (question("a.example", RecordType::A), ips(&["10.0.0.1"])),
        (question("b.example", RecordType::A), ips(&["10.0.0.2"])),
    ]);
    // RFC 2782: where others have weights, 0 has the least share there is.
    let expected = [
        ("10.0.0.1:8080".to_owned(), Some(70)),
        ("10.0.0.1:8081".to_owned(), Some(30)),
        ("10.0.0.2:8080".to_owned(), Some(1)),
    ];
    assert_eq!(book.instances(&wanted(&["_http._tcp.web"], None)), expected);
}

#[test]
fn weights_of_nothing_but_zeros_are_the_source_s_and_of_one_address_add_up() {
    let names = wanted(&["web"], None);
    let weights = |weights: [u16; 2]| {
        let services = weights.map(|weight| service(0, weight, "a", 80));
        let book = Book::new([
            (
                question("web", RecordType::SRV),
                Data::Services(services.to_vec()),
            ),
            (question("a", RecordType::A), ips(&["10.0.0.1"])),
        ]);
        book.instances(&names)[0].1
    };
    assert_eq!(weights([0, 0]), None);
    assert_eq!(weights([3, 4]), Some(7));
    assert_eq!(weights([65_535, 1]), Some(65_535));
}

#[test]
fn the_root_as_target_is_decidedly_nothing() {
    let srv = question("web", RecordType::SRV);
    let names = wanted(&["web"], None);
    let book = Book::new([(srv.clone(), Data::Services(vec![service(0, 0, ".", 0)]))]);
    let snapshot = book.done(&names).snapshot;
    assert!(snapshot.decided && snapshot.instances.is_empty());
    let empty = Book::new([(srv, Data::Nothing)]).done(&names).snapshot;
    assert!(!empty.decided && empty.instances.is_empty());
}

#[test]
fn a_target_that_fails_keeps_its_addresses_and_holds_up_no_other() {
    let names = wanted(&["web"], None);
    let [a, b, c] = ["a", "b", "c"].map(|name| question(name, RecordType::A));
    let services = ["a", "b"].map(|target| service(0, 1, target, 80));
    let mut book = Book::new([
        (
            question("web", RecordType::SRV),
            Data::Services(services.to_vec()),
        ),
        (a.clone(), ips(&["10.0.0.1"])),
        (b.clone(), ips(&["10.0.0.2"])),
    ]);
    book.age(&b);
    assert_eq!(book.walk(&names), Step::Ask(vec![b.clone()]));
    book.fail(b.clone());
    let outcome = book.done(&names);
    assert_eq!(outcome.snapshot.instances.len(), 2);
    assert_eq!(outcome.failure.unwrap().message, "SERVFAIL");

    // One of which nothing is known: at first all waits for it, later nothing does.
    let services = ["a", "c"].map(|target| service(0, 1, target, 80));
    let mut book = Book::new([
        (
            question("web", RecordType::SRV),
            Data::Services(services.to_vec()),
        ),
        (a, ips(&["10.0.0.1"])),
    ]);
    book.fail(c);
    assert!(matches!(book.walk(&names), Step::Failed(_)));
    book.knowledge.complete = true;
    let outcome = book.done(&names);
    assert_eq!(outcome.snapshot.instances.len(), 1);
    assert!(outcome.snapshot.left_out[0].contains("SERVFAIL"));
    assert!(outcome.failure.is_some());
}

#[test]
fn services_without_any_address_are_no_empty_answer() {
    let services = vec![service(0, 1, "a", 80)];
    let book = Book::new([
        (question("web", RecordType::SRV), Data::Services(services)),
        (question("a", RecordType::A), Data::Nothing),
    ]);
    match book.walk(&wanted(&["web"], None)) {
        Step::Failed(failure) => assert_eq!(failure.class, Class::Missing),
        other => panic!("{other:?}"),
    }
}

#[test]
fn aliases_over_several_answers_are_followed_and_circles_end() {
    let [web, x, y] = ["web", "x", "y"].map(|name| question(name, RecordType::A));
    let names = wanted(&["web"], Some(80));
    let mut book = Book::new([
        (web, Data::Alias(full("x"))),
        (x.clone(), Data::Alias(full("y"))),
    ]);
    assert_eq!(book.walk(&names), Step::Ask(vec![y.clone()]));
    let until = book.now + Duration::from_secs(9);
    let data = ips(&["10.0.0.1"]);
    book.knowledge
        .answers
        .insert(y.clone(), Known { data, until });
    let outcome = book.done(&names);
    assert_eq!(
        (outcome.snapshot.instances.len(), outcome.until),
        (1, Some(until))
    );
    let data = Data::Alias(full("x"));
    book.knowledge.answers.insert(y, Known { data, until });
    match book.walk(&names) {
        Step::Failed(failure) => assert_eq!(failure.class, Class::Malformed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_more_addresses_than_a_source_may_have() {
    let all: Vec<std::net::IpAddr> = (0..4000_u32)
        .map(|n| std::net::Ipv4Addr::from(n).into())
        .collect();
    let book = |ports: u16| {
        let services = (1..=ports).map(|port| service(0, 1, "a", port));
        Book::new([
            (
                question("web", RecordType::SRV),
                Data::Services(services.collect()),
            ),
            (question("a", RecordType::A), Data::Addresses(all.clone())),
        ])
    };
    let names = wanted(&["web"], None);
    assert_eq!(book(25).done(&names).snapshot.instances.len(), 100_000);
    match book(40).walk(&names) {
        Step::Failed(failure) => assert!(failure.message.contains("more than 100000"), "{failure}"),
        other => panic!("{other:?}"),
    }
}

/// A server that knows `web` with 2,000 targets, and 2,000 addresses of whatever else it is asked for.
fn bottomless() -> (SocketAddr, Arc<AtomicUsize>) {
    use std::io::{Read as _, Write as _};

    // Somebody else may have the port for TCP.
    let (udp, address, tcp) = (0..100)
        .find_map(|_| {
            let udp = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            let address = udp.local_addr().unwrap();
            let tcp = std::net::TcpListener::bind(address).ok()?;
            Some((udp, address, tcp))
        })
        .unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        loop {
            let (length, peer) = udp.recv_from(&mut buffer).unwrap();
            let mut message = Message::from_vec(&buffer[..length]).unwrap();
            message.metadata.message_type = MessageType::Response;
            message.metadata.truncation = true;
            udp.send_to(&message.to_vec().unwrap(), peer).unwrap();
        }
    });
    let count = asked.clone();
    std::thread::spawn(move || {
        for mut peer in tcp.incoming().flatten() {
            let mut length = [0; 2];
            peer.read_exact(&mut length).unwrap();
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            peer.read_exact(&mut bytes).unwrap();
            let mut message = Message::from_vec(&bytes).unwrap();
            message.metadata.message_type = MessageType::Response;
            let query = message.queries[0].clone();
            let name = query.name().clone();
            for n in 0..2000_u32 {
                let data = match query.query_type() {
                    RecordType::SRV => RData::SRV(SRV::new(0, 1, 80, full(&format!("t{n}.web")))),
                    _ => RData::A(A(std::net::Ipv4Addr::from(0x0a00_0000 + n))),
                };
                message.add_answer(Record::from_rdata(name.clone(), 60, data));
            }
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let bytes = message.to_vec().unwrap();
            let length = u16::try_from(bytes.len()).unwrap();
            let _ = peer.write_all(&[&length.to_be_bytes()[..], &bytes].concat());
        }
    });
    (address, asked)
}

#[tokio::test]
async fn asking_ends_once_there_are_too_many_addresses() {
    let (address, asked) = bottomless();
    let name = "web.".to_owned();
    let config = Config {
        servers: vec![address],
        family: Family::Ipv4,
        // It answers one after the other.
        timeout: Duration::from_secs(30),
        ..Config::new(Lookup::Srv { name })
    };
    let mut source = config.source("web");
    let (mut feed, mut reports) = Feed::open(&crate::discovery::Settings::default());
    let failure = source.session(&mut feed).await.unwrap_err();
    assert!(
        failure.message.contains("more than 100000 addresses"),
        "{failure}"
    );
    assert_eq!(failure.class, Class::Malformed);
    // Those that were under way are answered as well.
    let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert!(asked <= 52 + AT_ONCE, "{asked}");
    assert_eq!(source.knowledge.size(), 0);
    assert!(reports.try_recv().is_err());
}

#[test]
fn names_are_tried_as_resolv_conf_says() {
    let tried = |name: &str, search: &[&str], ndots: u8| {
        let resolv = Resolv {
            servers: Vec::new(),
            search: search.iter().map(|domain| (*domain).to_owned()).collect(),
            ndots,
        };
        let names = candidates(name, &resolv).unwrap();
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let search = ["svc.local", "Local.", "."];
    assert_eq!(
        tried("web", &search, 1),
        ["web.svc.local.", "web.local.", "web."]
    );
    assert_eq!(
        tried("web.a", &search, 1),
        ["web.a.", "web.a.svc.local.", "web.a.local."]
    );
    assert_eq!(
        tried("web.a", &search, 5),
        ["web.a.svc.local.", "web.a.local.", "web.a."]
    );
    assert_eq!(tried("WEB.a.", &search, 5), ["web.a."]);
    assert_eq!(tried("web", &["odd domain", &"x".repeat(70)], 1).len(), 1);
}

#[test]
fn names_that_are_none_are_told() {
    assert_eq!(name_fault("_http._tcp.web-1.example.internal."), None);
    for (name, word) in [
        ("10.0.0.1", "is an address"),
        ("fd00::1", "is an address"),
        ("bücher.example", "xn--"),
        ("a..b", "labels of 1 to 63"),
        ("", "labels of 1 to 63"),
        (".", "labels of 1 to 63"),
        ("a b", "has a ' '"),
        ("web:80", "has a ':'"),
    ] {
        let fault = name_fault(name).unwrap_or_default();
        assert!(fault.contains(word), "{name}: {fault}");
    }
    assert!(name_fault(&"x".repeat(64)).is_some());
    assert!(
        name_fault(&vec!["abc"; 64].join("."))
            .unwrap()
            .contains("253")
    );
}
