//! The XDP hook, and the TC hook behind it that sends what XDP cannot.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    bindings::{__sk_buff, TC_ACT_UNSPEC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1, xdp_md},
    helpers::{
        bpf_jiffies64, bpf_ktime_get_ns, bpf_redirect, bpf_redirect_neigh, bpf_xdp_adjust_head,
        bpf_xdp_adjust_meta, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
    },
};
use lb_common::{
    abi::{Drop, Pod, V4, V6},
    path::{self, Covered, Delta, Frame, Handover, Network, Tables, Verdict},
};

use crate::context::bound;
use crate::hook::{self, Hook, subprograms, walk};
use crate::kernel::Kernel;
use crate::maps;
use crate::tc;

/// 1 if frames may lie in several buffers. The loader sets it where it loads [`lbd_xdp_frags`].
#[unsafe(no_mangle)]
static XDP_FRAGS: u8 = 0;

/// A packet by direct access: its first buffer, in which all headers lie.
struct XdpFrame {
    context: *mut xdp_md,
}

impl XdpFrame {
    /// The one bounds check: a pointer to a `T` at `offset`, if it lies inside the packet.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: the context is the kernel's, good for the whole run.
        let (data, end) = unsafe {
            (
                bound::<{ offset_of!(xdp_md, data) }, _>(self.context),
                bound::<{ offset_of!(xdp_md, data_end) }, _>(self.context),
            )
        };
        let start = data + offset;
        if start + size_of::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: as in `at`.
        unsafe {
            bound::<{ offset_of!(xdp_md, data_end) }, _>(self.context)
                - bound::<{ offset_of!(xdp_md, data) }, _>(self.context)
        }
    }

    #[inline(always)]
    fn whole_length(&self) -> usize {
        // SAFETY: a constant once the program is loaded. Where it is 0 the verifier removes the
        // call, which it knows from Linux 5.18 on only.
        unsafe {
            if (&raw const XDP_FRAGS).read_volatile() != 0 {
                return bpf_xdp_get_buff_len(self.context) as usize;
            }
        }
        self.length()
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.context).ingress_ifindex }
    }

    #[inline(always)]
    fn reach(&mut self, _: usize) {}

    #[inline(always)]
    fn extension(&self, offset: usize, kind: u8) -> u64 {
        xdp_extension(self.context, offset as u32, kind as u32)
    }

    #[inline(always)]
    fn sum(&self, offset: usize, bytes: usize) -> u64 {
        xdp_sum(self.context, offset as u32, bytes as u32)
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked the bounds, and any bytes are a valid `T`.
        self.at::<T>(offset)
            .map(|start| unsafe { start.read_unaligned() })
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: usize, value: &T, _: Covered) -> Option<()> {
        // SAFETY: `at` checked the bounds; packets may be written at any alignment.
        self.at::<T>(offset)
            .map(|start| unsafe { start.write_unaligned(value.clone()) })
    }

    #[inline(always)]
    fn repair_transport(
        &mut self,
        offset: usize,
        addresses: Delta,
        ports: Delta,
        udp: bool,
    ) -> Option<()> {
        let checksum = self.load::<u16>(offset)?;
        if udp && checksum == 0 {
            return Some(());
        }
        let mut checksum = addresses.and(ports).apply(checksum);
        if udp && checksum == 0 {
            checksum = 0xffff;
        }
        self.store(offset, &checksum, Covered::Neutral)
    }

    #[inline(always)]
    fn is_checksum_left(&mut self, _: usize) -> Option<bool> {
        Some(false)
    }

    /// A packet of several segments is one that the driver has put together, which XDP is never
    /// shown.
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn wrap(&mut self, by: usize, _: bool) -> Option<()> {
        self.grow_head(by)
    }

    #[inline(always)]
    fn pull(&mut self, _: usize) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn grow_head(&mut self, by: usize) -> Option<()> {
        // SAFETY: the context is the kernel's.
        let answer = unsafe { bpf_xdp_adjust_head(self.context, -(by as i32)) };
        (answer == 0).then_some(())
    }

    #[inline(always)]
    fn set_length(&mut self, length: usize) -> Option<()> {
        let change = length as i32 - self.whole_length() as i32;
        // SAFETY: the context is the kernel's.
        let answer = unsafe { bpf_xdp_adjust_tail(self.context, change) };
        (answer == 0).then_some(())
    }
}

/// What `lbd_xdp` leaves in front of a packet for TC. As large as metadata may be
/// (`xdp_metalen_invalid` in the kernel's include/net/xdp.h, before Linux 6.3).
#[repr(C)]
struct Note {
    magic: u32,
    ifindex: u32,
    /// The neighbour to resolve: the kernel's number of its family, 0 if there is none to resolve,
    /// and its address.
    family: u32,
    neighbour: [u32; 4],
    reserved: u32,
}

/// Tells our note from other programs' metadata.
const NOTE_MAGIC: u32 = 0x6c62_6402;

/// Leaves a note. False where the driver has no room for one: then the stack gets the packet as it is.
#[inline(always)]
fn leave_note(context: *mut xdp_md, ifindex: u32, resolve: bool) -> bool {
    // SAFETY: the context is the kernel's; the bounds are checked before the write.
    unsafe {
        if bpf_xdp_adjust_meta(context, -(size_of::<Note>() as i32)) != 0 {
            return false;
        }
        let note = bound::<{ offset_of!(xdp_md, data_meta) }, _>(context) as *mut Note;
        if note.add(1) as usize > bound::<{ offset_of!(xdp_md, data) }, _>(context) {
            return false;
        }
        (*note).magic = NOTE_MAGIC;
        (*note).ifindex = ifindex;
        (*note).family = 0;
        let Some(lookup) = maps::FIB.get_ptr_mut(0) else {
            return false;
        };
        if resolve {
            let neighbour = &(*lookup).neighbour;
            (*note).family = neighbour.nh_family;
            (*note).neighbour = neighbour.__bindgen_anon_1.ipv6_nh;
        }
        true
    }
}

impl Hook for XdpFrame {
    type Context = xdp_md;

    const HOLDS: bool = false;
    const SHOT: u32 = XDP_DROP;

    #[inline(always)]
    fn new(context: *mut xdp_md) -> Self {
        Self { context }
    }

    #[inline(always)]
    fn act(self, verdict: Verdict) -> u32 {
        match verdict {
            Verdict::Pass
            | Verdict::Kernel {
                how: Handover::Stack,
                ..
            } => XDP_PASS,
            Verdict::Transmit => XDP_TX,
            Verdict::Redirect { ifindex } => {
                // SAFETY: the helper only notes the device. It refuses unknown flags only, by
                // XDP_ABORTED.
                unsafe { bpf_redirect(ifindex, 0) as u32 }
            }
            Verdict::Kernel {
                how: Handover::Resolve,
                ifindex,
            } => {
                leave_note(self.context, ifindex, true);
                XDP_PASS
            }
            Verdict::Kernel {
                how: Handover::Output,
                ifindex,
            } => {
                if leave_note(self.context, ifindex, false) {
                    return XDP_PASS;
                }
                // It bears the next hop's MAC: the stack would throw it away, and nobody would know.
                Kernel::new(self.context).count_drop(Drop::FrameAccess);
                XDP_DROP
            }
        }
    }
}

subprograms! {
    XdpFrame:
    xdp_fast6 = fast::<V6>(network);
    xdp_odd4 = odd::<V4>(network);
    xdp_odd6 = odd::<V6>(network);
    xdp_segment4 = segment::<V4>();
    xdp_segment6 = segment::<V6>();
    xdp_slow4 = slow::<V4>();
    xdp_slow6 = slow::<V6>();
    xdp_allocate4 = allocate::<V4>();
    xdp_open4 = open::<V4>();
    xdp_allocate6 = allocate::<V6>();
    xdp_open6 = open::<V6>();
    xdp_encapsulate4 = encapsulate::<V4>();
    xdp_encapsulate6 = encapsulate::<V6>();
    xdp_answer4 = answer::<V4>();
    xdp_answer6 = answer::<V6>();
    xdp_icmp4 = icmp::<V4>();
    xdp_icmp6 = icmp::<V6>();
    @without context:
    xdp_recall4 = recall::<V4>();
    xdp_recall6 = recall::<V6>();
    xdp_admit4 = admit::<V4>();
    xdp_admit6 = admit::<V6>();
}

/// [`path::extension`]; `offset` lies within [`hook::OFFSETS`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xdp_extension(context: *mut xdp_md, offset: u32, kind: u32) -> u64 {
    let frame = XdpFrame { context };
    path::extension(&frame, offset as usize & hook::OFFSETS, kind as u8)
}

/// [`path::sum`]; `offset` lies within [`hook::OFFSETS`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xdp_sum(context: *mut xdp_md, offset: u32, bytes: u32) -> u64 {
    let frame = XdpFrame { context };
    path::sum(&frame, offset as usize & hook::OFFSETS, bytes as usize)
}

/// Ingress of a device: north-south traffic.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn lbd_xdp(context: *mut xdp_md) -> u32 {
    balance(context)
}

/// The same for devices whose frames do not fit a page (kernel ≥ 5.18).
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp.frags")]
extern "C" fn lbd_xdp_frags(context: *mut xdp_md) -> u32 {
    balance(context)
}

#[inline(always)]
fn balance(context: *mut xdp_md) -> u32 {
    match path::network(&XdpFrame { context }) {
        Network::Ipv4(network) => walk!(
            XdpFrame,
            context,
            hook::fast::<XdpFrame, V4>(context, network),
            xdp_odd4(network),
            xdp_segment4,
            xdp_slow4,
            xdp_recall4,
            xdp_admit4,
            xdp_allocate4,
            xdp_open4,
            xdp_encapsulate4,
            xdp_answer4,
            xdp_icmp4
        ),
        Network::Ipv6(network) => walk!(
            XdpFrame,
            context,
            xdp_fast6(context, network as u32),
            xdp_odd6(network),
            xdp_segment6,
            xdp_slow6,
            xdp_recall6,
            xdp_admit6,
            xdp_allocate6,
            xdp_open6,
            xdp_encapsulate6,
            xdp_answer6,
            xdp_icmp6
        ),
        Network::Foreign => XDP_PASS,
    }
}

/// TC ingress behind `lbd_xdp`: sends on what carries its note, and puts fragments aside.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn lbd_handover(context: *mut __sk_buff) -> i32 {
    match noted(context) {
        TC_ACT_UNSPEC => tc::odd(context),
        action => action,
    }
}

/// Whether as much as a note is in front of the packet.
#[inline(always)]
pub(crate) fn may_be_noted(context: *mut __sk_buff) -> bool {
    // SAFETY: the context is the kernel's.
    unsafe {
        let note = bound::<{ offset_of!(__sk_buff, data_meta) }, _>(context);
        note + size_of::<Note>() <= bound::<{ offset_of!(__sk_buff, data) }, _>(context)
    }
}

/// What a note says, [`TC_ACT_UNSPEC`] without one.
#[inline(always)]
pub(crate) fn noted(context: *mut __sk_buff) -> i32 {
    // SAFETY: the context is the kernel's; the bounds are checked before the read.
    unsafe {
        let note = bound::<{ offset_of!(__sk_buff, data_meta) }, _>(context) as *mut Note;
        let data = bound::<{ offset_of!(__sk_buff, data) }, _>(context);
        if note.add(1) as usize > data || (*note).magic != NOTE_MAGIC {
            return TC_ACT_UNSPEC;
        }
        // A veth takes the note along into another network namespace, where the device has another
        // number and another lbd may look.
        (*note).magic = 0;
        let ifindex = (*note).ifindex;
        if (*note).family == 0 {
            return bpf_redirect(ifindex, 0) as i32;
        }
        let mut hop = bpf_redir_neigh {
            nh_family: (*note).family,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                ipv6_nh: (*note).neighbour,
            },
        };
        bpf_redirect_neigh(ifindex, &mut hop, size_of_val(&hop) as i32, 0) as i32
    }
}

/// Only for `BPF_PROG_TEST_RUN`: writes the kernel's jiffies and monotonic nanoseconds, which
/// user space cannot read together otherwise, over the packet's first 16 bytes.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn lbd_clock(context: *mut xdp_md) -> u32 {
    // SAFETY: the helpers have no preconditions.
    let clocks = unsafe { [bpf_jiffies64(), bpf_ktime_get_ns()] };
    match (XdpFrame { context }).store(0, &clocks, Covered::Neutral) {
        Some(()) => XDP_PASS,
        None => XDP_DROP,
    }
}
