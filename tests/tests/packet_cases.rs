//! The table of packet cases, on every place where the path runs.

use std::collections::HashSet;

use lb_tests::packets::{
    self, Runner, cases,
    kernel::{Hook, Kernel},
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

#[test]
fn cases_have_names_of_their_own() {
    let cases = cases::all();
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() >= 120, "{} cases", cases.len());
}
