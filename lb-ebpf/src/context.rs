//! Reads of the packet's bounds from the hook's context.

use core::arch::asm;

/// Reads the 32-bit context field at byte `OFFSET` into a whole register. The verifier turns the
/// load into a pointer; LLVM, left to itself, sometimes widens the value by shifts, which no
/// pointer may undergo.
///
/// # Safety
/// `context` is the context of a running program and has a 32-bit field at `OFFSET`.
#[inline(always)]
pub(crate) unsafe fn bound<const OFFSET: usize, T>(context: *const T) -> usize {
    let value: u64;
    // SAFETY: the caller vouches for the field.
    unsafe {
        asm!(
            "{value} = *(u32 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    value as usize
}
