use std::{collections::HashMap, time::Instant};

use super::*;
use crate::{
    controller::{
        kernel::Kernel,
        world::{Layers, World},
    },
    datapath::Route,
    health::{Report, Verdict},
    state::State,
};

/// Prints; holds no limit, for machines differ. Run with
/// `cargo test --release -p lb-userspace --lib eviction_at_size -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn eviction_at_size() {
    let bed = Bed::new();
    let services = (0..1000u32).map(|number| {
        let [_, _, high, low] = number.to_be_bytes();
        let backends: Vec<String> = (1..=20)
            .map(|host| format!("10.{high}.{low}.{host}:80"))
            .collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        testing::service(
            &format!("service-{number}"),
            &format!("192.168.{high}.{low}:80"),
            &backends,
        )
    });
    let layers = Layers {
        file: bed.config(services).into(),
        state: State::default(),
        found: Default::default(),
    };
    let inherited = HashMap::new();
    let near = |_| {
        Some(Route {
            source: None,
            returns_here: true,
            is_neighbour: true,
        })
    };
    let began = Instant::now();
    let mut world = World::new(layers, &inherited, near);
    println!("world built in {:?}", began.elapsed());
    let mut kernel = Kernel::new(bed.memory.clone()).unwrap();
    let report = |number: u32, host: u32, healthy| Report {
        backend: reference(&format!("service-{number}/10.0.{number}.{host}:80")),
        verdict: Verdict {
            healthy: Some(healthy),
            successes_in_row: 1,
            failures_in_row: 0,
            last_result: Some("connected".to_owned()),
            last_probe: None,
        },
        changed: true,
        result: "success",
        duration: Duration::ZERO,
    };
    for (number, host) in (0..250).flat_map(|n| (1..=20).map(move |h| (n, h))) {
        world.observe(report(number, host, true)).unwrap();
    }
    let began = Instant::now();
    kernel.apply(&world, 0).unwrap();
    world.settled();
    println!("first pass in {:?}", began.elapsed());
    for number in 0..10 {
        let began = Instant::now();
        let transition = world.observe(report(number, 3, false)).unwrap();
        kernel.evict(&[transition]);
        let evicted = began.elapsed();
        kernel.apply(&world, 0).unwrap();
        world.settled();
        println!("evicted in {evicted:?}, tables in {:?}", began.elapsed());
    }
    let began = Instant::now();
    let tables = kernel.begin_verify()().unwrap();
    println!("tables read after {:?}", began.elapsed());
    kernel.verify(tables).unwrap();
    println!("verified in {:?}", began.elapsed());
}
