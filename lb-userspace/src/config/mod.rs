//! The config file: parsing with every fault found, and writing it back.

use std::fmt;

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
}

/// Parses a config file's text; `file` is its name in messages. All faults are reported.
pub fn parse(text: &str, file: &str) -> Result<Parsed, Faults> {
    let _ = (text, file);
    todo!()
}

/// Writes a config so that [`parse`] reads back the same.
pub fn render(config: &Config) -> String {
    let _ = config;
    todo!()
}
