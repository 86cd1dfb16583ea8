//! Kernel files, sound and hostile, through the public interface of `arch::x86_64::image`.

#![cfg(target_arch = "x86_64")]

mod builder;

mod container;
mod elf;
mod foreign;
mod payload;
mod properties;
mod sound;

use arch::x86_64::image::{ImageError, KernelImage};

/// The error that the file is refused with.
fn refusal(file: &[u8]) -> ImageError {
    KernelImage::parse(file).expect_err("the file should be refused")
}

/// All messages of an error's chain.
fn messages(error: &ImageError) -> String {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
