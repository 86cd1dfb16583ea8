//! Numbers that look random and are the same each time.

/// A source of them.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// Always the same ones.
    #[expect(clippy::new_without_default, reason = "there is nothing default about a seed")]
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// The next one below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(limit)) >> 64) as u64
    }
}
