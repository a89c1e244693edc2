//! A blocking netlink socket and the little of the wire format that the daemon needs.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const HEADER: usize = 16;
/// Kernel dumps come in datagrams of at most 32 KiB.
const BUFFER: usize = 64 * 1024;

pub(super) struct Socket {
    fd: OwnedFd,
}

/// One message without its header.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

impl Socket {
    /// `protocol` is e.g. `libc::NETLINK_ROUTE`.
    pub(super) fn open(protocol: i32) -> io::Result<Self> {
        Self::with_flags(protocol, 0)
    }

    /// A non-blocking socket that hears the route family's multicast `groups` (`RTNLGRP_*`).
    pub(super) fn subscribe(groups: &[u32]) -> io::Result<Self> {
        let socket = Self::with_flags(libc::NETLINK_ROUTE, libc::SOCK_NONBLOCK)?;
        // SAFETY: an all-zero `sockaddr_nl` is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        // SAFETY: the pointer and the length are those of `address`.
        let result = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as u32,
            )
        };
        check(result as isize)?;
        Ok(socket)
    }

    fn with_flags(protocol: i32, flags: i32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) } as isize)?;
        Ok(Self {
            // SAFETY: the kernel just made this descriptor for us.
            fd: unsafe { OwnedFd::from_raw_fd(fd as i32) },
        })
    }

    /// Sends one request and returns all messages of the answer.
    pub(super) fn request(&self, kind: u16, flags: i32, body: &[u8]) -> io::Result<Vec<Message>> {
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend([0; 8]);
        request.extend(body);
        // SAFETY: the pointer and the length are those of `request`.
        check(unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                request.as_ptr().cast(),
                request.len(),
                0,
            )
        })?;
        let mut answer = Vec::new();
        let mut buffer = vec![0u8; BUFFER];
        loop {
            for message in self.receive_into(&mut buffer)? {
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(answer),
                    libc::NLMSG_ERROR => match number::<u32>(&message.body, 0) {
                        Some(0) => return Ok(answer),
                        Some(code) => return Err(io::Error::from_raw_os_error(-(code as i32))),
                        None => return Err(io::ErrorKind::UnexpectedEof.into()),
                    },
                    _ => answer.push(message),
                }
            }
        }
    }

    /// The messages of one datagram.
    pub(super) fn receive(&self) -> io::Result<Vec<Message>> {
        self.receive_into(&mut vec![0u8; BUFFER])
    }

    fn receive_into(&self, buffer: &mut [u8]) -> io::Result<Vec<Message>> {
        // SAFETY: the pointer and the length are those of `buffer`.
        let length = check(unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        })?;
        Ok(messages(&buffer[..length as usize]))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// Splits a datagram; stops at what does not parse.
fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (number::<u32>(bytes, 0), number::<u16>(bytes, 4)) {
        let length = length as usize;
        if length < HEADER || length > bytes.len() {
            break;
        }
        found.push(Message {
            kind,
            body: bytes[HEADER..length].to_vec(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Attributes (type without flag bits, payload) of a message's tail or of a nested attribute.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(number::<u16>(bytes, 0)?);
        let kind = number::<u16>(bytes, 2)? & 0x3fff;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of this type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(k, payload)| (k == kind).then_some(payload))
}

/// Appends an attribute.
pub(super) fn put_attribute(body: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    body.extend(((4 + payload.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(payload);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A string attribute without its final zero.
pub(super) fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|b| *b == 0);
    String::from_utf8_lossy(&payload[..end.unwrap_or(payload.len())]).into_owned()
}

/// The number in host byte order at `offset`.
pub(super) fn number<T: lb_common::abi::Pod>(bytes: &[u8], offset: usize) -> Option<T> {
    lb_common::abi::from_bytes(bytes.get(offset..)?)
}

fn check(result: isize) -> io::Result<isize> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back() {
        let mut body = Vec::new();
        put_attribute(&mut body, 3, b"eth0\0");
        put_attribute(&mut body, 7 | 0x8000, &7u32.to_ne_bytes());
        let read: Vec<_> = attributes(&body).collect();
        assert_eq!(read, [(3, &b"eth0\0"[..]), (7, &7u32.to_ne_bytes()[..])]);
        assert_eq!(text(read[0].1), "eth0");
    }

    #[test]
    fn cut_messages_are_left_out() {
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9]);
        bytes.extend([40, 0, 0, 0, 1, 0]);
        let found = messages(&bytes);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].body, [9, 9, 9, 9]);
        assert!(attributes(&[200, 0, 1, 0]).next().is_none());
        assert!(attributes(&[0, 0, 0, 0]).next().is_none());
    }
}
