//! Virtio devices, each driven as a driver would: rings and buffers in a guest's memory that is being converted beside it.

#![cfg(test)]

mod block;
mod block_hostile;
mod console;
mod driver;
mod guest;
mod rng;
