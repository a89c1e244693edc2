//! Verbs about config files.

use std::{
    io::{Read, Write},
    path::Path,
};

use super::{
    Daemon,
    exit::{Exit, Failure},
};
use crate::{
    api::types::{Request, Response},
    config::{self, Parsed},
};

/// Far beyond any config the daemon's maps could hold.
const LARGEST: u64 = 64 << 20;

pub(super) fn check(file: &Path, out: &mut dyn Write) -> Result<Exit, Failure> {
    let (_, parsed) = read(file)?;
    let name = name(file);
    for finding in &parsed.warnings {
        let (line, column) = (finding.line, finding.column);
        eprintln!("{name}:{line}:{column}: warning: {}", finding.message);
    }
    let services = &parsed.config.services;
    let backends: usize = services.iter().map(|service| service.backends.len()).sum();
    let services = services.len();
    writeln!(
        out,
        "{name}: valid, services: {services}, backends: {backends}"
    )?;
    Ok(Exit::Ok)
}

pub(super) async fn diff(
    daemon: &Daemon,
    file: &Path,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let (text, _) = read(file)?;
    let Response::Diff { changes } = daemon.call(Request::Diff { text }).await? else {
        return Err(Failure::unexpected());
    };
    for change in &changes {
        writeln!(out, "{change}")?;
    }
    Ok(match changes.is_empty() {
        true => Exit::Ok,
        false => Exit::Differs,
    })
}

pub(super) async fn apply(
    daemon: &Daemon,
    file: &Path,
    dry_run: bool,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let (text, parsed) = read(file)?;
    for (key, line) in parsed.settings {
        let name = name(file);
        eprintln!(
            "{name}:{line}: warning: `{key}` is ignored, only services are applied; it belongs into \
             the daemon's own config file"
        );
    }
    match daemon.call(Request::Apply { text, dry_run }).await? {
        Response::Done { message } => writeln!(out, "{message}")?,
        Response::Diff { changes } => {
            for change in &changes {
                writeln!(out, "{change}")?;
            }
            if changes.is_empty() {
                eprintln!("nothing would change");
            }
        }
        _ => return Err(Failure::unexpected()),
    }
    Ok(Exit::Ok)
}

pub(super) async fn export(daemon: &Daemon, out: &mut dyn Write) -> Result<Exit, Failure> {
    let Response::Export { text } = daemon.call(Request::Export).await? else {
        return Err(Failure::unexpected());
    };
    out.write_all(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// A file's text, known to be valid: its faults are told with its own name, which the daemon
/// never hears.
fn read(file: &Path) -> Result<(String, Parsed), Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let name = name(file);
    let mut text = String::new();
    let source: std::io::Result<Box<dyn Read>> = match file.to_str() {
        Some("-") => Ok(Box::new(std::io::stdin())),
        _ => std::fs::File::open(file).map(|file| Box::new(file) as Box<dyn Read>),
    };
    source
        .and_then(|source| source.take(LARGEST).read_to_string(&mut text))
        .map_err(|error| usage(format!("cannot read {name}: {error}")))?;
    match config::parse(&text, &name) {
        Ok(parsed) => Ok((text, parsed)),
        Err(faults) => Err(usage(format!("the config file has faults\n{faults}"))),
    }
}

fn name(file: &Path) -> String {
    match file.to_str() {
        Some("-") => "<stdin>".to_owned(),
        _ => file.display().to_string(),
    }
}
