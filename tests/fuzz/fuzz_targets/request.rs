//! No bytes on the socket make the daemon's request parser panic, and what it accepts is understood
//! the same when sent again.
#![no_main]

use lb_userspace::api::types::Request;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = serde_json::from_slice::<Request>(bytes) else {
        return;
    };
    let text = serde_json::to_vec(&request).expect("a request can be written");
    let again: Request = serde_json::from_slice(&text).expect("and read again");
    assert_eq!(again, request);
});
