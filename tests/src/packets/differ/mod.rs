//! The real programs against the byte slice: random sequences, and after each packet the same
//! verdict, bytes and counters, after each sequence the same entries in all maps.
//!
//! A sequence is known by its run's seed and its number. One that ends in a disagreement is made as
//! short as it can be, and printed in a form that [`replay`] reads.

mod alone;
mod clock;
mod event;
mod generate;
mod make;
mod mutate;
mod pair;
mod shrink;
mod twin;

use std::time::Instant;

use anyhow::Result;
use rand::{SeedableRng, rngs::StdRng};

use super::kernel::Hook;
pub use alone::{is_handled, play};

use generate::{Generator, Seeds};
use pair::Pair;

/// Events of a sequence.
const EVENTS: usize = 120;

/// When to end.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so many packets.
    Packets(u64),
    Until(Instant),
}

/// What a run was about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    pub packets: u64,
    pub sequences: u64,
    /// Packets that were not left alone.
    pub handled: u64,
    /// How often each reason to drop a packet was counted, by number.
    pub drops: Vec<u64>,
}

/// Runs sequences until `limit`; the thread moves to a network namespace of its own, and to `cpu`.
///
/// # Errors
/// The programs do not load; or both sides disagree: the error holds the shortest sequence that
/// shows it.
pub fn run(hook: Hook, cpu: usize, seed: u64, limit: Limit) -> Result<Report> {
    let mut pair = Pair::new(hook, cpu)?;
    let seeds = Seeds::new();
    let mut report = Report::default();
    while !is_over(limit, &report) {
        let number = report.sequences;
        run_one(&mut pair, &seeds, (seed, number), &mut report)?;
        report.sequences += 1;
    }
    Ok(report)
}

fn is_over(limit: Limit, report: &Report) -> bool {
    match limit {
        Limit::Packets(packets) => report.packets >= packets,
        Limit::Until(end) => Instant::now() >= end,
    }
}

/// One sequence.
fn run_one(
    pair: &mut Pair,
    seeds: &Seeds,
    (seed, number): (u64, u64),
    report: &mut Report,
) -> Result<()> {
    let rng = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut generator = Generator::new(rng, seeds);
    pair.reset()?;
    let mut events = Vec::new();
    let mut played = Ok(());
    while events.len() < EVENTS && played.is_ok() {
        let event = generator.next(pair.slice());
        played = pair.play(&event);
        if played.is_ok() {
            generator.learn(&event, pair.last());
        }
        events.push(event);
    }
    let fault = match played.and_then(|()| pair.compare()) {
        Ok(()) => {
            pair.add_to(report);
            return Ok(());
        }
        Err(fault) => fault,
    };
    let (events, fault) = shrink::shortest(pair, events, fault)?;
    anyhow::bail!(
        "seed {seed}, sequence {number}:\n{}",
        shown(&events, &fault)
    );
}

fn shown(events: &[event::Event], fault: &pair::Fault) -> String {
    let lines: Vec<String> = events.iter().map(ToString::to_string).collect();
    format!("{fault}\nafter\n{}", lines.join("\n"))
}
