//! The kernel programs. Each hook adapts its context to [`lb_common::path`] and maps the result
//! to an action; every decision is made there.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod context;
mod former;
mod hold;
mod hook;
mod kernel;
mod log;
mod maps;
mod tc;
mod xdp;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
