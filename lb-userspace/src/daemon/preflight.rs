//! What must hold before the kernel is asked for anything, told in words better than EPERM.

use std::fs;

use anyhow::bail;

/// Numbers of capabilities(7).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Loading programs needs CAP_BPF (or CAP_SYS_ADMIN), attaching them CAP_NET_ADMIN.
pub(super) fn capabilities() -> anyhow::Result<()> {
    // Without /proc the kernel's own answer has to do.
    let Some(effective) = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| effective(&status))
    else {
        return Ok(());
    };
    let has = |capability: u32| effective & (1 << capability) != 0;
    let mut missing = Vec::new();
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    if !has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" and ");
    bail!("lbd loads and attaches BPF programs, and lacks {missing}; run it as root");
}

/// The mask of effective capabilities in the text of `/proc/self/status`.
fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_effective_mask_is_found() {
        let status = "Name:\tlbd\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(super::effective(status), Some(0x1ff_ffff_ffff));
        assert_eq!(super::effective("Name:\tlbd\n"), None);
    }
}
