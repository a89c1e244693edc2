//! The order of probes and how many run at once. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use crate::model::BackendRef;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Speed {
    Prompt,
    /// Known to be down, and its last probe used up half its timeout or more.
    Slow,
}

/// Waiting probes by time. Slow ones get at most half the slots, so hosts that hang delay nobody
/// once they are known to be down; until then, finding out is what the slots are for.
pub(super) struct Lanes {
    prompt: Lane,
    slow: Lane,
    slots: usize,
}

#[derive(Default)]
struct Lane {
    waiting: BTreeMap<(Instant, u64), Arc<BackendRef>>,
    running: usize,
}

impl Lanes {
    /// At least two slots, or one lane would have none.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            prompt: Lane::default(),
            slow: Lane::default(),
            slots: slots.max(2),
        }
    }

    pub(super) fn wait(&mut self, speed: Speed, due: Instant, id: u64, backend: Arc<BackendRef>) {
        self.lane(speed).waiting.insert((due, id), backend);
    }

    pub(super) fn forget(&mut self, speed: Speed, due: Instant, id: u64) {
        self.lane(speed).waiting.remove(&(due, id));
    }

    /// Takes a slot for the longest overdue probe, if one is due and a slot is free.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Arc<BackendRef>> {
        let (due, speed) = self.first()?;
        if due > now {
            return None;
        }
        let lane = self.lane(speed);
        let (_, backend) = lane.waiting.pop_first()?;
        lane.running += 1;
        Some(backend)
    }

    /// Gives a slot back.
    pub(super) fn release(&mut self, speed: Speed) {
        self.lane(speed).running -= 1;
    }

    /// When [`Self::take_due`] has something to give next; `None` if only a released slot or a
    /// new probe can tell.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.first().map(|(due, _)| due)
    }

    fn first(&self) -> Option<(Instant, Speed)> {
        if self.prompt.running + self.slow.running >= self.slots {
            return None;
        }
        let slow = if self.slow.running < self.slots / 2 {
            self.slow.due()
        } else {
            None
        };
        let prompt = self.prompt.due().map(|due| (due, Speed::Prompt));
        let slow = slow.map(|due| (due, Speed::Slow));
        [prompt, slow]
            .into_iter()
            .flatten()
            .min_by_key(|(due, _)| *due)
    }

    fn lane(&mut self, speed: Speed) -> &mut Lane {
        match speed {
            Speed::Prompt => &mut self.prompt,
            Speed::Slow => &mut self.slow,
        }
    }
}

impl Lane {
    fn due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn filled(slots: usize, prompt: u64, slow: u64, now: Instant) -> Lanes {
        let mut lanes = Lanes::new(slots);
        let backend = |name: &str| {
            Arc::new(BackendRef {
                service: name.to_owned(),
                address: ([10, 0, 0, 1], 80).into(),
            })
        };
        for id in 0..slow {
            lanes.wait(Speed::Slow, now, id, backend("slow"));
        }
        for id in 0..prompt {
            let later = now + Duration::from_millis(1);
            lanes.wait(Speed::Prompt, later, slow + id, backend("prompt"));
        }
        lanes
    }

    fn take_all(lanes: &mut Lanes, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| lanes.take_due(now))
            .map(|backend| backend.service.clone())
            .collect()
    }

    #[test]
    fn slow_backends_leave_half_the_slots() {
        let now = Instant::now();
        let mut lanes = filled(8, 100, 100, now);
        let taken = take_all(&mut lanes, now + Duration::from_secs(1));
        assert_eq!(taken.iter().filter(|name| *name == "slow").count(), 4);
        assert_eq!(taken.iter().filter(|name| *name == "prompt").count(), 4);
        assert_eq!(lanes.wake_at(), None, "no slot is free");

        lanes.release(Speed::Prompt);
        let taken = take_all(&mut lanes, now + Duration::from_secs(1));
        assert_eq!(taken, ["prompt"], "slow ones already have their share");
        lanes.release(Speed::Slow);
        let taken = take_all(&mut lanes, now + Duration::from_secs(1));
        assert_eq!(taken, ["slow"], "a free slot goes to the longest overdue");
    }

    #[test]
    fn nothing_starts_before_its_time() {
        let now = Instant::now();
        let mut lanes = filled(8, 1, 0, now);
        let due = now + Duration::from_millis(1);
        assert!(lanes.take_due(now).is_none());
        assert_eq!(lanes.wake_at(), Some(due));
        assert!(lanes.take_due(due).is_some());
        assert_eq!(lanes.wake_at(), None);
    }
}
