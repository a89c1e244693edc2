//! Changes to inputs that know text and numbers, and nothing of what they mean.

use std::ops::Range;

use rand::{Rng, rngs::StdRng};

/// Longest input that is made.
const LONGEST: usize = 64 << 10;

/// Numbers at which something ends.
const NUMBERS: [&str; 18] = [
    "0",
    "-1",
    "1",
    "-0",
    "00",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "0.5",
    "NaN",
];

/// The same in bytes.
const WORDS: [&[u8]; 8] = [
    &[0; 4],
    &[0xff; 4],
    &[0x80, 0, 0, 0],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0xff, 0xff],
    &[0, 1],
    &[1, 0, 0, 1],
    &[0],
];

/// What means something to one parser or another.
const PIECES: [&[u8]; 20] = [
    b"\n",
    b"\r\n",
    b" ",
    b"\0",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\xff",
    b"\xc3\xa9",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b": ",
    b"- ",
    b"&a ",
    b"*a ",
    b"null",
    b"%00",
];

/// What opens once more without end.
const NESTS: [&str; 4] = ["[", "{\"a\":", "- ", "  "];

/// An input made of those in `pool`, of which there is one at least.
pub fn mutated(rng: &mut StdRng, pool: &[Vec<u8>]) -> Vec<u8> {
    let mut input = pick(rng, pool).clone();
    // Mostly one change: what understood little of the first sees nothing of the second.
    let changes = *pick(rng, &[1, 1, 1, 2, 3, 8]);
    for _ in 0..changes {
        change(rng, &mut input, pool);
        input.truncate(LONGEST);
    }
    input
}

fn change(rng: &mut StdRng, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
    let place = rng.random_range(0..=input.len());
    let range = |rng: &mut StdRng, input: &[u8]| {
        let length = rng.random_range(0..=(input.len() - place).min(64));
        place..place + length
    };
    match rng.random_range(0..13) {
        0 => {
            if let Some(byte) = input.get_mut(place) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(place) {
                *byte = rng.random();
            }
        }
        2 => put(input, place..place, pick(rng, &PIECES)),
        3 => {
            let gone = range(rng, input);
            input.drain(gone);
        }
        4 => {
            let again = input[range(rng, input)].to_vec();
            put(input, place..place, &again);
        }
        5 => input.truncate(place),
        // The beginning of one, and the end of another.
        6 => {
            let other = pick(rng, pool);
            input.truncate(place);
            input.extend(&other[rng.random_range(0..=other.len())..]);
        }
        7 => {
            let other = pick(rng, pool);
            let from = rng.random_range(0..=other.len());
            let length = rng.random_range(0..=(other.len() - from).min(200));
            put(input, place..place, &other[from..from + length]);
        }
        8 | 9 => {
            let numbers = runs(input, u8::is_ascii_digit);
            if !numbers.is_empty() {
                let number = pick(rng, &numbers).clone();
                put(input, number, pick(rng, &NUMBERS).as_bytes());
            }
        }
        10 => {
            let word = *pick(rng, &WORDS);
            let end = (place + word.len()).min(input.len());
            put(input, place..end, word);
        }
        // A token, or a line, where another stands, or once more.
        11 => {
            let lines = rng.random_bool(0.5);
            let tokens = match lines {
                true => runs(input, |byte| *byte != b'\n'),
                false => runs(input, |byte| byte.is_ascii_alphanumeric()),
            };
            if !tokens.is_empty() {
                let token = input[pick(rng, &tokens).clone()].to_vec();
                let other = pick(rng, &tokens).clone();
                match rng.random_bool(0.5) {
                    true => put(input, other, &token),
                    false => {
                        let between: &[u8] = if lines { b"\n" } else { b" " };
                        put(input, other.end..other.end, &[between, &token].concat());
                    }
                }
            }
        }
        _ => {
            let deep = pick(rng, &NESTS).repeat(rng.random_range(1..300));
            put(input, place..place, deep.as_bytes());
        }
    }
}

fn put(input: &mut Vec<u8>, range: Range<usize>, bytes: &[u8]) {
    input.splice(range, bytes.iter().copied());
}

fn pick<'a, T>(rng: &mut StdRng, all: &'a [T]) -> &'a T {
    &all[rng.random_range(0..all.len())]
}

/// Where bytes of a kind stand together.
fn runs(input: &[u8], is_of: impl Fn(&u8) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, byte) in input.iter().enumerate() {
        match runs.last_mut() {
            _ if !is_of(byte) => {}
            Some(last) if last.end == at => last.end += 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}
