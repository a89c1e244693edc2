//! Lines out of bytes as they come.

/// What has come and is not read yet.
#[derive(Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// What is in front of it was read.
    start: usize,
    /// Up to here there is no newline.
    searched: usize,
}

impl Lines {
    pub fn push(&mut self, bytes: &[u8]) {
        // Once for all lines of what came last, not for each: a server may send newlines alone.
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub fn line(&mut self) -> Option<&[u8]> {
        let rest = &self.buffer[self.searched..];
        let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let end = self.searched + at;
        let line = self.start..end;
        self.start = end + 1;
        self.searched = self.start;
        Some(&self.buffer[line])
    }

    /// Bytes that are not read yet.
    pub fn waiting(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// What is left, which has no end.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(self);
        rest.buffer.split_off(rest.start)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn lines_are_those_of_the_whole_however_it_comes() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece);
                while let Some(line) = lines.line() {
                    found.push(line.to_vec());
                }
            }
            assert_eq!(found, [&b"one"[..], b"", b"two"]);
            assert_eq!(lines.waiting(), 5);
            assert_eq!(lines.rest(), b"three");
            assert_eq!((lines.waiting(), lines.line()), (0, None));
        }
    }

    #[test]
    fn newlines_alone_take_no_time() {
        let mut lines = Lines::default();
        lines.push(&vec![b'\n'; 1 << 20]);
        let began = Instant::now();
        let mut count = 0;
        while lines.line().is_some() {
            count += 1;
        }
        assert_eq!(count, 1 << 20);
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
