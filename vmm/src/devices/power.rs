//! Power-off and reset: what a write to a port asks of the machine.

use arch::x86_64::map::{
    KEYBOARD_PORT, KEYBOARD_RESET, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_ENABLE, SLEEP_TYPE_OFF,
    SLEEP_TYPE_SHIFT,
};

/// What the guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Soft off.
    Off,
    /// Reset.
    Reset,
}

/// The request in this write, if it is one.
pub fn request(port: u16, value: u8) -> Option<PowerRequest> {
    /// The three bits of the sleep type.
    const SLEEP_TYPE: u8 = 7;
    match (port, value) {
        (SLEEP_CONTROL_PORT, value) if value & SLEEP_ENABLE != 0 => {
            (value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE == SLEEP_TYPE_OFF).then_some(PowerRequest::Off)
        }
        (RESET_PORT, RESET_VALUE) | (KEYBOARD_PORT, KEYBOARD_RESET) => Some(PowerRequest::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_and_reset_are_requests() {
        let off = SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT;
        assert_eq!(request(SLEEP_CONTROL_PORT, off), Some(PowerRequest::Off));
        assert_eq!(request(SLEEP_CONTROL_PORT, off & !SLEEP_ENABLE), None);
        assert_eq!(request(SLEEP_CONTROL_PORT, SLEEP_ENABLE | 1 << SLEEP_TYPE_SHIFT), None);
        assert_eq!(request(RESET_PORT, RESET_VALUE), Some(PowerRequest::Reset));
        assert_eq!(request(KEYBOARD_PORT, KEYBOARD_RESET), Some(PowerRequest::Reset));
        assert_eq!(request(KEYBOARD_PORT, 0xd1), None);
        assert_eq!(request(0x80, RESET_VALUE), None);
    }
}
