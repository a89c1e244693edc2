//! Nothing that an API server may send makes the kubernetes sources panic, and whatever is understood
//! comes to instances of which each has an id of its own, and to services of which each listens
//! somewhere and has backends to look for. A line is a list of Services, the second one of
//! EndpointSlices, and those behind them are events of watches.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use lb_userspace::discovery::kubernetes::{
    Select, Traffic, Wanted,
    join::join,
    services::{Market, Place},
    wire::{self, Event},
};

const ROOM: &str = "no more than a source may hold";

pub fn run(bytes: &[u8]) -> bool {
    let mut understood = false;
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let services = wire::page::<Service>(line()).map_or(Vec::new(), |page| page.items);
    let slices = wire::page::<EndpointSlice>(line()).map_or(Vec::new(), |page| page.items);
    let place = Place {
        node: Some("n1".to_owned()),
        zone: Some("a".to_owned()),
        nodeport_addresses: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
    };
    let mut market = Market::new(place, own);
    for service in &services {
        market.put_service(service.clone()).expect(ROOM);
    }
    for slice in &slices {
        market.put_slice(slice.clone()).expect(ROOM);
    }
    sound(&mut market);
    let mut slices: BTreeMap<_, _> = slices
        .into_iter()
        .map(|slice| (slice.metadata.name.clone(), slice))
        .collect();
    for line in lines {
        match wire::event::<Service>(line) {
            Ok(Event::Put(service)) => market.put_service(service).expect(ROOM),
            Ok(Event::Gone(service)) => market.drop_service(&service),
            Ok(Event::Bookmark(_) | Event::Expired) | Err(_) => {}
        }
        match wire::event::<EndpointSlice>(line) {
            Ok(Event::Put(slice)) => {
                market.put_slice(slice.clone()).expect(ROOM);
                slices.insert(slice.metadata.name.clone(), slice);
            }
            Ok(Event::Gone(slice)) => {
                market.drop_slice(&slice);
                slices.remove(&slice.metadata.name);
            }
            Ok(Event::Bookmark(_) | Event::Expired) | Err(_) => {}
        }
    }
    sound(&mut market);
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
                understood = true;
            }
            Err(failure) => assert!(!failure.message.is_empty()),
        }
    }
    understood
}

fn own() -> std::io::Result<Vec<IpAddr>> {
    Ok(["10.0.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).into())
}

fn sound(market: &mut Market) {
    let catalogue = market.catalogue();
    for offer in &catalogue.services.instances {
        assert!(!offer.listen.is_empty());
        let backends = &catalogue.backends[&offer.name];
        let ids: HashSet<_> = backends.instances.iter().map(|i| &i.id).collect();
        assert_eq!(ids.len(), backends.instances.len());
    }
}
