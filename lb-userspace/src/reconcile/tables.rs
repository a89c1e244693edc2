//! Builds and writes tables, over all CPUs where there are many.

use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::Context;

use super::{Change, Reconciler};
use crate::{
    datapath::Datapath,
    plan::{Digest, Installed, Recipe},
    select::Builder,
};

/// Tables that are worth a thread: building and writing one takes some hundred microseconds.
const WORTH_A_THREAD: usize = 8;

/// What became of one table: its contents, and whether they had to be written.
type Outcome = anyhow::Result<(Digest, bool)>;

impl Reconciler {
    /// Puts each table in its place unless it is there already, in no particular order; tables do
    /// not rely on each other. Gives the number of writes, and the tables that failed.
    pub(super) fn write_tables(
        &mut self,
        run: Vec<(u32, Recipe)>,
    ) -> (usize, Vec<(u32, anyhow::Error)>) {
        let outcomes = carry_out(
            self.datapath.as_ref(),
            &self.installed,
            &run,
            &mut self.builder,
        );
        self.rewritten.extend(run.iter().map(|(table, _)| *table));
        let mut writes = 0;
        let mut failed = Vec::new();
        for ((table, recipe), outcome) in run.into_iter().zip(outcomes) {
            match outcome {
                Ok((digest, written)) => {
                    writes += usize::from(written);
                    self.tables_written += u64::from(written);
                    self.installed.tables.insert(table, digest);
                    self.recipes.insert(table, recipe);
                }
                Err(error) => {
                    let change = Change::SetTable { table, recipe };
                    let name = self.names.change(&change, &self.installed);
                    failed.push((table, error.context(name)));
                }
            }
        }
        (writes, failed)
    }
}

/// In the order of `run`.
fn carry_out(
    datapath: &dyn Datapath,
    installed: &Installed,
    run: &[(u32, Recipe)],
    builder: &mut Builder,
) -> Vec<Outcome> {
    let one = |(table, recipe): &(u32, Recipe), builder: &mut Builder| -> Outcome {
        let slots = recipe.build(builder);
        let digest = Digest::of(&slots);
        let is_there = installed.tables.get(table) == Some(&digest);
        if !is_there {
            datapath.set_table(*table, &slots)?;
        }
        Ok((digest, !is_there))
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let workers = cpus.min(run.len() / WORTH_A_THREAD);
    if workers <= 1 {
        return run.iter().map(|entry| one(entry, builder)).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut builder = Builder::default();
        let mut done = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            match run.get(place) {
                Some(entry) => done.push((place, one(entry, &mut builder))),
                None => return done,
            }
        }
    };
    let mut outcomes: Vec<Option<Outcome>> = run.iter().map(|_| None).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let done = thread.join();
            for (place, outcome) in done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                outcomes[place] = Some(outcome);
            }
        }
    });
    let every = outcomes
        .into_iter()
        .map(|o| o.context("no thread took it").flatten());
    every.collect()
}
