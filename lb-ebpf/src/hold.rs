//! Puts fragments aside that came before their datagram's first, and lets them go on behind it: all
//! come in by the same device again, the first one first, and take the path as if they had come in
//! this order. Only socket buffers can do so, thus at TC.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_ANY, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
    },
    helpers::{bpf_clone_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use lb_common::{
    abi::{Drop, HELD_BYTES, HELD_PIECES, Held, V4, V6},
    path::{self, FamilyTables, Tables},
};

use crate::{kernel::Kernel, maps};

/// Bytes of an Ethernet header. A hardware checksum over the packet does not cover it.
const ETHERNET: u32 = 14;

/// Shortest frame with a fragment: an IPv4 header, and 8 bytes.
const SHORTEST: u32 = ETHERNET + 20 + 8;

/// A frame's length that the verifier believes to fit [`Held`]; `None` if it does not fit.
///
/// LLVM would make one comparison of both, of a number from which the shortest is subtracted: Linux 5.10
/// does not learn from it what the length itself can be. So it is not to see that they are of one
/// number.
#[inline(always)]
fn fitting(length: u32) -> Option<u32> {
    let mut length = u64::from(length);
    if length > HELD_BYTES as u64 {
        return None;
    }
    // SAFETY: changes nothing. An instruction it must be, or the kernel finds two lines of the source at
    // one, which it refuses.
    unsafe {
        asm!(
            "{length} = {length}",
            length = inout(reg) length,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    (length >= u64::from(SHORTEST)).then_some(length as u32)
}

/// Lets the packet come in again.
#[inline(always)]
fn again(context: *mut __sk_buff) {
    // SAFETY: the context is the kernel's. Where there is no memory, a fragment is lost.
    unsafe { bpf_clone_redirect(context, (*context).ifindex, BPF_F_INGRESS as u64) };
}

/// Puts `held` in the place of the packet, and lets it come in.
#[inline(always)]
fn resume(context: *mut __sk_buff, held: *const Held) {
    // SAFETY: an element of a map whose memory is never unmapped; lengths are checked.
    unsafe {
        let Some(length) = fitting((*held).length) else {
            return;
        };
        let ethernet = (&raw const (*held).frame).cast::<u8>();
        let packet = ethernet.add(ETHERNET as usize).cast::<c_void>();
        let behind = length - ETHERNET;
        let flags = (BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH) as u64;
        if bpf_skb_change_tail(context, length, 0) != 0
            || bpf_skb_store_bytes(context.cast(), 0, ethernet.cast(), ETHERNET, 0) != 0
            || bpf_skb_store_bytes(context.cast(), ETHERNET, packet, behind, flags) != 0
        {
            return;
        }
    }
    again(context);
    Kernel::new(context).count_drop(Drop::FragmentResumed);
}

macro_rules! hold {
    ($family:ty, $held:ident, $hold:ident, $release:ident, $piece_is_free:ident, $release_piece:ident) => {
        /// Puts the fragment in [`path::Work`] aside.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $hold(context: *mut __sk_buff) -> u32 {
            let kernel = Kernel::new(context);
            let mut is_free = 0;
            for piece in 0..HELD_PIECES {
                is_free = $piece_is_free(piece);
                if is_free != 0 {
                    break;
                }
            }
            // SAFETY: the context is the kernel's.
            let length = fitting(unsafe { (*context).len });
            let (Some(length), Some(holding)) = (length, maps::HOLDING.get_ptr_mut(0)) else {
                kernel.count_drop(Drop::FragmentUnknown);
                return TC_ACT_SHOT as u32;
            };
            let work = FamilyTables::<$family>::work(&kernel);
            let (Some(work), true) = (work, is_free != 0) else {
                kernel.count_drop(Drop::FragmentUnknown);
                return TC_ACT_SHOT as u32;
            };
            // SAFETY: a per-CPU element, and the length fits.
            let is_held = unsafe {
                (*holding).length = length;
                (*holding).seen = kernel.now();
                let frame = (&raw mut (*holding).frame).cast::<c_void>();
                bpf_skb_load_bytes(context.cast(), 0, frame, length) == 0
                    && maps::$held
                        .insert(&work.held, &*holding, BPF_ANY as u64)
                        .is_ok()
            };
            if !is_held {
                kernel.count_drop(Drop::FragmentUnknown);
                return TC_ACT_SHOT as u32;
            }
            kernel.count_drop(Drop::FragmentHeld);
            // The first may have come on another CPU, and have seen nobody wait.
            let first = FamilyTables::<$family>::fragmented(&kernel, &work.held.datagram);
            if let (Some(first), Some(config)) = (first, kernel.config())
                && path::is_recent(config, kernel.now(), first.seen)
            {
                // Taken by that CPU already is as good.
                let _ = maps::$held.remove(&work.held);
                again(context);
                kernel.count_drop(Drop::FragmentResumed);
            }
            TC_ACT_SHOT as u32
        }

        /// Lets the first fragment in [`path::Work`] come again, and behind it those that wait.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $release(context: *mut __sk_buff) -> u32 {
            let kernel = Kernel::new(context);
            let Some(work) = FamilyTables::<$family>::work(&kernel) else {
                return TC_ACT_SHOT as u32;
            };
            // Another CPU may get the first one again at once, and must not find that others wait.
            work.held.piece = 0;
            let mut waited = false;
            if let Some(held) = FamilyTables::<$family>::held(&kernel, &work.held) {
                waited = maps::HOLDING.set(0, held, 0).is_ok();
                let _ = maps::$held.remove(&work.held);
            }
            again(context);
            if waited && let Some(holding) = maps::HOLDING.get_ptr_mut(0) {
                resume(context, holding);
            }
            for piece in 1..HELD_PIECES {
                $release_piece(context, piece);
            }
            TC_ACT_SHOT as u32
        }

        /// [`path::piece_is_free`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $piece_is_free(piece: u32) -> u32 {
            let kernel = Kernel::new(core::ptr::null_mut::<__sk_buff>());
            path::piece_is_free::<$family, _>(&kernel, piece) as u32
        }

        /// Lets one fragment of the datagram in [`path::Work`] come in, if it waits.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $release_piece(context: *mut __sk_buff, piece: u32) -> u32 {
            let kernel = Kernel::new(context);
            let Some(work) = FamilyTables::<$family>::work(&kernel) else {
                return 0;
            };
            work.held.piece = piece;
            let (Some(held), Some(config)) = (
                FamilyTables::<$family>::held(&kernel, &work.held),
                kernel.config(),
            ) else {
                return 0;
            };
            if path::is_recent(config, kernel.now(), held.seen) {
                resume(context, held);
            }
            let _ = maps::$held.remove(&work.held);
            0
        }
    };
}

hold!(
    V4,
    HELD4,
    tc_hold4,
    tc_release4,
    piece_is_free4,
    release_piece4
);
hold!(
    V6,
    HELD6,
    tc_hold6,
    tc_release6,
    piece_is_free6,
    release_piece6
);
