//! Forms of output.

use std::io::Write;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use crate::api::types::API_VERSION;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    Table,
    /// A table with more columns
    Wide,
    Json,
    Yaml,
}

impl Format {
    pub(super) fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Prints a list as a document; `-o json` is stable, `-o yaml` has the same structure.
pub(super) fn list(
    kind: &str,
    items: Vec<Value>,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let document = json!({"apiVersion": API_VERSION, "kind": kind, "items": items});
    print(&document, format, out)
}

/// Prints one object: its fields stand beside apiVersion and kind.
pub(super) fn object(
    kind: &str,
    fields: Value,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut document = json!({"apiVersion": API_VERSION, "kind": kind});
    if let (Some(document), Value::Object(fields)) = (document.as_object_mut(), fields) {
        document.extend(fields);
    }
    print(&document, format, out)
}

fn print(document: &Value, format: Format, out: &mut dyn Write) -> Result<(), Failure> {
    let cannot = |error: &dyn std::fmt::Display| Failure::new(Exit::Degraded, error.to_string());
    let text = match format {
        Format::Yaml => {
            let yaml = serde_yaml_ng::to_string(document).map_err(|error| cannot(&error))?;
            format!("---\n{yaml}")
        }
        _ => serde_json::to_string_pretty(document).map_err(|error| cannot(&error))? + "\n",
    };
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
