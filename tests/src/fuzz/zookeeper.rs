//! What nodes of ZooKeeper say: nothing panics, every node is an instance or a fault, and what was
//! understood once stays until the node is gone.
//!
//! An input is lines `NODE DATA`, each of which is read; a line without data is of a node that is gone.

use lb_userspace::discovery::zookeeper::{known::Known, parse};

pub fn run(bytes: &[u8]) -> bool {
    let mut understood = false;
    let ssl_port = bytes.first().is_some_and(|byte| byte % 2 == 1);
    let mut known = Known::new(ssl_port);
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut words = line.splitn(2, |byte| *byte == b' ');
        let node = String::from_utf8_lossy(words.next().unwrap_or_default());
        let data = words.next();
        let before = known.snapshot().instances;
        let read = known.read(&node, data);
        read.expect("no more than a source may hold");
        let after = known.snapshot();
        let Some(data) = data else {
            assert!(after.instances.iter().all(|i| i.id != node));
            continue;
        };
        match parse::instance(&node, data, ssl_port) {
            Ok(instance) => {
                assert!(after.instances.contains(&instance));
                understood = true;
            }
            Err(fault) => {
                assert_eq!(after.instances, before);
                assert!(after.left_out.iter().any(|note| note.starts_with(&fault)));
            }
        }
    }
    understood
}
