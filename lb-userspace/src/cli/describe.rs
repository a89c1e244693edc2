//! `lbctl describe`: everything about one object, as text.

use std::io::{self, Write};

use super::{
    Daemon,
    args::Describe,
    exit::{Exit, Failure},
    human::{age, bytes, count},
    listing::{
        backend_cells, backend_header, event_cells, event_header, labels, source_cells,
        source_header,
    },
    output::{self, Format},
    table::{self, visible},
};
use crate::{
    api::types::{BackendItem, EventItem, HealthItem, Request, Response, ServiceItem},
    discovery::SourceItem,
    model::{
        Admission, Affinity, Forwarding, Health, HealthCheck, Prefix, ServiceSpec, duration_text,
    },
};

pub(super) async fn run(
    daemon: &Daemon,
    describe: Describe,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let (request, format) = match describe {
        Describe::Service { name, output } => (Request::DescribeService { name }, output),
        Describe::Backend { backend, output } => (Request::DescribeBackend { backend }, output),
    };
    let response = daemon.call(request).await?;
    if !format.is_table() {
        return structured(&response, format, out);
    }
    match response {
        Response::Service {
            spec,
            item,
            backends,
            sources,
            events,
        } => service(&spec, &item, (&backends, &sources), &events, out)?,
        Response::Backend {
            item,
            health,
            events,
        } => backend(&item, &health, &events, out)?,
        _ => return Err(Failure::unexpected()),
    }
    Ok(Exit::Ok)
}

fn structured(response: &Response, format: Format, out: &mut dyn Write) -> Result<Exit, Failure> {
    let kind = match response {
        Response::Service { .. } => "Service",
        Response::Backend { .. } => "Backend",
        _ => return Err(Failure::unexpected()),
    };
    let mut fields = serde_json::to_value(response).unwrap_or_default();
    if let Some(fields) = fields.as_object_mut() {
        fields.remove("kind");
    }
    output::object(kind, fields, format, out)?;
    Ok(Exit::Ok)
}

fn service(
    spec: &ServiceSpec,
    item: &ServiceItem,
    (backends, sources): (&[BackendItem], &[SourceItem]),
    events: &[EventItem],
    out: &mut dyn Write,
) -> io::Result<()> {
    let listen: Vec<_> = spec.listen.iter().map(ToString::to_string).collect();
    let healthy = format!("{} of {} healthy", item.healthy_backends, item.backends);
    let connections = format!(
        "{} active, {} in total",
        item.active_connections, item.total_connections
    );
    let mut rows = vec![
        ("Name", spec.name.clone()),
        ("Listen", listen.join(", ")),
        ("Protocol", spec.protocol.to_string()),
        ("Forwarding", forwarding(spec)),
        ("SNAT", spec.snat.to_string()),
        ("Policy", spec.policy.to_string()),
        ("No backend", spec.no_backend.to_string()),
        ("Backend down", spec.on_backend_down.to_string()),
    ];
    rows.extend(admission(spec));
    rows.extend([
        ("Health", health_words(&spec.health)),
        ("Source", item.source.clone()),
        ("Backends", healthy),
        ("Connections", connections),
    ]);
    fields(&rows, out)?;
    if !backends.is_empty() {
        writeln!(out, "\nBackends:")?;
        // The first column would say the same in every row.
        let rows: Vec<_> = backends
            .iter()
            .map(|item| backend_cells(item, false).split_off(1))
            .collect();
        table::print(&backend_header(false)[1..], &rows, "  ", out)?;
    }
    if !sources.is_empty() {
        writeln!(out, "\nSources:")?;
        let rows: Vec<_> = sources
            .iter()
            .map(|item| source_cells(item, false).split_off(1))
            .collect();
        table::print(&source_header(false)[1..], &rows, "  ", out)?;
        for (item, note) in sources
            .iter()
            .flat_map(|s| s.left_out.iter().map(move |n| (s, n)))
        {
            let (kind, target) = (&item.kind, visible(&item.target));
            writeln!(out, "  {kind}:{target} left out: {}", visible(note))?;
        }
    }
    self::events(events, out)
}

/// What is said of whom the service lets in.
fn admission(spec: &ServiceSpec) -> Vec<(&'static str, String)> {
    let Admission {
        allow_sources,
        deny_sources,
        max_connections,
        rate,
        source_rate,
        affinity,
    } = &spec.admission;
    let mut rows = Vec::new();
    let mut list = |name, prefixes: &[Prefix]| {
        const SHOWN: usize = 5;
        let shown: Vec<_> = prefixes.iter().take(SHOWN).map(Prefix::to_string).collect();
        let more = match prefixes.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        if !prefixes.is_empty() {
            rows.push((name, format!("{}{more}", shown.join(", "))));
        }
    };
    list("Allowed", allow_sources);
    list("Denied", deny_sources);
    let backends = spec.backends.iter();
    let of_backends: Vec<_> = backends
        .filter_map(|b| Some(format!("{} of {}", b.max_connections?, b.address)))
        .collect();
    let limits = max_connections.map(|limit| format!("{limit} in all"));
    let limits: Vec<_> = limits.into_iter().chain(of_backends).collect();
    rows.extend((!limits.is_empty()).then(|| ("Limit", limits.join(", "))));
    rows.extend(rate.map(|rate| ("Rate", rate.to_string())));
    rows.extend(source_rate.map(|rate| ("Source rate", rate.to_string())));
    let keeps = |a: Affinity| format!("client IP, {}", duration_text::format(a.client_ip));
    rows.extend(affinity.map(|a| ("Affinity", keeps(a))));
    rows
}

fn backend(
    item: &BackendItem,
    health: &HealthItem,
    events: &[EventItem],
    out: &mut dyn Write,
) -> io::Result<()> {
    let BackendItem {
        service,
        address,
        weight,
        effective_weight,
        state,
        reasons,
        labels: _,
        active_connections,
        total_connections,
        failed_connections,
        packets_in,
        bytes_in,
        packets_out,
        bytes_out,
        source,
    } = item;
    let traffic = |packets, octets| format!("{} packets, {}", count(packets), bytes(octets));
    let connections = format!(
        "{active_connections} active, {total_connections} in total, {failed_connections} refused"
    );
    let last = match (&health.last_result, health.last_probe_seconds_ago) {
        (Some(result), Some(ago)) => format!("{result}, {} ago", age(ago)),
        (Some(result), None) => result.clone(),
        (None, _) => "none yet".to_owned(),
    };
    let in_row = format!(
        "{} successes, {} failures",
        health.successes_in_row, health.failures_in_row
    );
    fields(
        &[
            ("Service", service.clone()),
            ("Address", address.to_string()),
            ("State", state.to_string()),
            ("Reasons", reasons.join("; ")),
            ("Weight", format!("{weight}, effective {effective_weight}")),
            ("Labels", labels(item)),
            ("Source", source.clone()),
            ("Connections", connections),
            ("In", traffic(*packets_in, *bytes_in)),
            ("Out", traffic(*packets_out, *bytes_out)),
            ("Health check", health.check.clone()),
            ("Last probe", last),
            ("In a row", in_row),
        ],
        out,
    )?;
    self::events(events, out)
}

/// `Name:   value`, with the values in one column.
pub(super) fn fields(fields: &[(&str, String)], out: &mut dyn Write) -> io::Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 3;
    for (name, value) in fields {
        let value = match value.as_str() {
            "" => "-".to_owned(),
            value => visible(value),
        };
        writeln!(out, "{:<width$}{value}", format!("{name}:"))?;
    }
    Ok(())
}

fn events(events: &[EventItem], out: &mut dyn Write) -> io::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nEvents:")?;
    let rows: Vec<_> = events.iter().map(|item| event_cells(item, false)).collect();
    table::print(&event_header(false), &rows, "  ", out)
}

/// The mode, and where a tunnel begins.
fn forwarding(spec: &ServiceSpec) -> String {
    let mode = spec.forwarding.to_string();
    if spec.forwarding != Forwarding::DsrIpip {
        return mode;
    }
    let prefixes: Vec<_> = spec.tunnel_source.iter().map(ToString::to_string).collect();
    match prefixes.as_slice() {
        [] => format!("{mode} from the node's address"),
        prefixes => format!("{mode} from {}", prefixes.join(", ")),
    }
}

fn health_words(health: &Health) -> String {
    let check = match &health.check {
        HealthCheck::None => return "none, always healthy".to_owned(),
        HealthCheck::Tcp => "tcp".to_owned(),
        HealthCheck::Http {
            path,
            host,
            expect_status,
        } => {
            let status: Vec<_> = expect_status.iter().map(ToString::to_string).collect();
            let host = host.as_ref().map(|host| format!(" (host {host})"));
            let host = host.unwrap_or_default();
            format!("http GET {path}{host} expecting {}", status.join("|"))
        }
    };
    let port = health.port.map(|port| format!(" on port {port}"));
    format!(
        "{check}{} every {} ({} while changing), timeout {}, rise {}, fall {}",
        port.unwrap_or_default(),
        duration_text::format(health.interval),
        duration_text::format(health.fast_interval),
        duration_text::format(health.timeout),
        health.rise,
        health.fall
    )
}
