//! [`Tables`] over the kernel's maps and helpers.

use core::{arch::asm, cell::Cell, ffi::c_void};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_ANY, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
        BPF_NOEXIST, bpf_fib_lookup, bpf_redir_neigh, bpf_sock_tuple, xdp_md,
    },
    helpers::{
        bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skc_lookup_tcp,
    },
};
use lb_common::{
    abi::{
        Active, Address, Admission, Affinity, AffinityKey, Backend, Bucket, Config, Drop, Flow,
        FlowKey, FragmentKey, Fragmented, Held, HeldKey, NO_SLOT, NextHop, RateKey, Service,
        ServiceKey, SourceKey, TABLE_LANES, V4, V6, link, protocol, source_slot,
    },
    path::{
        self, Attempt, Budget, Candidate, FamilyTables, InsertError, Milestone, Query, Recalled,
        Route, Tables, Work,
    },
};

use crate::{former, maps};

/// `AF_INET` and `AF_INET6` of `<linux/socket.h>`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const EEXIST: i32 = -17;

/// The first two bytes in memory of a word.
const FIRST_HALF: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);

/// `BPF_F_CURRENT_NETNS`.
const THIS_NAMESPACE: u64 = u64::MAX;

/// A hook's context. Subprograms that need one exist for each hook.
pub(crate) trait Context: Sized {
    /// [`path::take_source`]: an [`Attempt`] by number; `candidate` is a [`Candidate::word`].
    fn take_source4(context: *mut Self, candidate: u64) -> u32;

    /// As [`Self::take_source4`].
    fn take_source6(context: *mut Self, candidate: u64) -> u32;
}

/// The kernel's maps, and the context that routing and sockets ask for.
pub(crate) struct Kernel<C> {
    context: *mut C,
}

impl<C> Kernel<C> {
    #[inline(always)]
    pub(crate) fn new(context: *mut C) -> Self {
        Self { context }
    }

    /// Whether a TCP or UDP socket of this network namespace, listening or connected, would get
    /// packets of this tuple.
    #[inline(always)]
    fn has_socket<A: Address>(&self, key: &FlowKey<A>) -> bool {
        // Addresses and ports lie in a key as in `struct bpf_sock_tuple`; the protocol is behind.
        let tuple = (&raw const *key).cast_mut().cast::<bpf_sock_tuple>();
        let size = size_of::<FlowKey<A>>() as u32 - size_of::<u32>() as u32;
        // SAFETY: the context is the kernel's, and the tuple is whole.
        let socket = unsafe {
            match key.protocol() {
                protocol::UDP => {
                    bpf_sk_lookup_udp(self.context.cast(), tuple, size, THIS_NAMESPACE, 0)
                }
                _ => bpf_skc_lookup_tcp(self.context.cast(), tuple, size, THIS_NAMESPACE, 0),
            }
        };
        if socket.is_null() {
            return false;
        }
        // SAFETY: it was just lent to us.
        unsafe { bpf_sk_release(socket.cast()) };
        true
    }
}

impl<C> Tables for Kernel<C> {
    type Table = maps::SelectionTable;

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        maps::CONFIG.get(0)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn recalls(&self) -> bool {
        former::is_on()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn port_word(&self, index: u32) -> u64 {
        maps::PORTS.get(index).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<&Backend> {
        maps::BACKENDS.get(slot)
    }

    #[inline(always)]
    fn table(&self, table: u32) -> Option<&Self::Table> {
        maps::TABLES.get(table)
    }

    #[inline(always)]
    fn table_entry(&self, table: &Self::Table, index: u32) -> Option<u32> {
        let chunk = table.get(index / TABLE_LANES)?;
        chunk.get((index % TABLE_LANES) as usize).copied()
    }

    #[inline(always)]
    fn draw(&self, table: u32, service: u32, place: u32) -> Result<u32, Drop> {
        match draw(table, service, place) {
            NO_SLOT => Err(Drop::NoBackend),
            AT_LIMIT => Err(Drop::ConnectionLimit),
            slot => Ok(slot),
        }
    }

    #[inline(always)]
    fn admission(&self, service: u32) -> Option<&Admission> {
        maps::ADMISSION.get(service)
    }

    #[inline(always)]
    fn rate(&self, service: u32) -> Option<&Bucket> {
        maps::RATES.get(service)
    }

    #[inline(always)]
    fn source_rate(&self, key: &RateKey, full: &Bucket) -> Option<&Bucket> {
        let map = &maps::SOURCE_RATES;
        // SAFETY: preallocated, and its words are cells; in a recycled entry at worst a token of
        // another client is taken.
        if let Some(bucket) = unsafe { map.get(key) } {
            return Some(bucket);
        }
        // Another CPU may be first: then its bucket is the client's.
        let _ = map.insert(key, full, BPF_NOEXIST as u64);
        // SAFETY: as above.
        unsafe { map.get(key) }
    }

    #[inline(always)]
    fn take_token(&self, bucket: &Bucket) {
        // SAFETY: the cell is an aligned word of a map's value. This form of the instruction, which
        // gives nothing back, is older than 5.10.
        unsafe {
            asm!(
                "lock *(u64 *)({word} + 0) += {one}",
                word = in(reg) bucket.0.as_ptr(),
                one = in(reg) 1_u64,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    fn active(&self, index: u32) -> Option<&Active> {
        maps::ACTIVE.get(index)
    }

    #[inline(always)]
    fn counted(&self, index: u32) -> u32 {
        maps::COUNTED.get(index).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn add(&self, count: &Cell<u32>) {
        // SAFETY: as in `take_token`.
        unsafe {
            asm!(
                "lock *(u32 *)({word} + 0) += {one}",
                word = in(reg) count.as_ptr(),
                one = in(reg) 1_u64,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    fn count_active(&self, slot: u32, generation: u32, before: u32, after: u32) {
        count_active(slot, generation, before, after);
    }

    #[inline(always)]
    fn last_full(&self, v6: bool) -> Option<&Cell<u32>> {
        maps::FULL.get(v6.into())
    }

    #[inline(always)]
    fn cursor(&self, service: u32) -> u32 {
        let Some(cursor) = maps::CURSORS.get_ptr_mut(service) else {
            return 0;
        };
        // SAFETY: a per-CPU element, and programs are not preempted by themselves on a CPU.
        unsafe {
            let place = *cursor;
            *cursor = place.wrapping_add(1);
            place
        }
    }

    #[inline(always)]
    fn count_packet(&self, slot: u32, reverse: bool, bytes: u64) {
        let Some(counters) = maps::COUNTERS.get_ptr_mut(slot) else {
            return;
        };
        // SAFETY: as in `cursor`.
        unsafe {
            if reverse {
                (*counters).packets_out += 1;
                (*counters).bytes_out += bytes;
            } else {
                (*counters).packets_in += 1;
                (*counters).bytes_in += bytes;
            }
        }
    }

    #[inline(always)]
    fn count_connection(&self, slot: u32, milestone: Milestone) {
        let Some(counters) = maps::COUNTERS.get_ptr_mut(slot) else {
            return;
        };
        // SAFETY: as in `cursor`.
        unsafe {
            match milestone {
                Milestone::Begun => (*counters).connections += 1,
                Milestone::Established => (*counters).established += 1,
                Milestone::Refused => (*counters).refused += 1,
            }
        }
    }

    #[inline(always)]
    fn count_drop(&self, reason: Drop) {
        if let Some(count) = maps::DROPS.get_ptr_mut(reason as u32) {
            // SAFETY: as in `cursor`.
            unsafe { *count += 1 };
        }
    }

    #[inline(always)]
    fn take(&self, budget: Budget, period: u32, limit: u32) -> bool {
        let Some(given) = maps::BUDGETS.get_ptr_mut(budget as u32) else {
            return false;
        };
        // SAFETY: as in `cursor`.
        unsafe {
            if (*given)[0] != period {
                *given = [period, 0];
            }
            if (*given)[1] >= limit {
                return false;
            }
            (*given)[1] += 1;
        }
        true
    }

    #[inline(always)]
    fn route(&self, ingress: u32, query: &Query, hop: &mut NextHop) -> Route {
        lookup(self.context.cast(), ingress, query, hop)
    }
}

/// What is known of the way to the next hop that `fib` answers `query` with.
#[inline(always)]
fn link_word(fib: &bpf_fib_lookup, query: &Query) -> u32 {
    let device = maps::DEVICES.get_ptr(&fib.ifindex);
    // SAFETY: the entry of a preallocated map is never unmapped; at worst a stale word is read.
    let device = device.map_or(link::MTU, |word| unsafe { *word });
    // SAFETY: both variants of the union are a plain number.
    let told = unsafe { fib.__bindgen_anon_1.mtu_result } as u32;
    let device_mtu = device & link::MTU;
    // What was asked is what comes back where the kernel does not tell (before Linux 5.12, and
    // without the neighbour's address).
    let mtu = if told > ASKED_LENGTH as u32 && told < device_mtu {
        told
    } else {
        device_mtu
    };
    // SAFETY: the family says which variant was filled in, and the other words of it are zero.
    let hop = unsafe { fib.__bindgen_anon_4.ipv6_dst };
    let [a, b, c, d] = query.dst;
    let is_same =
        fib.family == family(query) && hop[0] == a && hop[1] == b && hop[2] == c && hop[3] == d;
    let gateway = if is_same { 0 } else { link::GATEWAY };
    (device & !link::MTU) | mtu | gateway
}

#[inline(always)]
const fn family(query: &Query) -> u8 {
    if query.v6 != 0 { AF_INET6 } else { AF_INET }
}

/// The MACs of a frame to the next hop.
#[inline(always)]
fn macs(fib: &bpf_fib_lookup) -> [u32; 3] {
    // SAFETY: the kernel filled in this variant of the union, whose MACs lie at even addresses.
    // Volatile, or LLVM may join the halves to words that a verifier which is strict about
    // alignment refuses.
    let half = |mac: &[u8; 6], index: usize| unsafe {
        mac.as_ptr().cast::<u16>().add(index).read_volatile() as u32
    };
    // SAFETY: as above.
    let (dst, src) = unsafe {
        let macs = &fib.__bindgen_anon_6.__bindgen_anon_2;
        (&macs.dmac, &macs.smac)
    };
    let word = |first: u32, second: u32| match cfg!(target_endian = "little") {
        true => first | second << 16,
        false => first << 16 | second,
    };
    [
        word(half(dst, 0), half(dst, 1)),
        word(half(dst, 2), half(src, 0)),
        word(half(src, 1), half(src, 2)),
    ]
}

/// Length of the packet that the routing table is asked about: any but 0, for which TC does not
/// tell the route's MTU (`bpf_skb_fib_lookup` in the kernel's net/core/filter.c), and fits all.
const ASKED_LENGTH: u16 = 1;

/// Asks the routing table.
#[inline(always)]
fn lookup(context: *mut c_void, ingress: u32, query: &Query, hop: &mut NextHop) -> Route {
    *hop = NextHop::default();
    // Off the stack, where 64 bytes are too many.
    let Some(lookup) = maps::FIB.get_ptr_mut(0) else {
        return Route::Stack;
    };
    // SAFETY: a per-CPU element, a plain C struct of integers.
    let maps::Lookup { fib, neighbour } = unsafe { &mut *lookup };
    *fib = unsafe { core::mem::zeroed() };
    fib.family = family(query);
    fib.l4_protocol = query.protocol as u8;
    fib.sport = query.ports[0].0;
    fib.dport = query.ports[1].0;
    fib.__bindgen_anon_1.tot_len = ASKED_LENGTH;
    fib.ifindex = ingress;
    // An IPv4 address is the first word of the same union.
    fib.__bindgen_anon_3.ipv6_src = query.src;
    fib.__bindgen_anon_4.ipv6_dst = query.dst;
    // SAFETY: `fib` is a whole parameter block and the length is its own.
    let answer = unsafe { fib_lookup(context, fib, size_of::<bpf_fib_lookup>() as i32, 0) };
    // Where forwarding is off, in tunnels and for local addresses, the stack knows what to do.
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            hop.ifindex = fib.ifindex;
            hop.link = link_word(fib, query);
            hop.macs = macs(fib);
            // Before Linux 6.3 a neighbour counts while it is still being asked for its address.
            if hop.macs[0] | (hop.macs[1] & FIRST_HALF) == 0 {
                note_neighbour(fib, neighbour);
                return Route::Unresolved;
            }
            Route::Neighbour
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            hop.ifindex = fib.ifindex;
            hop.link = link_word(fib, query);
            note_neighbour(fib, neighbour);
            Route::Unresolved
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            Route::Refused
        }
        _ => Route::Stack,
    }
}

macro_rules! family_tables {
    ($family:ty, $services:ident, $flows:ident, $handshakes:ident, $sources:ident, $affinity:ident, $fragments:ident, $held:ident, $work:ident, $take_source:ident, $former_flows:ident, $former_handshakes:ident, $places:ident, $recalled:ident, $recall:ident, $is_whole:ident, $has_place:ident, $forget:ident) => {
        impl<C: Context> FamilyTables<$family> for Kernel<C> {
            #[inline(always)]
            fn service(&self, key: &ServiceKey<$family>) -> Option<&Service> {
                // SAFETY: preallocated; the daemon replaces values whole and rarely.
                unsafe { maps::$services.get(key) }
            }

            #[inline(always)]
            fn flow(&self, key: &FlowKey<$family>) -> Option<&Flow<$family>> {
                // SAFETY: preallocated; fields that change are cells, and a recycled entry's
                // generation and slot are checked against the backend.
                unsafe { maps::$flows.get(key) }
            }

            #[inline(always)]
            fn insert_flow(
                &self,
                key: &FlowKey<$family>,
                flow: &Flow<$family>,
            ) -> Result<(), InsertError> {
                match maps::$flows.insert(key, flow, BPF_NOEXIST as u64) {
                    Ok(()) => Ok(()),
                    Err(EEXIST) => Err(InsertError::Exists),
                    Err(_) => Err(InsertError::Full),
                }
            }

            #[inline(always)]
            fn remove_flow(&self, key: &FlowKey<$family>) {
                // Not there is as good as removed.
                let _ = maps::$flows.remove(key);
            }

            #[inline(always)]
            fn handshake(&self, key: &FlowKey<$family>) -> Option<&Flow<$family>> {
                // SAFETY: as in `flow`.
                unsafe { maps::$handshakes.get(key) }
            }

            #[inline(always)]
            fn insert_handshake(
                &self,
                key: &FlowKey<$family>,
                flow: &Flow<$family>,
                overwrite: bool,
            ) -> Result<(), InsertError> {
                let flags = if overwrite { BPF_ANY } else { BPF_NOEXIST };
                match maps::$handshakes.insert(key, flow, flags as u64) {
                    Ok(()) => Ok(()),
                    Err(EEXIST) => Err(InsertError::Exists),
                    Err(_) => Err(InsertError::Full),
                }
            }

            #[inline(always)]
            fn remove_handshake(&self, key: &FlowKey<$family>) -> bool {
                maps::$handshakes.remove(key).is_ok()
            }

            #[inline(always)]
            fn recall(&self, key: &FlowKey<$family>) -> bool {
                let Some(recalled) = self.recalled() else {
                    return false;
                };
                recalled.key = *key;
                $recall() != 0
            }

            #[inline(always)]
            fn recalled(&self) -> Option<&mut Recalled<$family>> {
                let recalled = maps::$recalled.get_ptr_mut(0);
                // SAFETY: as in `work`.
                recalled.map(|recalled| unsafe { &mut *recalled })
            }

            #[inline(always)]
            fn former_flow(&self, key: &FlowKey<$family>, flow: &mut Flow<$family>) -> bool {
                let Some(former) = maps::$former_flows.get_ptr(key) else {
                    return false;
                };
                // SAFETY: an entry, and a flow has as many halves as there are places.
                unsafe {
                    former::carry(&former::$places, former.cast(), (&raw mut *flow).cast());
                }
                true
            }

            #[inline(always)]
            fn remove_former_flow(&self, key: &FlowKey<$family>) {
                // Not there is as good as removed.
                let _ = maps::$former_flows.remove(key);
            }

            #[inline(always)]
            fn former_handshake(&self, key: &FlowKey<$family>, flow: &mut Flow<$family>) -> bool {
                let Some(former) = maps::$former_handshakes.get_ptr(key) else {
                    return false;
                };
                // SAFETY: as in `former_flow`.
                unsafe {
                    former::carry(&former::$places, former.cast(), (&raw mut *flow).cast());
                }
                true
            }

            #[inline(always)]
            fn remove_former_handshake(&self, key: &FlowKey<$family>) {
                // Not there is as good as removed.
                let _ = maps::$former_handshakes.remove(key);
            }

            #[inline(always)]
            fn listed(&self, key: &SourceKey<$family>) -> Option<u32> {
                // SAFETY: the same bytes under another name, whose alignment is less.
                maps::$sources
                    .get(unsafe { &*(&raw const *key).cast() })
                    .copied()
            }

            #[inline(always)]
            fn affinity(&self, key: &AffinityKey<$family>) -> Option<&Affinity> {
                // SAFETY: preallocated; a recycled entry names a backend that is checked.
                unsafe { maps::$affinity.get(key) }
            }

            #[inline(always)]
            fn set_affinity(&self, key: &AffinityKey<$family>, affinity: &Affinity) {
                // Without room the client is drawn anew.
                let _ = maps::$affinity.insert(key, affinity, BPF_ANY as u64);
            }

            #[inline(always)]
            fn fragmented(&self, key: &FragmentKey<$family>) -> Option<&Fragmented> {
                // SAFETY: preallocated; an entry that is replaced meanwhile costs one fragment.
                unsafe { maps::$fragments.get(key) }
            }

            #[inline(always)]
            fn insert_fragmented(&self, key: &FragmentKey<$family>, value: &Fragmented) {
                // Without the entry later fragments wait in vain and are counted.
                let _ = maps::$fragments.insert(key, value, BPF_ANY as u64);
            }

            #[inline(always)]
            fn held(&self, key: &HeldKey<$family>) -> Option<&Held> {
                // SAFETY: as in `fragmented`.
                unsafe { maps::$held.get(key) }
            }

            #[inline(always)]
            fn is_whole(&self, key: &FlowKey<$family>) -> bool {
                let Some(recalled) = self.recalled() else {
                    return true;
                };
                recalled.key = *key;
                $is_whole() != 0
            }

            #[inline(always)]
            fn has_place(&self, protocol: u8) -> bool {
                $has_place(protocol.into()) != 0
            }

            #[inline(always)]
            fn forget(&self) {
                $forget();
            }

            #[inline(always)]
            fn take_source(&self, candidate: Candidate) -> Attempt {
                match C::$take_source(self.context, candidate.word()) {
                    ENTERED => Attempt::Entered,
                    TAKEN => Attempt::Taken,
                    _ => Attempt::Full,
                }
            }

            #[inline(always)]
            fn source(&self, number: u32) -> Option<$family> {
                let words = maps::SOURCES.get(source_slot(<$family>::IS_V6, number))?;
                let address = <$family>::from_words(words);
                (!address.is_unspecified()).then_some(address)
            }

            #[inline(always)]
            fn has_socket(&self, key: &FlowKey<$family>) -> bool {
                Kernel::has_socket(self, key)
            }

            #[inline(always)]
            fn work(&self) -> Option<&mut Work<$family>> {
                // SAFETY: a per-CPU element, lent to one borrower at a time by contract.
                maps::$work.get_ptr_mut(0).map(|work| unsafe { &mut *work })
            }
        }
    };
}

family_tables!(
    V4,
    SERVICES4,
    FLOWS4,
    HANDSHAKES4,
    SOURCE_LISTS4,
    AFFINITY4,
    FRAGMENTS4,
    HELD4,
    WORK4,
    take_source4,
    FORMER_FLOWS4,
    FORMER_HANDSHAKES4,
    FORMER_PLACES4,
    RECALLED4,
    recall4,
    is_whole4,
    has_place4,
    forget4
);
family_tables!(
    V6,
    SERVICES6,
    FLOWS6,
    HANDSHAKES6,
    SOURCE_LISTS6,
    AFFINITY6,
    FRAGMENTS6,
    HELD6,
    WORK6,
    take_source6,
    FORMER_FLOWS6,
    FORMER_HANDSHAKES6,
    FORMER_PLACES6,
    RECALLED6,
    recall6,
    is_whole6,
    has_place6,
    forget6
);

const TAKEN: u32 = Attempt::Taken as u32;
const ENTERED: u32 = Attempt::Entered as u32;

/// Keeps the next hop's address for who sends the packet: the packet's own destination may be
/// another one.
#[inline(always)]
fn note_neighbour(fib: &bpf_fib_lookup, neighbour: &mut bpf_redir_neigh) {
    neighbour.nh_family = fib.family as u32;
    // SAFETY: the family says which variant was filled in, and the other words of it are zero.
    neighbour.__bindgen_anon_1.ipv6_nh = unsafe { fib.__bindgen_anon_4.ipv6_dst };
}
/// [`path::draw`]'s [`Drop::ConnectionLimit`]; no slot has that number.
const AT_LIMIT: u32 = NO_SLOT - 1;

/// [`path::draw`], [`NO_SLOT`] for none. Subprograms that touch no packet serve all hooks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn draw(table: u32, service: u32, place: u32) -> u32 {
    let kernel = Kernel::new(core::ptr::null_mut::<xdp_md>());
    match path::draw(&kernel, table, service, place) {
        Ok(slot) => slot,
        Err(Drop::ConnectionLimit) => AT_LIMIT,
        Err(_) => NO_SLOT,
    }
}

/// [`path::bring`]; the key stands in `RECALLED4`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn recall4() -> u32 {
    let kernel = Kernel::new(core::ptr::null_mut::<xdp_md>());
    (former::is_on() && path::bring::<V4, _>(&kernel)) as u32
}

/// As [`recall4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn recall6() -> u32 {
    let kernel = Kernel::new(core::ptr::null_mut::<xdp_md>());
    (former::is_on() && path::bring::<V6, _>(&kernel)) as u32
}

/// [`path::is_whole`]; the key stands in `RECALLED4`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_whole4() -> u32 {
    let kernel = Kernel::new(core::ptr::null_mut::<xdp_md>());
    path::is_whole::<V4, _>(&kernel) as u32
}

/// As [`is_whole4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_whole6() -> u32 {
    let kernel = Kernel::new(core::ptr::null_mut::<xdp_md>());
    path::is_whole::<V6, _>(&kernel) as u32
}

/// [`path::forget`]; the connection's tuples stand in `WORK4`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget4() -> u32 {
    path::forget::<V4, _>(&Kernel::new(core::ptr::null_mut::<xdp_md>()));
    0
}

/// As [`forget4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget6() -> u32 {
    path::forget::<V6, _>(&Kernel::new(core::ptr::null_mut::<xdp_md>()));
    0
}

/// [`path::count_active`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_active(slot: u32, generation: u32, before: u32, after: u32) -> u32 {
    let kernel = Kernel::new(core::ptr::null_mut::<xdp_md>());
    path::count_active(&kernel, slot, generation, before, after);
    0
}

/// [`path::has_place`]; the connection's tuples stand in `WORK4`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn has_place4(protocol: u32) -> u32 {
    path::has_place::<V4, _>(
        &Kernel::new(core::ptr::null_mut::<xdp_md>()),
        protocol as u8,
    ) as u32
}

/// As [`has_place4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn has_place6(protocol: u32) -> u32 {
    path::has_place::<V6, _>(
        &Kernel::new(core::ptr::null_mut::<xdp_md>()),
        protocol as u8,
    ) as u32
}

macro_rules! context {
    ($context:ty: $take_source4:ident, $take_source6:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $take_source4(context: *mut $context, candidate: u64) -> u32 {
            let candidate = Candidate::from_word(candidate);
            path::take_source::<V4, _>(&Kernel::new(context), candidate) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $take_source6(context: *mut $context, candidate: u64) -> u32 {
            let candidate = Candidate::from_word(candidate);
            path::take_source::<V6, _>(&Kernel::new(context), candidate) as u32
        }

        impl Context for $context {
            #[inline(always)]
            fn take_source4(context: *mut Self, candidate: u64) -> u32 {
                $take_source4(context, candidate)
            }

            #[inline(always)]
            fn take_source6(context: *mut Self, candidate: u64) -> u32 {
                $take_source6(context, candidate)
            }
        }
    };
}

context!(xdp_md: xdp_take_source4, xdp_take_source6);
context!(__sk_buff: tc_take_source4, tc_take_source6);
