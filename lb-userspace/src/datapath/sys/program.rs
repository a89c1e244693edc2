//! Programs that are put together here, instruction by instruction, and those of others.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{Command, Link, Map, bpf, bpf_fd, object_info, open_pin, pin};

const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const XDP_HAS_FRAGS: u32 = 1 << 5;
/// `XDP_PASS` and `TC_ACT_UNSPEC`: what a program gives that leaves the packet alone.
const XDP_PASS: i32 = 2;
const TC_UNSPEC: i32 = -1;
/// Gives `XDP_PASS`.
const PASSES: [u64; 2] = [
    instruction(0xb7, 0, 0, XDP_PASS),
    instruction(0x95, 0, 0, 0),
];
/// To load a program, as often as libbpf does.
const ATTEMPTS: u32 = 5;
const PASSING: &[u8; 16] = b"lbd_passing\0\0\0\0\0";

/// What the kernel says of a program.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_length: u32,
    translated_length: u32,
    jited: u64,
    translated: u64,
    load_time: u64,
    created_by: u32,
    maps_count: u32,
    maps: u64,
    name: [u8; 16],
}

/// A program in the kernel.
#[derive(Debug)]
pub(in crate::datapath) struct Program {
    fd: OwnedFd,
    info: Info,
}

impl Program {
    /// The program of this number, by its pin if it is pinned there.
    pub(in crate::datapath) fn from_pin_or_id(path: &Path, id: u32) -> io::Result<Self> {
        match open_pin(path).and_then(Self::new) {
            Ok(pinned) if pinned.info.id == id => Ok(pinned),
            _ => Self::from_id(id),
        }
    }

    /// Takes CAP_SYS_ADMIN (`bpf_prog_get_fd_by_id`, kernel/bpf/syscall.c).
    fn from_id(id: u32) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            id: u32,
            next: u32,
            flags: u32,
        }
        let attr = Attr {
            id,
            next: 0,
            flags: 0,
        };
        // SAFETY: `Attr` is the head of `union bpf_attr` for this command and holds no pointer.
        Self::new(unsafe { bpf_fd(Command::ProgGetFdById, attr) }?)
    }

    fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: `Info` is the head of `struct bpf_prog_info`, plain integers; no length of what
        // pointers would point to is given.
        let info = unsafe { object_info(fd.as_fd()) }?;
        Ok(Self { fd, info })
    }

    /// As the kernel keeps it, 15 bytes at most.
    pub(in crate::datapath) fn name(&self) -> String {
        let name = self.info.name.split(|byte| *byte == 0).next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }

    /// A program of the kind and name of this one that calls the element of `programs` whose index
    /// stands in `switch`, an array of one word. `frags` says whether this one takes frames in
    /// several buffers, which the kernel does not tell.
    pub(in crate::datapath) fn trampoline(
        &self,
        programs: &Map,
        switch: &Map,
        frags: bool,
    ) -> io::Result<Self> {
        const TAIL_CALL: i32 = 12;
        const PSEUDO_MAP: u8 = 1;
        const PSEUDO_MAP_VALUE: u8 = 2;
        let is_xdp = self.info.kind == PROG_TYPE_XDP;
        let fd = |map: &Map| map.as_fd().as_raw_fd();
        // Registers: 1 the context at first, then 1 to 3 what the call takes.
        let code = [
            instruction(0xbf, 6, 1, 0),
            instruction(0x18, 1, PSEUDO_MAP_VALUE, fd(switch)),
            instruction(0, 0, 0, 0),
            instruction(0x61, 3, 1, 0),
            instruction(0xbf, 1, 6, 0),
            instruction(0x18, 2, PSEUDO_MAP, fd(programs)),
            instruction(0, 0, 0, 0),
            instruction(0x85, 0, 0, TAIL_CALL),
            instruction(0xb7, 0, 0, if is_xdp { XDP_PASS } else { TC_UNSPEC }),
            instruction(0x95, 0, 0, 0),
        ];
        let flags = if is_xdp && frags { XDP_HAS_FRAGS } else { 0 };
        load(self.info.kind, self.info.name, flags, &code).and_then(Self::new)
    }

    /// An XDP program that leaves every packet alone, and reads nothing of it.
    pub(in crate::datapath) fn passing(frags: bool) -> io::Result<Self> {
        let flags = if frags { XDP_HAS_FRAGS } else { 0 };
        load(PROG_TYPE_XDP, *PASSING, flags, &PASSES).and_then(Self::new)
    }

    pub(in crate::datapath) fn pin(&self, path: &Path) -> io::Result<()> {
        pin_program(self.fd.as_fd(), path)
    }

    /// Puts this program into a link.
    pub(in crate::datapath) fn enter_link(&self, link: &Link) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            link_fd: u32,
            program_fd: u32,
            flags: u32,
            former_fd: u32,
        }
        let mut attr = Attr {
            link_fd: link.fd.as_raw_fd() as u32,
            program_fd: self.fd.as_raw_fd() as u32,
            flags: 0,
            former_fd: 0,
        };
        // SAFETY: `Attr` is the head of `union bpf_attr` for this command and holds no pointer.
        unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Pins a program at `path`, where nothing may be yet.
pub(in crate::datapath) fn pin_program(program: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    pin(program, path)
}

/// Whether XDP programs may take frames in several buffers (Linux 5.18), without which a driver
/// refuses them on devices with an MTU beyond a page. Asked by loading the smallest one.
pub(in crate::datapath) fn has_xdp_frags() -> bool {
    Program::passing(true).is_ok()
}

/// `struct bpf_insn`, without an offset.
const fn instruction(code: u8, destination: u8, source: u8, immediate: i32) -> u64 {
    let registers = source << 4 | destination;
    code as u64 | (registers as u64) << 8 | (immediate as u32 as u64) << 32
}

fn load(kind: u32, name: [u8; 16], flags: u32, code: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Attr {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach_type: u32,
    }
    let attr = Attr {
        kind,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags,
        name,
        ifindex: 0,
        // As aya loads them: programs that call each other must have the same.
        attach_type: if kind == PROG_TYPE_XDP { ATTACH_XDP } else { 0 },
    };
    let attempt = || {
        // SAFETY: `Attr` is the head of `union bpf_attr` for this command; code and licence outlive
        // the call.
        unsafe { bpf_fd(Command::ProgLoad, attr) }
    };
    // The verifier gives up where a signal waits for the thread (`do_check`, kernel/bpf/verifier.c).
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    attempt()
}
