//! Makes a sequence that shows a disagreement as short as it can be.

use anyhow::Result;

use super::{
    event::Event,
    pair::{Fault, Pair},
};

/// Sequences that are tried at most.
const TRIES: usize = 3000;

/// The shortest sequence found by leaving events out that ends in any disagreement, and that.
pub(super) fn shortest(
    pair: &mut Pair,
    mut events: Vec<Event>,
    mut fault: Fault,
) -> Result<(Vec<Event>, Fault)> {
    let mut tries = 0;
    let mut size = events.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let mut is_shorter = false;
        while start < events.len() && tries < TRIES {
            let mut fewer = events.clone();
            fewer.drain(start..(start + size).min(events.len()));
            tries += 1;
            match play(pair, &fewer)? {
                Some((length, found)) => {
                    fewer.truncate(length);
                    (events, fault, is_shorter) = (fewer, found, true);
                }
                None => start += size,
            }
        }
        if tries >= TRIES || (size == 1 && !is_shorter) {
            return Ok((events, fault));
        }
        size = (size / 2).max(1);
    }
}

/// Plays a sequence anew; the disagreement, and how many events it took.
pub(super) fn play(pair: &mut Pair, events: &[Event]) -> Result<Option<(usize, Fault)>> {
    pair.reset()?;
    for (number, event) in events.iter().enumerate() {
        if let Err(fault) = pair.play(event) {
            return Ok(Some((number + 1, fault)));
        }
    }
    Ok(pair.compare().err().map(|fault| (events.len(), fault)))
}
