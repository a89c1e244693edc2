//! `lbctl get`, once or for as long as one watches.

use std::{collections::BTreeMap, io::Write, time::Duration};

use super::{
    Daemon,
    args::{Get, What},
    exit::{Exit, Failure},
    listing::{Listing, Row},
    output::{self, Format},
    table::Columns,
};
use crate::api::types::{Request, Response};

const POLL: Duration = Duration::from_secs(1);

pub(super) async fn run(daemon: &Daemon, get: Get, out: &mut dyn Write) -> Result<Exit, Failure> {
    if get.name.is_some() && !matches!(get.what, What::Services | What::Backends | What::Sources) {
        let message = "a name may follow `get services`, `get backends` and `get sources` only";
        return Err(Failure::new(Exit::Usage, message));
    }
    let first = query(daemon, &get, 0).await?;
    if first.rows.is_empty() && get.output.is_table() && !get.watch {
        eprintln!("no {}", first.kind.to_lowercase());
        return Ok(Exit::Ok);
    }
    let mut columns = Columns::new(&first.header);
    fit(&mut columns, &first);
    if get.output.is_table() {
        columns.print(&first.header, out)?;
    }
    print(&columns, first.kind, first.rows.iter(), get.output, out)?;
    if get.watch {
        watch(daemon, &get, first, columns, out).await?;
    }
    Ok(Exit::Ok)
}

async fn watch(
    daemon: &Daemon,
    get: &Get,
    first: Listing,
    mut columns: Columns,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut seen = by_key(first.rows);
    let mut last_event = 0;
    loop {
        last_event = newest(&seen).max(last_event);
        tokio::time::sleep(POLL).await;
        let listing = query(daemon, get, last_event).await?;
        fit(&mut columns, &listing);
        let changed: Vec<_> = listing
            .rows
            .iter()
            .filter(|row| differs(seen.get(&row.key), row, get.output))
            .collect();
        if !changed.is_empty() {
            print(&columns, listing.kind, changed.into_iter(), get.output, out)?;
        }
        let now = by_key(listing.rows);
        if get.what != What::Events {
            for gone in seen.keys().filter(|key| !now.contains_key(*key)) {
                eprintln!("{gone}: removed");
            }
        }
        seen = now;
    }
}

async fn query(daemon: &Daemon, get: &Get, since: u64) -> Result<Listing, Failure> {
    let request = match get.what {
        What::Services => Request::GetServices,
        What::Backends => Request::GetBackends {
            service: get.name.clone(),
        },
        What::Sources => Request::GetSources {
            service: get.name.clone(),
        },
        What::Overrides => Request::GetOverrides,
        What::Events => Request::GetEvents { since },
    };
    let mut response = daemon.call(request).await?;
    if let (Response::Services { items }, Some(name)) = (&mut response, &get.name) {
        items.retain(|item| item.name == *name);
        if items.is_empty() {
            let message = format!("no service `{name}`; `lbctl get services` lists them");
            return Err(Failure::new(Exit::NotFound, message));
        }
    }
    Listing::new(response, get.output == Format::Wide)
}

fn print<'a>(
    columns: &Columns,
    kind: &str,
    rows: impl Iterator<Item = &'a Row>,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if !format.is_table() {
        return output::list(
            kind,
            rows.map(|row| row.item.clone()).collect(),
            format,
            out,
        );
    }
    for row in rows {
        columns.print(&row.cells, out)?;
    }
    Ok(out.flush()?)
}

fn fit(columns: &mut Columns, listing: &Listing) {
    for row in &listing.rows {
        columns.fit(&row.cells);
    }
}

fn by_key(rows: Vec<Row>) -> BTreeMap<String, Row> {
    rows.into_iter().map(|row| (row.key.clone(), row)).collect()
}

/// Whether somebody who sees this form of output would see a difference.
fn differs(before: Option<&Row>, now: &Row, format: Format) -> bool {
    before.is_none_or(|before| match format.is_table() {
        true => before.lasting() != now.lasting(),
        false => before.item != now.item,
    })
}

/// Highest id, if these are events.
fn newest(rows: &BTreeMap<String, Row>) -> u64 {
    rows.values()
        .filter_map(|row| row.item.get("id")?.as_u64())
        .max()
        .unwrap_or(0)
}
