//! What became of it all, for a person.

use std::{collections::BTreeMap, time::Instant};

use super::{
    judge::{Cause, History},
    traffic::{Failed, How, Record},
};

/// Failures that may be owed to a busy machine: so many, and one of so many connections.
const MACHINE_MAY: usize = 10;
const MACHINE_MAY_OF: usize = 5000;

/// What one scene showed.
pub(super) struct Report {
    pub(super) name: &'static str,
    record: Record,
    /// Lines about faults, those first that concerned most.
    faults: Vec<String>,
    headless: f64,
    explained: usize,
    machine: usize,
    pub(super) unexplained: Vec<String>,
    pub(super) leaks: Vec<String>,
}

impl Report {
    /// Why the scene shows nothing, if so: whatever failed might be owed to lbd then.
    pub(super) fn is_void(&self) -> Option<String> {
        let most = MACHINE_MAY + self.record.connections as usize / MACHINE_MAY_OF;
        (self.machine > most).then(|| {
            format!(
                "{}: {} failures, {most} at most may be owed to a busy machine; run it on a quieter one",
                self.name, self.machine
            )
        })
    }

    pub(super) fn new(
        name: &'static str,
        start: Instant,
        record: Record,
        history: History,
        leaks: Vec<String>,
    ) -> Self {
        let mut owed: BTreeMap<usize, Vec<&Failed>> = BTreeMap::new();
        let (mut unexplained, mut machine) = (Vec::new(), 0);
        for failed in &record.failed {
            match history.explain(failed) {
                Some(Cause::Fault(fault)) => owed.entry(fault).or_default().push(failed),
                Some(Cause::Machine) => machine += 1,
                None => unexplained.push(describe(failed, start)),
            }
        }
        let explained = owed.values().map(Vec::len).sum();
        let faults = history.faults.iter().enumerate().map(|(i, happened)| {
            let since = |time: Instant| {
                time.saturating_duration_since(happened.began).as_secs_f64()
            };
            let mut line = format!(
                "{:7.1} s  {:<26} {}",
                (happened.began - start).as_secs_f64(),
                happened.fault.to_string(),
                happened.ended.map_or("to the end".to_owned(), |ended| format!("{:.1} s", since(ended))),
            );
            match owed.get(&i) {
                None => line += ": nobody noticed",
                Some(failed) => {
                    let first = failed.iter().map(|f| f.ended).min().map_or(0.0, since);
                    let last = failed.iter().map(|f| f.ended).max().map_or(0.0, since);
                    let began = failed.iter().map(|f| f.began).max().map_or(0.0, since);
                    line += &format!(
                        ": affected {} from {first:.2} s to {last:.2} s ({}); the last of them began at {began:.2} s",
                        failed.len(),
                        kinds(failed),
                    );
                }
            }
            line
        });
        let headless = history
            .headless
            .iter()
            .map(|(gone, back)| (*back - *gone).as_secs_f64());
        Self {
            name,
            faults: faults.collect(),
            headless: headless.sum(),
            explained,
            machine,
            unexplained,
            leaks,
            record,
        }
    }
}

fn kinds(failed: &[&Failed]) -> String {
    let mut counts = BTreeMap::<String, u32>::new();
    for one in failed {
        let how = match &one.how {
            How::Failed(failure) => failure.to_string(),
            How::Moved => "moved to another backend".to_owned(),
        };
        let what = format!("{} {how}", one.target.protocol);
        *counts.entry(what).or_default() += 1;
    }
    let words: Vec<_> = counts
        .iter()
        .map(|(what, n)| format!("{n} {what}"))
        .collect();
    words.join(", ")
}

fn describe(failed: &Failed, start: Instant) -> String {
    let at = |time: Instant| time.saturating_duration_since(start).as_secs_f64();
    format!(
        "{:?} {} {} from {}, {}{}: began {:.3} s, last heard {:.3} s, {:?} at {:.3} s",
        failed.kind,
        failed.target.service,
        failed.target.address,
        failed.source,
        match failed.backend {
            Some(place) => format!("on b{place}"),
            None => "on nobody knows which".to_owned(),
        },
        if failed.was_answered {
            ""
        } else {
            " (never answered)"
        },
        at(failed.began),
        at(failed.heard),
        failed.how,
        at(failed.ended),
    )
}

pub(super) fn print(reports: &[Report], say: &(impl Fn(String) + Sync)) {
    for report in reports {
        say(format!("\n== {} ==", report.name));
        report.faults.iter().cloned().for_each(say);
    }
    say("\n== all in all ==".to_owned());
    for report in reports {
        let record = &report.record;
        let stalls = record.stalls.iter().chain(&record.overruns);
        let stalled = stalls.map(|(from, to)| (*to - *from).as_secs_f64());
        say(format!(
            "{:<10}  {} connections, {} exchanges over TCP, {} datagrams answered, {} MB checked; {} faults, \
             {:.0} s without lbd; {} failures owed to faults, {} to {:.1} s in which the machine was busy or \
             had no room, {} unattributed; {}",
            report.name,
            record.connections,
            record.exchanges,
            record.datagrams,
            record.bytes / 1_000_000,
            report.faults.len(),
            report.headless,
            report.explained,
            report.machine,
            stalled.fold(0.0, |sum: f64, stall| sum + stall),
            report.unexplained.len(),
            if report.leaks.is_empty() {
                "nothing left behind"
            } else {
                "LEFT BEHIND:"
            },
        ));
        report
            .leaks
            .iter()
            .for_each(|leak| say(format!("    {leak}")));
        for line in report.unexplained.iter().take(40) {
            say(format!("    UNATTRIBUTED {line}"));
        }
    }
}
