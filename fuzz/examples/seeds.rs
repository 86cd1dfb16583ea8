//! Writes the seeds of the fuzz targets into the given directory: `cargo run --example seeds -- seeds`.

#[path = "../../arch/tests/kernel_image/builder.rs"]
#[expect(dead_code, reason = "it makes more than what is needed here")]
mod builder;

use std::path::PathBuf;
use std::{env, fs, io};

use arch::x86_64::image::KernelImage;
use builder::{Packing, bzimage, kernel};

fn main() -> io::Result<()> {
    let directory = env::args_os().nth(1).map_or_else(|| PathBuf::from("seeds"), PathBuf::from).join("kernel_image");
    fs::create_dir_all(&directory)?;
    let packed =
        Packing::ALL.map(|packing| (format!("bzimage-{packing:?}").to_lowercase(), bzimage(&packing.pack(&kernel()))));
    for (name, file) in packed.into_iter().chain([("vmlinux".to_owned(), kernel())]) {
        KernelImage::parse(&file).map_err(io::Error::other)?;
        fs::write(directory.join(&name), &file)?;
        println!("{name}: {} bytes", file.len());
    }
    Ok(())
}
