//! TC programs on kernels without TCX: filters of the clsact queueing discipline.

use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::{
    SchedClassifier, TcAttach,
    tc::{
        NlOptions, SchedClassifierLink, TcError, TcHandle, qdisc_add_clsact, qdisc_detach_program,
    },
};

use super::{
    attach::Side,
    devices::Device,
    load::program,
    netlink::{Message, Socket, attribute, number, text},
    undo::Undo,
};

/// Handle and parents of the clsact discipline (include/uapi/linux/pkt_sched.h).
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Our programs, and where they are attached.
const PROGRAMS: [(&str, Side); 3] = [
    (program::TC, Side::Ingress),
    (program::HANDOVER, Side::Ingress),
    (program::EGRESS, Side::Egress),
];

/// One of our filters at one side of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    priority: u16,
    handle: u32,
    /// Number of the program.
    pub(super) program: u32,
}

/// Has exactly this program run at a side of the device, replacing one of ours in place; says what
/// it changed.
pub(super) fn serve(
    program: &mut SchedClassifier,
    device: &Device,
    side: Side,
    undo: &mut Undo,
) -> Result<Option<String>> {
    let id = program.info()?.id();
    let (link, change) = match ours(device.index, side)?.into_iter().next() {
        Some(filter) if filter.program == id => return Ok(None),
        Some(filter) => {
            let existing = filter.link(device, side)?;
            (program.attach_to_link(existing), "replaced the program")
        }
        None => {
            add_clsact(device, undo)?;
            let place = TcAttach::Netlink {
                parent: side.attach_type().into(),
                options: NlOptions::default(),
            };
            (program.attach(device.index, place), "attached")
        }
    };
    let link = link.with_context(|| format!("attaching to {side} of {}", device.name))?;
    // The filter stays when the daemon goes.
    std::mem::forget(program.take_link(link)?);
    Ok(Some(format!("{change} at {side}")))
}

/// Puts the program pinned at `path`, which has the name of ours, into a filter.
pub(super) fn replace(device: &Device, side: Side, filter: &Filter, path: &Path) -> Result<()> {
    let mut program = SchedClassifier::from_pin(path)?;
    let link = program.attach_to_link(filter.link(device, side)?)?;
    std::mem::forget(program.take_link(link)?);
    Ok(())
}

impl Filter {
    fn link(&self, device: &Device, side: Side) -> Result<SchedClassifierLink> {
        let link = SchedClassifierLink::attached(
            device.index,
            side.attach_type().into(),
            self.priority,
            self.handle.into(),
            None,
        );
        Ok(link?)
    }
}

/// Removes our filters, and the discipline if we added it and nobody else uses it.
pub(super) fn release(device: &Device, undo: &Undo) -> Result<bool> {
    let mut removed = false;
    for (name, side) in PROGRAMS {
        let place: TcHandle = side.attach_type().into();
        match qdisc_detach_program(device.index, place, name) {
            Ok(()) => removed = true,
            Err(TcError::IoError(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            // There is no such discipline, hence no filter of ours.
            Err(_) if ours(device.index, side).is_ok_and(|filters| filters.is_empty()) => {}
            Err(error) => {
                return Err(error).context(format!("detaching {name} from {}", device.name));
            }
        }
    }
    if undo.clsact().contains(&device.name) && has_clsact(device.index)? && is_unused(device.index)?
    {
        request(
            libc::RTM_DELQDISC,
            0,
            device.index,
            CLSACT_HANDLE,
            CLSACT_PARENT,
        )
        .with_context(|| format!("removing the clsact discipline of {}", device.name))?;
        removed = true;
    }
    Ok(removed)
}

fn add_clsact(device: &Device, undo: &mut Undo) -> Result<()> {
    if has_clsact(device.index)? {
        return Ok(());
    }
    undo.remember_clsact(&device.name)?;
    qdisc_add_clsact(device.index)
        .with_context(|| format!("adding the clsact discipline to {}", device.name))
}

fn has_clsact(ifindex: u32) -> Result<bool> {
    let answer = request(libc::RTM_GETQDISC, libc::NLM_F_DUMP, ifindex, 0, 0)?;
    Ok(answer.iter().any(|m| {
        let kind = m
            .body
            .get(20..)
            .and_then(|tail| attribute(tail, libc::TCA_KIND));
        number(&m.body, 4) == Some(ifindex) && kind.map(text).as_deref() == Some("clsact")
    }))
}

fn is_unused(ifindex: u32) -> Result<bool> {
    Ok(filters(ifindex, INGRESS)?.is_empty() && filters(ifindex, EGRESS)?.is_empty())
}

/// Our filters at a side of a device.
pub(super) fn ours(ifindex: u32, side: Side) -> Result<Vec<Filter>> {
    let parent = match side {
        Side::Ingress => INGRESS,
        Side::Egress => EGRESS,
    };
    let found = filters(ifindex, parent)?
        .iter()
        .filter_map(filter)
        .collect();
    Ok(found)
}

fn filters(ifindex: u32, parent: u32) -> Result<Vec<Message>> {
    request(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, ifindex, 0, parent)
}

/// A BPF filter with the name of one of our programs.
fn filter(message: &Message) -> Option<Filter> {
    // Numbers of include/uapi/linux/pkt_cls.h.
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_ID: u16 = 11;
    let body = &message.body;
    let tail = body.get(20..)?;
    if text(attribute(tail, libc::TCA_KIND)?) != "bpf" {
        return None;
    }
    let options = attribute(tail, libc::TCA_OPTIONS)?;
    let name = text(attribute(options, TCA_BPF_NAME)?);
    PROGRAMS
        .iter()
        .any(|(ours, _)| *ours == name)
        .then_some(())?;
    Some(Filter {
        priority: (number::<u32>(body, 16)? >> 16) as u16,
        handle: number(body, 8)?,
        program: number(attribute(options, TCA_BPF_ID)?, 0)?,
    })
}

fn request(kind: u16, flags: i32, ifindex: u32, handle: u32, parent: u32) -> Result<Vec<Message>> {
    // struct tcmsg
    let body = [0, ifindex, handle, parent, 0]
        .map(u32::to_ne_bytes)
        .concat();
    Socket::open(libc::NETLINK_ROUTE)
        .and_then(|socket| socket.request(kind, flags, &body))
        .with_context(|| format!("asking for the TC filters of device {ifindex}"))
}
