//! Guarded access from outside: views, windows and pins on ordinary memory, beside conversions.

#![cfg(test)]

mod device;
mod memory;
mod race;
mod virtio;
mod waiting;
