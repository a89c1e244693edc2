//! What people read: the summary of a run, and docs/kernels.md.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    Reports,
    plan::Step,
    report::{Outcome, Report},
};
use crate::{Outcome as Done, root, tree};

/// A table of steps by kernels, and under it what is to be said of each kernel.
pub fn summary(reports: &Reports, steps: &[Step]) -> String {
    let mut rows = vec![row("", reports, |report| report.release.clone())];
    for step in steps {
        let cell = |report: &Report| report.steps.get(step.name).map_or_else(String::new, cell);
        rows.push(row(step.name, reports, cell));
    }
    rows.push(row("all", reports, |report| {
        format!("{} s", report.seconds)
    }));
    let programs = programs(reports);
    for program in &programs {
        let count = |report: &Report| count(report, program);
        rows.push(row(program, reports, count));
    }
    let mut text = aligned(&rows);
    for (series, report) in reports {
        text += &match report {
            Ok(report) => remarks(series, report),
            Err(error) => format!("Linux {series}: {error}\n"),
        };
    }
    text
}

fn row(head: &str, reports: &Reports, cell: impl Fn(&Report) -> String) -> Vec<String> {
    let cells = reports
        .iter()
        .map(|(_, report)| report.as_ref().map_or_else(|_| "-".to_owned(), &cell));
    std::iter::once(head.to_owned()).chain(cells).collect()
}

fn cell(outcome: &Outcome) -> String {
    let mut text = format!("{} passed", outcome.passed);
    for (number, what) in [
        (outcome.failed.len(), "FAILED"),
        (outcome.skipped.len(), "skipped"),
    ] {
        if number > 0 {
            let _ = write!(text, ", {number} {what}");
        }
    }
    match &outcome.broken {
        Some(_) => text + ", BROKEN",
        None => format!("{text} ({} s)", outcome.seconds),
    }
}

fn count(report: &Report, program: &str) -> String {
    let count = report.programs.get(program);
    count.map_or_else(|| "-".to_owned(), u32::to_string)
}

fn programs(reports: &Reports) -> BTreeSet<String> {
    let good = reports
        .iter()
        .filter_map(|(_, report)| report.as_ref().ok());
    good.flat_map(|report| report.programs.keys().cloned())
        .collect()
}

fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|r| r.get(column))
            .map(String::len)
            .max()
    };
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(text, "{cell:<width$}  ", width = width(column).unwrap_or(0));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn remarks(series: &str, report: &Report) -> String {
    let mut text = format!("Linux {series}\n");
    let mut say = |line: String| text += &format!("  {line}\n");
    report
        .features
        .iter()
        .for_each(|feature| say(feature.clone()));
    report
        .notes
        .iter()
        .for_each(|note| say(format!("note: {note}")));
    report
        .rejected
        .iter()
        .for_each(|why| say(format!("REFUSED by the verifier: {why}")));
    for (name, outcome) in &report.steps {
        outcome
            .skipped
            .iter()
            .for_each(|why| say(format!("{name}: {why}")));
        outcome
            .failed
            .iter()
            .for_each(|test| say(format!("{name}: FAILED {test}")));
        outcome
            .broken
            .iter()
            .for_each(|why| say(format!("{name}: BROKEN, {why}")));
    }
    report
        .failure
        .iter()
        .for_each(|why| say(format!("FAILED: {why}")));
    if !report.is_good() {
        say(format!(
            "logs: target/vm/runs/{series}/{{tests,console}}.log"
        ));
    }
    text
}

const BEGIN: &str = "<!-- written by `cargo xtask vm --write` -->\n";
const END: &str = "<!-- end -->";

/// Puts what was measured into docs/kernels.md.
pub fn write(reports: &Reports) -> Done {
    let path = root().join("docs/kernels.md");
    let page = tree::read(&path)?;
    let (head, rest) = page
        .split_once(BEGIN)
        .ok_or("docs/kernels.md has no place for it")?;
    let (_, tail) = rest
        .split_once(END)
        .ok_or("docs/kernels.md has no end of it")?;
    let page = format!("{head}{BEGIN}{}{END}{tail}", instructions(reports));
    std::fs::write(&path, page).map_err(|error| format!("{}: {error}", path.display()))
}

fn instructions(reports: &Reports) -> String {
    let mut text = "| program |".to_owned();
    let good = || {
        // A smaller kernel has the verifier of its series.
        let whole = reports.iter().filter(|(series, _)| !series.contains('-'));
        whole.filter_map(|(_, report)| report.as_ref().ok())
    };
    for report in good() {
        let mut numbers = report.release.split(['.', '-', '+']);
        let version = [numbers.next(), numbers.next()].map(Option::unwrap_or_default);
        let _ = write!(text, " {} |", version.join("."));
    }
    text += "\n|---|";
    good().for_each(|_| text += "---|");
    text.push('\n');
    for program in programs(reports) {
        let _ = write!(text, "| `{program}` |");
        for report in good() {
            let _ = write!(text, " {} |", count(report, &program));
        }
        text.push('\n');
    }
    text
}
