//! Lists of the API as rows.

use serde::Serialize;
use serde_json::Value;

use super::{
    exit::Failure,
    human::{age, bytes, count, seconds_since},
};
use crate::{
    api::types::{BackendItem, EventItem, OverrideItem, Response, ServiceItem},
    discovery::SourceItem,
    model::{BackendRef, WeightOverride},
    utc,
};

/// Characters of a reason in a table that is not wide.
const SHORT: usize = 40;

const LAST_SUCCESS: &str = "LAST-SUCCESS";

pub(super) struct Listing {
    pub(super) kind: &'static str,
    pub(super) header: Vec<&'static str>,
    pub(super) rows: Vec<Row>,
}

pub(super) struct Row {
    /// Stays the same for as long as the object lives.
    pub(super) key: String,
    pub(super) cells: Vec<String>,
    /// The cell that changes by time passing alone, if one does.
    aging: Option<usize>,
    pub(super) item: Value,
}

impl Row {
    /// The cells that change only if the object does.
    pub(super) fn lasting(&self) -> Vec<&String> {
        let cells = self.cells.iter().enumerate();
        let lasting = cells.filter(|(place, _)| Some(*place) != self.aging);
        lasting.map(|(_, cell)| cell).collect()
    }
}

impl Listing {
    pub(super) fn new(response: Response, wide: bool) -> Result<Self, Failure> {
        match response {
            Response::Services { items } => Ok(Self::build(
                "Services",
                service_header(wide),
                items,
                |item| (item.name.clone(), service_cells(item, wide)),
            )),
            Response::Backends { items } => Ok(Self::build(
                "Backends",
                backend_header(wide),
                items,
                |item| (reference(item).to_string(), backend_cells(item, wide)),
            )),
            Response::Sources { items } => {
                Ok(Self::build("Sources", source_header(wide), items, |item| {
                    let key = format!("{}/{}:{}", item.service, item.kind, item.target);
                    (key, source_cells(item, wide))
                }))
            }
            Response::Overrides { items } => {
                let header = vec!["BACKEND", "WEIGHT", "MODE"];
                Ok(Self::build("Overrides", header, items, |item| {
                    (item.backend.to_string(), override_cells(item))
                }))
            }
            Response::Events { items } => {
                Ok(Self::build("Events", event_header(wide), items, |item| {
                    (item.id.to_string(), event_cells(item, wide))
                }))
            }
            _ => Err(Failure::unexpected()),
        }
    }

    fn build<T: Serialize>(
        kind: &'static str,
        header: Vec<&'static str>,
        items: Vec<T>,
        show: impl Fn(&T) -> (String, Vec<String>),
    ) -> Self {
        let aging = header.iter().position(|name| *name == LAST_SUCCESS);
        let rows = items.iter().map(|item| {
            let (key, cells) = show(item);
            let item = serde_json::to_value(item).unwrap_or_default();
            Row {
                key,
                cells,
                aging,
                item,
            }
        });
        Self {
            kind,
            header,
            rows: rows.collect(),
        }
    }
}

fn service_header(wide: bool) -> Vec<&'static str> {
    let mut header = vec![
        "NAME", "LISTEN", "PROTOCOL", "POLICY", "HEALTHY", "ACTIVE", "TOTAL",
    ];
    if wide {
        header.extend(["FORWARDING", "SNAT", "NO-BACKEND", "SOURCE"]);
    }
    header
}

fn service_cells(item: &ServiceItem, wide: bool) -> Vec<String> {
    let listen: Vec<_> = item.listen.iter().map(ToString::to_string).collect();
    let mut cells = vec![
        item.name.clone(),
        listen.join(","),
        item.protocol.clone(),
        item.policy.clone(),
        format!("{}/{}", item.healthy_backends, item.backends),
        item.active_connections.to_string(),
        item.total_connections.to_string(),
    ];
    if wide {
        cells.extend(
            [&item.forwarding, &item.snat, &item.no_backend, &item.source].map(Clone::clone),
        );
    }
    cells
}

pub(super) fn backend_header(wide: bool) -> Vec<&'static str> {
    let mut header = vec![
        "SERVICE",
        "ADDRESS",
        "STATE",
        "WEIGHT",
        "EFFECTIVE",
        "ACTIVE",
        "TOTAL",
        "FAILED",
    ];
    if wide {
        header.extend([
            "PACKETS-IN",
            "PACKETS-OUT",
            "BYTES-IN",
            "BYTES-OUT",
            "LABELS",
            "SOURCE",
        ]);
    }
    header.push("REASON");
    header
}

pub(super) fn backend_cells(item: &BackendItem, wide: bool) -> Vec<String> {
    let mut cells = vec![
        item.service.clone(),
        item.address.to_string(),
        item.state.to_string(),
        item.weight.to_string(),
        item.effective_weight.to_string(),
        item.active_connections.to_string(),
        item.total_connections.to_string(),
        item.failed_connections.to_string(),
    ];
    if wide {
        cells.extend([
            count(item.packets_in),
            count(item.packets_out),
            bytes(item.bytes_in),
            bytes(item.bytes_out),
            labels(item),
            item.source.clone(),
            item.reasons.join("; "),
        ]);
    } else {
        cells.push(short(&item.reasons));
    }
    cells
}

pub(super) fn labels(item: &BackendItem) -> String {
    let labels: Vec<_> = item
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    labels.join(",")
}

fn reference(item: &BackendItem) -> BackendRef {
    BackendRef {
        service: item.service.clone(),
        address: item.address,
    }
}

/// The first reason, and how many others there are.
fn short(reasons: &[String]) -> String {
    let Some(first) = reasons.first() else {
        return String::new();
    };
    let mut text: String = first.chars().take(SHORT).collect();
    if text.len() < first.len() {
        text.push('…');
    }
    if reasons.len() > 1 {
        text.push_str(&format!(" (+{})", reasons.len() - 1));
    }
    text
}

pub(super) fn source_header(wide: bool) -> Vec<&'static str> {
    let mut header = vec![
        "SERVICE",
        "KIND",
        "TARGET",
        "INSTANCES",
        "STATE",
        LAST_SUCCESS,
        "UPDATES",
        "ERRORS",
    ];
    if wide {
        header.extend(["SERVICES", "HELD", "LEFT-OUT", "LAST-ERROR-AT"]);
    }
    header.push("LAST-ERROR");
    header
}

/// In a table that is not wide the last error is shown while it lasts.
pub(super) fn source_cells(item: &SourceItem, wide: bool) -> Vec<String> {
    let mut cells = vec![
        item.service.clone(),
        item.kind.clone(),
        item.target.clone(),
        item.instances.to_string(),
        item.state.clone(),
        match item.last_success_ms {
            Some(at) => age(seconds_since(at)) + " ago",
            None => "never".to_owned(),
        },
        item.updates.to_string(),
        item.errors.to_string(),
    ];
    let error = item.last_error.clone().unwrap_or_default();
    if wide {
        cells.extend([
            item.services.map_or_else(String::new, |n| n.to_string()),
            item.held.to_string(),
            item.left_out.join("; "),
            item.last_error_ms.map(utc::text).unwrap_or_default(),
            error,
        ]);
    } else {
        cells.push(match item.is_well() {
            true => String::new(),
            false => error,
        });
    }
    cells
}

fn override_cells(item: &OverrideItem) -> Vec<String> {
    let weight = match item.value.weight {
        Some(WeightOverride::Absolute(weight)) => weight.to_string(),
        Some(WeightOverride::Percent(percent)) => format!("{percent}%"),
        None => String::new(),
    };
    let mode = item.value.mode.map(|mode| match mode {
        crate::model::Mode::Drain => "drain",
        crate::model::Mode::Maintenance => "maintenance",
        crate::model::Mode::Ready => "ready",
    });
    let until = item.value.deadline_ms.map(utc::text);
    let until = until.map_or_else(String::new, |until| format!(" until {until}"));
    vec![
        item.backend.to_string(),
        weight,
        mode.map_or_else(String::new, |mode| mode.to_owned() + &until),
    ]
}

pub(super) fn event_header(wide: bool) -> Vec<&'static str> {
    match wide {
        true => vec!["TIME", "ID", "TYPE", "REASON", "OBJECT", "MESSAGE"],
        false => vec!["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"],
    }
}

pub(super) fn event_cells(item: &EventItem, wide: bool) -> Vec<String> {
    let mut cells = match wide {
        true => vec![utc::text(item.time_ms), item.id.to_string()],
        false => vec![age(seconds_since(item.time_ms))],
    };
    cells.extend([&item.severity, &item.reason, &item.object, &item.message].map(Clone::clone));
    cells
}
