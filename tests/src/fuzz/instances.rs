//! The parser of the file source's files never panics, and what it accepts is what the file says:
//! each id once, each address one that a backend can have.

use std::collections::HashSet;

use lb_userspace::config::parse_instances;

pub fn run(bytes: &[u8]) -> bool {
    match parse_instances(super::text(bytes), "fuzz") {
        Ok(instances) => {
            let ids: HashSet<_> = instances.iter().map(|i| &i.id).collect();
            assert_eq!(ids.len(), instances.len());
            assert!(instances.iter().all(|i| i.address.port() != 0));
            true
        }
        Err(faults) => {
            assert!(!faults.findings.is_empty());
            false
        }
    }
}
