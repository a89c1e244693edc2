//! Sources under the whole controller.

use std::{collections::BTreeMap, net::SocketAddr};

use super::*;
use crate::{
    datapath::memory::Write,
    discovery::{self, SourceItem},
    model::{BackendState, Mode},
    plan::socket_address,
};

fn instances(hosts: &[u8]) -> String {
    let mut text = "instances:\n".to_owned();
    for host in hosts {
        text += &format!("- {{id: i{host}, address: \"10.0.0.{host}:80\"}}\n");
    }
    text
}

impl Bed {
    fn instances(&self) -> PathBuf {
        self.directory.path().join("web.yaml")
    }

    fn write(&self, hosts: &[u8]) {
        let new = self.directory.path().join("new");
        std::fs::write(&new, instances(hosts)).unwrap();
        std::fs::rename(&new, self.instances()).unwrap();
    }

    /// `web`, trusted, with a source of its own.
    fn web(&self) -> ServiceSpec {
        let text = format!(
            "services: [{{name: web, listen: 192.0.2.1:80, discovery: {{file: {{path: {}, \
             merge_window: 0s}}}}}}]",
            self.instances().display()
        );
        let parsed = config::parse(&text, "f").unwrap().config;
        ServiceSpec {
            discovery: parsed.services[0].discovery.clone(),
            ..trusted("web", "192.0.2.1:80", &[])
        }
    }

    /// Slot by address.
    fn slots(&self) -> BTreeMap<SocketAddr, u32> {
        let backends = self.memory.maps().backends;
        let in_use = |state| state != lb_common::abi::backend_state::FREE;
        let in_use = backends.iter().filter(|(_, b)| in_use(b.state));
        in_use.map(|(slot, b)| (socket_address(b), *slot)).collect()
    }
}

async fn sources(handle: &Handle) -> Vec<SourceItem> {
    match handle.call(Request::GetSources { service: None }).await {
        Ok(Response::Sources { items }) => items,
        other => panic!("{other:?}"),
    }
}

async fn known(handle: &Handle) -> usize {
    match handle.call(Request::GetBackends { service: None }).await {
        Ok(Response::Backends { items }) => items.len(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn those_that_stay_keep_their_slots() {
    let bed = Bed::new();
    bed.write(&[5, 6]);
    let handle = bed.start([bed.web()]).await;
    until("both", async || known(&handle).await == 2).await;
    let before = bed.slots();
    bed.write(&[1, 2, 5, 6, 9]);
    until("five", async || known(&handle).await == 5).await;
    bed.write(&[2, 6]);
    until("two", async || known(&handle).await == 2).await;
    let after = bed.slots();
    let six: SocketAddr = "10.0.0.6:80".parse().unwrap();
    assert_eq!(before[&six], after[&six]);
    let item = backend(&handle, "web/10.0.0.6:80").await;
    assert_eq!(item.state, BackendState::Healthy);
    assert!(told(&handle).await.contains(&"BackendRemoved".to_owned()));
}

/// A weight is one backend and one table; nothing is planned anew.
#[tokio::test]
async fn a_weight_is_two_writes() {
    let bed = Bed::new();
    bed.write(&[5, 6]);
    let handle = bed.start([bed.web()]).await;
    until("both", async || known(&handle).await == 2).await;
    bed.memory.take_writes();
    let text = instances(&[5, 6]).replace("{id: i5,", "{id: i5, weight: 50,");
    std::fs::write(bed.directory.path().join("new"), text).unwrap();
    std::fs::rename(bed.directory.path().join("new"), bed.instances()).unwrap();
    until("the weight", async || {
        backend(&handle, "web/10.0.0.5:80").await.weight == 50
    })
    .await;
    let writes = bed.memory.take_writes();
    assert!(matches!(writes[..], [Write::Table(_)]), "{writes:?}");
}

#[tokio::test]
async fn a_restart_without_the_file_moves_nobody() {
    let bed = Bed::new();
    bed.write(&[5, 6]);
    let handle = bed.start([bed.web()]).await;
    until("both", async || known(&handle).await == 2).await;
    handle.stop().await;
    std::fs::remove_file(bed.instances()).unwrap();
    bed.memory.take_writes();
    let handle = bed.start([bed.web()]).await;
    assert_eq!(
        bed.memory.take_writes(),
        [Write::Config],
        "from the first pass on"
    );
    until("stale", async || sources(&handle).await[0].state == "stale").await;
    assert_eq!(known(&handle).await, 2);
    let problems = status(&handle).await.problems;
    assert!(problems[0].contains("there is no"), "{problems:?}");
}

/// Only what was in traffic stays there, with the share it had.
#[tokio::test]
async fn without_a_saved_set_the_kernels_backends_stay_until_the_source_answers() {
    let bed = Bed::new();
    bed.write(&[5, 6]);
    let weighted = instances(&[5, 6, 7]).replace("{id: i5,", "{id: i5, weight: 30,");
    let weighted = weighted.replace("{id: i6,", "{id: i6, weight: 10,");
    let weighted = weighted.replace("{id: i7,", "{id: i7, state: drain,");
    std::fs::write(bed.instances(), weighted).unwrap();
    let handle = bed.start([bed.web()]).await;
    until("all", async || known(&handle).await == 3).await;
    handle.stop().await;
    std::fs::remove_dir_all(bed.state()).unwrap();
    std::fs::remove_file(bed.instances()).unwrap();
    let before = bed.memory.maps();
    let handle = bed.start([bed.web()]).await;
    let after = bed.memory.maps();
    assert_eq!(before.backends, after.backends);
    assert_eq!(before.services, after.services);
    until("stale", async || sources(&handle).await[0].state == "stale").await;
    let weight = async |host: u8| {
        backend(&handle, &format!("web/10.0.0.{host}:80"))
            .await
            .weight
    };
    assert_eq!((weight(5).await, weight(6).await), (100, 33), "3 to 1");
    let drained = backend(&handle, "web/10.0.0.7:80").await;
    assert_eq!(drained.state, BackendState::Draining);

    bed.write(&[5, 8]);
    until("8, and 6 and 7 are gone", async || {
        known(&handle).await == 2 && bed.slots().keys().any(|a| a.to_string() == "10.0.0.8:80")
    })
    .await;
    assert_eq!(weight(5).await, 100);
}

/// A service with a source may be added by lbctl too, and is one to the next daemon.
#[tokio::test]
async fn a_source_added_by_lbctl_lives_with_its_service() {
    let bed = Bed::new();
    bed.write(&[5]);
    let handle = bed.start([]).await;
    let text = config::render(&testing::config([bed.web()]));
    let request = Request::Apply {
        text,
        dry_run: false,
    };
    done(&handle, request).await;
    until("found", async || known(&handle).await == 1).await;
    handle.stop().await;

    let handle = bed.start([]).await;
    until("found again", async || known(&handle).await == 1).await;
    assert_eq!(sources(&handle).await.len(), 1);
    let request = Request::RemoveService {
        name: "web".to_owned(),
    };
    done(&handle, request).await;
    assert_eq!((sources(&handle).await.len(), known(&handle).await), (0, 0));
    let kept = std::fs::read_dir(bed.state().join("discovery")).unwrap();
    assert_eq!(kept.count(), 0);
}

#[tokio::test]
async fn a_found_backend_is_overridden_and_not_removed() {
    let bed = Bed::new();
    bed.write(&[5]);
    let handle = bed.start([bed.web()]).await;
    until("found", async || known(&handle).await == 1).await;
    let found = reference("web/10.0.0.5:80");
    let request = Request::SetMode {
        backend: found.clone(),
        mode: Mode::Drain,
        deadline: None,
    };
    done(&handle, request).await;
    let item = backend(&handle, "web/10.0.0.5:80").await;
    assert_eq!(item.state, BackendState::Draining);
    assert_eq!(item.source, "discovery:file");
    let refused = fault(&handle, Request::RemoveBackend { backend: found }).await;
    assert!(
        refused.message.contains("deregister it there"),
        "{refused:?}"
    );
}

/// Its registry is known by another name: nobody moves, and what was said of its backends holds for
/// whatever the new one finds.
#[tokio::test]
async fn a_source_with_another_target_moves_nobody_until_it_answers() {
    let bed = Bed::new();
    bed.write(&[5, 6]);
    let handle = bed.start([bed.web()]).await;
    until("both", async || known(&handle).await == 2).await;
    let drain = Request::SetMode {
        backend: reference("web/10.0.0.5:80"),
        mode: Mode::Drain,
        deadline: None,
    };
    done(&handle, drain).await;

    let other = bed.directory.path().join("other.yaml");
    let mut web = bed.web();
    let discovery::Kind::File(source) = &mut web.discovery[0].kind else {
        panic!("another kind");
    };
    source.path.clone_from(&other);
    write_config(&bed.file(), &bed.config([web.clone()]));
    bed.memory.take_writes();
    done(&handle, Request::Reload).await;
    assert_eq!(bed.memory.take_writes(), []);
    until("stale", async || sources(&handle).await[0].state == "stale").await;
    assert_eq!(sources(&handle).await[0].instances, 2);
    let is_drained = async |handle: &Handle| {
        backend(handle, "web/10.0.0.5:80").await.state == BackendState::Draining
    };
    assert!(is_drained(&handle).await);

    handle.stop().await;
    let handle = bed.start([web]).await;
    assert_eq!(bed.memory.take_writes(), [Write::Config]);
    assert!(is_drained(&handle).await);

    let answer = |hosts: &[u8]| {
        let new = bed.directory.path().join("new");
        std::fs::write(&new, instances(hosts)).unwrap();
        std::fs::rename(&new, &other).unwrap();
    };
    answer(&[6, 7]);
    let hosts = || {
        bed.slots()
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    until("7 and not 5", async || {
        hosts() == ["10.0.0.6:80", "10.0.0.7:80"]
    })
    .await;
    answer(&[5, 6, 7]);
    until("5 again", async || known(&handle).await == 3).await;
    assert!(is_drained(&handle).await);
}
