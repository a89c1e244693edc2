//! The table of packet cases, on every place where the path runs.

use std::collections::HashSet;

use lb_tests::packets::{
    self, Runner, cases,
    kernel::{self, Hook, Kernel},
    slice::Slice,
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
    for (program, budget) in [("lbd_xdp", 70_000), ("lbd_tc", 75_000)] {
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

#[test]
fn cases_have_names_of_their_own() {
    let cases = cases::all();
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() >= 120, "{} cases", cases.len());
}
