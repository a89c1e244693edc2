//! The config file: parsing with every fault found, and writing it back.

mod address;
mod admission;
mod check;
mod decode;
pub(crate) mod discovery;
mod health;
mod render;
mod report;
mod service;
mod suggest;
mod syntax;
#[cfg(test)]
mod tests;
mod tree;
mod value;

use std::fmt;

use check::Severity;
use report::{Place, Report, Written};

pub use address::parse_address;
pub use check::check;
pub(crate) use check::{affinity_fault, backend_fault, label_fault, listen_fault};
pub use discovery::instances::parse as parse_instances;
pub use health::default_for as default_health;
pub use render::render;
pub use service::DEFAULT_WEIGHT;

use crate::model::Config;

/// One fault or warning, with its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong, what is allowed, and the nearest match of a misspelt word.
    pub message: String,
}

/// All faults of a file; displays as `file:line:column: message`, one a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Faults {
    pub file: String,
    pub findings: Vec<Finding>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (
            i,
            Finding {
                line,
                column,
                message,
            },
        ) in self.findings.iter().enumerate()
        {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{line}:{column}: {message}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A valid config and what is odd about it but no fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    pub config: Config,
    pub warnings: Vec<Finding>,
    /// Which of `node` and `admin` the file has, and in which line.
    pub settings: Vec<(&'static str, usize)>,
}

/// Parses a config file's text; `file` is its name in messages. All faults are reported.
pub fn parse(text: &str, file: &str) -> Result<Parsed, Faults> {
    let mut report = Report::default();
    let root = tree::load(text, &mut report);
    let config = decode::config(root.as_ref(), &mut report);
    if root.is_some() || report.is_clean() {
        judge(&config, &mut report);
    }
    match report.finish() {
        Ok(warnings) => Ok(Parsed {
            config,
            warnings,
            settings: decode::settings(root.as_ref()),
        }),
        Err(findings) => Err(Faults {
            file: file.to_owned(),
            findings,
        }),
    }
}

/// Gives the remarks of the semantic checks their places.
fn judge(config: &Config, report: &mut Report) {
    if config.services.is_empty() && config.discovery.is_empty() {
        let place = match report.written(check::Item::Setting("services")) {
            Written::At(place) => place,
            Written::Nowhere | Written::Faulty => Place::START,
        };
        report.warn(
            place,
            "no services are configured: nothing is balanced until some are added",
        );
    }
    for remark in check::remarks(config) {
        let Some(place) = report.place(remark.item) else {
            continue;
        };
        let mut message = remark.message;
        if let Some(other) = remark.other {
            match report.written(other) {
                Written::Faulty => continue,
                Written::Nowhere => {}
                Written::At(other) => {
                    let first = if other < place { "first " } else { "" };
                    message += &format!("; {first}defined at line {}", other.line);
                }
            }
        }
        match remark.severity {
            Severity::Fault => report.fault(place, message),
            Severity::Warning => report.warn(place, message),
        }
    }
}
