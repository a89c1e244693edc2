//! What a ZooKeeper server sends on its way to the client: packets pass as they are, none beyond one
//! that is too long, and the end is told for what it is.

use std::io::ErrorKind;

use lb_userspace::discovery::zookeeper::relay::{MAX_PACKET, Seen};

/// Of a packet: whom it answers, a transaction, an error, and a list's count.
const HEAD: usize = 20;

pub fn run(bytes: &[u8]) -> bool {
    let mut passed = Vec::new();
    let ended = super::wait(Seen::default().answers(&mut &bytes[..], &mut passed));
    let (wanted, ends) = model(bytes);
    assert_eq!(passed, bytes[..wanted]);
    assert_eq!(ended.map_err(|error| error.kind()), ends);
    wanted > 0
}

/// How much passes, and how it ends.
fn model(bytes: &[u8]) -> (usize, Result<(), ErrorKind>) {
    let mut at = 0;
    while let Some(length) = bytes[at..].first_chunk() {
        let length = u32::from_be_bytes(*length);
        if length > MAX_PACKET {
            return (at, Err(ErrorKind::InvalidData));
        }
        let (begin, end) = (at + 4, at + 4 + length as usize);
        // The beginning is looked at before anything passes.
        if begin + HEAD.min(length as usize) > bytes.len() {
            return (at, Err(ErrorKind::UnexpectedEof));
        }
        if end > bytes.len() {
            return (bytes.len(), Ok(()));
        }
        at = end;
    }
    (at, Err(ErrorKind::UnexpectedEof))
}
