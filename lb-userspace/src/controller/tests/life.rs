use lb_common::abi::{BackendCounters, backend_state};
use tokio::net::TcpListener;

use super::*;
use crate::{
    api::types::UnsetWhat,
    datapath::{Attachment, FlowScan, Route, memory::Write},
    model::{BackendState, Mode, Override},
    state::{State, Store},
    utc::{self, testing::SET_BY},
};

/// Probed often, so that tests need not wait.
fn probed(name: &str, listen: &str, backends: &[&str]) -> ServiceSpec {
    let often = Duration::from_millis(20);
    ServiceSpec {
        health: Health {
            interval: often,
            fast_interval: often,
            timeout: Duration::from_secs(2),
            ..Health::default()
        },
        ..testing::service(name, listen, backends)
    }
}

#[tokio::test]
async fn health_decides_who_takes_connections() {
    let bed = Bed::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let name = format!("web/{address}");
    let handle = bed
        .start([probed("web", "192.0.2.1:80", &[&address])])
        .await;
    let state = async |wanted| backend(&handle, &name).await.state == wanted;
    until("healthy", async || state(BackendState::Healthy).await).await;
    assert_eq!(bed.memory.maps().backends[&0].state, backend_state::ACTIVE);
    bed.memory.take_writes();
    drop(listener);
    until("unhealthy", async || state(BackendState::Unhealthy).await).await;
    assert_eq!(bed.memory.maps().backends[&0].state, backend_state::DOWN);
    assert_eq!(
        bed.memory.take_writes()[0],
        Write::Backend(0),
        "eviction first"
    );
    let item = backend(&handle, &name).await;
    assert!(item.reasons[0].starts_with("health: "), "{item:?}");
    assert_eq!(status(&handle).await.problems.len(), 1);
    assert_eq!(told(&handle).await, ["BackendHealthy", "BackendUnhealthy"]);
    let checks = handle.snapshot().await.health_checks;
    assert!(checks.values().sum::<u64>() >= 4, "{checks:?}");

    let request = Request::SetMode {
        backend: reference(&name),
        mode: Mode::Ready,
        deadline: None,
    };
    done(&handle, request).await;
    let item = backend(&handle, &name).await;
    assert_eq!(item.state, BackendState::Healthy);
    assert_eq!(item.reasons[0], "override: ready");
    assert_eq!(bed.memory.maps().backends[&0].state, backend_state::ACTIVE);
}

/// Reads from a pipe when it is dropped.
struct Reader(PathBuf);

impl Drop for Reader {
    fn drop(&mut self) {
        let pipe = self.0.clone();
        std::thread::spawn(move || std::fs::read(pipe));
    }
}

/// Here a disk hangs as long as nobody reads from a pipe. The probes have one thread, and who waits for
/// the disk has the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_eviction_waits_for_the_disk() {
    let bed = Bed::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let name = format!("web/{address}");
    let handle = bed
        .start([probed("web", "192.0.2.1:80", &[&address])])
        .await;
    let state = || bed.memory.maps().backends[&0].state;
    until("healthy", async || state() == backend_state::ACTIVE).await;

    let pipe = bed.state().join("state.json.new");
    let path = std::ffi::CString::new(pipe.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path is a string that ends.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    // Also where this fails, or nothing would ever end.
    let reader = Reader(pipe);
    let waits = tokio::spawn({
        let handle = handle.clone();
        let service = trusted("extra", "192.0.2.9:80", &["10.0.0.1:80"]);
        async move { handle.call(Request::AddService { service }).await }
    });
    // What was asked before is answered; nothing is any more.
    let asked = async || {
        let answer = handle.call(Request::GetServices);
        tokio::time::timeout(Duration::from_millis(50), answer).await
    };
    // One may be late for other reasons.
    let hangs = async || {
        let mut answers = 0;
        for _ in 0..3 {
            answers += u32::from(asked().await.is_ok());
        }
        answers == 0
    };
    until("hangs", hangs).await;
    drop(listener);
    until("evicted", async || state() == backend_state::DOWN).await;
    assert!(!waits.is_finished());

    // A pipe cannot be told to keep what was written.
    drop(reader);
    let refused = waits.await.unwrap().unwrap_err();
    assert!(refused.message.contains("state"), "{}", refused.message);
    until("answers", async || asked().await.is_ok()).await;
    assert_eq!(backend(&handle, &name).await.state, BackendState::Unhealthy);
}

#[tokio::test]
async fn a_device_that_is_not_served_is_a_problem() {
    let bed = Bed::new();
    let handle = bed.start([]).await;
    let served = ("eth0".to_owned(), Attachment::Served("xdp native".into()));
    bed.memory.set_attachments(vec![served.clone()]);
    let shown = status(&handle).await;
    assert_eq!(shown.problems, Vec::<String>::new());

    let refused = Attachment::Refused("node.xdp: another program is attached".into());
    bed.memory.set_attachments(vec![
        served,
        ("eth1".to_owned(), refused),
        ("eth2".to_owned(), Attachment::Missing),
    ]);
    let shown = status(&handle).await;
    let words: Vec<&str> = shown.interfaces.values().map(String::as_str).collect();
    let reason = "not served: node.xdp: another program is attached";
    assert_eq!(words, ["xdp native", reason, "missing"]);
    let [refused, missing] = &shown.problems[..] else {
        panic!("{:?}", shown.problems);
    };
    assert!(refused.starts_with(&format!("device eth1 is {reason}; ")));
    assert!(missing.starts_with("device eth2 (`node.interfaces`) is missing: "));
}

#[tokio::test]
async fn a_restart_moves_nobody() {
    let bed = Bed::new();
    let up = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let drained = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [
        up.local_addr().unwrap().to_string(),
        drained.local_addr().unwrap().to_string(),
        // Nobody listens there.
        "127.0.0.1:9".to_owned(),
    ];
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let web = probed("web", "192.0.2.1:80", &addresses);
    let handle = bed.start([web.clone()]).await;
    let request = Request::SetMode {
        backend: reference(&format!("web/{}", addresses[1])),
        mode: Mode::Drain,
        deadline: None,
    };
    done(&handle, request).await;
    let states = || -> Vec<u32> {
        let backends = bed.memory.maps().backends;
        backends.values().map(|backend| backend.state).collect()
    };
    let settled = [
        backend_state::ACTIVE,
        backend_state::DRAINING,
        backend_state::DOWN,
    ];
    until("all probed", async || states() == settled).await;
    handle.stop().await;
    let before = bed.memory.maps();

    // Long intervals: what is seen next was inherited, not probed.
    let mut web = web;
    web.health.interval = Duration::from_secs(3600);
    web.health.fast_interval = web.health.interval;
    bed.memory.take_writes();
    let handle = bed.start([web]).await;
    assert_eq!(bed.memory.take_writes(), [Write::Config]);
    let mut after = bed.memory.maps();
    assert_eq!(after.config.epoch, before.config.epoch + 1);
    after.config = before.config;
    assert_eq!(after, before);
    let shown = backend(&handle, &format!("web/{}", addresses[0])).await;
    assert_eq!(shown.state, BackendState::Healthy);
}

#[tokio::test]
async fn a_change_saved_before_a_crash_is_made_after_it() {
    let bed = Bed::new();
    let web = || trusted("web", "192.0.2.1:80", &["10.0.0.1:80", "10.0.0.2:80"]);
    bed.start([web()]).await.stop().await;
    {
        let (store, _) = Store::open(&bed.state()).unwrap();
        let said = Override {
            mode: Some(Mode::Drain),
            ..Override::default()
        };
        let state = State {
            services: vec![trusted("dns", "192.0.2.1:53", &["10.0.0.3:53"])],
            overrides: [(reference("web/10.0.0.2:80"), said)].into(),
            ..State::default()
        };
        store
            .begin_save(state)
            .wait(Duration::MAX)
            .unwrap()
            .unwrap();
    }
    let handle = bed.start([web()]).await;
    let maps = bed.memory.maps();
    assert_eq!(maps.services.len(), 2);
    assert_eq!(maps.backends[&1].state, backend_state::DRAINING);
    let item = backend(&handle, "web/10.0.0.2:80").await;
    assert_eq!(item.state, BackendState::Draining);
}

#[tokio::test]
async fn totals_of_a_service_never_go_down() {
    let bed = Bed::new();
    let handle = bed
        .start([trusted("web", "192.0.2.1:80", &["10.0.0.1:80"])])
        .await;
    let add = || Request::AddBackend {
        service: "web".to_owned(),
        backend: testing::backend("10.0.0.2:80", 100),
    };
    let remove = || Request::RemoveBackend {
        backend: reference("web/10.0.0.2:80"),
    };
    done(&handle, add()).await;
    bed.memory.tamper(|maps| {
        for (slot, connections) in [(0, 5), (1, 7)] {
            let counters = BackendCounters {
                connections,
                refused: 1,
                ..BackendCounters::default()
            };
            maps.counters.insert(slot, counters);
        }
    });
    let total = async || handle.snapshot().await.services[0].total_connections;
    assert_eq!(total().await, 12);
    assert_eq!(
        backend(&handle, "web/10.0.0.2:80").await.failed_connections,
        1
    );
    done(&handle, remove()).await;
    assert_eq!(total().await, 12);
    let freed = async || bed.memory.maps().backends[&1].state == backend_state::FREE;
    until("slot freed", freed).await;
    until("slot settled", async || total().await == 12).await;
    done(&handle, add()).await;
    assert_eq!(total().await, 12);
    assert_eq!(
        backend(&handle, "web/10.0.0.2:80").await.total_connections,
        0
    );
}

#[tokio::test]
async fn a_drain_ends_with_the_last_connection() {
    let bed = Bed::new();
    let flows = |active: u64| FlowScan {
        active: [(0, active)].into(),
        present: [(0, active)].into(),
        ..FlowScan::default()
    };
    bed.memory.set_flows(flows(3));
    let handle = bed
        .start([trusted("web", "192.0.2.1:80", &["10.0.0.1:80"])])
        .await;
    let one = "web/10.0.0.1:80";
    until("counted", async || {
        backend(&handle, one).await.active_connections == 3
    })
    .await;
    let request = Request::SetMode {
        backend: reference(one),
        mode: Mode::Drain,
        deadline: None,
    };
    done(&handle, request).await;
    bed.memory.set_flows(flows(0));
    let drained = async || told(&handle).await == ["OverrideSet", "Drained"];
    until("drained", drained).await;
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_also_across_a_restart() {
    let bed = Bed::new();
    bed.memory.set_flows(FlowScan {
        active: [(0, 3)].into(),
        present: [(0, 3)].into(),
        ..FlowScan::default()
    });
    let web = || trusted("web", "192.0.2.1:80", &["10.0.0.1:80"]);
    let one = "web/10.0.0.1:80";
    let drain = |time: Duration| Request::SetMode {
        backend: reference(one),
        mode: Mode::Drain,
        deadline: Some(time.into()),
    };
    let state = || bed.memory.maps().backends[&0].state;
    let handle = bed.start([web()]).await;
    until("counted", async || {
        backend(&handle, one).await.active_connections == 3
    })
    .await;
    done(&handle, drain(Duration::from_secs(3600))).await;
    assert_eq!(state(), backend_state::DRAINING);
    done(&handle, drain(Duration::from_millis(300))).await;
    assert_eq!(state(), backend_state::DRAINING);
    until("deadline", async || state() == backend_state::CLOSED).await;
    until("no connection counts", async || {
        backend(&handle, one).await.active_connections == 0
    })
    .await;
    let events = told(&handle).await;
    assert_eq!(
        events[..3],
        ["OverrideSet", "OverrideSet", "DrainDeadline"],
        "{events:?}"
    );

    let ready = Request::SetMode {
        backend: reference(one),
        mode: Mode::Ready,
        deadline: None,
    };
    done(&handle, ready).await;
    assert_eq!(state(), backend_state::ACTIVE);
    // It passes while no daemon runs.
    done(&handle, drain(Duration::from_millis(300))).await;
    handle.stop().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(state(), backend_state::DRAINING);
    let handle = bed.start([web()]).await;
    assert_eq!(state(), backend_state::CLOSED);
    let unset = Request::Unset {
        backend: reference(one),
        what: UnsetWhat::Mode,
    };
    done(&handle, unset).await;
    assert_eq!(state(), backend_state::ACTIVE);
}

/// Also across a restart, on disk as in force: nothing tells a stop from a `kill -9` there.
#[tokio::test]
async fn whoever_sets_the_clock_a_drain_has_its_time() {
    const HOUR: u64 = 3_600_000;
    const ONE: &str = "web/10.0.0.1:80";
    const TWO: &str = "web/10.0.0.2:80";
    let web = || trusted("web", "192.0.2.1:80", &["10.0.0.1:80", "10.0.0.2:80"]);
    let drain = |backend, ms| Request::SetMode {
        backend: reference(backend),
        mode: Mode::Drain,
        deadline: Some(Duration::from_millis(ms).into()),
    };
    for set_by in [2 * HOUR as i64, -2 * HOUR as i64] {
        SET_BY.set(0);
        let bed = Bed::new();
        let state = |slot| bed.memory.maps().backends[&slot].state;
        let left = || {
            let text = std::fs::read_to_string(bed.state().join("state.json")).unwrap();
            let state = crate::state::file::decode(&text).unwrap();
            let deadline = state.overrides[&reference(ONE)].deadline_ms.unwrap();
            deadline as i64 - utc::now_ms() as i64
        };
        let handle = bed.start([web()]).await;
        done(&handle, drain(ONE, HOUR)).await;
        SET_BY.set(set_by);
        done(&handle, drain(TWO, HOUR / 6)).await;
        let draining = backend_state::DRAINING;
        assert_eq!((state(0), state(1)), (draining, draining), "{set_by}");
        assert!((1..=HOUR as i64).contains(&left()), "{set_by}: {}", left());
        handle.stop().await;
        let handle = bed.start([web()]).await;
        assert_eq!((state(0), state(1)), (draining, draining), "{set_by}");

        done(&handle, drain(TWO, 1)).await;
        until("deadline", async || state(1) == backend_state::CLOSED).await;
        SET_BY.set(0);
        done(&handle, drain(ONE, HOUR)).await;
        assert_eq!((state(0), state(1)), (draining, backend_state::CLOSED));
        handle.stop().await;
        bed.start([web()]).await.stop().await;
        assert_eq!((state(0), state(1)), (draining, backend_state::CLOSED));
    }
}

#[tokio::test]
async fn a_change_of_the_network_moves_source_addresses() {
    let bed = Bed::new();
    let handle = bed
        .start([trusted("web", "192.0.2.1:80", &["10.0.0.1:80"])])
        .await;
    let epoch = bed.memory.maps().config.epoch;
    assert_ne!(epoch, 0);
    let one = "10.0.0.1".parse().unwrap();
    bed.memory.set_route(
        one,
        Route {
            source: Some("192.0.2.254".parse().unwrap()),
            returns_here: false,
            is_neighbour: true,
        },
    );
    handle.network_changed();
    handle.network_changed();
    let snat = async || bed.memory.maps().backends[&0].flags == 1;
    until("source address", snat).await;
    assert_eq!(
        bed.memory.maps().config.epoch,
        epoch + 1,
        "one burst, one epoch"
    );

    bed.memory.set_route(
        one,
        Route {
            source: None,
            returns_here: false,
            is_neighbour: true,
        },
    );
    handle.network_changed();
    let state = async || backend(&handle, "web/10.0.0.1:80").await;
    until("no route", async || {
        state().await.state == BackendState::Unhealthy
    })
    .await;
    assert_eq!(state().await.reasons[0], "no route to 10.0.0.1");
}

#[tokio::test]
async fn a_service_of_both_layers_at_start_is_told_of() {
    let bed = Bed::new();
    let handle = bed.start([]).await;
    let service = trusted("web", "192.0.2.2:80", &["10.0.0.9:80"]);
    done(&handle, Request::AddService { service }).await;
    handle.stop().await;

    let handle = bed
        .start([trusted("web", "192.0.2.1:80", &["10.0.0.1:80"])])
        .await;
    let problems = status(&handle).await.problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(backend(&handle, "web/10.0.0.1:80").await.source, "file");
    let name = "web".to_owned();
    done(&handle, Request::RemoveService { name }).await;
    assert_eq!(status(&handle).await.problems, Vec::<String>::new());
    assert_eq!(backend(&handle, "web/10.0.0.1:80").await.source, "file");
}

#[tokio::test]
async fn a_damaged_state_file_shows_in_status() {
    let bed = Bed::new();
    std::fs::create_dir_all(bed.state()).unwrap();
    std::fs::write(bed.state().join("state.json"), "{\"version\":1").unwrap();
    let handle = bed.start([]).await;
    let problems = status(&handle).await.problems;
    assert!(problems[0].contains("state.json.broken-"), "{problems:?}");
}
