//! The parser of Eureka's answers never panics, whatever deltas follow (a line each), and tells each id
//! once.
#![no_main]

use std::collections::HashSet;

use lb_userspace::discovery::eureka::{
    Port,
    registry::{Reading, Registry},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut answers = bytes.split(|byte| *byte == b'\n');
    let first = answers.next().unwrap_or_default();
    if let Ok(app) = serde_json::from_slice(first) {
        let _ = Registry::of_app("WEB", app);
    }
    let Ok(all) = serde_json::from_slice(first) else {
        return;
    };
    let Ok(mut registry) = Registry::of_all("WEB", all) else {
        return;
    };
    let reading = Reading {
        port: Port::Any,
        weight_key: "weight".to_owned(),
    };
    for delta in answers {
        let Ok(delta) = serde_json::from_slice(delta) else {
            return;
        };
        let _ = registry.apply(delta);
        let snapshot = registry.snapshot(&reading);
        let ids: HashSet<_> = snapshot.instances.iter().map(|i| &i.id).collect();
        assert_eq!(ids.len(), snapshot.instances.len());
        assert!(snapshot.instances.iter().all(|i| i.address.port() != 0));
    }
});
