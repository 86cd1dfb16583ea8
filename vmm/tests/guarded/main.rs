//! Guarded access from outside: views, windows and pins on ordinary memory, beside conversions.

#![cfg(test)]

mod device;
mod hostile;
mod memory;
mod race;
mod ring;
mod virtio;
mod waiting;
