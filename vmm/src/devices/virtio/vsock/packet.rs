//! Headers of packets (virtio 1.3, 5.10.6).
//!
//! They are made here and not taken from rust-vmm's crate of that name, whose packets have their data in one buffer, while
//! drivers may use several.

/// Bytes of a header.
pub const HEADER: usize = 44;

/// The host's context identifier.
pub const HOST_CID: u64 = 2;

/// The only type of sockets: streams.
pub const STREAM: u16 = 1;

/// What a packet is for.
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Refuses one, or ends it at once.
    pub const RESET: u16 = 3;
    /// Says that its sender does not receive or send any more.
    pub const SHUTDOWN: u16 = 4;
    /// Has data.
    pub const DATA: u16 = 5;
    /// Says how much its sender has room for.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: its sender does not receive any more.
pub const NO_RECEIVE: u32 = 1;
/// Its sender does not send any more.
pub const NO_SEND: u32 = 2;

/// A header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context identifier of the sender.
    pub src_cid: u64,
    /// Of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Of the receiver.
    pub dst_port: u32,
    /// Bytes of data.
    pub len: u32,
    /// Type of the socket.
    pub kind: u16,
    /// What the packet is for.
    pub op: u16,
    /// More about that.
    pub flags: u32,
    /// Bytes that the sender has room for on this connection.
    pub buf_alloc: u32,
    /// Bytes that its program has taken so far, which may have wrapped.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads one.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(part(bytes, 0)),
            dst_cid: u64::from_le_bytes(part(bytes, 8)),
            src_port: u32::from_le_bytes(part(bytes, 16)),
            dst_port: u32::from_le_bytes(part(bytes, 20)),
            len: u32::from_le_bytes(part(bytes, 24)),
            kind: u16::from_le_bytes(part(bytes, 28)),
            op: u16::from_le_bytes(part(bytes, 30)),
            flags: u32::from_le_bytes(part(bytes, 32)),
            buf_alloc: u32::from_le_bytes(part(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(part(bytes, 40)),
        }
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn part<const N: usize>(bytes: &[u8; HEADER], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[offset + index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let bytes: [u8; HEADER] = std::array::from_fn(|index| index as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!((header.src_cid, header.dst_port), (0x0706_0504_0302_0100, 0x1716_1514));
        assert_eq!((header.len, header.kind, header.op), (0x1b1a_1918, 0x1d1c, 0x1f1e));
        assert_eq!((header.flags, header.buf_alloc, header.fwd_cnt), (0x2322_2120, 0x2726_2524, 0x2b2a_2928));
        assert_eq!(header.to_bytes(), bytes);
    }
}
