//! A program for guests: it connects its standard input and output to a socket between guest and host (vsock(7)), which
//! busybox can't.
//!
//! ```text
//! guest-socket connect CID PORT    connects
//! guest-socket listen PORT         says "test: listens" on standard error, and takes one connection
//! ```
//!
//! Both send standard input up to its end, say to the other side that this was all, and meanwhile write what comes to
//! standard output, up to its end. The status is 0 if all of that worked, else 1, with the reason on standard error.
#![expect(unsafe_code, reason = "rustix knows these addresses only as bytes")]

use std::env::args;
use std::fs::File;
use std::io::{Error, Result, copy, stdin, stdout};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, accept, bind, connect, listen, socket_with};

/// An address of such a socket.
struct Address(libc::sockaddr_vm);

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        Self(libc::sockaddr_vm {
            svm_family: libc::AF_VSOCK as libc::sa_family_t,
            svm_reserved1: 0,
            svm_port: port,
            svm_cid: cid,
            svm_zero: [0; 4],
        })
    }
}

// SAFETY: the pointer is to as many bytes as are said, which live as long as the call takes.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, call: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        call((&raw const self.0).cast(), size_of::<libc::sockaddr_vm>() as SocketAddrLen)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match open(&words).and_then(carry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A connection, as the command line wants it.
fn open(words: &[&str]) -> Result<OwnedFd> {
    let number = |word: &str| word.parse().map_err(|_| Error::other(format!("{word:?} is not a number")));
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    match words {
        ["connect", cid, port] => {
            connect(&socket, &Address::new(number(cid)?, number(port)?))?;
            Ok(socket)
        }
        ["listen", port] => {
            bind(&socket, &Address::new(libc::VMADDR_CID_ANY, number(port)?))?;
            listen(&socket, 1)?;
            eprintln!("test: listens");
            Ok(accept(&socket)?)
        }
        _ => Err(Error::other("usage: guest-socket connect CID PORT, or guest-socket listen PORT")),
    }
}

/// Carries both directions to their ends.
fn carry(connection: OwnedFd) -> Result<()> {
    let mut input = File::from(connection);
    let mut output = input.try_clone()?;
    let sender = std::thread::spawn(move || -> Result<()> {
        copy(&mut stdin().lock(), &mut output)?;
        Ok(rustix::net::shutdown(&output, Shutdown::Write)?)
    });
    copy(&mut input, &mut stdout().lock())?;
    sender.join().map_err(|_| Error::other("the sender panicked"))?
}
