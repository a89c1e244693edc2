//! The table of packet cases, on every place where the path runs.

use std::{
    collections::{BTreeMap, HashSet},
    thread,
    time::{Duration, Instant},
};

use lb_common::abi::map;
use lb_tests::{
    note,
    packets::{
        self, Action, Case, Runner, Step, cases,
        kernel::{Hook, Kernel},
        slice::Slice,
        verifier,
        world::Addresses,
    },
};

/// Tables that need not be as large as in use.
const LARGEST: [&str; 7] = [
    map::FLOWS4,
    map::FLOWS6,
    map::HANDSHAKES4,
    map::HANDSHAKES6,
    map::SOURCE_RATES,
    map::AFFINITY4,
    map::AFFINITY6,
];

fn run_all(runner: &mut dyn Runner) {
    run_cases(runner, &cases::all());
}

/// Those that this kernel can run, with programs that log up to `level`; says which it cannot. Returns
/// how many records there are in the logs.
///
/// Most of the time goes by with waiting for a second to pass, so some share the cases; no more, as each
/// has the programs verified, for which an emulated machine takes long.
fn run_all_on(hook: Hook, level: u8) -> usize {
    const SHARES: usize = 3;
    let mut left_out = BTreeMap::new();
    let mut cases = cases::all();
    cases.retain(|case| match Kernel::hindrance(case) {
        Some(why) => {
            *left_out.entry(why).or_insert(0) += 1;
            false
        }
        None => true,
    });
    for (why, count) in left_out {
        note(format!("NOT TESTED, {count} packet cases: {why}"));
    }
    let mut shares: [Vec<Case>; SHARES] = Default::default();
    for (number, case) in cases.into_iter().enumerate() {
        shares[number % SHARES].push(case);
    }
    thread::scope(|scope| {
        // Each has tables of its own.
        let sizes = LARGEST.map(|name| (name, 4096));
        let run = move |share: Vec<Case>| {
            let mut kernel = Kernel::sized(hook, 0, level, &sizes).expect("the programs load");
            run_cases(&mut kernel, &share);
            kernel.take_logs().expect("a map of logs")
        };
        let threads: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || run(share)))
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|logs| logs.expect("the cases pass")).sum()
    })
}

fn run_cases(runner: &mut dyn Runner, cases: &[Case]) {
    let faults: Vec<String> = cases
        .iter()
        .filter_map(|case| fault(case, runner))
        .collect();
    assert!(
        faults.is_empty(),
        "{} of {} cases:\n{}",
        faults.len(),
        cases.len(),
        faults.join("\n")
    );
}

/// What went wrong with a case; it is run once more if it took long, as some packets must follow others
/// within a second.
fn fault(case: &Case, runner: &mut dyn Runner) -> Option<String> {
    const SECOND: Duration = Duration::from_millis(1100);
    const LATE: Duration = Duration::from_millis(300);
    let steps = case.steps.iter();
    let seconds = steps.filter(|step| matches!(step, Step::Second)).count();
    let began = Instant::now();
    let fault = packets::run(case, runner).err()?;
    let took = began.elapsed();
    if took <= SECOND * seconds as u32 + LATE {
        return Some(fault);
    }
    note(format!("once more, as it took {took:.1?}: {fault}"));
    packets::run(case, runner).err()
}

#[test]
fn cases_on_slice() {
    run_all(&mut Slice::default());
}

/// A connection goes on, at whatever point of its life the tables are replaced.
#[test]
fn cases_on_slice_with_other_flow_tables_for_each_packet() {
    run_all(&mut Slice::replacing_flows());
}

#[test]
fn cases_on_xdp() {
    cases_without_logs(Hook::Xdp);
}

#[test]
fn cases_on_tc() {
    cases_without_logs(Hook::Tc);
}

fn cases_without_logs(hook: Hook) {
    assert_eq!(run_all_on(hook, 0), 0, "{hook:?}");
}

#[test]
fn cases_with_logs_on_xdp() {
    cases_with_logs(Hook::Xdp);
}

#[test]
fn cases_with_logs_on_tc() {
    cases_with_logs(Hook::Tc);
}

fn cases_with_logs(hook: Hook) {
    assert!(run_all_on(hook, 5) > 10, "{hook:?}");
}

/// tests/programs.rs holds the programs to their budgets.
#[test]
fn logs_cost_nothing_when_off() {
    let verified = |level| verifier::measure(level, false).expect("the programs load");
    let (off, on) = (verified(0), verified(5));
    for program in ["lbd_xdp", "lbd_tc", "lbd_egress"] {
        let (off, on) = (off[program], on[program]);
        println!("{program}: {off} instructions verified, {on} with logs");
        assert!(off < on, "{program}: {off}, {on} with logs");
    }
}

/// One's complement sum of an ICMP message with its pseudo-header, folded; 0xffff is right.
fn icmp_sum(packet: &[u8], v6: bool) -> u16 {
    let message = &packet[if v6 { 54 } else { 34 }..];
    let mut words: Vec<u8> = Vec::new();
    if v6 {
        words.extend(&packet[22..54]);
        words.extend((message.len() as u32).to_be_bytes());
        words.extend([0, 0, 0, 58]);
    }
    words.extend(message);
    let sum = words.chunks(2).fold(0_u64, |sum, pair| {
        sum + u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0))
    });
    let folded = (1..4).fold(sum, |sum, _| sum % 0x1_0000 + sum / 0x1_0000);
    folded as u16
}

/// Answers to echo requests with every `step`th value of a word of the message.
fn echo_checksums(runner: &mut dyn Runner, step: usize) {
    runner.reset();
    for v6 in [false, true] {
        let a = Addresses { v6 };
        for word in (0..=0xffff_u32).step_by(step).chain([0xfffe, 0xffff]) {
            // In the identifier, with nothing else; in the payload, with an odd byte behind it.
            for (rest, payload) in [
                (word << 16, Vec::new()),
                (0x7fff_0001, [&word.to_be_bytes()[2..], &[0xe5]].concat()),
            ] {
                let request = cases::echo::request(a, a.vip(0).ip(), rest, &payload).bytes();
                assert_eq!(icmp_sum(&request, v6), 0xffff, "the test's own request");
                let outcome = runner.run(true, &request);
                let sum = icmp_sum(&outcome.packet, v6);
                assert_eq!(sum, 0xffff, "{v6} {rest:08x} {payload:02x?}");
                assert!(matches!(outcome.action, Action::Transmit | Action::Send));
                assert_eq!(outcome.packet.len(), request.len());
            }
        }
    }
}

#[test]
fn echo_replies_have_right_checksums_for_every_value() {
    echo_checksums(&mut Slice::default(), 1);
    for hook in [Hook::Xdp, Hook::Tc] {
        echo_checksums(&mut Kernel::new(hook).expect("the programs load"), 251);
    }
}

/// No kernel's test run takes packets of that length.
#[test]
fn a_packet_too_long_for_an_outer_header_is_dropped() {
    use lb_common::abi::Drop;
    use lb_tests::packets::{build, world};
    for v6 in [false, true] {
        let a = Addresses { v6 };
        let mut slice = Slice::default();
        let mut send = |payload: usize| {
            let to = a.vip(world::port::TUNNEL_LOCAL);
            let packet = build::Packet::tcp(world::FROM_CLIENT, a.client(1000), to, build::SYN)
                .with(|packet| packet.payload = vec![7; payload]);
            let outcome = slice.run(true, &packet.bytes());
            (outcome.action, outcome.counted)
        };
        let ip = if v6 { 40 } else { 20 };
        let largest = 0xffff - ip - ip - 20;
        assert_eq!(send(largest), (Action::Pass, vec![]));
        assert_eq!(send(largest + 1), (Action::Drop, vec![Drop::TooBig]));
    }
}

/// Nor a frame as short as that.
#[test]
fn a_frame_that_ends_in_its_first_header_passes() {
    let mut slice = Slice::default();
    for length in 0..14 {
        let frame = vec![2; length];
        let outcome = slice.run(true, &frame);
        assert_eq!((outcome.action, outcome.packet), (Action::Pass, frame));
        assert_eq!(outcome.counted, []);
    }
}

/// Found by a random sequence: at every other jiffy the full table was forgotten until the next.
#[test]
fn a_full_table_refuses_the_next_client_in_the_same_jiffy() {
    use lb_common::abi::Drop;
    use lb_tests::packets::{build, slice::Devices, world};
    for odd in [0, 1] {
        for v6 in [false, true] {
            let mut slice = Slice::twin(Devices::default(), 0, false);
            slice.wait(odd);
            let a = Addresses { v6 };
            let (l2, web) = (a.vip(world::port::L2), a.vip(world::port::WEB));
            let mut send = |to, client, flags| {
                let packet = build::Packet::tcp(world::FROM_CLIENT, client, to, flags);
                slice.run(true, &packet.bytes()).counted
            };
            assert_eq!(send(l2, a.client(1000), build::SYN), []);
            assert_eq!(send(l2, a.client(1000), build::ACK), [Drop::FlowTableFull]);
            let refused = send(web, a.client(1001), build::SYN);
            assert_eq!(refused, [Drop::FlowTableFull], "{odd} {v6}");
        }
    }
}

/// One family has nothing of the other's table, and UDP no need of it.
#[test]
fn a_full_table_refuses_only_those_who_need_a_place_in_it() {
    use lb_common::abi::Drop;
    use lb_tests::packets::{build, slice::Devices, world};
    for v6 in [false, true] {
        let mut slice = Slice::twin(Devices::default(), 0, false);
        let mut run = |packet: build::Packet| slice.run(true, &packet.bytes()).counted;
        let tcp = |a: Addresses, port, client, flags| {
            build::Packet::tcp(world::FROM_CLIENT, a.client(client), a.vip(port), flags)
        };
        let (a, other) = (Addresses { v6 }, Addresses { v6: !v6 });
        let (full, web) = (world::port::L2, world::port::WEB);
        assert_eq!(run(tcp(a, full, 1000, build::SYN)), []);
        assert_eq!(run(tcp(a, full, 1000, build::ACK)), [Drop::FlowTableFull]);
        assert_eq!(run(tcp(a, web, 1001, build::SYN)), [Drop::FlowTableFull]);
        assert_eq!(run(tcp(other, web, 1001, build::SYN)), []);
        let dns = a.vip(world::port::DNS);
        let asked = build::Packet::udp(world::FROM_CLIENT, a.client(1001), dns);
        assert_eq!(run(asked), []);
    }
}

/// Jiffies come round to where they were.
#[test]
fn a_table_that_was_full_once_refuses_nobody_later() {
    use lb_common::abi::Drop;
    use lb_tests::packets::{build, slice::Devices, world};
    for v6 in [false, true] {
        let mut slice = Slice::twin(Devices::default(), 0, false);
        let a = Addresses { v6 };
        let second = world::CONFIG.hz;
        let send = |slice: &mut Slice, client, flags| {
            let to = a.vip(world::port::L2);
            let packet = build::Packet::tcp(world::FROM_CLIENT, a.client(client), to, flags);
            slice.run(true, &packet.bytes()).counted
        };
        assert_eq!(send(&mut slice, 1000, build::SYN), []);
        assert_eq!(send(&mut slice, 1000, build::ACK), [Drop::FlowTableFull]);
        slice.wait(second);
        assert_eq!(send(&mut slice, 1001, build::SYN), []);
        slice.wait(0_u32.wrapping_sub(second));
        assert_eq!(send(&mut slice, 1002, build::SYN), [], "{v6}");
    }
}

/// Whoever sends two datagrams in another's name has proven nothing that another client should pay
/// for: a table that is full refuses no flow of UDP, and says nothing of it to TCP.
#[test]
fn datagrams_go_on_without_a_place_in_a_full_table() {
    use lb_tests::packets::{Action, build, slice::Devices, world};
    for v6 in [false, true] {
        let mut slice = Slice::twin(Devices::default(), 0, false);
        let a = Addresses { v6 };
        let (client, dns, backend) = (
            a.client(40_053),
            a.vip(world::port::DNS),
            a.backend(13, 5353),
        );
        let request = build::Packet::udp(world::FROM_CLIENT, client, dns).bytes();
        let reply = build::Packet::udp(world::FROM_BACKEND, backend, client).bytes();
        let goes_on = |slice: &mut Slice, from_client, packet: &[u8]| {
            let outcome = slice.run(from_client, packet);
            assert_eq!(outcome.action, Action::Redirect, "{v6}");
            assert_eq!(outcome.counted, [], "{v6}");
        };
        for _ in 0..3 {
            goes_on(&mut slice, true, &request);
            goes_on(&mut slice, false, &reply);
        }
        let web = a.vip(world::port::WEB);
        let other = build::Packet::tcp(world::FROM_CLIENT, a.client(1001), web, build::SYN);
        goes_on(&mut slice, true, &other.bytes());
        slice.wait(world::CONFIG.hz);
        // The backend's proof, by an answer that comes late.
        goes_on(&mut slice, false, &reply);
        goes_on(&mut slice, true, &request);
        assert!(slice.seen_flows().iter().all(|flow| !flow.is_established));
    }
}

#[test]
fn cases_have_names_of_their_own() {
    let cases = cases::all();
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() >= 690, "{} cases", cases.len());
}
