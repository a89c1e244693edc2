//! Changes to bytes that know what a packet looks like, and some that do not.

use rand::Rng;

/// Ethernet without a tag.
pub(super) const NETWORK: usize = 14;

/// The shortest and the longest packet that a test run takes.
pub(super) const SHORTEST: usize = 14;
pub(super) const LONGEST: usize = 3000;

/// Protocols, extension headers, lengths and TTLs that mean something.
const BYTES: [u8; 24] = [
    0, 1, 2, 3, 4, 5, 6, 8, 11, 16, 17, 40, 41, 43, 44, 45, 50, 51, 58, 60, 64, 128, 254, 255,
];

const WORDS: [u16; 16] = [
    0, 1, 7, 8, 19, 20, 21, 28, 40, 60, 0x2000, 0x1fff, 0x4000, 1400, 1500, 0xffff,
];

/// One to three changes.
pub(super) fn mutate(rng: &mut impl Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..=3) {
        change(rng, bytes);
    }
    fit(bytes);
}

/// Makes the packet one that a test run takes.
pub(super) fn fit(bytes: &mut Vec<u8>) {
    bytes.truncate(LONGEST);
    if bytes.len() < SHORTEST {
        bytes.resize(SHORTEST, 0);
    }
}

fn change(rng: &mut impl Rng, bytes: &mut Vec<u8>) {
    // Mostly headers; a payload changes nothing but sums.
    let reach = bytes.len().min(if rng.random_bool(0.8) { 78 } else { 400 });
    if reach < 2 {
        return;
    }
    let place = rng.random_range(0..reach);
    match rng.random_range(0..10) {
        0 | 1 => bytes[place] ^= 1 << rng.random_range(0..8),
        2 => bytes[place] = rng.random(),
        3 | 4 => bytes[place] = BYTES[rng.random_range(0..BYTES.len())],
        5 => {
            let word = WORDS[rng.random_range(0..WORDS.len())].to_be_bytes();
            let place = place.min(bytes.len() - 2) & !1;
            bytes[place..place + 2].copy_from_slice(&word);
        }
        6 => bytes.truncate(rng.random_range(SHORTEST.min(bytes.len())..=bytes.len())),
        7 => {
            let more = rng.random_range(1..40);
            bytes.extend((0..more).map(|_| rng.random::<u8>()));
        }
        // What a length field says, by little more or less.
        8 => {
            let place = if bytes.get(12) == Some(&0x86) { 18 } else { 16 };
            if let Some([high, low]) = bytes.get(place..place + 2) {
                let by = rng.random_range(-24_i16..24);
                let length = u16::from_be_bytes([*high, *low]).wrapping_add_signed(by);
                bytes[place..place + 2].copy_from_slice(&length.to_be_bytes());
            }
        }
        _ => {
            if bytes.len() >= NETWORK {
                let tag = [0x81, 0x00, 0, rng.random()];
                bytes.splice(12..12, tag);
            }
        }
    }
}

/// Where the transport header begins, if nothing odd is in front of it, and whether this is IPv6.
pub(super) fn transport(bytes: &[u8]) -> Option<(usize, bool)> {
    match bytes.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(bytes.get(NETWORK)? & 15) * 4;
            (header >= 20 && bytes.len() >= NETWORK + header + 8)
                .then_some((NETWORK + header, false))
        }
        [0x86, 0xdd] => (bytes.len() >= NETWORK + 40 + 8).then_some((NETWORK + 40, true)),
        _ => None,
    }
}

pub(super) fn protocol(bytes: &[u8], v6: bool) -> u8 {
    bytes[NETWORK + if v6 { 6 } else { 9 }]
}

/// The packet from its receiver back to its sender: MACs, addresses and ports change places, which
/// leaves all checksums right.
pub(super) fn turn_around(bytes: &[u8]) -> Option<Vec<u8>> {
    let (transport, v6) = transport(bytes)?;
    let mut turned = bytes.to_vec();
    let mut swap = |first: usize, size: usize| {
        for place in first..first + size {
            turned.swap(place, place + size);
        }
    };
    swap(0, 6);
    match v6 {
        true => swap(NETWORK + 8, 16),
        false => swap(NETWORK + 12, 4),
    }
    swap(transport, 2);
    Some(turned)
}
