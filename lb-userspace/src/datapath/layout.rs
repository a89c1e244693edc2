//! What the bytes in pinned maps mean: written beside them by the version that made them, and read
//! by another one, which carries over what it knows by name.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use lb_common::abi::{self, LAYOUTS};
use serde::{Deserialize, Serialize};

use super::sys;

/// Name of the pin that holds the text.
pub(super) const PIN: &str = "LAYOUT";

/// Fields without a meaning.
const FILLERS: [&str; 2] = ["pad", "reserved"];

/// The layouts of one directory of maps, by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Layouts(BTreeMap<String, Layout>);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Layout {
    pub(super) key: Fields,
    pub(super) value: Fields,
}

/// In any order; all bytes have a name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Fields(Vec<Field>);

/// Name, offset, size.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Field(String, usize, usize);

impl Layouts {
    /// Those of this program.
    pub(super) fn ours() -> Self {
        let layout = |layout: &abi::Layout| {
            let fields = |fields: &[abi::Field]| {
                let field = |f: &abi::Field| Field(f.name.to_owned(), f.offset, f.size);
                Fields(fields.iter().map(field).collect())
            };
            let value = Layout {
                key: fields(layout.key),
                value: fields(layout.value),
            };
            (layout.map.to_owned(), value)
        };
        Self(LAYOUTS.iter().map(layout).collect())
    }

    /// Has those of this program be written down beside the maps pinned in `directory`.
    pub(super) fn ensure(directory: &Path) -> Result<()> {
        match directory.join(PIN).exists() {
            true => Ok(()),
            false => Self::ours().write(directory),
        }
    }

    pub(super) fn get(&self, map: &str) -> Option<&Layout> {
        self.0.get(map)
    }

    /// Those of the maps pinned in `directory`; `None` if nobody wrote them down.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(PIN);
        if !path.exists() {
            return Ok(None);
        }
        let read = || -> Result<Self> {
            let map = sys::Map::from_pin(&path)?;
            let mut text = vec![0; map.value_bytes()];
            map.lookup(&0u32.to_ne_bytes(), &mut text)?;
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(serde_json::from_slice(text)?)
        };
        let layouts = read().with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(layouts))
    }

    /// Writes them down beside the maps pinned in `directory`.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(PIN);
        let write = || -> Result<()> {
            let mut text = serde_json::to_vec(self)?;
            text.resize((text.len() + 1).next_multiple_of(8), 0);
            let map = sys::Map::array(1, text.len() as u32)?;
            map.update(&0u32.to_ne_bytes(), &text)?;
            map.pin(&path)?;
            Ok(())
        };
        write().with_context(|| format!("writing {}", path.display()))
    }
}

impl Fields {
    pub(super) fn size(&self) -> usize {
        self.0.iter().map(|Field(_, _, size)| size).sum()
    }

    fn find(&self, name: &str, size: usize) -> Option<usize> {
        let field = self.0.iter().find(|f| f.0 == name && f.2 == size);
        field.map(|Field(_, offset, _)| *offset)
    }

    /// Names of the fields with a meaning that are not in `other`, or not of the same size.
    pub(super) fn not_in(&self, other: &Self) -> Vec<&str> {
        let lacks = |f: &&Field| other.find(&f.0, f.2).is_none();
        let names = self.0.iter().filter(lacks).map(|f| f.0.as_str());
        names.filter(|name| !FILLERS.contains(name)).collect()
    }
}

/// How bytes of one layout become those of another. What the other does not have is left out; what
/// it has and this one has not becomes zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Carry {
    old_size: usize,
    to_size: usize,
    /// Offset there, offset here, size.
    pieces: Vec<(usize, usize, usize)>,
}

impl Carry {
    pub(super) fn between(from: &Fields, to: &Fields) -> Self {
        let piece =
            |Field(name, offset, size): &Field| Some((from.find(name, *size)?, *offset, *size));
        let pieces = to.0.iter().filter_map(piece);
        Self {
            old_size: from.size(),
            to_size: to.size(),
            pieces: pieces.collect(),
        }
    }

    pub(super) fn old_size(&self) -> usize {
        self.old_size
    }

    /// Adds the bytes of one key or value to `to`; `from` has [`Self::old_size`] bytes.
    pub(super) fn append(&self, from: &[u8], to: &mut Vec<u8>) {
        let begin = to.len();
        to.resize(begin + self.to_size, 0);
        for &(there, here, size) in &self.pieces {
            to[begin + here..][..size].copy_from_slice(&from[there..][..size]);
        }
    }

    /// For each half word here where it stands there, in half words; `u16::MAX` if it does not.
    /// `None` if a field begins or ends within a half word.
    pub(super) fn half_words(&self) -> Option<Vec<u16>> {
        let mut places = vec![u16::MAX; self.to_size / 2];
        for &(there, here, size) in &self.pieces {
            if there % 2 + here % 2 + size % 2 != 0 {
                return None;
            }
            for half in 0..size / 2 {
                places[here / 2 + half] = u16::try_from(there / 2 + half).ok()?;
            }
        }
        Some(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, usize, usize)]) -> Fields {
        let field = |&(name, offset, size): &(&str, _, _)| Field(name.to_owned(), offset, size);
        Fields(fields.iter().map(field).collect())
    }

    #[test]
    fn bytes_follow_their_names() {
        let from = fields(&[("a", 0, 4), ("b", 4, 2), ("pad", 6, 2)]);
        let to = fields(&[("new", 0, 2), ("b", 2, 2), ("a", 4, 4), ("reserved", 8, 4)]);
        let carry = Carry::between(&from, &to);
        let mut out = vec![9];
        carry.append(&[1, 2, 3, 4, 5, 6, 7, 8], &mut out);
        assert_eq!(out, [9, 0, 0, 5, 6, 1, 2, 3, 4, 0, 0, 0, 0]);
        let nowhere = u16::MAX;
        assert_eq!(
            carry.half_words().unwrap(),
            [nowhere, 2, 0, 1, nowhere, nowhere]
        );
        assert_eq!(to.not_in(&from), ["new"]);
        assert_eq!(from.not_in(&to), [""; 0]);
    }

    #[test]
    fn a_field_of_another_size_is_another_field() {
        let (from, to) = (fields(&[("a", 0, 4)]), fields(&[("a", 0, 8)]));
        let carry = Carry::between(&from, &to);
        let mut out = Vec::new();
        carry.append(&[1, 2, 3, 4], &mut out);
        assert_eq!((out, to.not_in(&from)), (vec![0; 8], vec!["a"]));
    }

    #[test]
    fn every_byte_of_every_map_has_one_name() {
        for (map, layout) in &Layouts::ours().0 {
            for fields in [&layout.key, &layout.value] {
                let mut named = vec![false; fields.size()];
                let mut names = std::collections::BTreeSet::new();
                for Field(name, offset, size) in &fields.0 {
                    assert!(names.insert(name), "{map}: {name} twice");
                    for byte in &mut named[*offset..][..*size] {
                        assert!(!std::mem::replace(byte, true), "{map}: {name} overlaps");
                    }
                }
                assert!(named.iter().all(|named| *named), "{map}: a gap");
            }
        }
    }
}
