//! Keeps the maps' pins where they are: without them the next start would know of no connection.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use lb_common::abi::{LAYOUTS, map};

use super::{layout, preflight, sys::Map};

/// All maps that are pinned, held open.
pub(super) struct Pins {
    directory: PathBuf,
    maps: Vec<(&'static str, Map)>,
}

impl Pins {
    /// Opens what is pinned in `directory`, which must be all there is.
    pub(super) fn open(directory: PathBuf) -> Result<Self> {
        let names = LAYOUTS.iter().map(|layout| layout.map);
        let names = names.chain([map::TABLES, layout::PIN]);
        let open = |name| {
            let path = directory.join(name);
            let map = Map::from_pin(&path);
            let map = map.with_context(|| format!("map {name}: open {}", path.display()))?;
            Ok((name, map))
        };
        let maps = names.map(open).collect::<Result<_>>()?;
        Ok(Self { directory, maps })
    }

    /// Pins again what somebody unpinned, or pinned another map in the place of; says what.
    pub(super) fn repair(&self) -> Result<Vec<String>> {
        let mut repaired = Vec::new();
        for (name, map) in &self.maps {
            let path = self.directory.join(name);
            let what = match Map::from_pin(&path) {
                Ok(pinned) if pinned.info.id == map.info.id => continue,
                Ok(_) => "was another map's",
                Err(_) => "was missing",
            };
            preflight::create_directory(&self.directory)?;
            // Whatever is there instead.
            let _ = fs::remove_file(&path);
            map.pin(&path)
                .with_context(|| format!("pinning {}", path.display()))?;
            repaired.push(format!("pin of map {name}: {what}, made again"));
        }
        Ok(repaired)
    }
}
