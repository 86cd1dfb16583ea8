//! The clock of a PC: an MC146818 (Motorola's data sheet) on ports 0x70 and 0x71, with the host's time in UTC.
//!
//! Guests read the date from it as they boot. It is a function of the clock that it is given: there are no alarms, no periodic
//! interrupts, and what a guest sets is ignored, as is what it stores in the memory beside the clock, which reads as zeros.
//!
//! Guarantees: the time is in two decimal digits a byte and in 24 hours, and registers A, B and D say so: a clock that runs, is
//! not being updated, and has a good battery, as Linux's driver wants it (Linux `drivers/rtc/rtc-mc146818-lib.c`).

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the century is, as PCs have it and ACPI's fixed table says (ACPI 6.5, 5.2.9).
pub use arch::x86_64::map::CMOS_CENTURY as CENTURY;
/// Its ports.
pub use arch::x86_64::map::{CMOS_PORT, CMOS_PORTS};

/// Register A: not being updated, at 32768 Hz, with the usual rate of interrupts. B: 24 hours, decimal digits, no
/// interrupts. D: the battery is good.
const RUNS: u8 = 0x26;
const HOURS_24: u8 = 0x02;
const GOOD: u8 = 0x80;

/// Where seconds since 1970 come from.
pub type Clock = dyn Fn() -> u64 + Send + Sync;

/// The clock and its selected register.
pub struct Cmos {
    selected: AtomicU8,
    clock: Box<Clock>,
}

impl Cmos {
    /// With the host's clock.
    pub fn new() -> Self {
        // A host before 1970 is in 1970.
        Self::with_clock(Box::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())))
    }

    /// With any clock.
    pub fn with_clock(clock: Box<Clock>) -> Self {
        Self { selected: AtomicU8::new(0), clock }
    }

    /// The guest reads the port at this offset from the first.
    pub fn read(&self, offset: u16) -> u8 {
        match offset {
            1 => register(self.selected.load(Ordering::Relaxed), (self.clock)()),
            // It can't be read.
            _ => 0xff,
        }
    }

    /// The guest writes the port at this offset from the first.
    pub fn write(&self, offset: u16, value: u8) {
        if offset == 0 {
            // The highest bit masks interrupts that there are none of.
            self.selected.store(value & 0x7f, Ordering::Relaxed);
        }
    }
}

impl Default for Cmos {
    fn default() -> Self {
        Self::new()
    }
}

/// What a register holds at a time, in seconds since 1970.
pub fn register(index: u8, seconds: u64) -> u8 {
    let days = seconds / 86400;
    let (year, month, day) = date(days);
    let two_digits = |value: u64| ((value / 10 % 10) * 16 + value % 10) as u8;
    match index {
        0x00 => two_digits(seconds % 60),
        0x02 => two_digits(seconds / 60 % 60),
        0x04 => two_digits(seconds / 3600 % 24),
        // The first of 1970 was a Thursday, and Sunday is the first day.
        0x06 => two_digits((days + 4) % 7 + 1),
        0x07 => two_digits(day),
        0x08 => two_digits(month),
        0x09 => two_digits(year % 100),
        CENTURY => two_digits(year / 100),
        0x0a => RUNS,
        0x0b => HOURS_24,
        0x0d => GOOD,
        _ => 0,
    }
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Days of 400 years, of four of them, and of a year, where years begin in March, so that leap days come last.
    const ERA: u64 = 146_097;
    const UNTIL_1970: u64 = 719_468;
    let since = days + UNTIL_1970;
    let (era, of_era) = (since / ERA, since % ERA);
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Five months have 153 days, from March on and from August on.
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest reads: century, year, month, day, weekday, hours, minutes and seconds, as hexadecimal digits.
    fn read(seconds: u64) -> String {
        let cmos = Cmos::with_clock(Box::new(move || seconds));
        let registers = [CENTURY, 9, 8, 7, 6, 4, 2, 0].map(|index| {
            cmos.write(0, index | 0x80);
            format!("{:02x}", cmos.read(1))
        });
        registers.join(" ")
    }

    #[test]
    fn dates_are_as_calendars_have_them() {
        // By date(1): date -u -d @SECONDS.
        for (seconds, expected) in [
            (0, "19 70 01 01 05 00 00 00"),
            (951_782_399, "20 00 02 28 02 23 59 59"),
            (951_782_400, "20 00 02 29 03 00 00 00"),
            (951_868_800, "20 00 03 01 04 00 00 00"),
            (1_709_210_096, "20 24 02 29 05 12 34 56"),
            (1_735_689_599, "20 24 12 31 03 23 59 59"),
            (1_735_689_600, "20 25 01 01 04 00 00 00"),
            (4_107_542_400, "21 00 03 01 02 00 00 00"),
            (4_107_542_399, "21 00 02 28 01 23 59 59"),
        ] {
            assert_eq!(read(seconds), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..200_000 {
            assert_eq!(date(days), (year, month, day));
            let last = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (year, month, day) = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                _ if day == last => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }

    #[test]
    fn it_says_that_it_runs_and_can_t_be_set() {
        let cmos = Cmos::with_clock(Box::new(|| 1_709_210_096));
        for index in 0..=0xffu8 {
            cmos.write(0, index);
            cmos.write(1, 0x55);
            let expected = register(index & 0x7f, 1_709_210_096);
            assert_eq!((cmos.read(0), cmos.read(1)), (0xff, expected));
        }
        let status = [0x0a, 0x0b, 0x0c, 0x0d].map(|index| register(index, 0));
        assert_eq!(status, [0x26, 0x02, 0, 0x80]);
        // Hosts' clocks are later than this test.
        Cmos::new().write(0, CENTURY);
        assert!((Cmos::new().clock)() > 1_700_000_000);
    }
}
