//! The `bpf()` calls that aya has no function for, each safe to call: buffers are checked against
//! the sizes the kernel told.

pub(super) mod program;

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Inner arrays of different sizes may stand in one outer map (Linux 5.10).
pub(super) const BPF_F_INNER_MAP: u32 = 0x1000;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
/// The kernel's own error number of a call that a kind of map does not know.
const ENOTSUPP: i32 = 524;
const ATTACH_TCX_INGRESS: u32 = 46;
const LINK_TYPE_XDP: u32 = 6;
/// Only an entry that is not there yet.
const BPF_NOEXIST: u64 = 1;

/// Numbers of `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgGetFdById = 13,
    ObjGetInfo = 15,
    ProgQuery = 16,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// What the kernel says of a map.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// What the kernel says of an XDP or TCX link. `ifindex` is 0 once the device is gone or somebody
/// detached the link.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) prog_id: u32,
    pad: u32,
    pub(super) ifindex: u32,
    attach_type: u32,
}

/// A map of the kernel.
#[derive(Debug)]
pub(super) struct Map {
    fd: OwnedFd,
    pub(super) info: MapInfo,
    /// Bytes of a value as the kernel reads and writes it.
    value_bytes: usize,
}

impl Map {
    pub(super) fn from_pin(path: &Path) -> io::Result<Self> {
        Self::from_fd(open_pin(path)?)
    }

    /// An array of elements of `value_size` bytes that can stand in an outer map next to arrays of other sizes.
    pub(super) fn inner_array(entries: u32, value_size: u32) -> io::Result<Self> {
        Self::create(MAP_TYPE_ARRAY, value_size, entries, BPF_F_INNER_MAP)
    }

    pub(super) fn array(entries: u32, value_size: u32) -> io::Result<Self> {
        Self::create(MAP_TYPE_ARRAY, value_size, entries, 0)
    }

    /// For tail calls.
    pub(super) fn program_array(entries: u32) -> io::Result<Self> {
        Self::create(MAP_TYPE_PROG_ARRAY, size_of::<u32>() as u32, entries, 0)
    }

    fn create(kind: u32, value_size: u32, max_entries: u32, flags: u32) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            kind: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
        }
        let attr = Attr {
            kind,
            key_size: 4,
            value_size,
            max_entries,
            flags,
        };
        // SAFETY: `Attr` is the head of `union bpf_attr` for this command and holds no pointer.
        Self::from_fd(unsafe { bpf_fd(Command::MapCreate, attr) }?)
    }

    /// An array of values, per CPU or not.
    pub(super) fn is_array(&self) -> bool {
        matches!(self.info.kind, MAP_TYPE_ARRAY | MAP_TYPE_PERCPU_ARRAY)
    }

    /// Puts a map into this outer map.
    pub(super) fn set_inner(&self, index: u32, inner: &Self) -> io::Result<()> {
        self.set_descriptor(index, inner.fd.as_fd())
    }

    /// Puts a program into this array of programs.
    pub(super) fn set_program(&self, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
        self.set_descriptor(index, program)
    }

    fn set_descriptor(&self, index: u32, object: BorrowedFd<'_>) -> io::Result<()> {
        let fd = object.as_raw_fd() as u32;
        self.update(&index.to_ne_bytes(), &fd.to_ne_bytes())
    }

    /// Gives the map a name in a BPF file system, which must not be there yet.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(self.fd.as_fd(), path)
    }

    /// Makes a file descriptor of the process name this map instead of what it named. Whoever holds
    /// it finds this map there from then on.
    pub(super) fn take_the_place_of(&self, other: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: both descriptors are open, and both name maps.
        match unsafe { libc::dup3(self.fd.as_raw_fd(), other.as_raw_fd(), libc::O_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: `MapInfo` is the head of `struct bpf_map_info`, plain integers.
        let info: MapInfo = unsafe { object_info(fd.as_fd()) }?;
        let value_bytes = match info.kind {
            MAP_TYPE_PERCPU_ARRAY => {
                let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
                (info.value_size as usize).next_multiple_of(8) * cpus.get() as usize
            }
            _ => info.value_size as usize,
        };
        Ok(Self {
            fd,
            info,
            value_bytes,
        })
    }

    /// Bytes of a value as [`Map::lookup`] and [`Map::update`] take it; for per-CPU maps those of
    /// all CPUs.
    pub(super) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Reads the value of `key` into `value`; `false` if there is none.
    pub(super) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key, value, 1)?;
        match self.element(Command::MapLookup, key, value.as_mut_ptr() as u64) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key, value, 1)?;
        self.element(Command::MapUpdate, key, value.as_ptr() as u64)
    }

    /// `false` if there is such a key, whose value stays.
    pub(super) fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.check(key, value, 1)?;
        let value = value.as_ptr() as u64;
        match self.element_with(Command::MapUpdate, key, value, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `false` if there was no such key.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        if key.len() != self.info.key_size as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match self.element(Command::MapDelete, key, 0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The lengths of `key` and `value` must have been checked, or `value` be 0.
    fn element(&self, command: Command, key: &[u8], value: u64) -> io::Result<()> {
        self.element_with(command, key, value, 0)
    }

    fn element_with(&self, command: Command, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            map_fd: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let mut attr = Attr {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: key.as_ptr() as u64,
            value,
            flags,
        };
        // SAFETY: `Attr` is the head of `union bpf_attr` for these commands; the buffers are as
        // long as the map's keys and values.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    /// Hands all entries to `each` in chunks of about `chunk`: the keys, then the values, one
    /// after the other. An entry that is added or removed meanwhile may or may not be seen; no
    /// other is seen twice.
    pub(super) fn lookup_batch(
        &self,
        chunk: usize,
        mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (key_size, value_size) = (self.info.key_size as usize, self.value_bytes);
        let mut capacity = chunk.clamp(1, self.info.max_entries.max(1) as usize);
        let mut keys = vec![0; capacity * key_size];
        let mut values = vec![0; capacity * value_size];
        // Hash maps put a bucket number there, arrays a key.
        let mut cursor = vec![0; key_size.max(8)];
        let mut next = cursor.clone();
        let mut begun = false;
        loop {
            let mut attr = Batch {
                in_batch: if begun { cursor.as_ptr() as u64 } else { 0 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: capacity as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers hold `count` keys and values, the cursors a key or a `u32`.
            let result = unsafe { bpf(Command::MapLookupBatch, &mut attr) };
            let last = match result {
                Ok(_) => false,
                Err(error) if !begun && is_unknown(&error) => return self.lookup_each(each),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One bucket holds more entries than the buffers; nothing was read of it.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    if attr.count == 0 {
                        capacity *= 2;
                        keys.resize(capacity * key_size, 0);
                        values.resize(capacity * value_size, 0);
                        continue;
                    }
                    false
                }
                Err(error) => return Err(error),
            };
            let count = (attr.count as usize).min(capacity);
            each(&keys[..count * key_size], &values[..count * value_size])?;
            if last {
                return Ok(());
            }
            std::mem::swap(&mut cursor, &mut next);
            begun = true;
        }
    }

    /// As [`Self::lookup_batch`], entry by entry: before Linux 5.13 tries know no batches.
    fn lookup_each(&self, mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut key = vec![0; self.info.key_size as usize];
        let mut value = vec![0; self.value_bytes];
        let mut former: Option<Vec<u8>> = None;
        loop {
            let from = former.as_ref().map_or(0, |key| key.as_ptr() as u64);
            match self.next_key(from, &mut key) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.lookup(&key, &mut value)? {
                each(&key, &value)?;
            }
            former = Some(key.clone());
        }
    }

    /// `from` is 0, or the address of a key.
    fn next_key(&self, from: u64, next: &mut [u8]) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            map_fd: u32,
            pad: u32,
            key: u64,
            next: u64,
        }
        let mut attr = Attr {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: from,
            next: next.as_mut_ptr() as u64,
        };
        // SAFETY: `Attr` is the head of `union bpf_attr` for this command; both are as long as the
        // map's keys.
        unsafe { bpf(Command::MapNextKey, &mut attr) }.map(drop)
    }

    /// Writes as many entries as `keys` holds in one call.
    pub(super) fn update_batch(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.info.key_size as usize;
        self.check(keys, values, count)?;
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: count as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the buffers hold `count` keys and values, and are only read.
        match unsafe { bpf(Command::MapUpdateBatch, &mut attr) } {
            // As in `lookup_each`.
            Err(error) if is_unknown(&error) => {
                let keys = keys.chunks_exact(self.info.key_size as usize);
                let mut entries = keys.zip(values.chunks_exact(self.value_bytes));
                entries.try_for_each(|(key, value)| self.update(key, value))
            }
            result => result.map(drop),
        }
    }

    fn check(&self, keys: &[u8], values: &[u8], count: usize) -> io::Result<()> {
        let fits = keys.len() == count * self.info.key_size as usize
            && values.len() == count * self.value_bytes;
        if fits {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

/// Whether the kernel has no such call for this kind of map.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP))
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A link of a program to a hook. The kernel detaches it when nobody holds it and no pin does.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    pub(super) info: LinkInfo,
}

impl Link {
    /// The link pinned at `path`, `None` if there is none.
    pub(super) fn from_pin(path: &Path) -> io::Result<Option<Self>> {
        let fd = match open_pin(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            fd => fd?,
        };
        // SAFETY: `LinkInfo` is the head of `struct bpf_link_info`, plain integers.
        let info = unsafe { object_info(fd.as_fd()) }?;
        Ok(Some(Self { fd, info }))
    }

    pub(super) fn is_xdp(&self) -> bool {
        self.info.kind == LINK_TYPE_XDP
    }

    /// At once: when the last that holds it goes, the kernel detaches it some time later.
    pub(super) fn detach(&self) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            link_fd: u32,
        }
        let mut attr = Attr {
            link_fd: self.fd.as_raw_fd() as u32,
        };
        // SAFETY: `Attr` is the head of `union bpf_attr` for this command and holds no pointer.
        unsafe { bpf(Command::LinkDetach, &mut attr) }.map(drop)
    }
}

/// Runs a program once on `packet` and returns its return value; the packet is written back.
pub(super) fn test_run(program: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<u32> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let input = packet.to_vec();
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: input.len() as u32,
        data_size_out: packet.len() as u32,
        data_in: input.as_ptr() as u64,
        data_out: packet.as_mut_ptr() as u64,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: both buffers are as long as the attribute says.
    unsafe { bpf(Command::ProgTestRun, &mut attr) }?;
    Ok(attr.retval)
}

/// Whether the kernel knows TCX links (Linux 6.6); asked of the loopback device, which every
/// network namespace has as number 1.
pub(super) fn has_tcx() -> bool {
    #[repr(C)]
    struct Attr {
        ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        pad: u32,
    }
    let mut attr = Attr {
        ifindex: 1,
        attach_type: ATTACH_TCX_INGRESS,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: 0,
        count: 0,
        pad: 0,
    };
    // SAFETY: `Attr` is the head of `union bpf_attr` for this command; without a buffer for
    // numbers only their count is written.
    unsafe { bpf(Command::ProgQuery, &mut attr) }.is_ok()
}

/// Pins an object of the kernel's at `path`.
fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: `Attr` is the head of `union bpf_attr` for this command; the path ends in a zero.
    unsafe { bpf(Command::ObjPin, &mut attr) }.map(drop)
}

fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: `Attr` is the head of `union bpf_attr` for this command; the path ends in a zero.
    unsafe { bpf_fd(Command::ObjGet, attr) }
}

/// # Safety
/// `T` is a prefix of the kernel's info struct of this kind of object, and plain integers.
unsafe fn object_info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = T::default();
    let mut attr = Attr {
        fd: object.as_raw_fd() as u32,
        length: size_of::<T>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes; the caller promises the rest.
    unsafe { bpf(Command::ObjGetInfo, &mut attr) }?;
    Ok(info)
}

/// # Safety
/// As for [`bpf`], and the command returns a file descriptor.
unsafe fn bpf_fd<A>(command: Command, mut attr: A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, &mut attr) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// # Safety
/// `A` is `repr(C)`, without padding, and a prefix of `union bpf_attr` for `command`; pointers in
/// it are good for what the command reads and writes.
unsafe fn bpf<A>(command: Command, attr: &mut A) -> io::Result<i64> {
    // SAFETY: the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as i32,
            attr as *mut A,
            size_of::<A>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Of [`ethtool_flags`]: VLAN tags of received frames are put beside them.
pub(super) const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// The device's flags as `ETHTOOL_GFLAGS` (include/uapi/linux/ethtool.h) tells them; `None` if it does not.
pub(super) fn ethtool_flags(device: &str) -> Option<u32> {
    const GFLAGS: u32 = 0x25;
    // struct ethtool_value
    let [_, flags] = ethtool(device, [GFLAGS, 0])?;
    Some(flags)
}

/// Name of the device's driver as `ETHTOOL_GDRVINFO` tells it; `None` if it does not.
pub(super) fn ethtool_driver(device: &str) -> Option<String> {
    const GDRVINFO: u32 = 0x3;
    // struct ethtool_drvinfo, of 196 bytes, in which the name comes first.
    let mut words = [0; 49];
    words[0] = GDRVINFO;
    let bytes: Vec<u8> = ethtool(device, words)?[1..9]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8(bytes).ok()
}

/// Asks the device's driver. `value` begins with the command, and is as long as that has it.
fn ethtool<const WORDS: usize>(device: &str, mut value: [u32; WORDS]) -> Option<[u32; WORDS]> {
    #[repr(C)]
    struct Request<T> {
        name: [u8; libc::IFNAMSIZ],
        value: *mut T,
        /// `struct ifreq` is as long as its longest variant.
        rest: [u64; 2],
    }
    let mut name = [0; libc::IFNAMSIZ];
    name.get_mut(..device.len())?
        .copy_from_slice(device.as_bytes());
    let mut request = Request {
        name,
        value: &raw mut value,
        rest: [0; 2],
    };
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    // SAFETY: the request names a value that is as long as the command says, and outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    (answer == 0).then_some(value)
}
