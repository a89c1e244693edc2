//! The parser of Eureka's answers never panics, whatever deltas follow (a line each), and tells each id
//! once.

use std::collections::HashSet;

use lb_userspace::discovery::eureka::{
    Port,
    registry::{Reading, Registry},
};

pub fn run(bytes: &[u8]) -> bool {
    let mut answers = bytes.split(|byte| *byte == b'\n');
    let first = answers.next().unwrap_or_default();
    let app = serde_json::from_slice(first);
    let is_app = app.is_ok_and(|app| Registry::of_app("WEB", app).is_ok());
    let Ok(all) = serde_json::from_slice(first) else {
        return is_app;
    };
    let Ok(mut registry) = Registry::of_all("WEB", all) else {
        return is_app;
    };
    let reading = Reading {
        port: Port::Any,
        weight_key: "weight".to_owned(),
    };
    for delta in answers {
        let Ok(delta) = serde_json::from_slice(delta) else {
            return true;
        };
        let _ = registry.apply(delta);
        let snapshot = registry.snapshot(&reading);
        let ids: HashSet<_> = snapshot.instances.iter().map(|i| &i.id).collect();
        assert_eq!(ids.len(), snapshot.instances.len());
        assert!(snapshot.instances.iter().all(|i| i.address.port() != 0));
    }
    true
}
