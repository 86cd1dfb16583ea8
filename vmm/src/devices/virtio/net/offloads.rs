//! What one side of a network device leaves to the other: as the operator says it, as virtio does, and as taps do.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO,
};

use super::bits;
use crate::config::NetConfig;

/// What the guest may do in place of the host (virtio 1.3, 5.1.6.5.6).
pub const GUEST_OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_UFO
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

/// The features that are offered. Segmentation needs checksums (virtio 1.3, 5.1.3.1).
pub fn features(config: &NetConfig, segments_udp: bool) -> u64 {
    let checksums = config.checksum_offload;
    let offered = [
        (checksums, bits(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM])),
        (
            checksums && config.tcp_offload,
            bits(&[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]),
        ),
        (checksums && config.udp_offload, bits(&[VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_GUEST_UFO])),
        (
            checksums && config.udp_offload && segments_udp,
            bits(&[VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]),
        ),
    ];
    offered.iter().filter(|(on, _)| *on).fold(0, |all, (_, bits)| all | bits)
}

/// What a tap is told for these features (Linux `include/uapi/linux/if_tun.h`, `TUN_F_*`).
pub fn tap_offloads(features: u64) -> libc::c_uint {
    let known = [
        (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (VIRTIO_NET_F_GUEST_UFO, libc::TUN_F_UFO),
        (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
        (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
    ];
    known.iter().filter(|(bit, _)| features >> bit & 1 == 1).fold(0, |all, (_, offload)| all | offload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_told_what_guests_do() {
        assert_eq!(tap_offloads(0), 0);
        assert_eq!(tap_offloads(GUEST_OFFLOADS), 0x77);
        assert_eq!(tap_offloads(bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO6])), 5);
        // What the guest leaves to the host is none of the tap's.
        assert_eq!(tap_offloads(bits(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4])), 0);
    }
}
