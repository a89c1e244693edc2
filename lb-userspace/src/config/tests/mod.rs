mod discovery;
mod faults;
mod hostile;
mod key_value;
mod kubernetes;
mod round_trip;
mod services;
mod valid;

use super::{Parsed, parse};

/// The findings of a faulty text, as `line:column: message`.
fn faults(text: &str) -> Vec<String> {
    match parse(text, "f") {
        Ok(parsed) => panic!("no fault in\n{text}\n{parsed:?}"),
        Err(faults) => places(&faults.findings),
    }
}

fn warnings(text: &str) -> Vec<String> {
    places(&accepted(text).warnings)
}

fn accepted(text: &str) -> Parsed {
    parse(text, "f").unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

fn places(findings: &[super::Finding]) -> Vec<String> {
    findings
        .iter()
        .map(|f| format!("{}:{}: {}", f.line, f.column, f.message))
        .collect()
}

/// A service with one more line in it.
fn service_with(line: &str) -> String {
    format!(
        "services:\n  - name: web\n    listen: 192.0.2.10:80\n    {line}\n{}",
        if line.starts_with("backends:") {
            ""
        } else {
            "    backends: [{address: 10.1.0.11:80}]\n"
        }
    )
}
