//! Sources that mean harm: whatever they say, the daemon's memory has a bound, nobody else waits, no
//! backend and no connection is lost, and somebody is told why there is nothing new.
//!
//! ```text
//!                            ┌── b1
//!   client ──── node (lbd) ──┼── b2
//!                  │         └── b3
//!                  └── registries, a DNS server, a file: well at first, then hostile
//! ```

mod dns;
mod file;
mod registries;

/// Random bytes, the same on every run.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    lb_tests::bulk::Stream::new(7).fill(&mut bytes);
    bytes
}
