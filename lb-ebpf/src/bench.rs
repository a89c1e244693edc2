//! Measures a program by `BPF_PROG_TEST_RUN` with repeat. The kernel does not restore a packet
//! between the runs, so the program under test is tail-called from a subprogram of a wrapper that
//! writes the packet's headers afresh each time and checks the verdict of every run.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod context;

use core::hint::black_box;
use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, TC_ACT_OK, TC_ACT_UNSPEC, xdp_action::XDP_PASS, xdp_md},
    btf_maps::{Array, HashMap, LpmTrie, ProgramArray, lpm_trie::Key},
    helpers::bpf_xdp_adjust_head,
    macros::btf_map,
};
use context::bound;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Headers that are restored; packets are longer than this.
const HEADERS: usize = 96;

/// Where the varied word of a packet's source address is.
const SOURCE: usize = 26;

/// What one measurement does, and what it found. Writers: the benchmark before, the wrapper during.
#[repr(C)]
#[derive(Clone, Copy)]
struct Bench {
    headers: [u64; HEADERS / 8],
    /// Runs so far.
    run: u32,
    /// Verdict that every run must give.
    expected: u32,
    /// Runs that gave another one.
    wrong: u32,
    /// The last wrong verdict.
    verdict: u32,
    /// Which field makes each run's packet another flow: 0 none, 1 source port, 2 source address.
    vary: u32,
    /// Mask of the number of flows less one, for `vary` 1.
    mask: u32,
    /// IPv6 headers are laid out otherwise.
    v6: u32,
    reserved: u32,
}

#[btf_map]
static BENCH: Array<Bench, 1> = Array::new();

#[btf_map]
static XDP_UNDER_TEST: ProgramArray<1> = ProgramArray::new();

#[btf_map]
static TC_UNDER_TEST: ProgramArray<1> = ProgramArray::new();

/// One lookup in this is the unit of the budgets.
#[btf_map]
static UNIT: HashMap<[u32; 4], [u32; 16], 262144> = HashMap::new();

/// Laid out as the path's source lists: service, then address.
#[btf_map]
static PREFIXES4: LpmTrie<[u32; 2], u32, 65536> = LpmTrie::new();

#[btf_map]
static PREFIXES6: LpmTrie<[u32; 5], u32, 65536> = LpmTrie::new();

/// Writes the headers of run number `bench.run` at `data`, which has room for them.
#[inline(always)]
unsafe fn restore(bench: &mut Bench, data: *mut u8) {
    let run = bench.run;
    bench.run = run.wrapping_add(1);
    // SAFETY: the caller checked the bounds; packets may be written at any alignment.
    unsafe {
        data.cast::<[u64; HEADERS / 8]>()
            .write_unaligned(bench.headers);
        // An odd factor visits every flow, in an order that no prefetcher guesses.
        let flow = run.wrapping_mul(0x9e37_79b1);
        match (bench.vary, bench.v6) {
            (1, 0) => data
                .add(34)
                .cast::<u16>()
                .write_unaligned((flow & bench.mask) as u16),
            (1, _) => data
                .add(54)
                .cast::<u16>()
                .write_unaligned((flow & bench.mask) as u16),
            // The IPv4 source, or the second word of the IPv6 one: what prefixes tell apart.
            (2, _) => data.add(SOURCE).cast::<u32>().write_unaligned(flow),
            _ => {}
        }
    }
}

#[inline(always)]
fn check(bench: &mut Bench, verdict: u32) {
    if verdict != bench.expected {
        bench.wrong = bench.wrong.wrapping_add(1);
        bench.verdict = verdict;
    }
}

struct Context(*mut core::ffi::c_void);

impl EbpfContext for Context {
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.0
    }
}

macro_rules! wrapper {
    ($wrapper:ident, $call:ident, $under_test:ident, $context:ty, $section:literal, $pass:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $call(context: *mut $context) -> u32 {
            // SAFETY: the map holds programs of this type; failing falls through.
            let _ = unsafe { $under_test.tail_call(&Context(context.cast()), 0) };
            // Hidden from LLVM, which would take the only visible result for the verdict.
            core::hint::black_box(u32::MAX)
        }

        #[unsafe(no_mangle)]
        #[unsafe(link_section = $section)]
        extern "C" fn $wrapper(context: *mut $context) -> u32 {
            let Some(bench) = BENCH.get_ptr_mut(0) else {
                return $pass;
            };
            // SAFETY: the context is the kernel's; bounds are checked before the write; the
            // element is this run's alone.
            unsafe {
                let data = bound::<{ offset_of!($context, data) }, _>(context);
                if data + HEADERS > bound::<{ offset_of!($context, data_end) }, _>(context) {
                    return $pass;
                }
                restore(&mut *bench, data as *mut u8);
            }
            let verdict = $call(context);
            // SAFETY: as above.
            unsafe { check(&mut *bench, verdict) };
            $pass
        }
    };
}

wrapper!(bench_xdp, call_xdp, XDP_UNDER_TEST, xdp_md, "xdp", XDP_PASS);

/// As `bench_xdp`, for a program that puts a header in front of the packet: takes it off again,
/// which is part of what is measured.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn bench_tunnel(context: *mut xdp_md) -> u32 {
    let Some(bench) = BENCH.get_ptr_mut(0) else {
        return XDP_PASS;
    };
    let length = || {
        // SAFETY: the context is the kernel's.
        let length = unsafe {
            bound::<{ offset_of!(xdp_md, data_end) }, _>(context)
                - bound::<{ offset_of!(xdp_md, data) }, _>(context)
        };
        // Or two of these are computed with at once, in 32 bits, which no pointer may undergo.
        black_box(length)
    };
    // SAFETY: as in `wrapper`.
    unsafe {
        let data = bound::<{ offset_of!(xdp_md, data) }, _>(context);
        if data + HEADERS > bound::<{ offset_of!(xdp_md, data_end) }, _>(context) {
            return XDP_PASS;
        }
        restore(&mut *bench, data as *mut u8);
    }
    let before = length();
    let verdict = call_xdp(context);
    let grown = length() - before;
    // SAFETY: the context is the kernel's; the element is this run's alone.
    unsafe {
        bpf_xdp_adjust_head(context, grown as i32);
        check(&mut *bench, verdict);
    }
    XDP_PASS
}
wrapper!(
    bench_tc,
    call_tc,
    TC_UNDER_TEST,
    __sk_buff,
    "classifier",
    TC_ACT_OK as u32
);

/// The floor.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn empty_xdp(_: *mut xdp_md) -> u32 {
    XDP_PASS
}

/// The floor.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn empty_tc(_: *mut __sk_buff) -> i32 {
    TC_ACT_UNSPEC
}

/// The unit: the floor and one lookup that hits.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn unit_xdp(context: *mut xdp_md) -> u32 {
    // SAFETY: the context is the kernel's.
    let key = [1, 2, unsafe { (*context).rx_queue_index } & 0, 3];
    // SAFETY: only whether it is there matters.
    match unsafe { UNIT.get(&key) } {
        Some(_) => XDP_PASS,
        None => u32::MAX,
    }
}

/// The floor and one lookup among many: what memory alone costs when the entries are not in the
/// processor's nearest caches. The wrapper's source port says which entry.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn many_xdp(context: *mut xdp_md) -> u32 {
    const PORT: usize = 34;
    // SAFETY: the context is the kernel's; the bounds are checked before the read.
    let port = unsafe {
        let data = bound::<{ offset_of!(xdp_md, data) }, _>(context);
        if data + PORT + size_of::<u16>() > bound::<{ offset_of!(xdp_md, data_end) }, _>(context) {
            return u32::MAX;
        }
        ((data + PORT) as *const u16).read_unaligned()
    };
    // SAFETY: nobody writes the entries; the value's first word is never that large.
    match unsafe { UNIT.get(&[1, 2, port as u32, 3]) } {
        Some(value) if value[0] != u32::MAX => XDP_PASS,
        _ => u32::MAX,
    }
}

/// The floor and one lookup of a random client among many prefixes, whatever comes of it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn prefix_xdp(context: *mut xdp_md) -> u32 {
    // SAFETY: the context is the kernel's; the bounds are checked before the reads.
    let (kind, words) = unsafe {
        let data = bound::<{ offset_of!(xdp_md, data) }, _>(context);
        if data + HEADERS > bound::<{ offset_of!(xdp_md, data_end) }, _>(context) {
            return u32::MAX;
        }
        let word = |at: usize| ((data + at) as *const u32).read_unaligned();
        let words = [SOURCE - 4, SOURCE, SOURCE + 4, SOURCE + 8].map(word);
        (((data + 14) as *const u8).read(), words)
    };
    let [a, b, c, d] = words;
    let found = match kind >> 4 {
        4 => PREFIXES4.get(&Key::new(64, [0, b])),
        _ => PREFIXES6.get(&Key::new(160, [0, a, b, c, d])),
    };
    // Only so that the lookup is not left out: no value is that large.
    match found {
        Some(&u32::MAX) => u32::MAX,
        _ => XDP_PASS,
    }
}
