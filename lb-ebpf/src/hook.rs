//! What XDP and TC share: the order of the path's parts, and how their results cross subprograms.

use lb_common::{
    abi::Drop,
    path::{self, Family, FamilyTables, Frame, Step, Tables, Verdict},
};

use crate::kernel::{Context, Kernel};
use crate::log::{self, DROPPED};

/// A hook's context, as the path sees it, and what its results are to the kernel.
pub(crate) trait Hook: Frame + Sized {
    type Context: Context;

    /// Whether fragments can be put aside here; else they are left to the kernel, for the TC hook.
    const HOLDS: bool;

    /// The action that drops a packet.
    const SHOT: u32;

    fn new(context: *mut Self::Context) -> Self;

    /// The action for a verdict.
    fn act(self, verdict: Verdict) -> u32;
}

/// No actions of the kernel's: the next part of the path is to take the packet.
pub(crate) const SLOW: u32 = 0x10000;
pub(crate) const ADMIT: u32 = 0x10001;
pub(crate) const OPEN: u32 = 0x10002;
pub(crate) const ENCAPSULATE: u32 = 0x10003;
pub(crate) const ANSWER: u32 = 0x10004;
pub(crate) const ICMP: u32 = 0x10005;
pub(crate) const ODD: u32 = 0x10006;
pub(crate) const SEGMENT: u32 = 0x10007;
pub(crate) const HOLD: u32 = 0x10008;
pub(crate) const RELEASE: u32 = 0x10009;
pub(crate) const ALLOCATE: u32 = 0x1000a;
pub(crate) const RECALL: u32 = 0x1000b;

#[inline(always)]
fn finish<H: Hook>(context: *mut H::Context, result: Result<Verdict, Drop>) -> u32 {
    match result {
        Ok(verdict) => H::new(context).act(verdict),
        Err(reason) => {
            Kernel::new(context).count_drop(reason);
            if log::is_on() {
                return DROPPED + reason as u32;
            }
            H::SHOT
        }
    }
}

#[inline(always)]
fn step<H: Hook>(context: *mut H::Context, result: Result<Step, Drop>) -> u32 {
    match result {
        Ok(Step::Odd) => ODD,
        Ok(Step::Segment) => SEGMENT,
        Ok(Step::Hold) if H::HOLDS => HOLD,
        Ok(Step::Release) if H::HOLDS => RELEASE,
        Ok(Step::Hold | Step::Release) => finish::<H>(context, Ok(Verdict::Pass)),
        Ok(Step::Slow) => SLOW,
        Ok(Step::Recall) => RECALL,
        Ok(Step::Admit) => ADMIT,
        Ok(Step::Allocate) => ALLOCATE,
        Ok(Step::Open) => OPEN,
        Ok(Step::Encapsulate) => ENCAPSULATE,
        Ok(Step::Answer) => ANSWER,
        Ok(Step::Icmp) => ICMP,
        Ok(Step::Done(verdict)) => finish::<H>(context, Ok(verdict)),
        Err(reason) => finish::<H>(context, Err(reason)),
    }
}

#[inline(always)]
pub(crate) fn fast<H: Hook, A: Family>(context: *mut H::Context, network: usize) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    step::<H>(
        context,
        path::fast::<A, _, _>(&mut H::new(context), &kernel, network),
    )
}

#[inline(always)]
pub(crate) fn depart<H: Hook, A: Family>(context: *mut H::Context, network: usize) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    step::<H>(
        context,
        Ok(path::depart::<A, _, _>(
            &mut H::new(context),
            &kernel,
            network,
        )),
    )
}

#[inline(always)]
pub(crate) fn odd<H: Hook, A: Family>(context: *mut H::Context, network: usize) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    step::<H>(
        context,
        path::odd::<A, _, _>(&mut H::new(context), &kernel, network),
    )
}

#[inline(always)]
pub(crate) fn segment<H: Hook, A: Family>(context: *mut H::Context) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    step::<H>(
        context,
        path::segment::<A, _, _>(&mut H::new(context), &kernel),
    )
}

#[inline(always)]
pub(crate) fn slow<H: Hook, A: Family>(context: *mut H::Context) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    step::<H>(
        context,
        path::slow::<A, _, _>(&mut H::new(context), &kernel),
    )
}

/// Leaves the packet to the kernel.
#[inline(always)]
pub(crate) fn pass<H: Hook>(context: *mut H::Context) -> u32 {
    H::new(context).act(Verdict::Pass)
}

#[inline(always)]
pub(crate) fn recall<H: Hook, A: Family>() -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    // As for `admit`.
    let context = core::ptr::null_mut();
    let kernel = Kernel::new(context);
    step::<H>(context, Ok(path::recall::<A, _>(&kernel)))
}

#[inline(always)]
pub(crate) fn admit<H: Hook, A: Family>() -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    // It passes packets and drops them, for which no hook needs its context. An argument that is
    // not used would be left undefined, which the verifier refuses.
    let context = core::ptr::null_mut();
    let kernel = Kernel::new(context);
    step::<H>(context, path::admit::<A, _>(&kernel))
}

#[inline(always)]
pub(crate) fn allocate<H: Hook, A: Family>(context: *mut H::Context) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    step::<H>(context, path::allocate::<A, _>(&kernel))
}

#[inline(always)]
pub(crate) fn open<H: Hook, A: Family>(context: *mut H::Context) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    step::<H>(
        context,
        path::open::<A, _, _>(&mut H::new(context), &kernel),
    )
}

#[inline(always)]
pub(crate) fn encapsulate<H: Hook, A: Family>(context: *mut H::Context) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    finish::<H>(
        context,
        path::encapsulate::<A, _, _>(&mut H::new(context), &kernel),
    )
}

#[inline(always)]
pub(crate) fn answer<H: Hook, A: Family>(context: *mut H::Context) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    finish::<H>(
        context,
        path::answer::<A, _, _>(&mut H::new(context), &kernel),
    )
}

#[inline(always)]
pub(crate) fn icmp<H: Hook, A: Family>(context: *mut H::Context) -> u32
where
    Kernel<H::Context>: FamilyTables<A>,
{
    let kernel = Kernel::new(context);
    step::<H>(
        context,
        path::icmp::<A, _, _>(&mut H::new(context), &kernel),
    )
}

/// Tells of a drop that [`finish`] left to be told of.
#[inline(always)]
pub(crate) fn logged<H: Hook>(action: u32) -> u32 {
    // Not above: an action of the kernel's may be a negative number.
    if log::is_on() && action >= DROPPED && action < DROPPED + Drop::SLOTS {
        log::event(action - DROPPED);
        return H::SHOT;
    }
    action
}

/// Parts of the path as subprograms of the kernel's, each with a stack of its own. Only `fast` of
/// IPv4 lies in the programs themselves, because a call costs a third of a lookup.
macro_rules! subprograms {
    ($hook:ty: $($name:ident = $part:ident::<$family:ty>($($network:ident)?);)+
        @without context: $($bare:ident = $bare_part:ident::<$bare_family:ty>();)+) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(
            context: *mut <$hook as $crate::hook::Hook>::Context
            $(, $network: u32)?
        ) -> u32 {
            $crate::hook::$part::<$hook, $family>(context $(, $network as usize & $crate::hook::NETWORK)?)
        }
    )+
    $(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $bare() -> u32 {
            $crate::hook::$bare_part::<$hook, $bare_family>()
        }
    )+};
}

/// Covers every offset that [`path::network`] gives: the verifier believes no argument.
pub(crate) const NETWORK: usize = 0x1f;

/// Covers every offset of an extension header.
pub(crate) const OFFSETS: usize = 0x3ff;

/// One packet's way through the parts.
macro_rules! walk {
    (
        $hook:ty, $context:ident, $fast:expr,
        $odd:ident($network:expr), $segment:ident, $slow:ident, $recall:ident, $admit:ident,
        $allocate:ident,
        $open:ident, $encapsulate:ident, $answer:ident, $icmp:ident
        $(, $hold:ident, $release:ident)?
    ) => {{
        let mut action = $fast;
        if action == $crate::hook::ICMP {
            action = $icmp($context);
        }
        if action == $crate::hook::ODD {
            action = $odd($context, $network as u32);
        }
        if action == $crate::hook::SEGMENT {
            action = $segment($context);
        }
        $(
            if action == $crate::hook::HOLD {
                action = $hold($context);
            }
            if action == $crate::hook::RELEASE {
                action = $release($context);
            }
        )?
        if action == $crate::hook::SLOW {
            action = $slow($context);
            if action == $crate::hook::SLOW {
                action = $slow($context);
            }
        }
        if action == $crate::hook::RECALL {
            action = $recall();
            if action == $crate::hook::SLOW {
                action = $slow($context);
                if action == $crate::hook::RECALL {
                    action = $crate::hook::pass::<$hook>($context);
                }
            }
        }
        if action == $crate::hook::ADMIT {
            action = $admit();
        }
        if action == $crate::hook::ALLOCATE {
            action = $allocate($context);
        }
        if action == $crate::hook::OPEN {
            action = $open($context);
        }
        // Behind another CPU's packet of the same connection, which is known now; or the connection
        // was known all the time.
        if action == $crate::hook::SLOW {
            action = $slow($context);
            if action == $crate::hook::SLOW
                || action == $crate::hook::RECALL
                || action == $crate::hook::ADMIT
            {
                action = $crate::hook::pass::<$hook>($context);
            }
        }
        if action == $crate::hook::ENCAPSULATE {
            action = $encapsulate($context);
        }
        if action == $crate::hook::ANSWER {
            $crate::log::event($crate::log::ANSWERED);
            action = $answer($context);
        }
        $crate::hook::logged::<$hook>(action)
    }};
}

pub(crate) use {subprograms, walk};
