//! What keys and values of etcd say: nothing panics, every key is an instance, a fault or gone, and what
//! was understood once stays until it is deleted.
//!
//! An input is lines `KEY VALUE`, each of which a watch tells; a line without a value deletes.
#![no_main]

use lb_userspace::discovery::etcd::{
    known::{Known, Pair},
    parse,
};
use libfuzzer_sys::fuzz_target;

const PREFIX: &[u8] = b"web/";

fuzz_target!(|bytes: &[u8]| {
    let mut known = Known::new(PREFIX);
    let mut revision = 0;
    for line in bytes.split(|byte| *byte == b'\n') {
        revision += 1;
        let mut words = line.splitn(2, |byte| *byte == b' ');
        let key = [PREFIX, words.next().unwrap_or_default()].concat();
        let value = words.next();
        let before = known.snapshot().instances;
        let changed = known.change(&Pair {
            key: &key,
            value,
            mod_revision: revision,
        });
        changed.unwrap();
        let after = known.snapshot();
        let Some(value) = value else {
            continue;
        };
        match parse::instance(PREFIX, &key, value) {
            Ok(Some(instance)) => assert!(after.instances.contains(&instance)),
            Ok(None) => assert!(after.instances.len() <= before.len()),
            Err(fault) => {
                assert_eq!(after.instances, before);
                assert!(after.left_out.iter().any(|note| note.starts_with(&fault)));
            }
        }
    }
});
