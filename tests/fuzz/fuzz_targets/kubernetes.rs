//! Nothing that an API server may send makes the kubernetes source panic, and whatever is understood
//! comes to instances of which each has an id of its own. A line is a list of Services, the second
//! one of EndpointSlices, and those behind them are events of watches.
#![no_main]

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use lb_userspace::discovery::kubernetes::{
    Select, Traffic, Wanted,
    join::join,
    wire::{self, Event},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let services = wire::page::<Service>(line()).map_or(Vec::new(), |page| page.items);
    let slices = wire::page::<EndpointSlice>(line()).map_or(Vec::new(), |page| page.items);
    let mut slices: BTreeMap<_, _> = slices
        .into_iter()
        .map(|slice| (slice.metadata.name.clone(), slice))
        .collect();
    for line in lines {
        let _ = wire::event::<Service>(line);
        match wire::event::<EndpointSlice>(line) {
            Ok(Event::Put(slice)) => {
                slices.insert(slice.metadata.name.clone(), slice);
            }
            Ok(Event::Gone(slice)) => {
                slices.remove(&slice.metadata.name);
            }
            Ok(Event::Bookmark(_) | Event::Expired) | Err(_) => {}
        }
    }
    for (select, port, node) in [
        (Select::Name("web".to_owned()), Some("http"), None),
        (Select::Labels("a".to_owned()), None, Some("n1")),
        (Select::Labels("a".to_owned()), Some("80"), None),
    ] {
        let wanted = Wanted {
            namespace: "shop".to_owned(),
            select,
            port: port.map(str::to_owned),
            traffic: Traffic::External,
            node: node.map(str::to_owned),
            zone: Some("a".to_owned()),
        };
        match join(&wanted, &services, slices.values()) {
            Ok(snapshot) => {
                let ids: HashSet<_> = snapshot.instances.iter().map(|i| &i.id).collect();
                assert_eq!(ids.len(), snapshot.instances.len());
            }
            Err(failure) => assert!(!failure.message.is_empty()),
        }
    }
});
