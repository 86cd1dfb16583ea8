//! Drivers of every other device than the disk that do what no driver should.
//!
//! One guest has a network device, a socket device, the entropy device and a console ([`bed`]). Its drivers point them at private
//! memory ([`private`]): what is refused ends that request alone, is counted, moves no byte, and the next one works. Or they
//! make rings of nonsense ([`nonsense`]): the device does little with them, and works after a reset.

mod bed;
mod nonsense;
mod private;

use crate::Test;

pub const TESTS: &[&[Test]] = &[private::TESTS, nonsense::TESTS];
