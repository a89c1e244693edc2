//! Whom a service lets in, and to which backend.

use core::cell::Cell;

use super::wire::tcp;
use super::{Budget, FamilyTables, Step, Tables, Verdict, Work, active, select};
use crate::abi::{
    Address, Admission, Affinity, AffinityKey, Bucket, Config, Drop, Rate, RateKey, Service,
    ServiceKey, SourceKey, admission_flag, backend_state, forwarding, no_backend, policy, source,
};

/// Has a key lie where the verifier allows the accesses of eight bytes by which it is written.
#[repr(align(8))]
struct Aligned<K>(K);

/// Decides whether the packet in [`Work`] may begin a connection, and leaves the slot of its backend
/// there. One that begins it on the tuple of one that there is goes on in [`super::slow`].
///
/// # Errors
/// The reason why the packet is dropped; the caller counts it.
#[inline(always)]
pub fn admit<A: Address, T: FamilyTables<A>>(tables: &T) -> Result<Step, Drop> {
    const PASS: Result<Step, Drop> = Ok(Step::Done(Verdict::Pass));
    let (Some(work), Some(config)) = (tables.work(), tables.config()) else {
        return PASS;
    };
    let packet = work.packet;
    let listen = ServiceKey::new(work.key.dst, work.key.dst_port, packet.protocol);
    let Some(service) = tables.service(&listen) else {
        return PASS;
    };
    // Only the first fragment opens anything.
    if packet.is_later_fragment() {
        return Err(Drop::FragmentUnknown);
    }
    if packet.has(tcp::RST) {
        return Err(Drop::ResetWithoutFlow);
    }
    work.forwarding = service.forwarding.into();
    let client = work.key.src;
    let admission = tables.admission(service.id);
    // Before anything that answers: who is not let in hears nothing.
    if let Some(admission) = admission
        && admission.flags & admission_flag::SOURCES != 0
        && !is_listed(tables, service.id, admission, client)
    {
        return Err(Drop::SourceDenied);
    }
    let repeats = packet.repeats();
    // Refused here already, while the client has nothing to lose. UDP needs no place in that table.
    if !(repeats | packet.is_udp())
        && let Some(last) = tables.last_full(A::IS_V6)
        && let full_at = last.get()
        && full_at != 0
    {
        if tables.now().wrapping_sub(full_at) < config.hz {
            tables.count_drop(Drop::FlowTableFull);
            return Ok(Step::Answer);
        }
        // Jiffies come round to where they were.
        last.set(0);
    }
    let mut affinity = 0;
    // What no host accepts begins nothing, and takes nothing of what others may have.
    if let Some(admission) = admission
        && !packet.has_invalid_flags()
    {
        let limit = admission.max_connections;
        let opens = limit != 0 && !packet.is_counted();
        if opens && active::open(tables, admission.counter) >= limit {
            return refuse(tables, service, Drop::ConnectionLimit);
        }
        if admission.source_rate.per_second != 0 {
            let Aligned(key) = &Aligned(RateKey::new(service.id, client));
            let full = Bucket::default();
            let bucket = tables.source_rate(key, &full);
            if bucket.is_some_and(|b| !takes(tables, config, b, admission.source_rate)) {
                return Err(Drop::SourceRateLimited);
            }
        }
        if admission.rate.per_second != 0 {
            let bucket = tables.rate(service.id);
            if bucket.is_some_and(|b| !takes(tables, config, b, admission.rate)) {
                return Err(Drop::RateLimited);
            }
        }
        affinity = admission.affinity;
    }
    if repeats {
        work.packet.let_in();
        return Ok(Step::Slow);
    }
    if affinity != 0 {
        let Aligned(key) = &Aligned(AffinityKey {
            client,
            service: service.id,
        });
        // Not more than a day, so this holds at 1000 jiffies a second.
        let lasts = affinity * config.hz;
        if let Some(slot) = kept(tables, service.id, key, lasts) {
            return begin(tables, config, service, work, slot, true);
        }
    }
    match select::choose(tables, service, &work.key, affinity != 0) {
        Ok(slot) => {
            if affinity != 0 {
                keep(tables, service.id, client, slot);
            }
            begin(tables, config, service, work, slot, affinity != 0)
        }
        Err(reason) => refuse(tables, service, reason),
    }
}

/// The packet goes to the backend in `slot`.
///
/// A SYN needs no entry where no answer comes by here that would have to be found, and where the
/// next packet draws the same backend: so a flood of them, whose sources are forged, costs no more
/// than a draw, and pushes out no entry of others.
#[inline(always)]
fn begin<A, T: Tables>(
    tables: &T,
    config: &Config,
    service: &Service,
    work: &mut Work<A>,
    slot: u32,
    has_affinity: bool,
) -> Result<Step, Drop> {
    // Not earlier: a host that does not listen resets these, one that does ignores them.
    if work.packet.has_invalid_flags() {
        return Err(Drop::InvalidFlags);
    }
    work.slot = slot;
    work.is_kept = 1;
    if service.forwarding == forwarding::NAT {
        return Ok(Step::Allocate);
    }
    if work.packet.has(tcp::SYN) && service.policy == policy::MAGLEV && !has_affinity {
        let second = tables.now().checked_div(config.hz).unwrap_or(0);
        if !tables.take(Budget::Entries, second, config.entries_per_second) {
            tables.count_drop(Drop::EntrySkipped);
            work.is_kept = 0;
        }
    }
    Ok(Step::Open)
}

/// What a client hears when no backend may have its connection.
#[inline(always)]
fn refuse<T: Tables>(tables: &T, service: &Service, reason: Drop) -> Result<Step, Drop> {
    if service.no_backend == no_backend::DROP {
        return Err(reason);
    }
    tables.count_drop(reason);
    Ok(Step::Answer)
}

/// Whether the source lists let the client in: the longest prefix that covers it decides.
#[inline(always)]
fn is_listed<A: Address, T: FamilyTables<A>>(
    tables: &T,
    service: u32,
    admission: &Admission,
    client: A,
) -> bool {
    let Aligned(key) = &Aligned(SourceKey::client(service, client));
    match tables.listed(key) {
        Some(value) => value == source::ALLOWED,
        None => admission.flags & admission_flag::LISTED_ONLY == 0,
    }
}

/// Seconds after which a bucket's word counts from a later time, so that neither half overflows.
const REBASE: u32 = 64;

/// Tokens that CPUs may take beyond the last one, by meeting there. A bucket that lacks more was drawn
/// from at a higher rate than it now has: it would take nobody for as long as that rate's tokens
/// last at this one, which may be hours.
const OVERDRAWN: u32 = 16;

/// Takes a token out of a bucket, if it has one. CPUs that meet at a bucket's last token may each
/// take it; what they took is counted, so fewer are let in afterwards and the rate holds.
#[inline(always)]
fn takes<T: Tables>(tables: &T, config: &Config, bucket: &Bucket, rate: Rate) -> bool {
    let (now, hz) = (tables.now(), config.hz);
    let word = bucket.0.get();
    let (full_at, taken) = ((word >> 32) as u32, word as u32);
    let elapsed = match now.wrapping_sub(full_at) {
        // Another CPU filled it a moment ago, with a later time than this one read.
        late if late > u32::MAX - hz => 0,
        elapsed => elapsed,
    };
    // What came in since, in tokens times `hz`; beyond the limit it counts for nothing more.
    let refilled = elapsed as u64 * rate.per_second as u64;
    let spent = taken as u64 * hz as u64;
    if word == 0 || refilled >= spent {
        bucket.0.set(Bucket::word(now, 1));
        return true;
    }
    let deficit = spent - refilled;
    let most = rate.burst as u64 * hz as u64;
    if deficit + hz as u64 > most {
        if deficit > most + (OVERDRAWN * hz) as u64 {
            bucket.0.set(Bucket::word(now, rate.burst));
        }
        return false;
    }
    if elapsed >= REBASE * hz {
        let whole = REBASE as u64 * rate.per_second as u64;
        let left = (taken as u64).saturating_sub(whole) as u32;
        let later = full_at.wrapping_add(REBASE * hz);
        bucket.0.set(Bucket::word(later, left));
    }
    tables.take_token(bucket);
    true
}

/// The slot that the client keeps, from now on for another while, if its time is not over and its
/// backend takes connections.
#[inline(always)]
fn kept<A: Address, T: FamilyTables<A>>(
    tables: &T,
    service: u32,
    key: &AffinityKey<A>,
    lasts: u32,
) -> Option<u32> {
    let kept = tables.affinity(key)?;
    let (slot, generation) = (kept.slot, kept.generation);
    // Before the clock: another CPU may write a later time meanwhile.
    let last = kept.last.get();
    let now = tables.now();
    if now.wrapping_sub(last) >= lasts {
        return None;
    }
    let backend = tables.backend(slot)?;
    let takes = backend.generation == generation
        && backend.state == backend_state::ACTIVE
        && backend.service == service
        && !select::is_at_limit(tables, slot, backend);
    if takes {
        kept.last.set(now);
    }
    takes.then_some(slot)
}

/// Notes whom the client has, from now on.
#[inline(always)]
fn keep<A: Address, T: FamilyTables<A>>(tables: &T, service: u32, client: A, slot: u32) {
    if let Some(backend) = tables.backend(slot) {
        let affinity = Affinity {
            slot,
            generation: backend.generation,
            last: Cell::new(tables.now()),
            reserved: 0,
        };
        let Aligned(key) = &Aligned(AffinityKey { client, service });
        tables.set_affinity(key, &affinity);
    }
}
