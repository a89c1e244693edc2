//! Options of sockets that the standard library does not offer.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Sets an option whose value is an integer.
///
/// # Errors
/// As setsockopt(2).
pub fn set(socket: &impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has a socket hold what comes while its process gets no time. By default it holds some fifty
/// datagrams where native XDP makes each of them a page.
///
/// # Errors
/// Only root may.
pub fn hold_much(socket: &impl AsFd) -> io::Result<()> {
    set(
        socket,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        16 * 1024 * 1024,
    )
}
