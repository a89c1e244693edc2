//! Takes packets out of the tunnels that lead to a backend, for network tests on kernels without
//! tunnel devices.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod context;

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{xdp_action::XDP_PASS, xdp_md},
    helpers::bpf_xdp_adjust_head,
};
use context::bound;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// A pointer to a `T` at `offset`, if it lies inside the packet.
#[inline(always)]
fn at<T>(context: *mut xdp_md, offset: usize) -> Option<*mut T> {
    // SAFETY: the context is the kernel's.
    let (data, end) = unsafe {
        (
            bound::<{ offset_of!(xdp_md, data) }, _>(context),
            bound::<{ offset_of!(xdp_md, data_end) }, _>(context),
        )
    };
    let start = data + offset;
    (start + size_of::<T>() <= end).then_some(start as *mut T)
}

#[inline(always)]
fn read<T: Copy>(context: *mut xdp_md, offset: usize) -> Option<T> {
    // SAFETY: `at` checked the bounds.
    at::<T>(context, offset).map(|start| unsafe { start.read_unaligned() })
}

#[inline(always)]
fn write<T>(context: *mut xdp_md, offset: usize, value: T) -> Option<()> {
    // SAFETY: `at` checked the bounds.
    at::<T>(context, offset).map(|start| unsafe { start.write_unaligned(value) })
}

#[inline(always)]
fn decapsulate(context: *mut xdp_md) -> Option<()> {
    const IPV4: u16 = 0x0800_u16.to_be();
    const IPV6: u16 = 0x86dd_u16.to_be();
    let (length, number) = match read::<u16>(context, 12)? {
        IPV4 if read::<u8>(context, ETHERNET)? == 0x45 => (20, read::<u8>(context, ETHERNET + 9)?),
        IPV6 => (40, read::<u8>(context, ETHERNET + 6)?),
        _ => return None,
    };
    let ethertype = match number {
        4 => IPV4,
        41 => IPV6,
        _ => return None,
    };
    let macs = read::<[u32; 3]>(context, 0)?;
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_xdp_adjust_head(context, length) } != 0 {
        return None;
    }
    write(context, 0, macs)?;
    write(context, 12, ethertype)
}

/// Ingress of a backend.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn decap(context: *mut xdp_md) -> u32 {
    // What is in no tunnel stays as it is.
    let _ = decapsulate(context);
    XDP_PASS
}
