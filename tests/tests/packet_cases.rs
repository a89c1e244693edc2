//! The table of packet cases, on every place where the path runs.

use std::collections::HashSet;

use lb_tests::packets::{
    self, Action, Runner, cases,
    kernel::{self, Hook, Kernel},
    slice::Slice,
    world::Addresses,
};

fn run_all(runner: &mut dyn Runner) {
    let cases = cases::all();
    let faults: Vec<String> = cases
        .iter()
        .filter_map(|case| packets::run(case, runner).err())
        .collect();
    assert!(
        faults.is_empty(),
        "{} of {} cases:\n{}",
        faults.len(),
        cases.len(),
        faults.join("\n")
    );
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
    run_all(&mut Kernel::new(Hook::Xdp).expect("the programs load"));
}

#[test]
fn cases_on_tc() {
    run_all(&mut Kernel::new(Hook::Tc).expect("the programs load"));
}

/// Instructions the verifier walked in a program.
fn verified(level: u8, program: &str) -> u32 {
    let ebpf = kernel::load_logging(level).expect("the programs load");
    let program = ebpf.program(program).expect("the program is there");
    let info = program.info().expect("the kernel tells of it");
    info.verified_instruction_count().expect("Linux 5.16")
}

#[test]
fn logs_cost_nothing_when_off() {
    for (program, budget) in [
        ("lbd_xdp", 100_000),
        ("lbd_tc", 100_000),
        ("lbd_egress", 62_000),
    ] {
        let (off, on) = (verified(0, program), verified(5, program));
        println!("{program}: {off} instructions verified, {on} with logs");
        assert!(off < on, "{program}: {off}, {on} with logs");
        assert!(off <= budget, "{program}: {off} of {budget}");
    }
}

#[test]
fn cases_with_logs() {
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut kernel = Kernel::logging(hook, 5).expect("the programs load");
        run_all(&mut kernel);
        assert!(kernel.take_logs().expect("a map of logs") > 10, "{hook:?}");
        let mut kernel = Kernel::new(hook).expect("the programs load");
        run_all(&mut kernel);
        assert_eq!(kernel.take_logs().expect("a map of logs"), 0, "{hook:?}");
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

#[test]
fn cases_have_names_of_their_own() {
    let cases = cases::all();
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() >= 690, "{} cases", cases.len());
}
