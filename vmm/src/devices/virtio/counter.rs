//! Counters of devices: figures that one thread counts and others read.

use std::sync::atomic::{AtomicU64, Ordering};

/// Something that is counted.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts this many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many there were so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes a structure of counters, each with the name by which the device tells it: `list` has them all.
macro_rules! counters {
    ($(#[$about:meta])* $visibility:vis struct $name:ident {
        $($(#[$what:meta])* $field:ident: $kind:ty => $told:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        $visibility struct $name {
            $($(#[$what])* $visibility $field: $kind,)*
        }

        impl $name {
            /// All of them, by name.
            $visibility fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$(($told, self.$field.get()),)*]
            }
        }
    };
}

pub(crate) use counters;
