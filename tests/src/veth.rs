//! The smallest XDP program, for the far ends of veth pairs.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::host::Host;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;

/// `return XDP_PASS`.
const PASS: [u64; 2] = [
    0x0000_0002_0000_00b7, // r0 = 2
    0x0000_0000_0000_0095, // exit
];

/// The head of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    zero: [u64; 12],
}

/// The head of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    zero: [u64; 4],
}

/// Before Linux 5.11 maps and programs count against the limit of locked memory.
pub(crate) fn lift_memory_limit() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a `rlimit`. A refusal shows when one cannot be created.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &unlimited) };
}

/// Attaches a program that passes everything to a device, for as long as the link is held.
///
/// A veth hands what its own XDP program sends back (XDP_TX) to the other end, but wakes that end
/// up only if it has a program too: `veth_xdp_flush` in
/// <https://github.com/torvalds/linux/blob/v6.12/drivers/net/veth.c>. Real devices need no such help.
pub fn pass_everything(host: &Host, device: &str) -> io::Result<OwnedFd> {
    lift_memory_limit();
    host.run(|| {
        let license = c"GPL";
        let program = bpf(
            BPF_PROG_LOAD,
            &ProgLoad {
                prog_type: BPF_PROG_TYPE_XDP,
                insn_cnt: PASS.len() as u32,
                insns: PASS.as_ptr() as u64,
                license: license.as_ptr() as u64,
                zero: [0; 12],
            },
        )?;
        let name = CString::new(device)?;
        // SAFETY: a NUL-terminated string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        bpf(
            BPF_LINK_CREATE,
            &LinkCreate {
                prog_fd: program.as_raw_fd() as u32,
                target_ifindex: index,
                attach_type: BPF_XDP,
                flags: 0,
                zero: [0; 4],
            },
        )
    })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are a prefix of `union bpf_attr`, valid for their size, and so is the
    // memory they point to.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}
