//! The TC hook: the same path for devices without XDP.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_redir_neigh,
    },
    helpers::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_pull_data,
        bpf_skb_store_bytes,
    },
};
use lb_common::{
    abi::{Pod, TABLE_IDS, V4, V6, table_elements},
    path::{self, Covered, Delta, Frame, Handover, Network, Verdict},
};

use crate::context::bound;
use crate::hold::{tc_hold4, tc_hold6, tc_release4, tc_release6};
use crate::hook::{self, Hook, subprograms, walk};
use crate::maps::{self, SelectionTable};
use crate::xdp;

/// Headers that the path reads: Ethernet, IPv6, TCP. Beyond them only IPv4 options lie.
const HEADERS: u32 = 14 + 40 + 20;

/// A packet in a socket buffer. Its bytes may be shared and its checksum be left to hardware, so
/// checksums go through helpers.
struct TcFrame {
    context: *mut __sk_buff,
}

/// What passes over the stack, where the verifier wants accesses of eight bytes aligned.
#[repr(align(8))]
struct Aligned<T>(T);

impl TcFrame {
    /// The one bounds check: a pointer to a `T` at `offset`, if it lies inside the linear part.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: the context is the kernel's, good for the whole run.
        let (data, end) = unsafe {
            (
                bound::<{ offset_of!(__sk_buff, data) }, _>(self.context),
                bound::<{ offset_of!(__sk_buff, data_end) }, _>(self.context),
            )
        };
        let start = data + offset;
        if start + size_of::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }
}

impl Frame for TcFrame {
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: as in `at`.
        unsafe { (*self.context).len as usize }
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.context).ifindex }
    }

    #[inline(always)]
    fn reach(&mut self, bytes: usize) {
        // SAFETY: the context is the kernel's.
        unsafe {
            let bytes = (bytes as u32).min((*self.context).len);
            // What stays out of reach is found out of bounds.
            bpf_skb_pull_data(self.context, bytes);
        }
    }

    #[inline(always)]
    fn extension(&self, offset: usize, kind: u8) -> u64 {
        tc_extension(self.context, offset as u32, kind as u32)
    }

    #[inline(always)]
    fn sum(&self, offset: usize, bytes: usize) -> u64 {
        tc_sum(self.context, offset as u32, bytes as u32)
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked the bounds, and any bytes are a valid `T`.
        self.at::<T>(offset)
            .map(|start| unsafe { start.read_unaligned() })
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: usize, value: &T, covered: Covered) -> Option<()> {
        match covered {
            // SAFETY: `at` checked the bounds; packets may be written at any alignment.
            Covered::Neutral => self
                .at::<T>(offset)
                .map(|start| unsafe { start.write_unaligned(value.clone()) }),
            Covered::Changed => {
                let flags = BPF_F_RECOMPUTE_CSUM as u64;
                let value = &Aligned(value.clone());
                // SAFETY: `value` is a whole `T`.
                let answer = unsafe {
                    bpf_skb_store_bytes(
                        self.context.cast(),
                        offset as u32,
                        (&raw const value.0).cast(),
                        size_of::<T>() as u32,
                        flags,
                    )
                };
                (answer == 0).then_some(())
            }
        }
    }

    #[inline(always)]
    fn repair_transport(
        &mut self,
        offset: usize,
        addresses: Delta,
        ports: Delta,
        udp: bool,
    ) -> Option<()> {
        if udp && self.load::<u16>(offset)? == 0 {
            // No checksum makes up for the new ports in a hardware checksum over the packet. The
            // helper refuses where there is none.
            // SAFETY: the context is the kernel's.
            unsafe { bpf_csum_update(self.context, ports.0 as u32) };
            return Some(());
        }
        let zero = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let pseudo = zero | BPF_F_PSEUDO_HDR as u64;
        // Two steps, because a checksum left to hardware (CHECKSUM_PARTIAL) covers the
        // pseudo-header only: the helper then takes the addresses and ignores the ports.
        // SAFETY: the helper checks the offset.
        let answer = unsafe {
            bpf_l4_csum_replace(self.context, offset as u32, 0, addresses.0 as u64, pseudo)
                | bpf_l4_csum_replace(self.context, offset as u32, 0, ports.0 as u64, zero)
        };
        (answer == 0).then_some(())
    }

    #[inline(always)]
    fn is_checksum_left(&mut self, offset: usize) -> Option<bool> {
        let found = self.load::<u16>(offset)?;
        // No field of a context tells. The helper does: without `BPF_F_PSEUDO_HDR` it does not
        // touch a checksum that is left (`inet_proto_csum_replace_by_diff` in net/core/utils.c).
        // SAFETY: the helper checks the offset.
        let answer = unsafe { bpf_l4_csum_replace(self.context, offset as u32, 0, 1, 0) };
        if answer != 0 {
            return None;
        }
        let is_left = self.load::<u16>(offset)? == found;
        self.store(offset, &found, Covered::Neutral)?;
        Some(is_left)
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.context).gso_size }
    }

    /// The helper that knows of tunnels: it tells the device where the inner headers are, for
    /// segments and checksums that are left to it. Segments keep their size, which the path has
    /// found to fit.
    #[inline(always)]
    fn wrap(&mut self, by: usize, v6: bool) -> Option<()> {
        let family = if v6 {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
        } else {
            BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        };
        let flags = (family | BPF_F_ADJ_ROOM_FIXED_GSO) as u64;
        // SAFETY: the context is the kernel's.
        let answer =
            unsafe { bpf_skb_adjust_room(self.context, by as i32, BPF_ADJ_ROOM_MAC, flags) };
        (answer == 0).then_some(())
    }

    #[inline(always)]
    fn pull(&mut self, length: usize) -> Option<()> {
        // SAFETY: as in `at`.
        let (linear, whole) = unsafe {
            let end = bound::<{ offset_of!(__sk_buff, data_end) }, _>(self.context);
            let data = bound::<{ offset_of!(__sk_buff, data) }, _>(self.context);
            ((end - data) as u32, (*self.context).len)
        };
        let length = whole.min(length as u32);
        if linear >= length {
            return Some(());
        }
        // SAFETY: the context is the kernel's.
        let answer = unsafe { bpf_skb_pull_data(self.context, length) };
        (answer == 0).then_some(())
    }

    #[inline(always)]
    fn grow_head(&mut self, by: usize) -> Option<()> {
        // SAFETY: the context is the kernel's.
        let answer = unsafe { bpf_skb_change_head(self.context, by as u32, 0) };
        (answer == 0).then_some(())
    }

    #[inline(always)]
    fn set_length(&mut self, length: usize) -> Option<()> {
        // SAFETY: the context is the kernel's.
        let answer = unsafe { bpf_skb_change_tail(self.context, length as u32, 0) };
        (answer == 0).then_some(())
    }
}

impl Hook for TcFrame {
    type Context = __sk_buff;

    const HOLDS: bool = true;
    const SHOT: u32 = TC_ACT_SHOT as u32;

    #[inline(always)]
    fn new(context: *mut __sk_buff) -> Self {
        Self { context }
    }

    /// `TC_ACT_UNSPEC` leaves the packet to whoever is next on the hook; `TC_ACT_OK` would end a TCX
    /// chain and silence other people's programs.
    #[inline(always)]
    fn act(self, verdict: Verdict) -> u32 {
        let action = match verdict {
            Verdict::Pass
            | Verdict::Kernel {
                how: Handover::Stack,
                ..
            } => return TC_ACT_UNSPEC as u32,
            // SAFETY: the context is the kernel's; the helper only notes the device.
            Verdict::Transmit => unsafe { bpf_redirect((*self.context).ifindex, 0) },
            Verdict::Redirect { ifindex }
            | Verdict::Kernel {
                how: Handover::Output,
                ifindex,
            } => {
                // SAFETY: the helper only notes the device.
                unsafe { bpf_redirect(ifindex, 0) }
            }
            Verdict::Kernel {
                how: Handover::Resolve,
                ifindex,
            } => {
                let Some(lookup) = maps::FIB.get_ptr_mut(0) else {
                    return Self::SHOT;
                };
                let size = size_of::<bpf_redir_neigh>() as i32;
                // SAFETY: a per-CPU element; the helper only notes the device and copies the
                // neighbour.
                unsafe { bpf_redirect_neigh(ifindex, &raw mut (*lookup).neighbour, size, 0) }
            }
        };
        action as u32
    }
}

subprograms! {
    TcFrame:
    tc_fast6 = fast::<V6>(network);
    tc_depart6 = depart::<V6>(network);
    tc_odd4 = odd::<V4>(network);
    tc_odd6 = odd::<V6>(network);
    tc_segment4 = segment::<V4>();
    tc_segment6 = segment::<V6>();
    tc_slow4 = slow::<V4>();
    tc_slow6 = slow::<V6>();
    tc_allocate4 = allocate::<V4>();
    tc_open4 = open::<V4>();
    tc_allocate6 = allocate::<V6>();
    tc_open6 = open::<V6>();
    tc_encapsulate4 = encapsulate::<V4>();
    tc_encapsulate6 = encapsulate::<V6>();
    tc_answer4 = answer::<V4>();
    tc_answer6 = answer::<V6>();
    tc_icmp4 = icmp::<V4>();
    tc_icmp6 = icmp::<V6>();
    @without context:
    tc_recall4 = recall::<V4>();
    tc_recall6 = recall::<V6>();
    tc_admit4 = admit::<V4>();
    tc_admit6 = admit::<V6>();
}

/// Egress of every device that is served: answers of backends on the node itself.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn lbd_egress(context: *mut __sk_buff) -> i32 {
    pull_headers(context);
    let action = match path::network(&TcFrame { context }) {
        Network::Ipv4(network) => match hook::depart::<TcFrame, V4>(context, network) {
            hook::SLOW => match tc_slow4(context) {
                hook::RECALL => again(tc_recall4(), || tc_slow4(context)),
                hook::SLOW => again(hook::SLOW, || tc_slow4(context)),
                action => action,
            },
            hook::ICMP => tc_icmp4(context),
            action => action,
        },
        Network::Ipv6(network) => match tc_depart6(context, network as u32) {
            hook::SLOW => match tc_slow6(context) {
                hook::RECALL => again(tc_recall6(), || tc_slow6(context)),
                hook::SLOW => again(hook::SLOW, || tc_slow6(context)),
                action => action,
            },
            hook::ICMP => tc_icmp6(context),
            action => action,
        },
        Network::Foreign => return TC_ACT_UNSPEC,
    };
    hook::logged::<TcFrame>(action) as i32
}

/// What [`path::recall`] gives, `slow` once more if it found the flow, or if that asks for it.
#[inline(always)]
fn again(action: u32, slow: impl Fn() -> u32) -> u32 {
    match action {
        hook::SLOW => match slow() {
            hook::RECALL | hook::SLOW => TC_ACT_UNSPEC as u32,
            action => action,
        },
        action => action,
    }
}

/// Makes the headers readable where a driver left them outside the linear part.
#[inline(always)]
fn pull_headers(context: *mut __sk_buff) {
    // SAFETY: the context is the kernel's.
    unsafe {
        let linear = (bound::<{ offset_of!(__sk_buff, data_end) }, _>(context)
            - bound::<{ offset_of!(__sk_buff, data) }, _>(context)) as u32;
        if linear < HEADERS && linear < (*context).len {
            // A shorter packet stays as it is, and is read as far as it goes.
            bpf_skb_pull_data(context, HEADERS.min((*context).len));
        }
    }
}

/// [`path::extension`]; `offset` lies within [`hook::OFFSETS`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_extension(context: *mut __sk_buff, offset: u32, kind: u32) -> u64 {
    let frame = TcFrame { context };
    path::extension(&frame, offset as usize & hook::OFFSETS, kind as u8)
}

/// [`path::sum`]; `offset` lies within [`hook::OFFSETS`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_sum(context: *mut __sk_buff, offset: u32, bytes: u32) -> u64 {
    let frame = TcFrame { context };
    path::sum(&frame, offset as usize & hook::OFFSETS, bytes as usize)
}

/// Makes the headers readable; `false` for a frame whose tag the stack took off, which is balanced
/// on the VLAN device.
#[inline(always)]
fn prepare(context: *mut __sk_buff) -> bool {
    // SAFETY: the context is the kernel's.
    unsafe {
        if (*context).vlan_present != 0 {
            return false;
        }
    }
    pull_headers(context);
    true
}

/// One packet's way through the parts, beginning with what `$fast4` and `$fast6` give.
macro_rules! walk_tc {
    ($context:ident, $fast4:expr, $fast6:expr) => {
        match path::network(&TcFrame { context: $context }) {
            Network::Ipv4(network) => walk!(
                TcFrame,
                $context,
                $fast4(network),
                tc_odd4(network),
                tc_segment4,
                tc_slow4,
                tc_recall4,
                tc_admit4,
                tc_allocate4,
                tc_open4,
                tc_encapsulate4,
                tc_answer4,
                tc_icmp4,
                tc_hold4,
                tc_release4
            ),
            Network::Ipv6(network) => walk!(
                TcFrame,
                $context,
                $fast6(network),
                tc_odd6(network),
                tc_segment6,
                tc_slow6,
                tc_recall6,
                tc_admit6,
                tc_allocate6,
                tc_open6,
                tc_encapsulate6,
                tc_answer6,
                tc_icmp6,
                tc_hold6,
                tc_release6
            ),
            Network::Foreign => TC_ACT_UNSPEC as u32,
        }
    };
}

/// Ingress of a device that has no XDP program of ours, or whose XDP is being changed.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn lbd_tc(context: *mut __sk_buff) -> i32 {
    if xdp::may_be_noted(context) {
        let action = tc_noted(context);
        if action != TC_ACT_UNSPEC {
            return action;
        }
    }
    if !prepare(context) {
        return TC_ACT_UNSPEC;
    }
    let action = walk_tc!(
        context,
        |network| hook::fast::<TcFrame, V4>(context, network),
        |network: usize| tc_fast6(context, network as u32)
    );
    action as i32
}

/// [`xdp::noted`]
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_noted(context: *mut __sk_buff) -> i32 {
    xdp::noted(context)
}

/// Only for `BPF_PROG_TEST_RUN`: in place of each of the packet's first [`TABLE_IDS`] words goes the id of
/// the selection table there, counted from the place that the first word names; 0 where there is none.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn lbd_tables(context: *mut __sk_buff) -> i32 {
    let Some(words) = (TcFrame { context }).at::<[u32; TABLE_IDS as usize]>(0) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: `at` checked the bounds, and packets may be accessed at any alignment.
    let first = unsafe { words.cast::<u32>().read_unaligned() };
    for place in 0..TABLE_IDS {
        let id = maps::TABLES.get(first + place).and_then(table_id);
        // SAFETY: as above.
        unsafe {
            let word = words.cast::<u32>().add(place as usize);
            word.write_unaligned(id.unwrap_or(0));
        }
    }
    TC_ACT_OK as i32
}

fn table_id(table: &SelectionTable) -> Option<u32> {
    let [entries, ..] = table.get(0)?;
    let last = table.get(table_elements(*entries) - 1)?;
    last.last().copied()
}

/// What `lbd_xdp` left to the kernel: fragments that may have to be put aside, or for which others
/// wait, and those that come again here after they waited.
#[inline(always)]
pub(crate) fn odd(context: *mut __sk_buff) -> i32 {
    if !prepare(context) {
        return TC_ACT_UNSPEC;
    }
    let frame = TcFrame { context };
    let first = |is_odd| {
        if is_odd {
            hook::ODD
        } else {
            TC_ACT_UNSPEC as u32
        }
    };
    let action = walk_tc!(
        context,
        |network| first(path::is_odd::<V4, _>(&frame, network)),
        |network| first(path::is_odd::<V6, _>(&frame, network))
    );
    action as i32
}
