//! What figures should keep to.

/// The most that the figure of this key should be; `None` if it is only for information.
pub fn target(key: &str) -> Option<f64> {
    let parts: Vec<&str> = key.split('.').collect();
    Some(match parts[..] {
        ["access", _, "8", "per_access_ratio"] => 1.0,
        ["access", _, "8", "held_ratio"] => 0.6,
        ["access", _, "4096", "per_access_ratio" | "held_ratio"] => 1.05,
        ["access", _, _, "growth_median" | "growth_mean"] => 1.1,
        ["map", "1000000", "lookup_growth" | "set_page_growth"] => 2.0,
        ["map", "1000000", "bytes"] => (64u64 << 20) as f64,
        ["conversion", "4K" | "64K", _, "visible_ratio"] => 1.15,
        ["conversion", "2M" | "64M", "to_private", "visible_ratio"] => 0.4,
        ["conversion", "2M" | "64M", "to_shared", "visible_ratio"] => 0.6,
        ["conversion", "1G", _, "visible_ratio"] => 1.05,
        ["conversion", _, _, "sustained_ratio" | "cpu_ratio"] => 1.15,
        ["boot", "none", "qemu_ratio"] => 1.0,
        ["boot", "software", "none_ratio"] => 1.35,
        ["footprint", "vmm_bytes"] => (8u64 << 20) as f64,
        ["footprint", "host_memory_ratio"] => 1.03,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_without_a_limit_have_no_target() {
        assert_eq!(target("access.read.8.held_ratio"), Some(0.6));
        assert_eq!(target("conversion.64M.to_shared.visible_ratio"), Some(0.6));
        assert_eq!(target("conversion.1G.to_shared.cpu_ratio"), Some(1.15));
        assert_eq!(target("boot.software.none_ratio"), Some(1.35));
        assert_eq!(target("boot.software.load_share"), None);
        assert_eq!(target("footprint.vmm_bytes"), Some(8_388_608.0));
        assert_eq!(target("map.0.lookup_ns"), None);
        assert_eq!(target("map.1000.bytes"), None);
        assert_eq!(target("conversion.round_trip.empty_ns"), None);
    }
}
