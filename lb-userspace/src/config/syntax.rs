//! Text that is no YAML.

use saphyr_parser::{Marker, ScanError};

use super::report::Place;

/// Largest file read, in bytes; a thousand services of twenty backends take 1.5 MB.
const MAX_BYTES: usize = 16 << 20;

/// A fault after which nothing more can be read.
pub(super) type Stop = (Place, String);

/// A place counted from 1, as the parser counts columns from 0.
pub(super) fn place(marker: &Marker) -> Place {
    Place {
        line: marker.line(),
        column: marker.col() + 1,
    }
}

/// Faults that the scanner would not report: it takes a NUL for the end of the file.
pub(super) fn unreadable(text: &str) -> Option<Stop> {
    if text.len() > MAX_BYTES {
        let message = format!("the file is larger than {} MiB", MAX_BYTES >> 20);
        return Some((Place::START, message));
    }
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r') || !c.is_control();
    let (at, c) = text.char_indices().find(|&(_, c)| !allowed(c))?;
    let before = &text[..at];
    let line_start = before.rfind(['\n', '\r']).map_or(0, |newline| newline + 1);
    let crlf = before.matches("\r\n").count();
    let place = Place {
        line: 1 + before.matches(['\n', '\r']).count() - crlf,
        column: 1 + before[line_start..].chars().count(),
    };
    let message = format!(
        "character U+{:04X} is not allowed in YAML; is this a text file?",
        c as u32
    );
    Some((place, message))
}

/// The parser's fault, with the remedy for the two mistakes that bring most people here.
pub(super) fn syntax_fault(text: &str, error: &ScanError) -> Stop {
    let at = place(error.marker());
    let line = text.lines().nth(at.line.saturating_sub(1)).unwrap_or("");
    let indent = &line[..line.len() - line.trim_start().len()];
    let hint = if indent.contains('\t') {
        "; indent with spaces, not tabs"
    } else if line.contains("]:") {
        "; an IPv6 address needs quotes: \"[2001:db8::1]:80\""
    } else {
        ""
    };
    (at, format!("invalid YAML: {}{hint}", error.info()))
}
