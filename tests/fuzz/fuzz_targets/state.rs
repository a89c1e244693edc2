//! What stands in the state directory: overrides and objects of lbctl, sets of discovery, settings to
//! put back. Whatever a disk makes of them, nothing panics, and what is read is written the same.
//!
//! Each input is tried as it is, and inside a file whose checksum is right.
#![no_main]

use lb_userspace::{
    datapath::undo,
    discovery::saved,
    state::file::{self, Unreadable},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    read(text);
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
        read(&file::seal(1, &value).expect("JSON can be written"));
        let later = file::seal(u32::MAX, &value).expect("JSON can be written");
        assert_eq!(file::decode(&later), Err(Unreadable::Newer(u32::MAX)));
    }
    if let Ok(changes) = undo::decode(text.as_bytes()) {
        let written = serde_json::to_vec(&changes).expect("it can be written");
        assert_eq!(undo::decode(&written).ok(), Some(changes));
    }
});

fn read(text: &str) {
    if let Ok(state) = file::decode(text) {
        let written = file::encode(&state).expect("a state can be written");
        assert_eq!(file::decode(&written), Ok(state));
    }
    if let Ok(set) = saved::decode(text) {
        let written = saved::encode(&set).expect("a set can be written");
        assert_eq!(saved::decode(&written), Ok(set));
    }
}
