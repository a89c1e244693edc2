//! Bulk data that both ends of a transfer can make and check: its SHA-256 tells any change.

use sha2::{Digest, Sha256};

/// An endless stream of bytes that do not repeat, the same for the same seed.
pub struct Stream {
    state: u64,
}

impl Stream {
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_add(0x9e37_79b9_7f4a_7c15),
        }
    }

    /// Fills `buffer`, whose length is a multiple of 8, with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.as_chunks_mut::<8>().0 {
            // Xorshift (Marsaglia, 2003).
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
    }
}

/// Bytes handled at a time.
pub const CHUNK: usize = 64 * 1024;

/// SHA-256 of the first `length` bytes of a stream, in hexadecimal.
pub fn digest(seed: u64, mut length: u64) -> String {
    let (mut stream, mut buffer, mut hash) = (Stream::new(seed), vec![0; CHUNK], Sha256::new());
    while length > 0 {
        stream.fill(&mut buffer);
        let part = length.min(CHUNK as u64);
        hash.update(&buffer[..part as usize]);
        length -= part;
    }
    hex(hash)
}

/// A finished hash in hexadecimal.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
