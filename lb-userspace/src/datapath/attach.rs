//! Which program runs at which hook of which device. Links are pinned: they outlive the daemon,
//! and the next one puts its program into them without a gap.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt, fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttach, TcAttachType, Xdp,
        links::{FdLink, PinnedLink},
        tc::SchedClassifierLink,
        xdp::{self, XdpLink},
    },
};
use tracing::warn;

use super::{
    clsact,
    devices::{self, Device, Running},
    load::{self, program},
    preflight::create_directory,
    switch::{Switch, wait_for_programs},
    sys::{self, Link, program::Program},
    undo::Undo,
};
use crate::model::XdpMode;

/// The directory of pinned programs.
pub(super) const PROGRAMS: &str = "programs";

/// Longer than a packet that came before XDP did waits in a CPU's queue for TC (`netif_rx`).
const QUEUED: Duration = Duration::from_millis(100);

/// A driver that refused native XDP is asked again this often, and when the device's MTU is another.
const ASK_DRIVER_EVERY: Duration = Duration::from_secs(600);

/// How a device is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Served {
    Native,
    Generic,
    /// At TC ingress, with the reason if it was not asked for.
    Tc(Option<String>),
}

/// Where a TC program looks at a device's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Ingress,
    Egress,
}

/// The loaded programs and the directory their links are pinned in.
pub(super) struct Hooks {
    ebpf: Ebpf,
    links: Links,
    /// Where the programs at work are pinned, by number.
    programs: PathBuf,
    tcx: bool,
    refusals: Refusals,
}

impl Hooks {
    /// Loads the programs that get attached. Links are pinned beside the versions of the maps, so
    /// that a later version finds them.
    pub(super) fn load(mut ebpf: Ebpf, pin_root: &Path) -> Result<Self> {
        load::load_programs(&mut ebpf)?;
        let programs = pin_root.join(PROGRAMS);
        create_directory(&programs)?;
        Ok(Self {
            ebpf,
            links: Links::create(pin_root)?,
            programs,
            tcx: sys::has_tcx(),
            refusals: Refusals::default(),
        })
    }

    #[cfg(test)]
    pub(super) fn without_tcx(self) -> Self {
        Self { tcx: false, ..self }
    }

    /// Has all hooks call the programs of this instead of those that a former daemon attached, in one
    /// step. What it gives is to be ended when [`Self::serve`] has put the programs there themselves.
    pub(super) fn switch(&mut self, pin_root: &Path) -> Result<Switch> {
        let mut switch = Switch::new(pin_root)?;
        switch.enter_links(&mut self.ebpf, &self.links)?;
        if !self.tcx {
            let scratch = pin_root.join("switch/scratch");
            switch.enter_filters(&mut self.ebpf, &devices::list()?, &scratch)?;
        }
        switch.flip()?;
        Ok(switch)
    }

    /// Pins the programs at work, and no others: without CAP_SYS_ADMIN the next start finds those that
    /// it replaces by their pins only.
    pub(super) fn pin_programs(&self) -> Result<()> {
        let failed = || format!("pinning programs in {}", self.programs.display());
        create_directory(&self.programs)?;
        let mut pinned = BTreeSet::new();
        for (_, program) in self.ebpf.programs() {
            let (Ok(info), Ok(fd)) = (program.info(), program.fd()) else {
                continue;
            };
            let name = info.id().to_string();
            let pin = self.programs.join(&name);
            if !pin.exists() {
                sys::program::pin_program(fd.as_fd(), &pin).with_context(failed)?;
            }
            pinned.insert(OsString::from(name));
        }
        for entry in fs::read_dir(&self.programs).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            if !pinned.contains(&entry.file_name()) {
                fs::remove_file(entry.path()).with_context(failed)?;
            }
        }
        Ok(())
    }

    /// Takes other programs, which use the same maps, in place of these.
    pub(super) fn replace(&mut self, mut ebpf: Ebpf) -> Result<()> {
        load::load_programs(&mut ebpf)?;
        self.ebpf = ebpf;
        Ok(())
    }

    /// Brings a device to what `mode` asks for; does nothing where all is well. Says what it
    /// changed.
    pub(super) fn serve(
        &mut self,
        device: &Device,
        mode: XdpMode,
        undo: &mut Undo,
    ) -> Result<(Served, Vec<String>)> {
        // Somebody may have removed it.
        create_directory(&self.links.0)?;
        let against = match mode {
            XdpMode::Off => None,
            XdpMode::Auto | XdpMode::Native => devices::against_xdp(device, true),
            XdpMode::Generic => devices::against_xdp(device, false),
        };
        let unasked = against.filter(|_| mode == XdpMode::Auto);
        let mode = unasked.map_or(mode, |_| XdpMode::Off);
        let (mut served, [at_xdp, at_tc]) = self.serve_ingress(device, mode, undo)?;
        if let Some(reason) = unasked {
            served = Served::Tc(Some(reason.to_owned()));
        } else if let Some(reason) = against.filter(|_| at_xdp.is_some()) {
            warn!("{}: {reason}; `xdp: auto` would take TC", device.name);
        }
        let at_egress = self.serve_tc(device, (program::EGRESS, Side::Egress), undo)?;
        let changes = [at_xdp, at_tc, at_egress].into_iter().flatten();
        let told = |change| format!("{}: {change}", device.name);
        Ok((served, changes.map(told).collect()))
    }

    /// Serves what comes in, and says what it changed at XDP and at TC. While XDP changes, what it does
    /// not see is for TC.
    fn serve_ingress(
        &mut self,
        device: &Device,
        mode: XdpMode,
        undo: &mut Undo,
    ) -> Result<(Served, [Option<String>; 2])> {
        let whole_path = (program::TC, Side::Ingress);
        let is_bridged = self.is_served(device)? && !keeps_xdp(&self.links, device, mode)?;
        let bridge = match is_bridged {
            true => self.serve_tc(device, whole_path, undo)?,
            false => None,
        };
        let (served, at_xdp) = serve_xdp(
            &mut self.ebpf,
            &self.links,
            &mut self.refusals,
            device,
            mode,
        )?;
        let at_tc = match served {
            Served::Tc(_) => self.serve_tc(device, whole_path, undo)?.or(bridge),
            Served::Native | Served::Generic => {
                if is_bridged {
                    thread::sleep(QUEUED);
                }
                let handover = (program::HANDOVER, Side::Ingress);
                let change = self.serve_tc(device, handover, undo)?;
                // It is back where it was if the bridge took its place.
                change.filter(|_| bridge.is_none())
            }
        };
        Ok((served, [at_xdp, at_tc]))
    }

    /// Whether a program of ours looks at what comes in by the device.
    fn is_served(&self, device: &Device) -> Result<bool> {
        let linked = |hook| live_link(&self.links.path(device, hook), device);
        Ok(linked("xdp")?.is_some()
            || match self.tcx {
                true => linked(Side::Ingress.link())?.is_some(),
                false => !clsact::ours(device.index, Side::Ingress)?.is_empty(),
            })
    }

    /// Has the program of that name run at this side of the device; says what it changed.
    fn serve_tc(
        &mut self,
        device: &Device,
        (name, side): (&str, Side),
        undo: &mut Undo,
    ) -> Result<Option<String>> {
        let program = load::classifier(&mut self.ebpf, name)?;
        let change = if self.tcx {
            serve_tcx(program, &self.links, device, side)?
        } else {
            clsact::serve(program, device, side, undo)?
        };
        Ok(change.map(|what| format!("{what} with {name}")))
    }

    /// Detaches from every device but those in `keep`.
    pub(super) fn release_others(
        &self,
        keep: &BTreeSet<u32>,
        devices: &[Device],
        undo: &Undo,
    ) -> Result<Vec<String>> {
        let others = || devices.iter().filter(|d| !keep.contains(&d.index));
        let mut released = BTreeSet::new();
        for (ifindex, path) in self.links.all()? {
            if !keep.contains(&ifindex) {
                unpin(&path)?;
                let name = others()
                    .find(|d| d.index == ifindex)
                    .map(|d| d.name.clone());
                released.insert(name.unwrap_or_else(|| format!("device {ifindex}, which is gone")));
            }
        }
        if !self.tcx {
            for device in others() {
                if clsact::release(device, undo)? {
                    released.insert(device.name.clone());
                }
            }
        }
        Ok(released
            .into_iter()
            .map(|name| format!("released {name}"))
            .collect())
    }
}

/// The directory of pinned links, by device number: a name may hold a dot, which bpffs refuses.
pub(super) struct Links(PathBuf);

impl Links {
    pub(super) fn create(pin_root: &Path) -> Result<Self> {
        let directory = pin_root.join("links");
        create_directory(&directory)?;
        Ok(Self(directory))
    }

    fn path(&self, device: &Device, hook: &str) -> PathBuf {
        self.0.join(format!("{}-{hook}", device.index))
    }

    /// Number of the device, and where the link is pinned.
    pub(super) fn all(&self) -> Result<Vec<(u32, PathBuf)>> {
        let entries = fs::read_dir(&self.0).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.with_context(|| format!("reading {}", self.0.display()))?;
        let link = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name.split_once('-')?.0.parse().ok()?, entry.path()))
        };
        Ok(entries.into_iter().filter_map(link).collect())
    }
}

/// What drivers said to native XDP where `auto` has nothing else than TC, by the device's number. Some
/// write each refusal into the kernel's log, so they are not asked whenever all is verified.
#[derive(Default)]
struct Refusals(BTreeMap<u32, Refusal>);

struct Refusal {
    at: Instant,
    mtu: u32,
    reason: String,
}

impl Refusals {
    fn of(&self, device: &Device) -> Option<&str> {
        let refusal = self.0.get(&device.index)?;
        let holds = refusal.mtu == device.mtu && refusal.at.elapsed() < ASK_DRIVER_EVERY;
        holds.then_some(&refusal.reason)
    }

    fn note(&mut self, device: &Device, reason: &str) {
        let refusal = Refusal {
            at: Instant::now(),
            mtu: device.mtu,
            reason: reason.to_owned(),
        };
        self.0.insert(device.index, refusal);
    }
}

fn serve_xdp(
    ebpf: &mut Ebpf,
    links: &Links,
    refused: &mut Refusals,
    device: &Device,
    mode: XdpMode,
) -> Result<(Served, Option<String>)> {
    let pin = links.path(device, "xdp");
    let own = live_link(&pin, device)?;
    if let (Some(link), Some(running)) = (own, device.xdp)
        && suits(mode, running, device)
    {
        let served = if running.native {
            Served::Native
        } else {
            Served::Generic
        };
        let program = load::whole_path(ebpf, running.native)?;
        if link.prog_id == program.info()?.id() {
            return Ok((served, None));
        }
        let link: XdpLink = FdLink::from(PinnedLink::from_pin(&pin)?).try_into()?;
        let link = program.attach_to_link(link)?;
        // The pin keeps it attached.
        drop(program.take_link(link)?);
        return Ok((served, Some("replaced the program at xdp".to_owned())));
    }
    unpin(&pin)?;
    let against_generic = device.against_generic().filter(|_| mode == XdpMode::Auto);
    if against_generic.is_some()
        && let Some(reason) = refused.of(device)
    {
        return Ok((Served::Tc(Some(reason.to_owned())), None));
    }
    let attempts = match mode {
        XdpMode::Off => {
            let change = own.map(|_| "detached from xdp".to_owned());
            return Ok((Served::Tc(None), change));
        }
        XdpMode::Auto if against_generic.is_some() => &[(xdp::XdpMode::Driver, Served::Native)],
        XdpMode::Auto => &[
            (xdp::XdpMode::Driver, Served::Native),
            (xdp::XdpMode::Skb, Served::Generic),
        ][..],
        XdpMode::Native => &[(xdp::XdpMode::Driver, Served::Native)],
        XdpMode::Generic => &[(xdp::XdpMode::Skb, Served::Generic)],
    };
    let mut foreign = device
        .xdp
        .filter(|r| own.is_none_or(|link| link.prog_id != r.program))
        .is_some();
    let mut refusals = Vec::new();
    for (flags, served) in attempts {
        if foreign {
            break;
        }
        let name = served.name();
        let program = load::whole_path(ebpf, *served == Served::Native)?;
        match attach_xdp(program, device, *flags, &pin) {
            Ok(()) => return Ok((served.clone(), Some(format!("attached at {name}")))),
            Err(error) => {
                foreign = is_occupied(&error);
                refusals.push(format!("{name}: {:#}", anyhow::Error::new(error)));
            }
        }
    }
    refusals.extend(against_generic.map(str::to_owned));
    if against_generic.is_some() && !foreign {
        refused.note(device, &refusals.join("; "));
    }
    let reason = if foreign {
        "another XDP program is attached".to_owned()
    } else {
        refusals.join("; ")
    };
    if mode == XdpMode::Auto {
        return Ok((Served::Tc(Some(reason)), None));
    }
    bail!(
        "node.xdp: {}: cannot attach to {}: {reason} (with `auto` lbd would use another hook)",
        format!("{mode:?}").to_lowercase(),
        device.name
    )
}

fn attach_xdp(
    program: &mut Xdp,
    device: &Device,
    mode: xdp::XdpMode,
    pin: &Path,
) -> Result<(), ProgramError> {
    let link = program.attach(device.index, mode)?;
    let link: FdLink = program.take_link(link)?.try_into()?;
    link.pin(pin)
        .map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    Ok(())
}

fn serve_tcx(
    program: &mut SchedClassifier,
    links: &Links,
    device: &Device,
    side: Side,
) -> Result<Option<String>> {
    let pin = links.path(device, side.link());
    if let Some(link) = live_link(&pin, device)? {
        if link.prog_id == program.info()?.id() {
            return Ok(None);
        }
        let link: SchedClassifierLink = FdLink::from(PinnedLink::from_pin(&pin)?).try_into()?;
        let link = program.attach_to_link(link)?;
        drop(program.take_link(link)?);
        return Ok(Some(format!("replaced the program at {side}")));
    }
    unpin(&pin)?;
    // At ingress others come behind this program, as they do behind XDP; at egress they come before
    // it, so that on both sides they see backends' addresses.
    let order = match side {
        Side::Ingress => LinkOrder::first(),
        Side::Egress => LinkOrder::last(),
    };
    let place = TcAttach::Tcx {
        attach_type: side.attach_type(),
        order,
    };
    let link = program.attach(device.index, place);
    let link = link.with_context(|| format!("attaching to {side} of {}", device.name))?;
    let link: FdLink = program.take_link(link)?.try_into()?;
    link.pin(&pin)
        .with_context(|| format!("pinning {}", pin.display()))?;
    Ok(Some(format!("attached at {side}")))
}

impl Side {
    pub(super) fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// The end of a pinned link's name.
    fn link(self) -> &'static str {
        match self {
            Self::Ingress => "tc",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "tc ingress",
            Self::Egress => "tc egress",
        })
    }
}

impl Served {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Native => "xdp native".to_owned(),
            Self::Generic => "xdp generic".to_owned(),
            Self::Tc(None) => "tc".to_owned(),
            Self::Tc(Some(reason)) => format!("tc ({reason})"),
        }
    }
}

/// The link pinned at `path`, if it still is this device's: the number of a device that is gone
/// may have gone to another one.
fn live_link(path: &Path, device: &Device) -> Result<Option<sys::LinkInfo>> {
    let link = Link::from_pin(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(link
        .map(|link| link.info)
        .filter(|link| link.ifindex == device.index))
}

/// Whether [`serve_xdp`] leaves the device's XDP attached as it is, or puts a program in its place.
fn keeps_xdp(links: &Links, device: &Device, mode: XdpMode) -> Result<bool> {
    let own = live_link(&links.path(device, "xdp"), device)?;
    Ok(match (own, device.xdp) {
        (Some(_), Some(running)) => suits(mode, running, device),
        _ => false,
    })
}

fn suits(mode: XdpMode, running: Running, device: &Device) -> bool {
    match mode {
        XdpMode::Auto => running.native || device.against_generic().is_none(),
        XdpMode::Native => running.native,
        XdpMode::Generic => !running.native,
        XdpMode::Off => false,
    }
}

/// Another program is attached, in the same mode or in another one (`dev_xdp_attach`,
/// net/core/dev.c).
fn is_occupied(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else {
        return false;
    };
    matches!(
        error.io_error.raw_os_error(),
        Some(libc::EBUSY | libc::EEXIST)
    )
}

/// Detaches what is pinned at `path`, if anything is, and removes the pin.
pub(super) fn unpin(path: &Path) -> Result<()> {
    let link = match Link::from_pin(path) {
        Ok(None) => return Ok(()),
        // Whatever it is that cannot be opened.
        Err(_) => None,
        Ok(link) => link,
    };
    // First, so that nobody ever finds the program that passes: without the pin, the kernel detaches the
    // link of a daemon that dies.
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    if let Some(link) = link {
        // What fails here finds the device gone, or the link detached by somebody else.
        if link.is_xdp() {
            let _ = calm(&link);
        }
        let _ = link.detach();
    }
    Ok(())
}

/// Has no packet meet a program of ours any more while XDP is taken off. veth, where GRO is on, waits for
/// no packet that is under way before it forgets what device a queue is of (`veth_disable_xdp`,
/// drivers/net/veth.c); a program that reads the device then brings the kernel down.
pub(super) fn calm(link: &Link) -> io::Result<()> {
    let enter = |frags| Program::passing(frags)?.enter_link(link);
    // Drivers refuse a program for whole frames where frames are in several buffers.
    enter(false).or_else(|_| enter(true))?;
    wait_for_programs();
    Ok(())
}
