//! What stands in the state directory: overrides and objects of lbctl, sets of discovery, settings to
//! put back. Whatever a disk makes of them, nothing panics, and what is read is written the same.
//!
//! Each input is tried as it is, and inside a file whose checksum is right.

use lb_userspace::{
    datapath::undo,
    discovery::saved,
    state::file::{self, Unreadable},
};

pub fn run(bytes: &[u8]) -> bool {
    let text = super::text(bytes);
    let mut understood = read(text);
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
        understood |= read(&file::seal(1, &value).expect("JSON can be written"));
        let later = file::seal(u32::MAX, &value).expect("JSON can be written");
        assert_eq!(file::decode(&later), Err(Unreadable::Newer(u32::MAX)));
    }
    if let Ok(changes) = undo::decode(text.as_bytes()) {
        let written = serde_json::to_vec(&changes).expect("it can be written");
        assert_eq!(undo::decode(&written).ok(), Some(changes));
        understood = true;
    }
    understood
}

fn read(text: &str) -> bool {
    let (state, set) = (file::decode(text), saved::decode(text));
    let understood = state.is_ok() || set.is_ok();
    if let Ok(state) = state {
        let written = file::encode(&state).expect("a state can be written");
        assert_eq!(file::decode(&written), Ok(state));
    }
    if let Ok(set) = set {
        let written = saved::encode(&set).expect("a set can be written");
        assert_eq!(saved::decode(&written), Ok(set));
    }
    understood
}
