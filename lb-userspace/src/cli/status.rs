//! `lbctl status`.

use std::{
    io::{self, Write},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    Daemon,
    args::Status,
    describe::fields,
    exit::{Exit, Failure},
    human::age,
    output,
    table::visible,
};
use crate::{
    api::types::{Request, Response, StatusItem},
    model::duration_text,
};

const POLL: Duration = Duration::from_millis(250);

pub(super) async fn run(
    daemon: &Daemon,
    args: Status,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let begin = Instant::now();
    let status = loop {
        let status = query(daemon).await;
        let left = args
            .wait
            .unwrap_or_default()
            .saturating_sub(begin.elapsed());
        if left.is_zero() || status.as_ref().is_ok_and(is_well) {
            break status;
        }
        sleep(POLL.min(left)).await;
    };
    let waited = args.wait.map(duration_text::format);
    let status = match (status, &waited) {
        (Ok(status), _) => status,
        (Err(failure), None) => return Err(failure),
        (Err(failure), Some(waited)) => {
            let message = format!("after {waited}: {}", failure.message);
            return Err(Failure::new(Exit::Timeout, message));
        }
    };
    match args.output.is_table() {
        true => print(&status, out)?,
        false => {
            let fields = serde_json::to_value(&status).unwrap_or_default();
            output::object("Status", fields, args.output, out)?;
        }
    }
    Ok(match (is_well(&status), status.ready, waited) {
        (true, ..) => Exit::Ok,
        (false, false, Some(_)) => Exit::Timeout,
        (false, ..) => Exit::Degraded,
    })
}

async fn query(daemon: &Daemon) -> Result<StatusItem, Failure> {
    match daemon.call(Request::Status).await? {
        Response::Status(status) => Ok(status),
        _ => Err(Failure::unexpected()),
    }
}

fn is_well(status: &StatusItem) -> bool {
    status.ready && status.problems.is_empty()
}

fn print(status: &StatusItem, out: &mut dyn Write) -> io::Result<()> {
    let state = match (status.ready, status.problems.is_empty()) {
        (true, true) => "ready",
        (true, false) => "degraded",
        (false, _) => "not ready",
    };
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|(device, how)| format!("{device} ({how})"))
        .collect();
    let healthy = format!("{} of {} healthy", status.healthy_backends, status.backends);
    fields(
        &[
            ("State", state.to_owned()),
            ("Version", status.version.clone()),
            ("Uptime", age(status.uptime_seconds)),
            ("Config", status.config_file.clone().unwrap_or_default()),
            ("Last reload", status.last_reload.clone()),
            ("Interfaces", interfaces.join(", ")),
            ("Services", status.services.to_string()),
            ("Backends", healthy),
            (
                "Connections",
                format!("{} active", status.active_connections),
            ),
        ],
        out,
    )?;
    if !status.problems.is_empty() {
        writeln!(out, "Problems:")?;
    }
    for problem in &status.problems {
        writeln!(out, "  - {}", visible(problem))?;
    }
    Ok(())
}
