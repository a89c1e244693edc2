//! Takes over maps that today's cannot be: of another version's layout, or of another size. Their
//! contents move into new maps, and connections go on.
//!
//! In this order, so that whoever dies on the way leaves what the next start understands:
//!
//! 1. `next` gets the maps: those that stay as they are, and new ones in place of the others.
//! 2. Everything but the flow tables is copied. Nobody else writes the former maps by now, but the
//!    programs count in some.
//! 3. The former directory becomes `former`, `next` that of this version.
//! 4. All hooks go over to the new programs in one step ([`crate::datapath::switch`]). These look for what they
//!    do not find in the flow tables in the former ones.
//! 5. The rest of the flows is moved, and `former` removed.

mod copying;
mod limits;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use aya::{Ebpf, maps::Map as Loaded};
use lb_common::abi::{ABI_VERSION, LAYOUTS, map};
use tracing::{info, warn};

use super::{
    layout::{Carry, Layout, Layouts},
    load, preflight,
    sys::{self, Map},
    tables::{self, INNER_TABLES},
};
use crate::model::Limits;

/// Entries per batch call.
const CHUNK: usize = 4096;

/// The flow tables, and what they are called in programs that look into former ones.
const FLOWS: [(&str, &str); 4] = [
    (map::FLOWS4, map::FORMER_FLOWS4),
    (map::FLOWS6, map::FORMER_FLOWS6),
    (map::HANDSHAKES4, map::FORMER_HANDSHAKES4),
    (map::HANDSHAKES6, map::FORMER_HANDSHAKES6),
];

/// Maps with indices behind those of all slots, or with such as values; see [`copying::fix`].
const BEHIND_SLOTS: [&str; 3] = [map::ACTIVE, map::COUNTED, map::ADMISSION];

/// Where the maps of this version are pinned.
pub(super) fn directory(root: &Path) -> PathBuf {
    root.join(ABI_VERSION.to_string())
}

/// All maps that are pinned.
fn names() -> impl Iterator<Item = &'static str> {
    let named = LAYOUTS.iter().map(|layout| layout.map);
    named.chain([map::TABLES])
}

/// Contents on their way from one set of maps to another.
pub(super) struct Takeover {
    root: PathBuf,
    /// What holds the contents.
    source: PathBuf,
    theirs: Layouts,
    ours: Layouts,
    /// The new maps are still in `next`.
    is_staged: bool,
}

/// Where programs find the fields of former flows, see `FORMER_PLACES4` in lb-ebpf.
pub(super) struct Places {
    pub(super) v4: Vec<u16>,
    pub(super) v6: Vec<u16>,
}

impl Takeover {
    /// Looks at what is pinned below `root`; `None` if there is nothing, or it can be used as it is.
    /// Raises `limits` to what a map must have room for already.
    pub(super) fn find(root: &preflight::PinRoot, limits: &mut Limits) -> Result<Option<Self>> {
        let (next, former) = (root.path.join("next"), root.path.join("former"));
        let current = directory(&root.path);
        let ours = Layouts::ours();
        let new = |source: PathBuf, theirs, is_staged| Self {
            root: root.path.clone(),
            source,
            theirs,
            ours: ours.clone(),
            is_staged,
        };
        if former.exists() && !current.exists() && Layouts::read(&next)?.as_ref() == Some(&ours) {
            // It died between the two steps of 3: whatever there is was copied by then.
            fs::rename(&next, &current).with_context(|| format!("renaming {}", next.display()))?;
        }
        // Its maps were never used.
        remove(&next)?;
        if former.exists()
            && current.exists()
            && let Some(theirs) = Layouts::read(&former)?
        {
            info!("goes on with the takeover of {}", former.display());
            // The new maps are there already; others are a matter of the next start.
            *limits = limits::adjusted(limits, &current, |_, _| Ok(true))?;
            return Ok(Some(new(former, theirs, false)));
        }
        let Some((source, theirs)) = find_source(root, &former, &ours)? else {
            return Ok(None);
        };
        *limits = limits::adjusted(limits, &source, limits::is_needed)?;
        let found = new(source, theirs, true);
        let wanted = load::sizes(limits);
        let mut changed = Vec::new();
        for name in names() {
            changed.extend(found.difference(name, &wanted)?);
        }
        if changed.is_empty() && found.source == current {
            return Ok(None);
        }
        info!(
            "takes over {}: {}",
            found.source.display(),
            listed(&changed)
        );
        for what in found.losses() {
            warn!("{what}");
        }
        found.stage(&next, &wanted)?;
        Ok(Some(found))
    }

    /// How a map must change, in words; `None` if it stays as it is, or there is none.
    fn difference(&self, name: &str, wanted: &[(&str, u32)]) -> Result<Option<String>> {
        let Some(pinned) = open(&self.source, name)? else {
            return Ok(None);
        };
        let entries = pinned.info.max_entries;
        if let Some(layout) = self.theirs.get(name) {
            let sizes = [layout.key.size(), layout.value.size()];
            let found = [pinned.info.key_size, pinned.info.value_size];
            ensure!(
                sizes == found.map(|size| size as usize),
                "map {name} pinned in {} is not what lbd pinned there: its keys and values have \
                 {found:?} bytes, not {sizes:?}; stop lbd, run `lbd --cleanup` (which ends the \
                 balanced connections), start lbd",
                self.source.display()
            );
        }
        if self.theirs.get(name) != self.ours.get(name) {
            return Ok(Some(format!("{name} has another layout")));
        }
        let wanted = |name| {
            wanted
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, size)| *size)
        };
        if let Some(size) = wanted(name).filter(|size| *size != entries) {
            return Ok(Some(format!(
                "{name} goes from {entries} to {size} entries"
            )));
        }
        if BEHIND_SLOTS.contains(&name)
            && let Some(slots) = open(&self.source, map::BACKENDS)?
            && wanted(map::BACKENDS).is_some_and(|size| size != slots.info.max_entries)
        {
            return Ok(Some(format!("{name} counts from another number of slots")));
        }
        Ok(None)
    }

    /// What cannot be carried, one sentence each.
    fn losses(&self) -> Vec<String> {
        let mut losses = Vec::new();
        for ours in LAYOUTS {
            let name = ours.map;
            let (Some(ours), Some(theirs)) = (self.ours.get(name), self.theirs.get(name)) else {
                continue;
            };
            if !ours.key.not_in(&theirs.key).is_empty() {
                losses.push(format!(
                    "map {name} is not carried over: its keys are others"
                ));
                continue;
            }
            let lost = theirs.value.not_in(&ours.value);
            if !lost.is_empty() {
                let lost = lost.join(", ");
                losses.push(format!(
                    "map {name}: {lost} is not known to this version and is lost"
                ));
            }
            let new = ours.value.not_in(&theirs.value);
            if !new.is_empty() {
                let new = new.join(", ");
                losses.push(format!(
                    "map {name}: {new} is not known of what was there, and is 0"
                ));
            }
        }
        losses
    }

    /// Pins in `next` what stays as it is.
    fn stage(&self, next: &Path, wanted: &[(&str, u32)]) -> Result<()> {
        preflight::create_directory(next)?;
        for name in names() {
            if self.difference(name, wanted)?.is_none()
                && let Some(map) = open(&self.source, name)?
            {
                map.pin(&next.join(name))
                    .with_context(|| format!("pinning {name} in {}", next.display()))?;
            }
        }
        self.stage_inner_tables(next)?;
        self.ours.write(next)
    }

    /// Pins the selection tables themselves, which are never changed, in `next` as well.
    fn stage_inner_tables(&self, next: &Path) -> Result<()> {
        let (from, to) = (self.source.join(INNER_TABLES), next.join(INNER_TABLES));
        if !from.exists() {
            return Ok(());
        }
        preflight::create_directory(&to)?;
        let failed = || format!("pinning what is in {}", from.display());
        for entry in fs::read_dir(&from).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let inner = Map::from_pin(&entry.path()).with_context(failed)?;
            inner
                .pin(&to.join(entry.file_name()))
                .with_context(failed)?;
        }
        Ok(())
    }

    /// Has `load` make the new maps, and lends the former flow tables to its programs.
    pub(super) fn load(
        &self,
        load: impl Fn(&Path, Option<&Places>) -> Result<Ebpf>,
    ) -> Result<Ebpf> {
        let places = self.places()?;
        let ebpf = load(&self.target(), places.as_ref())?;
        if places.is_some() {
            self.lend(&ebpf)?;
        }
        Ok(ebpf)
    }

    /// Where the new maps are pinned, or are to be.
    fn target(&self) -> PathBuf {
        match self.is_staged {
            true => self.root.join("next"),
            false => directory(&self.root),
        }
    }

    /// Where programs find the fields of former flows; `None` if no flow table changes, or its
    /// entries cannot be read.
    fn places(&self) -> Result<Option<Places>> {
        let any = FLOWS.iter().map(|(name, _)| self.moves(name));
        if !any.collect::<Result<Vec<_>>>()?.contains(&true) {
            return Ok(None);
        }
        let places = |flows: &str, handshakes: &str| {
            let (ours, theirs) = (self.ours.get(flows)?, self.theirs.get(flows)?);
            let is_known = ours.key == theirs.key && self.theirs.get(handshakes) == Some(theirs);
            let carry = is_known.then(|| Carry::between(&theirs.value, &ours.value));
            carry?.half_words()
        };
        let v4 = places(map::FLOWS4, map::HANDSHAKES4);
        let v6 = places(map::FLOWS6, map::HANDSHAKES6);
        Ok(v4.zip(v6).map(|(v4, v6)| Places { v4, v6 }))
    }

    /// Whether there is a former map of that name that is not the new one as well.
    fn moves(&self, name: &str) -> Result<bool> {
        let Some(former) = open(&self.source, name)? else {
            return Ok(false);
        };
        let new = open(&self.target(), name)?;
        Ok(new.is_none_or(|new| new.info.id != former.info.id))
    }

    /// Has programs of `ebpf` that are not loaded yet look into the former flow tables.
    fn lend(&self, ebpf: &Ebpf) -> Result<()> {
        for (name, lent_as) in FLOWS {
            if !self.moves(name)? {
                continue;
            }
            let Some(former) = open(&self.source, name)? else {
                continue;
            };
            let (Some(Loaded::HashMap(map)) | Some(Loaded::LruHashMap(map))) = ebpf.map(lent_as)
            else {
                anyhow::bail!("the object has no hash map {lent_as}");
            };
            // The programs name maps by their descriptors until the kernel takes them, and a map of
            // another layout has values of another size, which no loader would take for this one.
            let fd = std::os::fd::AsFd::as_fd(map.fd());
            former
                .take_the_place_of(fd)
                .with_context(|| format!("lending {name} to the programs"))?;
        }
        Ok(())
    }

    /// Copies everything but the flow tables, and makes the new maps those of this version.
    pub(super) fn copy(&mut self) -> Result<()> {
        if !self.is_staged {
            return Ok(());
        }
        let next = self.target();
        let slots = |directory: &Path| -> Result<u32> {
            Ok(open(directory, map::BACKENDS)?.map_or(0, |map| map.info.max_entries))
        };
        let slots = (slots(&self.source)?, slots(&next)?);
        for layout in LAYOUTS {
            let name = layout.map;
            if FLOWS.iter().any(|(flows, _)| *flows == name) || !self.moves(name)? {
                continue;
            }
            if let (Some(from), Some(to)) = (open(&self.source, name)?, open(&next, name)?)
                && let Some((key, value)) = self.carry(name)
            {
                copying::copy(&from, &to, &key, &value, |index, value| {
                    copying::fix(name, slots, index, value)
                })
                .with_context(|| format!("copying map {name}"))?;
            }
        }
        if self.moves(map::TABLES)? {
            self.copy_tables(&next).context("copying map TABLES")?;
        }
        let former = self.root.join("former");
        for (from, to) in [(&self.source, &former), (&next, &directory(&self.root))] {
            // From a takeover that died they may be there already, which is no change.
            fs::rename(from, to)
                .with_context(|| format!("renaming {} to {}", from.display(), to.display()))?;
        }
        self.source = former;
        self.is_staged = false;
        Ok(())
    }

    /// How keys and values of a map are carried; `None` if they cannot be.
    fn carry(&self, name: &str) -> Option<(Carry, Carry)> {
        let (ours, theirs): (&Layout, &Layout) = (self.ours.get(name)?, self.theirs.get(name)?);
        let knows_keys = ours.key.not_in(&theirs.key).is_empty();
        let carries = || {
            (
                Carry::between(&theirs.key, &ours.key),
                Carry::between(&theirs.value, &ours.value),
            )
        };
        knows_keys.then(carries)
    }

    fn copy_tables(&self, next: &Path) -> Result<()> {
        let Some(to) = open(next, map::TABLES)? else {
            return Ok(());
        };
        let mut pinned = tables::pinned(&self.source.join(INNER_TABLES))?;
        pinned.retain(|(table, _)| *table < to.info.max_entries);
        Ok(tables::copy(&pinned, &to)?)
    }

    /// Moves the flows that no packet has moved yet, and removes the former maps. To be called when
    /// no program writes into these any more. Gives the number of entries moved.
    pub(super) fn finish(self) -> Result<u64> {
        let target = self.target();
        let mut moved = 0;
        for (name, _) in FLOWS {
            if !self.moves(name)? {
                continue;
            }
            if let (Some(from), Some(to)) = (open(&self.source, name)?, open(&target, name)?)
                && let Some((key, value)) = self.carry(name)
            {
                moved += copying::move_all(&from, &to, &key, &value)
                    .with_context(|| format!("moving the entries of map {name}"))?;
            }
        }
        remove(&self.source)?;
        Ok(moved)
    }
}

/// The directory whose maps hold what there is, and what its bytes mean.
fn find_source(
    root: &preflight::PinRoot,
    former: &Path,
    ours: &Layouts,
) -> Result<Option<(PathBuf, Layouts)>> {
    let current = directory(&root.path);
    if current.exists() {
        let theirs = match Layouts::read(&current)? {
            Some(theirs) => theirs,
            None => {
                ours.write(&current)?;
                ours.clone()
            }
        };
        return Ok(Some((current, theirs)));
    }
    if former.exists() {
        // Another version died in a takeover. Without maps of its own it was at the very beginning.
        if root.versions()?.is_empty()
            && let Some(theirs) = Layouts::read(former)?
        {
            return Ok(Some((former.to_owned(), theirs)));
        }
        warn!(
            "{}: another version of lbd died while it took these maps over; connections that it \
             had not moved yet are lost",
            former.display()
        );
        remove(former)?;
    }
    let mut versions = root.versions()?;
    versions.sort_unstable();
    for version in versions.into_iter().rev() {
        let source = root.path.join(version.to_string());
        match Layouts::read(&source)? {
            Some(theirs) => return Ok(Some((source, theirs))),
            None => warn!(
                "{} holds the maps of another version of lbd, which did not say what they mean: \
                 the connections it balanced are not known to this one; `rm -r` frees their memory",
                source.display()
            ),
        }
    }
    Ok(None)
}

fn open(directory: &Path, name: &str) -> Result<Option<Map>> {
    let path = directory.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let map = sys::Map::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    Ok(Some(map))
}

/// Removes a directory of pins, if there is one.
fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))
}

/// The first few, and how many more.
fn listed(changes: &[String]) -> String {
    const SHOWN: usize = 4;
    match changes.len() {
        0 => "its maps stay as they are".to_owned(),
        n if n <= SHOWN => changes.join(", "),
        n => format!("{}, and {} more", changes[..SHOWN].join(", "), n - SHOWN),
    }
}
