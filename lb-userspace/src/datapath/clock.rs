//! The packet path's clock: jiffies, which user space cannot read but through a program.

use std::{
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::ProgramFd;
use lb_common::abi::from_bytes;

use super::{flows::Now, sys};

/// Every value of CONFIG_HZ that Linux offers on the machines we run on.
const RATES: [u32; 4] = [100, 250, 300, 1000];
/// Ten ticks at the slowest rate.
const SHORTEST: Duration = Duration::from_millis(100);
/// Whoever measures for longer was stopped in the middle, as virtual machines are: the two clocks may
/// have gone on differently, and it is measured anew.
const LONGEST: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

/// The program that tells the time, loaded but attached to nothing.
pub(super) struct Clock {
    program: ProgramFd,
}

/// Both of the kernel's clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    jiffies: u64,
    nanoseconds: u64,
}

impl Clock {
    pub(super) fn new(program: ProgramFd) -> Self {
        Self { program }
    }

    pub(super) fn now(&self, hz: u32) -> Result<Now> {
        Ok(Now {
            jiffies: self.read()?.jiffies as u32,
            hz,
        })
    }

    pub(super) fn read(&self) -> Result<Reading> {
        // The kernel takes no test packet shorter than an Ethernet frame.
        let mut packet = [0; 64];
        sys::test_run(self.program.as_fd(), &mut packet).context("running lbd_clock")?;
        let (jiffies, nanoseconds) = (from_bytes(&packet), from_bytes(&packet[8..]));
        match (jiffies, nanoseconds) {
            (Some(jiffies), Some(nanoseconds)) if nanoseconds != 0 => Ok(Reading {
                jiffies,
                nanoseconds,
            }),
            _ => bail!("lbd_clock wrote no time"),
        }
    }

    /// Jiffies per second, measured from `begin` on; sleeps until enough time has passed.
    ///
    /// Measured, because the kernel's configuration need not be readable, nor be that of the
    /// kernel that runs.
    pub(super) fn calibrate(&self, mut begin: Reading) -> Result<u32> {
        let started = Instant::now();
        let mut wait = SHORTEST;
        loop {
            let end = self.read()?;
            let elapsed = Duration::from_nanos(end.nanoseconds.saturating_sub(begin.nanoseconds));
            if let Some(missing) = wait.checked_sub(elapsed).filter(|m| !m.is_zero()) {
                thread::sleep(missing);
                continue;
            }
            let ticks = end.jiffies.wrapping_sub(begin.jiffies);
            if let Some(rate) = nearest(ticks, elapsed) {
                return Ok(rate);
            }
            ensure!(
                started.elapsed() < PATIENCE,
                "the kernel's tick rate is none of {RATES:?} per second: {ticks} ticks in {elapsed:?}"
            );
            wait = elapsed * 2;
            if elapsed > LONGEST {
                (begin, wait) = (end, SHORTEST);
            }
        }
    }
}

/// The rate at which `ticks` in `elapsed` are possible, give or take two ticks (a read falls
/// anywhere between ticks, and a tick may be late) and 4 % (a busy machine reads the one clock some
/// time after the other); `None` if none or several rates are.
fn nearest(ticks: u64, elapsed: Duration) -> Option<u32> {
    let fits = |rate: &&u32| {
        let expected = f64::from(**rate) * elapsed.as_secs_f64();
        (ticks as f64 - expected).abs() <= 2.0 + expected / 25.0
    };
    let mut possible = RATES.iter().filter(fits);
    let rate = *possible.next()?;
    possible.next().is_none().then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_told_apart_after_100_ms() {
        for rate in RATES {
            for late in [0, 1, 2] {
                let ticks = u64::from(rate) / 10 - late;
                let found = nearest(ticks, SHORTEST);
                assert!(found.is_none_or(|f| f == rate), "{rate} {late} {found:?}");
            }
            assert_eq!(nearest(u64::from(rate) / 10, SHORTEST), Some(rate));
        }
    }

    #[test]
    fn a_busy_machine_may_measure_for_long() {
        // As read once on a virtual machine.
        let elapsed = Duration::from_nanos(5_655_088_920);
        assert_eq!(nearest(1416, elapsed), Some(250));
        for rate in RATES {
            for percent in [97, 100, 103] {
                let ticks = u64::from(rate) * percent / 10;
                assert_eq!(nearest(ticks, Duration::from_secs(10)), Some(rate));
            }
        }
    }

    #[test]
    fn other_rates_are_not_guessed() {
        assert_eq!(nearest(60, SHORTEST), None);
        assert_eq!(nearest(0, SHORTEST), None);
    }
}
