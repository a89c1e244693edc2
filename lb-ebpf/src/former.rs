//! Flow tables of a former size or layout, whose entries move to today's.

use crate::maps::{HALVES4, HALVES6};

/// Whether there are any. Set at load time: 0 lets the verifier remove what it guards.
#[unsafe(no_mangle)]
static RECALL: u8 = 0;

/// Where each half word of a flow stands in the former layout, in half words. Set at load time.
#[unsafe(no_mangle)]
pub(crate) static FORMER_PLACES4: [u16; HALVES4] = [NOWHERE; HALVES4];

/// As [`FORMER_PLACES4`].
#[unsafe(no_mangle)]
pub(crate) static FORMER_PLACES6: [u16; HALVES6] = [NOWHERE; HALVES6];

/// The place of what the former layout did not have.
const NOWHERE: u16 = u16::MAX;

#[inline(always)]
pub(crate) fn is_on() -> bool {
    // SAFETY: a static; volatile, because the loader writes it.
    unsafe { (&raw const RECALL).read_volatile() != 0 }
}

/// Writes the entry at `from` to `to` in today's layout.
///
/// # Safety
/// `from` is an entry of the former table, `to` has room for `N` half words.
#[inline(always)]
pub(crate) unsafe fn carry<const N: usize>(
    places: &'static [u16; N],
    from: *const u16,
    to: *mut u16,
) {
    for half in 0..N {
        // SAFETY: `half` is below N; volatile, because the loader writes the places. The verifier
        // sees each place as the constant it is, and checks it against the former table's values.
        unsafe {
            let place = (&raw const *places).cast::<u16>().add(half).read_volatile();
            let value = match place {
                NOWHERE => 0,
                place => from.add(place as usize).read(),
            };
            to.add(half).write(value);
        }
    }
}
