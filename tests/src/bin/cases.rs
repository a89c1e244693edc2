//! Runs the table of packet cases on the byte slice, as it is and with other flow tables for each
//! packet. `cargo xtask coverage` counts which code of the path that enters.

use std::process::ExitCode;

use lb_tests::packets::{self, cases, slice::Slice};

fn main() -> ExitCode {
    let cases = cases::all();
    let mut outcome = ExitCode::SUCCESS;
    for mut slice in [Slice::default(), Slice::replacing_flows()] {
        for case in &cases {
            if let Err(fault) = packets::run(case, &mut slice) {
                eprintln!("{fault}");
                outcome = ExitCode::FAILURE;
            }
        }
    }
    outcome
}
