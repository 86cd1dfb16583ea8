//! Cutting short what conversions wait for, when the machine pauses or ends.
//!
//! A conversion may wait without limit: for a device's guard, for its turn, for another conversion. A pause makes those
//! that the guest asks for end with [`ConversionError::Interrupted`] at their next piece, or at once if they wait; what
//! the piece had begun is undone, so the same request may be made again. The operator's own conversions go on in a paused
//! machine, as long as they need not wait.

use std::sync::atomic::Ordering;

use super::GuestRam;
use super::conversion::ConversionError;

impl GuestRam {
    /// Ends conversions early, now and from now on: the machine stops.
    pub fn end_conversions(&self) {
        self.ending.store(true, Ordering::Release);
        self.conversion_ended.notify_all();
    }

    /// Interrupts conversions that the guest asks for and all that wait, until [`GuestRam::allow_conversions`].
    pub fn interrupt_conversions(&self) {
        self.interrupted.store(true, Ordering::Release);
        self.conversion_ended.notify_all();
    }

    /// Interrupts conversions no longer.
    pub fn allow_conversions(&self) {
        self.interrupted.store(false, Ordering::Release);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Whether a conversion may wait, at this moment.
    pub(super) fn check_waiting(&self) -> Result<(), ConversionError> {
        if self.is_ending() {
            return Err(ConversionError::Stopped);
        }
        if self.interrupted.load(Ordering::Acquire) { Err(ConversionError::Interrupted) } else { Ok(()) }
    }
}
