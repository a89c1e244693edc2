//! Maps of another size or layout, and starts that died half way.

use std::{collections::BTreeMap, fs, path::Path};

use lb_common::abi::{
    ABI_VERSION, Admission, Backend, Be16, Flow, FlowKey, NextHop, Service, V4, V6, as_bytes,
    from_bytes, map, protocol,
};

use super::{World, backend, linked_hooks, listen, pins};
use crate::{
    datapath::{
        Datapath as _,
        kernel::Kernel,
        layout,
        sys::Map,
        testing::{isolated, sh},
    },
    model::{Timeouts, XdpMode},
};

/// Flows whose every field differs from the others.
fn flows() -> BTreeMap<u16, Flow<V4>> {
    let flow = |number: u16| Flow {
        src: V4(0x0101_0101),
        dst: V4(0x0202_0000 | u32::from(number)),
        src_port: Be16::new(number),
        dst_port: Be16::new(80),
        address_delta: 3,
        port_delta: 5,
        slot: 7,
        generation: 11,
        next_hop: NextHop {
            ifindex: 13,
            epoch: 17,
            macs: [19, 23, 29],
            link: 31,
        }
        .into(),
        last_seen: 37.into(),
        state: 1.into(),
        created: 41,
        expected: 43.into(),
    };
    (1..=500).map(|number| (number, flow(number))).collect()
}

fn key(number: u16) -> FlowKey<V4> {
    let client = V4(0x0909_0909);
    FlowKey::new(
        client,
        Be16::new(number),
        V4(1),
        Be16::new(80),
        protocol::TCP,
    )
}

fn enter(directory: &Path, name: &str) {
    let map = Map::from_pin(&directory.join(name)).unwrap();
    for (number, flow) in flows() {
        map.update(as_bytes(&key(number)), as_bytes(&flow)).unwrap();
    }
}

fn entries(directory: &Path, name: &str) -> BTreeMap<u16, Vec<u8>> {
    let map = Map::from_pin(&directory.join(name)).unwrap();
    let mut found = BTreeMap::new();
    map.lookup_batch(64, |keys, values| {
        for (key, value) in keys.chunks(16).zip(values.chunks(64)) {
            let key: FlowKey<V4> = from_bytes(key).unwrap();
            found.insert(key.src_port.get(), value.to_vec());
        }
        Ok(())
    })
    .unwrap();
    found
}

fn expected() -> BTreeMap<u16, Vec<u8>> {
    let bytes = |(number, flow): (u16, Flow<V4>)| (number, as_bytes(&flow).to_vec());
    flows().into_iter().map(bytes).collect()
}

fn size(directory: &Path, name: &str) -> u32 {
    Map::from_pin(&directory.join(name))
        .unwrap()
        .info
        .max_entries
}

/// Something in every kind of map.
fn fill(kernel: &Kernel, bpffs: &Path) {
    let service = Service {
        id: 3,
        table: 6,
        ..Service::default()
    };
    kernel
        .set_service(listen("192.0.2.10:80"), &service)
        .unwrap();
    kernel.set_table(6, &[40, 50]).unwrap();
    kernel.set_backend(40, &backend(7)).unwrap();
    let prefix = "10.0.0.0/8".parse().unwrap();
    kernel.add_sources(3, &[(prefix, true)]).unwrap();
    let pins = pins(bpffs);
    let slots = size(&pins, map::BACKENDS);
    let admission = Admission {
        max_connections: 9,
        counter: slots + 3,
        ..Admission::default()
    };
    kernel.set_admission(3, &admission).unwrap();
    let active = Map::from_pin(&pins.join(map::ACTIVE)).unwrap();
    let counts = [40u32, 41].map(u32::to_ne_bytes).concat();
    active.update(&40u32.to_ne_bytes(), &counts).unwrap();
    active.update(&(slots + 3).to_ne_bytes(), &counts).unwrap();
    let drops = Map::from_pin(&pins.join(map::DROPS)).unwrap();
    let mut count = vec![0; drops.value_bytes()];
    count[..8].copy_from_slice(&77u64.to_ne_bytes());
    drops.update(&5u32.to_ne_bytes(), &count).unwrap();
    for name in [map::FLOWS4, map::HANDSHAKES4] {
        enter(&pins, name);
    }
}

/// All of [`fill`] is there.
fn check(kernel: &Kernel, bpffs: &Path) {
    let pins = pins(bpffs);
    for name in [map::FLOWS4, map::HANDSHAKES4] {
        assert_eq!(entries(&pins, name), expected(), "{name}");
    }
    assert_eq!(kernel.services().unwrap().len(), 1);
    assert_eq!(kernel.table(6).unwrap(), Some(vec![40, 50]));
    assert_eq!(kernel.backends().unwrap(), [(40, backend(7))]);
    assert_eq!(kernel.sources().unwrap()[&3].len(), 1);
    let slots = size(&pins, map::BACKENDS);
    let [(3, admission)] = kernel.admissions().unwrap()[..] else {
        panic!("{:?}", kernel.admissions());
    };
    assert_eq!(
        (admission.counter, admission.max_connections),
        (slots + 3, 9)
    );
    let active = Map::from_pin(&pins.join(map::ACTIVE)).unwrap();
    for index in [40, slots + 3] {
        let mut counts = [0; 8];
        active.lookup(&index.to_ne_bytes(), &mut counts).unwrap();
        assert_eq!(
            counts[..],
            [40u32, 41].map(u32::to_ne_bytes).concat(),
            "{index}"
        );
    }
    assert_eq!(kernel.drops().unwrap()[5], 77);
    let mut left: Vec<_> = fs::read_dir(bpffs.join("lbd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [&ABI_VERSION.to_string(), "links", "programs"]);
}

#[test]
fn maps_grow_and_keep_what_they_hold() {
    isolated(|bpffs| {
        let mut world = World::new(bpffs, &["one"], XdpMode::Native);
        let kernel = world.start();
        fill(&kernel, bpffs);
        drop(kernel);
        let links = linked_hooks()
            .iter()
            .map(|hook| world.link("one", hook).unwrap());
        let links: Vec<_> = links.collect();

        let limits = &mut world.node.limits;
        limits.connections *= 2;
        limits.handshakes *= 3;
        limits.backends += 1000;
        limits.services *= 2;
        limits.sources *= 2;
        let kernel = world.start();
        check(&kernel, bpffs);
        assert_eq!(kernel.capacity().backends, 6000);
        assert_eq!(kernel.capacity().services, 128);
        assert_eq!(size(&pins(bpffs), map::FLOWS4), 4000);
        for (hook, link) in linked_hooks().iter().zip(links) {
            let now = world.link("one", hook).unwrap();
            assert_eq!(now.id, link.id, "{hook}: detached in between");
            assert_ne!(now.prog_id, link.prog_id, "{hook}");
        }
        assert!(kernel.repair_attachments().unwrap().is_empty());
        // The new programs know no former maps.
        drop(kernel);
        let kernel = world.start();
        check(&kernel, bpffs);
    });
}

#[test]
fn maps_shrink_as_far_as_they_are_used() {
    isolated(|bpffs| {
        let mut world = World::new(bpffs, &["one"], XdpMode::Off);
        // 500 entries are 250 connections. Up to 128 free places of a table that evicts are held by each
        // CPU, on kernels that do not care how small it is, and are of no use to the others.
        let cpus = aya::util::nr_cpus().unwrap().get();
        let handshakes = 250 + 64 * cpus;
        world.node.limits.handshakes = 2 * handshakes;
        let kernel = world.start();
        fill(&kernel, bpffs);
        drop(kernel);
        let limits = &mut world.node.limits;
        (limits.connections, limits.handshakes) = (249, handshakes);
        (limits.backends, limits.services) = (41, 3);
        let kernel = world.start();
        check(&kernel, bpffs);
        let pins = pins(bpffs);
        assert_eq!(size(&pins, map::FLOWS4), 2000, "in use");
        assert_eq!(size(&pins, map::HANDSHAKES6), 2 * handshakes);
        assert_eq!(kernel.capacity().backends, 41);
        assert_eq!(size(&pins, map::TABLES), 128, "in use");
    });
}

/// Has the maps be those of another version, whose flows have two fields in each other's place, a field
/// that nobody knows, and one not that this version has.
fn disguise(bpffs: &Path) {
    let (ours, theirs) = (pins(bpffs), bpffs.join("lbd/7"));
    fs::rename(&ours, &theirs).unwrap();
    let pin = theirs.join(layout::PIN);
    let map = Map::from_pin(&pin).unwrap();
    let mut text = vec![0; map.value_bytes()];
    map.lookup(&0u32.to_ne_bytes(), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let text = text
        .trim_end_matches('\0')
        .replace("\"slot\"", "\"place\"")
        .replace("\"generation\"", "\"slot\"")
        .replace("\"place\"", "\"generation\"")
        .replace("\"created\"", "\"unheard-of\"");
    let layouts: layout::Layouts = serde_json::from_str(&text).unwrap();
    fs::remove_file(&pin).unwrap();
    layouts.write(&theirs).unwrap();
}

#[test]
fn another_versions_maps_are_read_by_their_names() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Native);
        let kernel = world.start();
        fill(&kernel, bpffs);
        drop(kernel);
        disguise(bpffs);
        let link = world.link("one", "xdp").unwrap();
        let kernel = world.start();
        assert_eq!(world.link("one", "xdp").unwrap().id, link.id);
        assert!(!bpffs.join("lbd/7").exists() && !bpffs.join("lbd/former").exists());
        let pins = pins(bpffs);
        for name in [map::FLOWS4, map::HANDSHAKES4] {
            let found = entries(&pins, name);
            assert_eq!(found.len(), 500);
            for (number, mut flow) in flows() {
                (flow.slot, flow.generation, flow.created) = (11, 7, 0);
                assert_eq!(found[&number], as_bytes(&flow), "{name} {number}");
            }
        }
        // The first field of a backend was not called so there.
        let found = kernel.backends().unwrap();
        assert_eq!(
            found,
            [(
                40,
                Backend {
                    generation: 0,
                    ..backend(7)
                }
            )]
        );
        assert_eq!(kernel.table(6).unwrap(), Some(vec![40, 50]));
    });
}

/// As if most of the flows had not moved yet.
fn move_back(from: &Map, to: &Map) {
    let mut flow = vec![0; from.value_bytes()];
    for number in 1..=400 {
        let key = key(number);
        assert!(from.lookup(as_bytes(&key), &mut flow).unwrap());
        to.update(as_bytes(&key), &flow).unwrap();
        assert!(from.delete(as_bytes(&key)).unwrap());
    }
}

#[test]
fn a_start_goes_on_where_another_died() {
    isolated(|bpffs| {
        let mut world = World::new(bpffs, &["one"], XdpMode::Native);
        let kernel = world.start();
        fill(&kernel, bpffs);
        drop(kernel);
        let root = bpffs.join("lbd");

        // Before the new maps took the place of the old: they count for nothing.
        fs::create_dir(root.join("next")).unwrap();
        let pin = root.join("next/FLOWS4");
        let pin = pin.display();
        sh(&format!(
            "bpftool map create {pin} type hash key 16 value 64 entries 9 name x"
        ));
        check(&world.start(), bpffs);

        // After that, and before the flows had moved.
        world.node.limits.connections *= 2;
        let current = pins(bpffs);
        let before = Map::from_pin(&current.join(map::FLOWS4)).unwrap();
        drop(world.start());
        fs::create_dir(root.join("former")).unwrap();
        before.pin(&root.join("former/FLOWS4")).unwrap();
        layout::Layouts::ours().write(&root.join("former")).unwrap();
        let new = Map::from_pin(&current.join(map::FLOWS4)).unwrap();
        move_back(&new, &before);
        // Whatever is asked for meanwhile, the takeover comes first.
        world.node.limits.connections *= 2;
        world.node.limits.backends += 1;
        check(&world.start(), bpffs);
        assert_eq!(size(&current, map::FLOWS4), 4000);
        check(&world.start(), bpffs);
        assert_eq!(size(&current, map::FLOWS4), 8000);
    });
}

/// The new maps take the place of the old in two steps.
#[test]
fn a_start_understands_what_died_between_two_steps() {
    isolated(|bpffs| {
        let mut world = World::new(bpffs, &["one"], XdpMode::Native);
        let kernel = world.start();
        fill(&kernel, bpffs);
        drop(kernel);
        let root = bpffs.join("lbd");
        let (current, former, next) = (pins(bpffs), root.join("former"), root.join("next"));

        // The old are gone from their place, the new not there yet.
        let before = Map::from_pin(&current.join(map::FLOWS4)).unwrap();
        world.node.limits.connections *= 2;
        drop(world.start());
        fs::rename(&current, &next).unwrap();
        fs::create_dir(&former).unwrap();
        before.pin(&former.join(map::FLOWS4)).unwrap();
        layout::Layouts::ours().write(&former).unwrap();
        let new = Map::from_pin(&next.join(map::FLOWS4)).unwrap();
        move_back(&new, &before);
        check(&world.start(), bpffs);

        // The new ones are another version's.
        fs::rename(&current, &former).unwrap();
        fs::create_dir(&next).unwrap();
        check(&world.start(), bpffs);
        assert_eq!(size(&current, map::FLOWS4), 4000);
    });
}

/// Nobody knows what the bytes of maps mean that came without a layout.
#[test]
fn maps_that_do_not_say_what_they_mean_are_left_alone() {
    isolated(|bpffs| {
        let world = World::new(bpffs, &["one"], XdpMode::Off);
        let kernel = world.start();
        fill(&kernel, bpffs);
        drop(kernel);
        let theirs = bpffs.join("lbd/1");
        fs::rename(pins(bpffs), &theirs).unwrap();
        fs::remove_file(theirs.join(layout::PIN)).unwrap();
        let kernel = world.start();
        assert!(kernel.backends().unwrap().is_empty());
        assert_eq!(entries(&theirs, map::FLOWS4).len(), 500);
        let scan = kernel.scan_flows(&Timeouts::default()).unwrap();
        assert!(scan.present.is_empty());
    });
}

/// The places of fields in both families are half words.
#[test]
fn every_field_of_a_flow_can_move() {
    let layouts = layout::Layouts::ours();
    for (name, halves) in [
        (map::FLOWS4, size_of::<Flow<V4>>() / 2),
        (map::FLOWS6, size_of::<Flow<V6>>() / 2),
    ] {
        let value = &layouts.get(name).unwrap().value;
        let places = layout::Carry::between(value, value).half_words().unwrap();
        assert_eq!(places, (0..halves as u16).collect::<Vec<_>>());
    }
}
