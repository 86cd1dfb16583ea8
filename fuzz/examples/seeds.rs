//! Writes the seeds of the fuzz targets into the given directory: `cargo run --example seeds -- seeds`.

#[path = "../../arch/tests/kernel_image/builder.rs"]
#[expect(dead_code, reason = "it makes more than what is needed here")]
mod builder;
#[path = "../fuzz_targets/conversion_request/input.rs"]
mod input;
#[path = "../../arch/tests/private_faults/oracle.rs"]
mod oracle;

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use arch::x86_64::image::KernelImage;
use builder::{Packing, bzimage, kernel};
use input::Input;
use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};

fn main() -> io::Result<()> {
    let seeds = env::args_os().nth(1).map_or_else(|| PathBuf::from("seeds"), PathBuf::from);
    write_all(&seeds.join("kernel_image"), kernel_images()?)?;
    write_all(&seeds.join("conversion_request"), conversion_requests()?)
}

/// One small kernel in every packing.
fn kernel_images() -> io::Result<Vec<(String, Vec<u8>)>> {
    let packed =
        Packing::ALL.map(|packing| (format!("bzimage-{packing:?}").to_lowercase(), bzimage(&packing.pack(&kernel()))));
    let images: Vec<_> = packed.into_iter().chain([("vmlinux".to_owned(), kernel())]).collect();
    for (_, file) in &images {
        KernelImage::parse(file).map_err(io::Error::other)?;
    }
    Ok(images)
}

/// For each thing that can be said, something that is a request, or several. The first such bytes of a fixed sequence:
/// how bytes become an input is known to `arbitrary` alone.
fn conversion_requests() -> io::Result<Vec<(String, Vec<u8>)>> {
    [
        ("MapGpaRange", 1),
        ("MemoryFault", 1),
        ("CBit", 1),
        ("SharedBit", 1),
        ("TdxMapGpa", 1),
        ("SnpMsr", 2),
        ("SnpBuffer", 3),
    ]
    .into_iter()
    .map(|(name, requests)| {
        let mut bytes = Bytes(1);
        let is_it = |bytes: &Vec<u8>| {
            Input::arbitrary_take_rest(Unstructured::new(bytes))
                .is_ok_and(|input| input.says(name) && input.check() >= requests)
        };
        let found = (0..10_000_000).map(|_| bytes.draw()).find(is_it);
        found.map(|bytes| (name.to_owned(), bytes)).ok_or_else(|| io::Error::other(format!("no seed for {name}")))
    })
    .collect()
}

/// The generator "xorshift64".
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn draw(&mut self) -> Vec<u8> {
        let size = 16 + self.next() % 240;
        (0..size).map(|_| (self.next() >> 32) as u8).collect()
    }
}

fn write_all(directory: &Path, seeds: Vec<(String, Vec<u8>)>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for (name, bytes) in seeds {
        fs::write(directory.join(&name), &bytes)?;
        println!("{}: {} bytes", directory.join(&name).display(), bytes.len());
    }
    Ok(())
}
