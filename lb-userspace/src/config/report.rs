//! Where findings and the places of values are gathered while a file is read.

use std::collections::HashMap;

use super::{Finding, check::Item};

/// No file is worth reading after so many faults.
const MAX_FINDINGS: usize = 1000;

/// A place in a file, both from 1; the column counts characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    pub(super) fn finding(self, message: impl Into<String>) -> Finding {
        Finding {
            line: self.line,
            column: self.column,
            message: message.into(),
        }
    }
}

/// What the file says of a value.
#[derive(Clone, Copy)]
pub(super) enum Written {
    At(Place),
    /// Already reported: nothing else is said about it.
    Faulty,
    /// It has its default.
    Nowhere,
}

#[derive(Default)]
pub(super) struct Report {
    faults: Vec<Finding>,
    warnings: Vec<Finding>,
    values: HashMap<Item, Written>,
    more: bool,
}

impl Report {
    pub(super) fn fault(&mut self, place: Place, message: impl Into<String>) {
        if self.faults.len() < MAX_FINDINGS {
            self.faults.push(place.finding(message));
        } else {
            self.more = true;
        }
    }

    pub(super) fn warn(&mut self, place: Place, message: impl Into<String>) {
        if self.warnings.len() < MAX_FINDINGS {
            self.warnings.push(place.finding(message));
        }
    }

    pub(super) fn found_at(&mut self, item: Item, place: Place) {
        self.values.insert(item, Written::At(place));
    }

    pub(super) fn faulty(&mut self, item: Item) {
        self.values.insert(item, Written::Faulty);
    }

    pub(super) fn written(&self, item: Item) -> Written {
        self.values.get(&item).copied().unwrap_or(Written::Nowhere)
    }

    /// Place of a value, or of what it is part of where the file leaves it out; `None` if the value
    /// is already reported as faulty.
    pub(super) fn place(&self, item: Item) -> Option<Place> {
        match (self.written(item), item.parent()) {
            (Written::At(place), _) => Some(place),
            (Written::Faulty, _) => None,
            (Written::Nowhere, Some(parent)) => self.place(parent),
            (Written::Nowhere, None) => Some(Place::START),
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    /// Warnings if there is no fault, else the faults; in the file's order.
    pub(super) fn finish(self) -> Result<Vec<Finding>, Vec<Finding>> {
        let ordered = |mut findings: Vec<Finding>| {
            findings.sort_by_key(|finding| (finding.line, finding.column));
            findings
        };
        if self.faults.is_empty() {
            return Ok(ordered(self.warnings));
        }
        let mut faults = ordered(self.faults);
        if let (true, Some(last)) = (self.more, faults.last_mut()) {
            last.message += " (and more faults; these are corrected first)";
        }
        Err(faults)
    }
}
