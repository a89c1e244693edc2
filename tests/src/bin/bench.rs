//! `make bench`: the cost of a packet in lbd's programs, in nanoseconds and in U (one lookup in a
//! hash map with 16-byte keys, measured in the same run), above the floor of an empty program.

use std::{fs, net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap as BpfHashMap, LpmTrie, MapData, ProgramArray, lpm_trie::Key},
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use lb_common::{
    abi::{SOURCE_SERVICE_BITS, source},
    hash,
    path::Budget,
};
use lb_tests::packets::{
    Expect, Outcome, Runner as _,
    build::{ACK, Packet, SYN},
    kernel::{Hook, Kernel},
    world::{self, Addresses, port},
};
use serde::Serialize;

static WRAPPER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lbd-bench-ebpf"));

/// Runs in one measurement, and measurements of which the fastest counts: noise only adds.
const RUNS: u32 = 400_000;
const ROUNDS: usize = 15;

/// Runs of a measurement that opens connections: both directions fit into the table of handshakes.
const OPENINGS: u32 = 10_000;

/// Flows of the "many flows" case.
const FLOWS: u32 = 65_536;

/// Bytes that the wrapper restores.
const HEADERS: usize = 96;

const PACKET: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vary {
    Nothing,
    SourcePort,
    /// As [`Self::SourcePort`], for a program that does one lookup and nothing else.
    BareLookup,
    /// Nothing; the program puts a header in front of the packet, which the wrapper takes off.
    Tunnel,
    /// A random client each run, for a program that looks it up among prefixes and does nothing else.
    BarePrefix,
    /// Every run a new connection, the table emptied before.
    SourceAddress,
    /// The same, of which none is entered.
    Flood,
    /// As [`Self::SourceAddress`] on a table that is full: each entry evicts another.
    FullTable,
}

impl Vary {
    /// Measured beside [`FLOWS`] established flows.
    fn needs_crowd(self) -> bool {
        matches!(self, Self::SourcePort | Self::BareLookup | Self::FullTable)
    }
}

struct Measure {
    name: &'static str,
    /// U, from the design.
    budget: Option<f64>,
    packet: Packet,
    /// Verdict of every run: (XDP, TC).
    verdict: (u32, u32),
    vary: Vary,
}

#[derive(Serialize)]
struct Row {
    case: &'static str,
    hook: &'static str,
    nanoseconds: f64,
    units: f64,
    budget_units: Option<f64>,
    met: Option<bool>,
}

#[derive(Serialize)]
struct Report {
    unit_nanoseconds: f64,
    floor_nanoseconds: Vec<(&'static str, f64)>,
    runs: u32,
    rounds: usize,
    rows: Vec<Row>,
}

fn main() -> Result<()> {
    let mut rows = Vec::new();
    let mut floors = Vec::new();
    let mut unit = 0.0;
    for (hook, name) in [(Hook::Xdp, "XDP"), (Hook::Tc, "TC")] {
        // A namespace of its own for each hook's thread.
        let measured = std::thread::spawn(move || measure_hook(hook))
            .join()
            .map_err(|_| anyhow::anyhow!("the measuring thread panicked"))??;
        if hook == Hook::Xdp {
            unit = measured.unit - measured.floor;
        }
        floors.push((name, measured.floor));
        for (measure, nanoseconds) in measures(hook).into_iter().zip(measured.cases) {
            let above = nanoseconds - measured.floor;
            let units = above / unit;
            // The design's budgets are for XDP.
            let budget = measure.budget.filter(|_| hook == Hook::Xdp);
            let met = budget.map(|budget| units <= budget);
            rows.push(Row {
                case: measure.name,
                hook: name,
                nanoseconds: above,
                units,
                budget_units: budget,
                met,
            });
        }
    }
    let report = Report {
        unit_nanoseconds: unit,
        floor_nanoseconds: floors,
        runs: RUNS,
        rounds: ROUNDS,
        rows,
    };
    print(&report);
    let path = PathBuf::from("target/bench.json");
    fs::create_dir_all("target")?;
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

fn print(report: &Report) {
    println!(
        "U = {:.1} ns: one hash lookup with a 16-byte key",
        report.unit_nanoseconds
    );
    for (hook, floor) in &report.floor_nanoseconds {
        println!("floor of an empty {hook} program: {floor:.1} ns (subtracted below)");
    }
    println!(
        "fastest of {} rounds of {} runs each\n",
        report.rounds, report.runs
    );
    println!(
        "{:<44} {:<4} {:>8} {:>7} {:>8}",
        "case", "hook", "ns", "U", "budget"
    );
    for row in &report.rows {
        let budget = row
            .budget_units
            .map_or(String::new(), |budget| format!("{budget:.2} U"));
        let verdict = match row.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        println!(
            "{:<44} {:<4} {:>8.1} {:>7.2} {:>8} {verdict}",
            row.case, row.hook, row.nanoseconds, row.units, budget
        );
    }
}

/// XDP_REDIRECT and TC_ACT_REDIRECT; XDP_PASS and TC_ACT_UNSPEC.
const SENT: (u32, u32) = (4, 7);
const PASSED: (u32, u32) = (2, u32::MAX);

fn measures(hook: Hook) -> Vec<Measure> {
    let v4 = Addresses { v6: false };
    let v6 = Addresses { v6: true };
    let tcp = |a: Addresses, port, flags| {
        Packet::tcp(
            world::FROM_CLIENT,
            a.client(CLIENT_PORT),
            a.vip(port),
            flags,
        )
    };
    let udp =
        |a: Addresses, port| Packet::udp(world::FROM_CLIENT, a.client(CLIENT_PORT), a.vip(port));
    let case = |name, budget, packet, verdict, vary| Measure {
        name,
        budget,
        packet,
        verdict,
        vary,
    };
    let mut measures = vec![
        case(
            "TCP/IPv4 established, NAT, one flow",
            Some(2.4),
            tcp(v4, port::WEB, ACK),
            SENT,
            Vary::Nothing,
        ),
        case(
            "TCP/IPv4 established, NAT, 64k flows",
            Some(5.0),
            tcp(v4, port::WEB, ACK),
            SENT,
            Vary::SourcePort,
        ),
        case(
            "TCP/IPv6 established, NAT, one flow",
            Some(2.8),
            tcp(v6, port::WEB, ACK),
            SENT,
            Vary::Nothing,
        ),
        case(
            "UDP/IPv4 established, NAT, one flow",
            Some(2.4),
            udp(v4, port::DNS),
            SENT,
            Vary::Nothing,
        ),
        case(
            "TCP/IPv4 established, dsr-l2, one flow",
            None,
            tcp(v4, port::L2, ACK),
            SENT,
            Vary::Nothing,
        ),
        case(
            "packet for no service",
            Some(0.35),
            tcp(v4, 9999, ACK),
            PASSED,
            Vary::Nothing,
        ),
        case(
            "foreign packet on a service's port",
            None,
            tcp(v4, 9999, ACK)
                .with(|p| p.dst.set_port(port::WEB))
                .with(|p| p.dst.set_ip(v4.node(0).ip())),
            PASSED,
            Vary::Nothing,
        ),
        case(
            "first packet, TCP/IPv4: both directions",
            Some(25.0),
            tcp(v4, port::WEB, SYN),
            SENT,
            Vary::SourceAddress,
        ),
        case(
            "first packet, TCP/IPv4, full table, 64k flows",
            None,
            tcp(v4, port::WEB, SYN),
            SENT,
            Vary::FullTable,
        ),
        case(
            "first packet, TCP/IPv6: both directions",
            None,
            tcp(v6, port::WEB, SYN),
            SENT,
            Vary::SourceAddress,
        ),
        case(
            "SYN under flood, TCP/IPv4, dsr-l2, no entry",
            Some(4.0),
            tcp(v4, port::L2, SYN),
            SENT,
            Vary::Flood,
        ),
        case(
            "SYN under flood, TCP/IPv6, dsr-l2, no entry",
            None,
            tcp(v6, port::L2, SYN),
            SENT,
            Vary::Flood,
        ),
        case(
            "first packet, TCP/IPv4, 50,000 source prefixes",
            None,
            tcp(v4, port::DENIED, SYN),
            SENT,
            Vary::SourceAddress,
        ),
        case(
            "first packet, TCP/IPv6, 50,000 source prefixes",
            None,
            tcp(v6, port::DENIED, SYN),
            SENT,
            Vary::SourceAddress,
        ),
    ];
    if hook == Hook::Xdp {
        // A socket buffer that is in a tunnel enters no other, so TC has no such row.
        for (name, packet) in [
            (
                "TCP/IPv4 established, dsr-ipip, one flow",
                tcp(v4, port::TUNNEL, ACK),
            ),
            (
                "TCP/IPv4 established, dsr-ipip in IPv6",
                tcp(v4, port::CROSSED, ACK),
            ),
            (
                "TCP/IPv6 established, dsr-ipip, one flow",
                tcp(v6, port::TUNNEL, ACK),
            ),
        ] {
            measures.push(case(name, None, packet, SENT, Vary::Tunnel));
        }
        measures.push(case(
            "for comparison: one lookup among 64k entries",
            None,
            tcp(v4, port::WEB, ACK),
            PASSED,
            Vary::BareLookup,
        ));
        for (name, a) in [
            ("one lookup among 50,000 source prefixes, IPv4", v4),
            ("one lookup among 50,000 source prefixes, IPv6", v6),
        ] {
            let packet = tcp(a, port::DENIED, SYN);
            measures.push(case(name, None, packet, PASSED, Vary::BarePrefix));
        }
    }
    measures
}

const CLIENT_PORT: u16 = 40_001;

struct Measured {
    floor: f64,
    unit: f64,
    cases: Vec<f64>,
}

/// Every case is measured once a round, so that a slow moment of the machine hits all alike.
fn measure_hook(hook: Hook) -> Result<Measured> {
    let mut kernel = Kernel::new(hook)?;
    kernel.reset();
    kernel.install_sources(&crowded_list())?;
    let mut wrapper = EbpfLoader::new().load(WRAPPER)?;
    load_wrapper(&mut wrapper)?;
    open(&mut kernel, Addresses { v6: false }, false, CLIENT_PORT)?;
    open(&mut kernel, Addresses { v6: true }, false, CLIENT_PORT)?;
    open(&mut kernel, Addresses { v6: false }, true, CLIENT_PORT)?;
    for (a, port) in [
        (Addresses { v6: false }, port::L2),
        (Addresses { v6: false }, port::TUNNEL),
        (Addresses { v6: false }, port::CROSSED),
        (Addresses { v6: true }, port::TUNNEL),
    ] {
        for flags in [SYN, ACK] {
            let (client, vip) = (a.client(CLIENT_PORT), a.vip(port));
            let packet = Packet::tcp(world::FROM_CLIENT, client, vip, flags);
            kernel.run(true, &packet.bytes());
        }
    }
    let (tested, empty) = match hook {
        Hook::Xdp => (
            xdp_fd(&mut kernel.ebpf, "lbd_xdp")?,
            xdp_fd(&mut wrapper, "empty_xdp")?,
        ),
        Hook::Tc => (
            tc_fd(&mut kernel.ebpf, "lbd_tc")?,
            tc_fd(&mut wrapper, "empty_tc")?,
        ),
    };
    let unit_program = xdp_fd(&mut wrapper, "unit_xdp")?;
    let many_program = xdp_fd(&mut wrapper, "many_xdp")?;
    let prefix_program = xdp_fd(&mut wrapper, "prefix_xdp")?;
    let measures = measures(hook);
    let floor_case = Measure {
        name: "floor",
        budget: None,
        packet: measures[0].packet.clone(),
        verdict: PASSED,
        vary: Vary::Nothing,
    };
    let mut floor = f64::MAX;
    let mut unit = f64::MAX;
    let mut cases = vec![f64::MAX; measures.len()];
    // First with the three flows of the single cases, then with the crowd.
    for crowd in [false, true] {
        if crowd {
            (0..FLOWS).try_for_each(|client_port| {
                open(
                    &mut kernel,
                    Addresses { v6: false },
                    false,
                    client_port as u16,
                )
            })?;
        }
        for _ in 0..ROUNDS {
            floor = floor.min(run(&mut wrapper, &mut kernel, hook, &empty, &floor_case)?);
            if hook == Hook::Xdp {
                let program = &unit_program;
                unit = unit.min(run(&mut wrapper, &mut kernel, hook, program, &floor_case)?);
            }
            for (best, measure) in cases.iter_mut().zip(&measures) {
                if measure.vary.needs_crowd() == crowd {
                    let program = match measure.vary {
                        Vary::BareLookup => &many_program,
                        Vary::BarePrefix => &prefix_program,
                        _ => &tested,
                    };
                    *best = best.min(run(&mut wrapper, &mut kernel, hook, program, measure)?);
                }
            }
        }
    }
    Ok(Measured { floor, unit, cases })
}

fn load_wrapper(wrapper: &mut Ebpf) -> Result<()> {
    for name in [
        "bench_xdp",
        "bench_tunnel",
        "empty_xdp",
        "unit_xdp",
        "many_xdp",
        "prefix_xdp",
    ] {
        let program: &mut Xdp = wrapper.program_mut(name).context(name)?.try_into()?;
        program.load().context(name)?;
    }
    for name in ["bench_tc", "empty_tc"] {
        let program: &mut SchedClassifier = wrapper.program_mut(name).context(name)?.try_into()?;
        program.load().context(name)?;
    }
    let map = wrapper.map_mut("UNIT").context("UNIT")?;
    let mut unit = BpfHashMap::<_, [u32; 4], [u32; 16]>::try_from(map)?;
    (0..FLOWS).try_for_each(|port| unit.insert(&[1, 2, port, 3], &[0; 16], 0))?;
    for (_, address, length, value) in crowded_list() {
        let [a, b, c, d] = world::words(address);
        let bits = SOURCE_SERVICE_BITS + length;
        if address.is_ipv6() {
            let map = wrapper.map_mut("PREFIXES6").context("PREFIXES6")?;
            let mut prefixes = LpmTrie::<_, [u32; 5], u32>::try_from(map)?;
            prefixes.insert(&Key::new(bits, [0, a, b, c, d]), &value, 0)?;
        } else {
            let map = wrapper.map_mut("PREFIXES4").context("PREFIXES4")?;
            let mut prefixes = LpmTrie::<_, [u32; 2], u32>::try_from(map)?;
            prefixes.insert(&Key::new(bits, [0, a]), &value, 0)?;
        }
    }
    Ok(())
}

fn xdp_fd(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .with_context(|| name.to_owned())?
        .try_into()?;
    Ok(program.fd()?.try_clone()?)
}

fn tc_fd(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .with_context(|| name.to_owned())?
        .try_into()?;
    Ok(program.fd()?.try_clone()?)
}

/// Prefixes of every length there is in practice, all of which let in: the answer costs the same.
fn crowded_list() -> Vec<(u32, IpAddr, u32, u32)> {
    const PREFIXES: u64 = 50_000;
    let service = u32::from(port::DENIED);
    let v4 = (0..PREFIXES).map(|number| {
        let drawn = hash::spread(number + 1);
        let length = 12 + (drawn >> 32) as u32 % 21;
        let address = drawn as u32 & u32::MAX << (32 - length);
        (IpAddr::from(address.to_be_bytes()), length)
    });
    let v6 = (0..PREFIXES).map(|number| {
        let drawn = hash::spread(number + 1);
        let length = 32 + (drawn & 0x1f) as u32;
        let network = 0x2001_0db8 << 32 | u64::from(drawn as u32);
        let address = u128::from(network & u64::MAX << (64 - length)) << 64;
        (IpAddr::from(address.to_be_bytes()), length)
    });
    let entry = |(address, length)| (service, address, length, source::ALLOWED);
    v4.chain(v6).map(entry).collect()
}

/// Opens a connection whose established packets are measured: first packet, answer, and one more.
fn open(kernel: &mut Kernel, a: Addresses, udp: bool, client_port: u16) -> Result<()> {
    let sent = |outcome: &Outcome| Expect::Pass.difference(&outcome.packet, outcome).is_some();
    let (vip, backend) = if udp {
        (a.vip(port::DNS), a.backend(13, 5353))
    } else {
        (a.vip(port::WEB), a.backend(1, 8080))
    };
    let client = a.client(client_port);
    let (request, reply) = if udp {
        (
            Packet::udp(world::FROM_CLIENT, client, vip),
            Packet::udp(world::FROM_BACKEND, backend, client),
        )
    } else {
        (
            Packet::tcp(world::FROM_CLIENT, client, vip, SYN),
            Packet::tcp(world::FROM_BACKEND, backend, client, SYN | ACK),
        )
    };
    let follows = match udp {
        true => request.clone(),
        false => Packet::tcp(world::FROM_CLIENT, client, vip, ACK),
    };
    let went = sent(&kernel.run(true, &request.bytes()))
        && sent(&kernel.run(false, &reply.bytes()))
        && sent(&kernel.run(true, &follows.bytes()));
    ensure!(went, "the connection from {client} was not established");
    Ok(())
}

/// Nanoseconds of one run, wrapper included.
fn run(
    wrapper: &mut Ebpf,
    kernel: &mut Kernel,
    hook: Hook,
    tested: &ProgramFd,
    measure: &Measure,
) -> Result<f64> {
    let expected = if hook == Hook::Xdp {
        measure.verdict.0
    } else {
        measure.verdict.1
    };
    let repeat = match measure.vary {
        Vary::Flood => {
            kernel.set_budget(Budget::Entries, 0);
            RUNS
        }
        Vary::SourceAddress => {
            kernel.forget_handshakes()?;
            OPENINGS
        }
        _ => RUNS,
    };
    prepare(wrapper, hook, tested, measure, expected)?;
    let mut packet = measure.packet.bytes();
    packet.resize(PACKET, 0);
    let words = [0, packet.len() as u32, 0, kernel.client_side(), 0, 0];
    let xdp_context: Vec<u8> = words
        .iter()
        .flat_map(|word: &u32| word.to_ne_bytes())
        .collect();
    let mut tc_context = vec![0; 192];
    tc_context[40..44].copy_from_slice(&kernel.client_side().to_ne_bytes());
    let context = if hook == Hook::Xdp {
        &xdp_context
    } else {
        &tc_context
    };
    let options = TestRunOptions {
        data_in: Some(&packet),
        ctx_in: Some(context),
        repeat,
        ..TestRunOptions::new()
    };
    let result = match hook {
        Hook::Xdp => {
            let name = match measure.vary {
                Vary::Tunnel => "bench_tunnel",
                _ => "bench_xdp",
            };
            let program: &mut Xdp = wrapper.program_mut(name).context(name)?.try_into()?;
            program.test_run(options)?
        }
        Hook::Tc => {
            let program: &mut SchedClassifier = wrapper
                .program_mut("bench_tc")
                .context("bench_tc")?
                .try_into()?;
            program.test_run(options)?
        }
    };
    verify(wrapper, measure)?;
    Ok(result.duration.as_nanos() as f64)
}

/// Layout of the wrapper's `Bench`, in words behind the headers.
mod word {
    pub(super) const RUN: usize = 24;
    pub(super) const EXPECTED: usize = 25;
    pub(super) const WRONG: usize = 26;
    pub(super) const VERDICT: usize = 27;
    pub(super) const VARY: usize = 28;
    pub(super) const MASK: usize = 29;
    pub(super) const V6: usize = 30;
}

const BENCH_WORDS: usize = HEADERS / 4 + 8;

fn bench_map(wrapper: &mut Ebpf) -> Result<Array<&mut MapData, [u32; BENCH_WORDS]>> {
    Ok(Array::try_from(wrapper.map_mut("BENCH").context("BENCH")?)?)
}

fn prepare(
    wrapper: &mut Ebpf,
    hook: Hook,
    tested: &ProgramFd,
    measure: &Measure,
    expected: u32,
) -> Result<()> {
    let name = if hook == Hook::Xdp {
        "XDP_UNDER_TEST"
    } else {
        "TC_UNDER_TEST"
    };
    let mut array = ProgramArray::try_from(wrapper.map_mut(name).context(name)?)?;
    array.set(0, tested, 0)?;
    let mut bench = bench_map(wrapper)?;
    // The counter goes on, so that every first packet is of a new flow.
    let run = bench.get(&0, 0)?[word::RUN];
    let mut words = [0; BENCH_WORDS];
    let mut headers = measure.packet.bytes();
    headers.resize(HEADERS, 0);
    for (word, bytes) in words.iter_mut().zip(headers.as_chunks().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words[word::RUN] = run;
    words[word::EXPECTED] = expected;
    words[word::VARY] = match measure.vary {
        Vary::Nothing | Vary::Tunnel => 0,
        Vary::SourcePort | Vary::BareLookup => 1,
        Vary::SourceAddress | Vary::Flood | Vary::BarePrefix | Vary::FullTable => 2,
    };
    words[word::MASK] = FLOWS - 1;
    words[word::V6] = u32::from(measure.packet.src.is_ipv6());
    bench.set(0, &words, 0)?;
    Ok(())
}

fn verify(wrapper: &mut Ebpf, measure: &Measure) -> Result<()> {
    let words = bench_map(wrapper)?.get(&0, 0)?;
    ensure!(
        words[word::WRONG] == 0,
        "{}: {} runs gave another verdict, the last {}",
        measure.name,
        words[word::WRONG],
        words[word::VERDICT]
    );
    Ok(())
}
