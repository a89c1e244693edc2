//! Sequences on the byte slice alone, drawn not by a seed but by bytes: those of a fuzzer, which finds
//! out what bytes lead where.

use std::sync::LazyLock;

use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::super::{Action, Outcome, Runner as _, Side, slice::Slice};
use super::{
    EVENTS,
    clock::{HZ, STEP, STEPS},
    event::Event,
    generate::{Generator, Seeds},
};

static SEEDS: LazyLock<Seeds> = LazyLock::new(Seeds::new);

/// Numbers from bytes, two for each, and made-up ones behind their end, so that whoever draws until
/// something suits comes to an end.
struct Entropy<'b> {
    bytes: &'b [u8],
    behind: StdRng,
}

impl<'b> Entropy<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        Self {
            bytes,
            behind: StdRng::seed_from_u64(0),
        }
    }
}

impl RngCore for Entropy<'_> {
    fn next_u32(&mut self) -> u32 {
        let Some((two, rest)) = self.bytes.split_first_chunk() else {
            self.bytes = &[];
            return self.behind.next_u32();
        };
        self.bytes = rest;
        // What is drawn from few things comes from the upper bits, a byte from the lower ones.
        u32::from(u16::from_be_bytes(*two)) * 0x1_0001
    }

    fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(4) {
            let four = self.next_u32().to_be_bytes();
            chunk.copy_from_slice(&four[..chunk.len()]);
        }
    }
}

/// Plays the sequence that `bytes` draw on `slice`, and shows each packet and what became of it.
/// Gives how many packets were not left alone.
pub fn play(
    slice: &mut Slice,
    bytes: &[u8],
    mut shown: impl FnMut(Side, &[u8], &Outcome),
) -> usize {
    slice.reset();
    slice.set_hz(HZ);
    let mut generator = Generator::new(Entropy::new(bytes), &SEEDS);
    let (mut handled, mut steps) = (0, 0);
    for _ in 0..EVENTS {
        if generator.rng().bytes.is_empty() {
            break;
        }
        let event = generator.next(slice);
        let mut last = None;
        match &event {
            Event::Packet { side, bytes, .. } => {
                let outcome = slice.take(*side, bytes);
                shown(*side, bytes, &outcome);
                handled += usize::from(is_handled(bytes, &outcome));
                last = Some(outcome);
            }
            Event::Second if steps == STEPS => {}
            Event::Second => {
                steps += 1;
                slice.wait(STEP);
            }
            other => other.happen(slice),
        }
        generator.learn(&event, last.as_ref());
    }
    handled
}

/// Whether a packet was not left alone.
pub fn is_handled(bytes: &[u8], outcome: &Outcome) -> bool {
    outcome.action != Action::Pass || outcome.packet != bytes
}
