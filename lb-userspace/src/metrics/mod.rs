//! The HTTP port: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever restarts or
//! routes to the daemon.

mod render;
mod written;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{Method, StatusCode, body::Bytes};
use prometheus::{Histogram, HistogramOpts};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore},
    time::timeout,
};

use self::written::Writer;
use crate::{
    api::types::{FaultCode, Request},
    controller::{Handle, Snapshot},
    http::{self, Limits, Reply, Route, Site},
};

/// Every metric with its HELP text.
pub const METRICS: &[(&str, &str)] = &[
    (
        "lbd_backend_active_connections",
        "Open connections of a backend, as of the last pass over the flow tables.",
    ),
    (
        "lbd_backend_bytes_total",
        "Frame bytes forwarded; direction in: from clients, out: from the backend.",
    ),
    (
        "lbd_backend_connections_total",
        "Connections given to a backend.",
    ),
    (
        "lbd_backend_effective_weight",
        "Weight the kernel's selection table is built with now; 0 while no new connections are given.",
    ),
    (
        "lbd_backend_packets_total",
        "Packets forwarded; direction in: from clients, out: from the backend.",
    ),
    (
        "lbd_backend_refused_connections_total",
        "Connections the backend refused before any other answer.",
    ),
    (
        "lbd_backend_state",
        "1 for the state a backend is in, 0 for every other state.",
    ),
    (
        "lbd_backend_weight",
        "Weight as configured, 0 to 65535, without overrides and health.",
    ),
    (
        "lbd_build_info",
        "Always 1; the version of the daemon is a label.",
    ),
    (
        "lbd_drops_total",
        "Packets to a service that were not forwarded, by reason.",
    ),
    (
        "lbd_flows_aged_total",
        "Flow entries removed because they were idle past their timeout.",
    ),
    ("lbd_health_checks_total", "Health probes ended, by result."),
    ("lbd_map_capacity", "Entries a kernel map can hold."),
    ("lbd_map_entries", "Entries in a kernel map."),
    (
        "lbd_ready",
        "1 once the programs are attached and the first sync is done, else 0.",
    ),
    (
        "lbd_reconcile_duration_seconds",
        "Seconds that bringing the kernel maps in step took, per pass.",
    ),
    (
        "lbd_reloads_total",
        "Reloads of the config file; result ok or error.",
    ),
    (
        "lbd_repairs_total",
        "Map entries and attachments put back that someone else had removed or changed.",
    ),
    (
        "lbd_service_connections_total",
        "Connections given to any backend of a service.",
    ),
    (
        "lbd_source_errors_total",
        "Failures of a source of backends, by class.",
    ),
    (
        "lbd_source_instances",
        "Backends of a source that are in force.",
    ),
    (
        "lbd_source_last_success_timestamp_seconds",
        "When a source last answered, in seconds since 1970; 0 if it never did.",
    ),
    (
        "lbd_source_services",
        "Services in force of a source that finds services.",
    ),
    (
        "lbd_source_stale",
        "1 while what is known of a source may be out of date, else 0.",
    ),
    (
        "lbd_source_updates_total",
        "Sets of backends of a source that came into force.",
    ),
    (
        "lbd_tables_written_total",
        "Selection tables built and written to the kernel.",
    ),
];

/// Seconds: from one map write to a full node's worth of them.
const RECONCILE_BUCKETS: &[f64] = &[
    0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0,
];

/// Where the numbers come from.
pub trait Source: Send + Sync + 'static {
    fn snapshot(&self) -> impl Future<Output = Snapshot> + Send;
    fn is_ready(&self) -> bool;
    /// Whether the controller answers.
    fn is_alive(&self) -> impl Future<Output = bool> + Send;
}

impl Source for Handle {
    async fn snapshot(&self) -> Snapshot {
        Handle::snapshot(self).await
    }

    fn is_ready(&self) -> bool {
        Handle::is_ready(self)
    }

    async fn is_alive(&self) -> bool {
        let answer = timeout(ALIVE_WITHIN, Handle::call(self, Request::Status)).await;
        matches!(answer, Ok(Ok(_)))
    }
}

/// Longest time that the controller takes to answer while it lives. Whoever asks waits no longer
/// than some seconds.
const ALIVE_WITHIN: Duration = Duration::from_secs(3);

/// Serves until the future is dropped.
pub async fn serve(
    listener: TcpListener,
    source: impl Source,
    limits: Limits,
) -> prometheus::Result<()> {
    let page = Page {
        writer: Arc::new(Mutex::new(Writer::new(reconcile_histogram()?))),
        scrapes: Semaphore::new(SCRAPES),
        source: Arc::new(source),
    };
    http::serve(listener, Arc::new(page), limits).await;
    Ok(())
}

/// Scrapes that wait at a time; with [`Limits::connections`] beyond that, probes find a place.
const SCRAPES: usize = 16;

struct Page<S> {
    source: Arc<S>,
    writer: Arc<Mutex<Writer>>,
    scrapes: Semaphore,
}

impl<S: Source> Site for Page<S> {
    const ROUTES: &'static [Route] = &[
        ("/metrics", &[Method::GET, Method::HEAD]),
        ("/healthz", &[Method::GET, Method::HEAD]),
        ("/readyz", &[Method::GET, Method::HEAD]),
    ];
    const SILENT_GIVE_WAY: bool = true;

    async fn answer(&self, path: &str, _body: Bytes) -> Reply {
        match path {
            "/metrics" => self.metrics().await,
            "/readyz" => self.readiness().await,
            _ if self.source.is_alive().await => Reply::text(StatusCode::OK, "ok\n"),
            _ => {
                let words = "the controller does not answer\n";
                Reply::text(StatusCode::SERVICE_UNAVAILABLE, words)
            }
        }
    }
}

impl<S: Source> Page<S> {
    async fn metrics(&self) -> Reply {
        let Ok(_scrape) = self.scrapes.try_acquire() else {
            let words = format!("{SCRAPES} scrapes wait already; try again");
            return Reply::fault(StatusCode::SERVICE_UNAVAILABLE, FaultCode::Failed, words);
        };
        let asked = Instant::now();
        let writer = self.writer.clone().lock_owned().await;
        if let Some(text) = writer.begun_since(asked) {
            return scraped(text);
        }
        // Goes on if the peer goes away, so that no other begins meanwhile.
        match tokio::spawn(written::write(writer, self.source.clone())).await {
            Ok(Ok(text)) => scraped(text),
            Ok(Err(error)) => failed(error.to_string()),
            Err(error) => failed(error.to_string()),
        }
    }

    async fn readiness(&self) -> Reply {
        if self.source.is_ready() {
            return Reply::text(StatusCode::OK, "ready\n");
        }
        let mut problems = self.source.snapshot().await.status.problems;
        if problems.is_empty() {
            problems.push("the first sync of the kernel maps is not done".to_owned());
        }
        let words = format!("not ready: {}\n", problems.join("; "));
        Reply::text(StatusCode::SERVICE_UNAVAILABLE, words)
    }
}

fn scraped(text: Bytes) -> Reply {
    Reply::new(StatusCode::OK, prometheus::TEXT_FORMAT, text)
}

fn failed(words: String) -> Reply {
    Reply::fault(StatusCode::INTERNAL_SERVER_ERROR, FaultCode::Failed, words)
}

fn help(name: &str) -> &'static str {
    METRICS
        .iter()
        .find_map(|(known, help)| (*known == name).then_some(*help))
        .unwrap_or_default()
}

fn reconcile_histogram() -> prometheus::Result<Histogram> {
    let name = "lbd_reconcile_duration_seconds";
    let options = HistogramOpts::new(name, help(name)).buckets(RECONCILE_BUCKETS.to_vec());
    Histogram::with_opts(options)
}
