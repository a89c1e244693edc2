//! Raw frames out of and into a host's device (AF_PACKET).

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::{host::Host, sockets};

/// Longest frame that is captured whole.
const FRAME: usize = 9216;

/// A device opened for whole Ethernet frames: what it receives, not what it sends.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    pub fn open(host: &Host, device: &str) -> anyhow::Result<Self> {
        host.run(|| open(device))
            .with_context(|| format!("{device} on {}", host.name()))
    }

    /// Sends a frame as it is, however wrong. The kernel takes none shorter than an Ethernet
    /// header.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        check(sent).map(|_| ())
    }

    /// Frames received until `quiet` has passed without one. What is there by then is among them,
    /// however late this thread gets to look.
    pub fn receive(&self, quiet: Duration) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut last = Instant::now();
        loop {
            let late = last.elapsed() >= quiet;
            match receive_frame(&self.socket) {
                Ok(frame) => {
                    frames.push(frame);
                    last = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && late => {
                    return Ok(frames);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn open(device: &str) -> anyhow::Result<Wire> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, kind, all.into()) } as isize)?;
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket as i32) };
    for option in [libc::PACKET_IGNORE_OUTGOING, libc::PACKET_AUXDATA] {
        sockets::set(&socket, libc::SOL_PACKET, option, 1)?;
    }
    let name = CString::new(device)?;
    // SAFETY: a NUL-terminated string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no such device");
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    // SAFETY: the address is valid for its size.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    check(result as isize)?;
    Ok(Wire { socket })
}

/// One frame, with the outer VLAN tag, which the kernel hands over beside it, put back in place.
fn receive_frame(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; FRAME];
    let mut control = [0u64; 16];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the header points to buffers that are valid for their lengths.
    let length = check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) })?;
    buffer.truncate(length as usize);
    // SAFETY: the kernel filled in the control buffer; CMSG_* stay inside its length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_PACKET
                && (*header).cmsg_type == libc::PACKET_AUXDATA
            {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>();
                let auxiliary = data.read_unaligned();
                if auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID != 0 && buffer.len() >= 12 {
                    let tag = [auxiliary.tp_vlan_tpid, auxiliary.tp_vlan_tci];
                    let bytes = tag.iter().flat_map(|word| word.to_be_bytes());
                    buffer.splice(12..12, bytes);
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(buffer)
}

fn check(result: isize) -> io::Result<isize> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
