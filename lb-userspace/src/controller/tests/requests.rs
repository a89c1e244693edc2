use super::*;
use crate::{
    api::types::{FaultCode, UnsetWhat},
    model::{BackendState, Mode, WeightOverride},
    state::Store,
};

fn web() -> ServiceSpec {
    trusted("web", "192.0.2.1:80", &["10.0.0.1:80", "10.0.0.2:80"])
}

/// (state, address' last byte) of slots in use.
fn slots(bed: &Bed) -> Vec<(u32, u8)> {
    let backends = bed.memory.maps().backends;
    let in_use = backends.values().filter(|backend| backend.state != 0);
    in_use
        .map(|b| (b.state, b.address[0].to_ne_bytes()[3]))
        .collect()
}

#[tokio::test]
async fn an_acknowledged_change_is_in_the_kernel_and_on_disk() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    assert_eq!(slots(&bed), [(1, 1), (1, 2)]);
    let two = "web/10.0.0.2:80";

    done(
        &handle,
        Request::SetMode {
            backend: reference(two),
            mode: Mode::Drain,
            deadline: None,
        },
    )
    .await;
    assert_eq!(slots(&bed), [(1, 1), (2, 2)]);
    let item = backend(&handle, two).await;
    assert_eq!(item.state, BackendState::Draining);
    assert_eq!((item.weight, item.effective_weight), (100, 0));
    assert_eq!(item.reasons[0], "override: drain");
    let text = std::fs::read_to_string(bed.state().join("state.json")).unwrap();
    assert!(text.contains("\"drain\""), "{text}");

    done(
        &handle,
        Request::Unset {
            backend: reference(two),
            what: UnsetWhat::All,
        },
    )
    .await;
    assert_eq!(slots(&bed), [(1, 1), (1, 2)]);
    done(
        &handle,
        Request::SetWeight {
            backend: reference(two),
            weight: WeightOverride::Absolute(0),
        },
    )
    .await;
    assert_eq!(slots(&bed), [(1, 1), (2, 2)]);
    let item = backend(&handle, two).await;
    assert_eq!(item.state, BackendState::Healthy);
    assert!(item.reasons.contains(&"weight 0".to_owned()));
    let mut events = told(&handle).await;
    // A scan between the steps, or none, may have seen it.
    events.retain(|reason| reason != "Drained");
    assert_eq!(events, ["OverrideSet", "OverrideUnset", "OverrideSet"]);
}

#[tokio::test]
async fn services_and_backends_are_added_and_removed() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    let dns = trusted("dns", "192.0.2.1:53", &["10.0.0.3:53"]);
    done(&handle, Request::AddService { service: dns }).await;
    done(
        &handle,
        Request::AddBackend {
            service: "web".to_owned(),
            backend: testing::backend("10.0.0.4:80", 7),
        },
    )
    .await;
    assert_eq!(slots(&bed), [(1, 1), (1, 2), (1, 3), (1, 4)]);
    assert_eq!(backend(&handle, "web/10.0.0.4:80").await.source, "cli");
    let status = status(&handle).await;
    assert_eq!(
        (status.services, status.backends, status.healthy_backends),
        (2, 4, 4)
    );
    assert_eq!(status.problems, Vec::<String>::new());

    let Ok(Response::Export { text }) = handle.call(Request::Export).await else {
        panic!("no export");
    };
    let exported = config::parse(&text, "exported").unwrap().config;
    let names: Vec<_> = exported.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["web", "dns"]);
    assert_eq!(exported.services[0].backends[2].weight, 7);

    done(
        &handle,
        Request::RemoveBackend {
            backend: reference("web/10.0.0.4:80"),
        },
    )
    .await;
    let name = "dns".to_owned();
    done(&handle, Request::RemoveService { name }).await;
    until("slots freed", async || slots(&bed) == [(1, 1), (1, 2)]).await;
    assert_eq!(
        told(&handle).await,
        [
            "ServiceAdded",
            "BackendAdded",
            "BackendAdded",
            "BackendRemoved",
            "ServiceRemoved",
            "BackendRemoved"
        ]
    );
}

#[tokio::test]
async fn dry_run_and_diff_change_nothing() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    let before = bed.memory.maps().backends;
    let dns = bed.config([trusted("dns", "192.0.2.1:53", &[])]);
    let text = config::render(&dns);
    let applied = Request::Apply {
        text: text.clone(),
        dry_run: true,
    };
    for (request, want) in [
        (applied, vec!["+ service dns".to_owned()]),
        (
            Request::Diff { text },
            vec![
                "+ service dns".to_owned(),
                "- service web".to_owned(),
                "- backend web/10.0.0.1:80".to_owned(),
                "- backend web/10.0.0.2:80".to_owned(),
            ],
        ),
    ] {
        let answer = handle.call(request).await;
        assert_eq!(answer, Ok(Response::Diff { changes: want }));
    }
    assert_eq!(bed.memory.maps().backends, before);
    let text = "services: [{nmae: x}]".to_owned();
    let fault = fault(&handle, Request::Diff { text }).await;
    assert_eq!(fault.code, FaultCode::Invalid);
    assert!(fault.message.contains("file:1:"), "{}", fault.message);
}

#[tokio::test]
async fn reload_is_all_or_nothing() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    std::fs::write(bed.file(), "services: [").unwrap();
    let refused = fault(&handle, Request::Reload).await;
    assert_eq!(refused.code, FaultCode::Invalid);
    assert_eq!(slots(&bed), [(1, 1), (1, 2)]);
    let shown = status(&handle).await;
    assert_eq!(shown.last_reload, refused.message);
    assert_eq!(shown.problems.len(), 1, "{:?}", shown.problems);

    let mut more = web();
    more.backends.push(testing::backend("10.0.0.3:80", 1));
    write_config(&bed.file(), &bed.config([more]));
    done(&handle, Request::Reload).await;
    assert_eq!(slots(&bed), [(1, 1), (1, 2), (1, 3)]);
    let shown = status(&handle).await;
    assert_eq!(
        (shown.last_reload.as_str(), shown.problems.len()),
        ("ok", 0)
    );
    assert_eq!(
        told(&handle).await,
        ["ReloadFailed", "BackendAdded", "Reloaded"]
    );
    let snapshot = handle.snapshot().await;
    assert_eq!((snapshot.reloads_ok, snapshot.reloads_failed), (1, 1));
}

/// A file that is in force is no failure for ever because the kernel was late.
#[tokio::test]
async fn a_reload_that_the_kernel_takes_later_is_one() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    let mut more = web();
    more.backends.push(testing::backend("10.0.0.3:80", 1));
    write_config(&bed.file(), &bed.config([more]));
    bed.memory.break_at_call(1);
    let refused = fault(&handle, Request::Reload).await;
    assert_eq!(refused.code, FaultCode::Failed);
    let shown = status(&handle).await;
    assert_eq!(shown.last_reload, "ok");
    let problems = shown.problems.join("; ");
    assert!(problems.contains("the kernel could not be"), "{problems}");
    assert!(!problems.contains("reload"), "{problems}");
    bed.memory.fail_call(0);
    let settled = async || status(&handle).await.problems.is_empty();
    until("the kernel is up to date", settled).await;
    assert_eq!(slots(&bed), [(1, 1), (1, 2), (1, 3)]);
    let snapshot = handle.snapshot().await;
    assert_eq!((snapshot.reloads_ok, snapshot.reloads_failed), (0, 1));
}

#[tokio::test]
async fn settings_of_the_node_are_changes_too() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    let mut changed = bed.config([web()]);
    changed.node.timeouts.udp = Duration::from_secs(30);
    changed.node.snat.ports = Some((20_000, 29_999));
    let diff = Request::Diff {
        text: config::render(&changed),
    };
    let words = "timeouts.udp 2m → 30s, snat_ports none → 20000-29999";
    let changes = vec![format!("~ node: {words}")];
    let answer = handle.call(diff.clone()).await;
    assert_eq!(answer, Ok(Response::Diff { changes }));
    write_config(&bed.file(), &changed);
    let message = done(&handle, Request::Reload).await;
    assert_eq!(message, "config file reloaded, 1 change");
    assert_eq!(told(&handle).await, ["NodeChanged", "Reloaded"]);
    let answer = handle.call(diff).await;
    assert_eq!(answer, Ok(Response::Diff { changes: vec![] }));
}

#[tokio::test]
async fn what_the_kernel_refuses_is_retried() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    let mut weight = 0;
    // A scan of the flows may take the failure meant for the change.
    let refused = loop {
        weight += 1;
        bed.memory.fail_call(1);
        let request = Request::SetWeight {
            backend: reference("web/10.0.0.1:80"),
            weight: WeightOverride::Absolute(weight),
        };
        if let Err(refused) = handle.call(request).await {
            break refused;
        }
    };
    assert_eq!(refused.code, FaultCode::Failed);
    assert!(
        refused.message.contains("every second"),
        "{}",
        refused.message
    );
    until("recovery", async || {
        status(&handle).await.problems.is_empty()
    })
    .await;
    let told = told(&handle).await;
    assert!(told.contains(&"ApplyRecovered".to_owned()), "{told:?}");
}

#[tokio::test]
async fn what_cannot_be_saved_is_not_done() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    // A directory in the way of the temporary file: root is stopped by no permission.
    std::fs::create_dir_all(bed.state().join("state.json.new")).unwrap();
    let request = Request::SetMode {
        backend: reference("web/10.0.0.1:80"),
        mode: Mode::Drain,
        deadline: None,
    };
    let refused = fault(&handle, request).await;
    assert_eq!(refused.code, FaultCode::Failed);
    assert!(
        refused.message.contains("nothing was changed"),
        "{}",
        refused.message
    );
    assert_eq!(slots(&bed), [(1, 1), (1, 2)]);
    assert_eq!(
        backend(&handle, "web/10.0.0.1:80").await.state,
        BackendState::Healthy
    );
}

#[tokio::test]
async fn a_service_too_many_is_told_of() {
    let mut bed = Bed::new();
    bed.memory = Arc::new(Memory::new(Capacity {
        services: 4,
        backends: 2,
        sources: 1000,
    }));
    let handle = bed.start([web()]).await;
    let service = trusted("dns", "192.0.2.1:53", &["10.0.0.3:53"]);
    let refused = fault(&handle, Request::AddService { service }).await;
    assert_eq!(refused.code, FaultCode::Failed);
    assert!(
        refused.message.contains("node.limits.backends"),
        "{}",
        refused.message
    );
    assert_ne!(status(&handle).await.problems, Vec::<String>::new());
}

#[tokio::test]
async fn the_state_directory_is_held_until_stop() {
    let bed = Bed::new();
    let handle = bed.start([web()]).await;
    assert!(Store::open(&bed.state()).is_err());
    handle.stop().await;
    assert!(Store::open(&bed.state()).is_ok());
    assert!(!handle.is_ready());
    let refused = fault(&handle, Request::GetServices).await;
    assert_eq!(refused.code, FaultCode::Failed);
    assert!(!handle.snapshot().await.status.ready);
}
