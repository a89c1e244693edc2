//! A state file's text: `{"version", "checksum", "state"}`. Pure.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::State;

/// Layout of [`State`] in the file. A daemon reads its own version and older ones.
pub(super) const VERSION: u32 = 1;

/// Why a state file's text gives no state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unreadable {
    /// Written by a later daemon, with this version.
    Newer(u32),
    /// Cut off or altered, in words.
    Damaged(String),
}

const STATE_KEY: &str = "\"state\":";

/// The text of a state file.
///
/// # Errors
/// None that any state leads to.
pub fn encode(state: &State) -> serde_json::Result<String> {
    seal(VERSION, state)
}

/// The state in a file's text.
///
/// # Errors
/// It was written by a later daemon, or is damaged.
pub fn decode(text: &str) -> Result<State, Unreadable> {
    unseal(VERSION, text)
}

/// Text from which [`unseal`] gives the same value, and no other.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn seal(version: u32, state: &impl Serialize) -> serde_json::Result<String> {
    let body = serde_json::to_string_pretty(state)?;
    let checksum = crc32(body.as_bytes());
    Ok(format!(
        "{{\"version\": {version}, \"checksum\": \"{checksum:08x}\", {STATE_KEY} {body}}}\n"
    ))
}

/// Reads what [`seal`] wrote with `version` or an earlier one.
///
/// # Errors
/// It was written with a later version, or is damaged.
pub fn unseal<T: DeserializeOwned>(version: u32, text: &str) -> Result<T, Unreadable> {
    let damaged = |why: String| Unreadable::Damaged(why);
    let header: Header = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
    if header.version > version {
        return Err(Unreadable::Newer(header.version));
    }
    let body = body(text).ok_or_else(|| damaged("it has no `state`".to_owned()))?;
    let checksum = format!("{:08x}", crc32(body.as_bytes()));
    match header.checksum {
        Some(written) if written == checksum => {}
        Some(written) => {
            return Err(damaged(format!(
                "its checksum is {written}, its contents' is {checksum}"
            )));
        }
        None => return Err(damaged("it has no `checksum`".to_owned())),
    }
    serde_json::from_str(body).map_err(|e| damaged(e.to_string()))
}

/// Other fields are left to the version they belong to.
#[derive(Deserialize)]
struct Header {
    version: u32,
    checksum: Option<String>,
}

/// The text of the `state` field, which [`encode`] writes last.
fn body(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(STATE_KEY)?;
    Some(rest.trim_end().strip_suffix('}')?.trim())
}

/// CRC-32 as in IEEE 802.3, reflected.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL * (crc & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{BackendSpec, Mode, Override, WeightOverride},
        state::AddedBackend,
    };

    fn sample() -> State {
        let backend = BackendSpec {
            address: "10.1.0.11:8080".parse().unwrap(),
            weight: 100,
            max_connections: None,
            labels: [("version".to_owned(), "v1".to_owned())].into(),
        };
        State {
            services: Vec::new(),
            backends: vec![AddedBackend {
                service: "web".to_owned(),
                backend,
            }],
            overrides: [(
                "web/10.1.0.11:8080".parse().unwrap(),
                Override {
                    weight: Some(WeightOverride::Percent(50)),
                    mode: Some(Mode::Drain),
                    deadline_ms: Some(1_735_689_599_000),
                },
            )]
            .into(),
        }
    }

    #[test]
    fn checksum_is_the_standard_crc() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn reads_back_what_it_wrote() {
        for state in [State::default(), sample()] {
            assert_eq!(decode(&encode(&state).unwrap()), Ok(state));
        }
    }

    #[test]
    fn no_prefix_and_no_altered_byte_passes_for_a_state() {
        let text = encode(&sample()).unwrap();
        let whole = text.trim_end().len();
        for end in 0..whole {
            assert!(decode(&text[..end]).is_err(), "cut at {end}");
        }
        let start = text.find(STATE_KEY).unwrap() + STATE_KEY.len() + 1;
        for place in start..whole {
            let mut bytes = text.clone().into_bytes();
            bytes[place] ^= 1;
            let altered = String::from_utf8(bytes).unwrap();
            assert!(decode(&altered).is_err(), "altered at {place}");
        }
    }

    #[test]
    fn a_later_version_is_told_apart_from_damage() {
        let text = "{\"version\": 7, \"whatever\": [1]}";
        assert_eq!(decode(text), Err(Unreadable::Newer(7)));
    }
}
