//! A minute of everything at once: see `lb_tests::soak`. `cargo xtask soak` goes on for longer.

use std::time::Duration;

use lb_tests::{
    note,
    soak::{Options, run},
};

#[test]
fn a_minute_of_faults_is_explained_and_leaves_nothing_behind() {
    let options = Options {
        length: Duration::from_secs(45),
        seed: 6,
    };
    run(options, note).unwrap();
}
