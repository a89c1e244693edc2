//! How large a JSON text is once it is read, told before that.

use std::io;

use serde::Serialize;

/// Upper bound of the values in a JSON text: each takes memory of its own, however short it is.
pub fn values(json: &[u8]) -> usize {
    let mut counter = Counter::default();
    counter.read(json);
    counter.values
}

/// What a value takes in memory, about: its text, and `each` bytes for each value in it.
pub(crate) fn weight(value: &impl Serialize, each: usize) -> usize {
    let mut counter = Counter::default();
    // Fails for keys that are no text only, which nobody here has.
    let _ = serde_json::to_writer(&mut counter, value);
    counter.weight(each)
}

/// The same for what is still a text, and may be none of JSON.
pub(crate) fn text_weight(json: &[u8], each: usize) -> usize {
    let mut counter = Counter::default();
    counter.read(json);
    counter.weight(each)
}

struct Counter {
    bytes: usize,
    values: usize,
    in_string: bool,
    escaped: bool,
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            bytes: 0,
            values: 1,
            in_string: false,
            escaped: false,
        }
    }
}

impl Counter {
    fn read(&mut self, json: &[u8]) {
        self.bytes += json.len();
        for byte in json {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'[' | b'{' | b',' if !self.in_string => self.values += 1,
                _ => {}
            }
        }
    }

    fn weight(&self, each: usize) -> usize {
        self.bytes.saturating_add(self.values.saturating_mul(each))
    }
}

impl io::Write for Counter {
    fn write(&mut self, json: &[u8]) -> io::Result<usize> {
        self.read(json);
        Ok(json.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_string_is_no_value() {
        assert_eq!(values(br#"{"a":[1,2],"b":{}}"#), 6);
        assert_eq!(values(br#"{"text":"[1,2,{\",,,"}"#), 2);
    }

    #[test]
    fn a_value_weighs_what_its_text_does() {
        let text = r#"{"a":["\"[,",2],"b":{}}"#;
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(weight(&value, 9), text_weight(text.as_bytes(), 9));
        assert_eq!(weight(&value, 9), text.len() + 6 * 9);
    }
}
