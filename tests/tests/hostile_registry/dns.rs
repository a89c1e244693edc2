//! A DNS server, or whoever answers in its place.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, NS, SRV},
    },
};
use lb_tests::{
    eventually,
    hostile::{HOSTS, Suspect, Victims},
    names::{Asked, Names, Replies, Zone},
    net::{Network, Topology},
    note,
    servers::ECHO_PORT,
};
use lb_userspace::discovery::Class::{self, Malformed, Missing, Refused, Timeout};

use crate::noise;

const WEB: &str = "web.example.internal";
const SERVICE: &str = "_echo._tcp.web.example.internal";
/// What two sources may take at once: answers of 64 KiB, of which one may lead to thousands more.
const ROOM: u64 = 32 << 20;
/// What one connection is sent at most, where there is no end.
const MOST: usize = 256 << 20;
/// What the sources wait for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

type Datagrams = fn(&Asked) -> Replies;
type Stream = fn(&Asked, &mut TcpStream) -> io::Result<()>;

/// What is said to datagrams, by which the class of the error is, and to TCP if they send the client there.
const HARMS: [(&str, &[Class], Datagrams, Option<Stream>); 20] = [
    (
        "noise",
        &[Malformed],
        |asked| vec![noisy(asked, 1200)],
        None,
    ),
    (
        "datagrams of nothing",
        &[Malformed],
        |_| vec![Vec::new(); 100],
        None,
    ),
    ("silence", &[Timeout], |_| Vec::new(), None),
    ("an answer that comes too late", &[Timeout], late, None),
    (
        "a thousand answers with wrong ids",
        &[Malformed],
        |asked| {
            let wrong = |n: u16| {
                let mut answer = good().answer(asked);
                answer.metadata.id = asked.id.wrapping_add(n);
                answer.to_vec().unwrap()
            };
            (1..1000).map(wrong).collect()
        },
        None,
    ),
    (
        "answers to another question",
        &[Malformed],
        |asked| {
            let mut answer = good().answer(asked);
            let other = full("other.example.internal");
            answer.queries[0].set_name(other);
            vec![answer.to_vec().unwrap(); 100]
        },
        None,
    ),
    (
        "a count of records that there are not",
        &[Malformed],
        |asked| {
            let mut answer = bare(asked);
            answer[6..8].copy_from_slice(&[0xff, 0xff]);
            vec![answer]
        },
        None,
    ),
    (
        "a record longer than the message",
        &[Malformed],
        |asked| {
            let mut answer = bare(asked);
            answer[7] = 1;
            // The name asked for, its type, IN, a TTL, and 65,535 bytes of four.
            let kind = u16::from(asked.kind()).to_be_bytes();
            answer.extend([
                0xc0, 12, kind[0], kind[1], 0, 1, 0, 0, 0, 9, 0xff, 0xff, 10, 1, 1, 2,
            ]);
            vec![answer]
        },
        None,
    ),
    (
        "a name that points to itself",
        &[Malformed],
        |asked| {
            let mut answer = bare(asked);
            answer[7] = 1;
            let at = answer.len() as u8;
            answer.extend([0xc0, at, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, at]);
            vec![answer]
        },
        None,
    ),
    (
        "aliases in a circle in one answer",
        &[Malformed],
        |asked| {
            let (a, b) = (asked.name(), "b.example.internal");
            let zone = Zone::new(1);
            let mut answer = zone.answer(asked);
            answer.metadata.response_code = ResponseCode::NoError;
            answer.add_answers([alias(&a, b), alias(b, &a)]);
            vec![answer.to_vec().unwrap()]
        },
        None,
    ),
    (
        "aliases in a circle over answers",
        &[Malformed],
        |asked| {
            let next = match asked.name().strip_prefix("again.") {
                Some(name) => name.to_owned(),
                None => format!("again.{}", asked.name()),
            };
            vec![one(asked, alias(&asked.name(), &next))]
        },
        None,
    ),
    (
        "aliases without end",
        &[Malformed],
        |asked| {
            let name = asked.name();
            let rest = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            let count = name
                .split('.')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0_u32);
            vec![one(asked, alias(&name, &format!("{}.{rest}", count + 1)))]
        },
        None,
    ),
    (
        "SERVFAIL",
        &[Refused],
        |asked| vec![asked.code(ResponseCode::ServFail).to_vec().unwrap()],
        None,
    ),
    (
        "other servers without end",
        &[Refused],
        |asked| {
            let mut answer = asked.code(ResponseCode::NoError);
            answer.metadata.recursion_available = false;
            for n in 0..20 {
                let server = full(&format!("ns{n}.example.internal"));
                let zone = full("example.internal");
                answer.add_authority(Record::from_rdata(zone, 60, RData::NS(NS(server))));
            }
            vec![answer.to_vec().unwrap()]
        },
        None,
    ),
    (
        "a TCP answer without end",
        &[Malformed],
        cut,
        Some(|asked, peer| {
            peer.write_all(&[0xff, 0xff])?;
            let bucket = noisy(asked, 64 << 10);
            (0..MOST / bucket.len()).try_for_each(|_| peer.write_all(&bucket))
        }),
    ),
    (
        "a TCP answer shorter than it says",
        &[Malformed],
        cut,
        Some(|_, peer| {
            peer.write_all(&[0xff, 0xff])?;
            peer.write_all(&noise(1000))
        }),
    ),
    (
        "a TCP answer of nothing",
        &[Malformed],
        cut,
        Some(|_, peer| peer.write_all(&[0, 0])),
    ),
    (
        "a TCP answer byte by byte",
        &[Timeout],
        cut,
        Some(|asked, peer| {
            let answer = good().answer(asked).to_vec().unwrap();
            peer.write_all(&(answer.len() as u16).to_be_bytes())?;
            for byte in answer {
                thread::sleep(Duration::from_millis(200));
                peer.write_all(&[byte])?;
            }
            Ok(())
        }),
    ),
    (
        "TCP that says nothing",
        &[Timeout],
        cut,
        Some(|_, peer| {
            // Until the client has had enough.
            peer.read(&mut [0]).map(drop)
        }),
    ),
    // Each has to be asked for in turn, and none is there.
    (
        "hundreds of targets",
        &[Missing, Refused],
        cut,
        Some(|asked, peer| {
            let mut answer = asked.code(ResponseCode::NoError);
            if asked.kind() == RecordType::SRV {
                answer.add_answers((0..700).map(|n| {
                    let target = full(&format!("t{n}.{WEB}"));
                    let data = RData::SRV(SRV::new(0, 1, ECHO_PORT, target));
                    Record::from_rdata(full(SERVICE), 1, data)
                }));
            } else {
                answer.metadata.response_code = ResponseCode::ServFail;
            }
            let answer = answer.to_vec().unwrap();
            peer.write_all(&(answer.len() as u16).to_be_bytes())?;
            peer.write_all(&answer)
        }),
    ),
];

fn full(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}

fn alias(name: &str, target: &str) -> Record {
    Record::from_rdata(full(name), 1, RData::CNAME(CNAME(full(target))))
}

fn one(asked: &Asked, record: Record) -> Vec<u8> {
    let mut answer = asked.code(ResponseCode::NoError);
    answer.add_answer(record);
    answer.to_vec().unwrap()
}

/// A well-formed answer with no record in it.
fn bare(asked: &Asked) -> Vec<u8> {
    asked.code(ResponseCode::NoError).to_vec().unwrap()
}

/// What begins as an answer to the question does, and goes on as it likes.
fn noisy(asked: &Asked, length: usize) -> Vec<u8> {
    let mut bytes = noise(length);
    bytes[..2].copy_from_slice(&asked.id.to_be_bytes());
    // An answer, whole, and in order.
    bytes[2..4].copy_from_slice(&[0x81, 0x80]);
    bytes
}

/// Sends the client to TCP.
fn cut(asked: &Asked) -> Replies {
    let mut answer = asked.code(ResponseCode::NoError);
    answer.metadata.truncation = true;
    vec![answer.to_vec().unwrap()]
}

fn late(asked: &Asked) -> Replies {
    thread::sleep(PATIENCE + PATIENCE / 2);
    good().replies(asked)
}

fn good() -> Zone {
    HOSTS.iter().fold(Zone::new(1), |zone, host| {
        let (target, ip) = (
            format!("b{host}.example.internal"),
            format!("10.1.{host}.2"),
        );
        zone.address(WEB, 1, &ip).address(&target, 1, &ip).srv(
            SERVICE,
            1,
            (0, 1),
            &target,
            ECHO_PORT,
        )
    })
}

/// One source asks for addresses, one for services.
fn victims() -> (Names, Victims) {
    let network = Network::new(Topology::default()).unwrap();
    let names = network.node.run(|| Names::of(good())).unwrap();
    let more = format!(
        "family: ipv4, servers: [\"{}\"], min_ttl: 500ms, timeout: {PATIENCE:?}",
        names.address()
    );
    let suspects = vec![
        Suspect::new("dns", format!("name: {WEB}, port: {ECHO_PORT}, {more}")),
        Suspect::new("dns", format!("srv: {SERVICE}, {more}")),
    ];
    (names, Victims::new(network, suspects))
}

#[test]
fn no_dns_server_takes_memory_or_time_from_others() {
    let (names, victims) = victims();
    for (what, fitting, datagrams, stream) in HARMS {
        victims.suffer(
            what,
            |_| fitting,
            ROOM,
            || {
                names.set(datagrams);
                names.set_stream(stream);
            },
        );
    }
    names.set_stream(None::<Stream>);
    names.set_zone(good());
    victims.recover();
}

/// Of an answer that is in order what cannot be a backend is left out, which is told in few words, and the
/// rest counts.
#[test]
fn senseless_addresses_without_number_are_left_out() {
    let (names, victims) = victims();
    let pool = victims.pool();
    victims.daemon.forget_peak().unwrap();
    let before = victims.daemon.resident_bytes().unwrap();
    names.set(cut);
    names.set_stream(Some(|asked: &Asked, peer: &mut TcpStream| {
        let mut answer = good().answer(asked);
        if asked.kind() == RecordType::A {
            answer.add_answers((0..1400_u32).map(|n| {
                // Of multicast.
                let data = RData::A(A((0xe000_0000 + n).into()));
                Record::from_rdata(asked.query.name().clone(), 1, data)
            }));
        }
        let answer = answer.to_vec().unwrap();
        peer.write_all(&(answer.len() as u16).to_be_bytes())?;
        peer.write_all(&answer)
    }));
    victims.ask_again();
    let mut last = Vec::new();
    let told = eventually(Duration::from_secs(60), || {
        last = victims.daemon.sources().unwrap();
        last.iter().all(|s| !s.left_out.is_empty())
    });
    assert!(told, "{last:#?}");
    for source in &last {
        note(format!("{}: {:?}", source.service, source.left_out));
        assert_eq!(source.state, "synced", "{source:#?}");
        assert_eq!((source.instances, source.held), (3, 0), "{source:#?}");
        let words: usize = source.left_out.iter().map(String::len).sum();
        assert!(words < 2000, "{source:#?}");
    }
    let peak = victims.daemon.peak_bytes().unwrap();
    let beyond = peak.saturating_sub(before);
    note(format!("at most {} MiB more", beyond >> 20));
    assert!(beyond < ROOM, "{} MiB", beyond >> 20);
    assert_eq!(victims.pool(), pool);
    for service in 0..2 {
        victims.reach_all(service, "senseless addresses");
    }
}
