//! The page of metrics, written once for all who ask meanwhile: where there are many backends it is
//! large, and takes time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use prometheus::Histogram;
use tokio::{
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::sleep,
};

use super::{Source, render};

/// Pages in memory at a time: the newest, and older ones that somebody still reads.
const PAGES: usize = 3;
/// After writing one, no other is begun for so many times as long.
const REST: u32 = 4;
/// Whoever scrapes waits no longer than some seconds.
const LONGEST_REST: Duration = Duration::from_secs(2);

pub(super) struct Writer {
    /// The one metric that outlives a scrape: a snapshot brings only what is new.
    reconcile: Histogram,
    newest: Option<Page>,
    rest_until: Instant,
    room: Arc<Semaphore>,
}

struct Page {
    begun: Instant,
    text: Bytes,
}

/// A page's text, and the room it takes for as long as anybody reads it.
struct Text {
    text: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Writer {
    pub(super) fn new(reconcile: Histogram) -> Self {
        Self {
            reconcile,
            newest: None,
            rest_until: Instant::now(),
            room: Arc::new(Semaphore::new(PAGES)),
        }
    }

    /// The newest page, if nothing in it is older than `asked`.
    pub(super) fn begun_since(&self, asked: Instant) -> Option<Bytes> {
        let newest = self.newest.as_ref();
        let fresh = newest.filter(|page| page.begun >= asked);
        fresh.map(|page| page.text.clone())
    }
}

/// Writes a page. While too many are read slowly, the newest has to do.
pub(super) async fn write(
    mut writer: OwnedMutexGuard<Writer>,
    source: Arc<impl Source>,
) -> prometheus::Result<Bytes> {
    sleep(writer.rest_until.saturating_duration_since(Instant::now())).await;
    let room = writer.room.clone().try_acquire_owned();
    let room = match (room, &writer.newest) {
        (Err(_), Some(page)) => return Ok(page.text.clone()),
        (room, _) => room.map_err(|error| prometheus::Error::Msg(error.to_string()))?,
    };
    let begun = Instant::now();
    let snapshot = source.snapshot().await;
    for &seconds in &snapshot.reconcile_seconds {
        writer.reconcile.observe(seconds);
    }
    let (is_ready, reconcile) = (source.is_ready(), writer.reconcile.clone());
    let text = spawn_blocking(move || render::text(&snapshot, is_ready, &reconcile)).await;
    let text = text.map_err(|error| prometheus::Error::Msg(error.to_string()))??;
    let text = Bytes::from_owner(Text { text, _room: room });
    writer.rest_until = Instant::now() + (begun.elapsed() * REST).min(LONGEST_REST);
    writer.newest = Some(Page {
        begun,
        text: text.clone(),
    });
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::{api::types::StatusItem, controller::Snapshot};

    /// Each snapshot has another number of reloads.
    #[derive(Default)]
    struct Numbered(AtomicU64);

    impl Source for Numbered {
        async fn snapshot(&self) -> Snapshot {
            Snapshot {
                services: Vec::new(),
                backends: Vec::new(),
                status: StatusItem {
                    version: "1".to_owned(),
                    ready: true,
                    problems: Vec::new(),
                    uptime_seconds: 0,
                    config_file: None,
                    last_reload: "ok".to_owned(),
                    interfaces: Default::default(),
                    services: 0,
                    backends: 0,
                    healthy_backends: 0,
                    active_connections: 0,
                },
                drops: Vec::new(),
                map_fill: Vec::new(),
                health_checks: Default::default(),
                reloads_ok: self.0.fetch_add(1, Ordering::Relaxed),
                reloads_failed: 0,
                repairs: 0,
                flows_aged: 0,
                tables_written: 0,
                reconcile_seconds: Vec::new(),
                sources: Vec::new(),
            }
        }

        fn is_ready(&self) -> bool {
            true
        }

        async fn is_alive(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn pages_that_nobody_finishes_reading_are_few() {
        let reconcile = super::super::reconcile_histogram().unwrap();
        let writer = Arc::new(tokio::sync::Mutex::new(Writer::new(reconcile)));
        let source = Arc::new(Numbered::default());
        let page = async || {
            let writer = writer.clone().lock_owned().await;
            write(writer, source.clone()).await.unwrap()
        };
        let mut held = Vec::new();
        for _ in 0..PAGES {
            held.push(page().await);
        }
        assert_ne!(held[PAGES - 2], held[PAGES - 1]);
        for _ in 0..5 {
            let more = page().await;
            assert_eq!(more.as_ptr(), held[PAGES - 1].as_ptr(), "the newest");
            held.push(more);
        }
        held.remove(0);
        assert_ne!(page().await, held[PAGES - 2], "there is room again");
    }
}
