//! What keys and values of etcd say: nothing panics, every key is an instance, a fault or gone, and what
//! was understood once stays until it is deleted.
//!
//! An input is lines `KEY VALUE`, each of which a watch tells; a line without a value deletes.

use lb_userspace::discovery::etcd::{
    known::{Known, Pair},
    parse,
};

const PREFIX: &[u8] = b"web/";

pub fn run(bytes: &[u8]) -> bool {
    let mut understood = false;
    let mut known = Known::new(PREFIX);
    for (revision, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let mut words = line.splitn(2, |byte| *byte == b' ');
        let key = [PREFIX, words.next().unwrap_or_default()].concat();
        let value = words.next();
        let before = known.snapshot().instances;
        let changed = known.change(&Pair {
            key: &key,
            value,
            mod_revision: revision,
        });
        changed.expect("no more than a source may hold");
        let after = known.snapshot();
        let Some(value) = value else {
            continue;
        };
        match parse::instance(PREFIX, &key, value) {
            Ok(Some(instance)) => {
                assert!(after.instances.contains(&instance));
                understood = true;
            }
            Ok(None) => assert!(after.instances.len() <= before.len()),
            Err(fault) => {
                assert_eq!(after.instances, before);
                assert!(after.left_out.iter().any(|note| note.starts_with(&fault)));
            }
        }
    }
    understood
}
