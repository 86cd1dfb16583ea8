//! Guarded access: devices touch shared pages, conversions go on beside them, and neither is ever in the other's way on
//! different pages.
//!
//! ```text
//!  device                                        conversion to private
//!  ------                                        ---------------------
//!  DeviceView: gpa -> pages (RamTable)           Writer::revoke: refused bits := 1
//!  slot := pages              (1)                                          (3)
//!                                                ---------- fence ----------
//!  refused bits of pages = 0? (2)                Quiesce: no slot or pin overlaps?   (4)
//!  touch                                         flip, IOMMU, KVM's attribute ...
//!  slot := none               (5)                Writer::commit: the pages are private
//! ```
//!
//! * [`StatePlane`] is the attribute map: one bit a page, which devices test. Its only [`Writer`] changes it.
//!   [`AttributeMap`] asks it by guest address.
//! * [`Guards`] are the slots in which devices publish what they touch, a cache line for each [`GuardHandle`], and the
//!   [`Pin`]s of what they touch for long.
//! * [`Quiesce`] waits for the guards and pins on revoked pages, and for no others.
//! * [`DeviceMemory`] gives each device its [`DeviceView`], which is vm-memory's `GuestMemory`.
//!
//! # What holds
//!
//! 1. When a page is [`Quiesced`], no device touches it, and all that devices did to it has happened.
//! 2. From then until [`Writer::share`] or [`Writer::restore`], no device touches it.
//! 3. A device that touches a page after [`Writer::share`] sees all that was done to it before.
//! 4. A guard delays conversions of its own pages only. Nobody waits for a device that is not in the way, and devices
//!    wait for nobody.
//!
//! # Why
//!
//! *A guard that was not seen is refused.* Say that (4) does not see a guard which (1) published: then (1) comes after
//! the fence in the one order that all sequentially consistent operations have, (2) comes after (1), and the fence after
//! (3). So (2) sees the bits, and the device touches nothing. That takes (1) and (2) to be sequentially consistent, and
//! the fence to be: with anything less a device may test the bits before its slot can be seen, or a writer may look at
//! slots before its bits can be. A guard that (4) does see is waited for, and what was done under it happened before,
//! by release in (5) and acquire in (4).
//!
//! *A guard that was let in sees the page.* If (2) sees bits that [`Writer::share`] cleared, it also sees all that
//! happened before: release there, acquire here.
//!
//! *A slot is waited for once.* A guard that takes the slot afterwards, on the same pages, is a new one: it is refused.
//!
//! *Pins* are listed under a mutex, and how many there are is published there by an exchange like (1). A writer that sees none
//! needs no mutex; one that sees some looks into the list, and a pin that comes later sees its bits.
//!
//! *New devices*: their slots are listed under a lock. If the writer did not find them there, it had left the lock
//! before, and they see its bits.
//!
//! All of this is checked by loom on these very sources (`cargo test -p interleavings`): in all interleavings it holds,
//! and with any one ordering or step left out loom finds one in which it doesn't. The orderings stand in one place,
//! `sync.rs`. `vmm/tests/guarded` lets threads race for pages, and loses the race once a test's own [`Quiesce`] does
//! nothing.
//!
//! # What it costs
//!
//! | what | time or memory |
//! |---|---|
//! | a guard | one atomic exchange on a cache line of the device's own, one load |
//! | an access in a [`Window`] | none beyond its bounds |
//! | a look-up | one load for a shared page, three for a private one; whatever the fragmentation |
//! | a conversion | its words, a fence, one look at each device's line |
//! | the map | 32 MiB for 1 TiB of RAM |
//!
//! `cargo lab bench access map` measures it: docs/performance.md.
//!
//! # Example
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//!
//! use hypervisor::{GpaRange, PAGE_SIZE, SharedMemory};
//! use vm_memory::GuestAddress;
//! use vmm::memory::guarded::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let size = 16 * PAGE_SIZE;
//! let backing = Arc::new(SharedMemory::new("ram", size)?);
//! let table = RamTable::new([RamPiece { gpa: GpaRange::new(0, size)?, offset: 0, devices: true }], size)?;
//! let (plane, mut writer) = StatePlane::new(size, 1)?;
//! let memory = DeviceMemory::new(backing, table, Guards::new(plane), Box::new(|refused| eprintln!("{refused}")))?;
//!
//! let view = memory.view("disk");
//! view.write_obj(42u64, GuestAddress(0x3000))?;
//!
//! let page = PageRange::new(3, 4).ok_or("no pages")?;
//! let revoked = writer.revoke(page)?;
//! let quiesced = revoked.quiesce(&WaitForGuards, memory.guards(), &mut |_| ControlFlow::Continue(()));
//! writer.commit(quiesced.map_err(|_| "given up")?);
//! assert!(view.read_obj::<u64>(GuestAddress(0x3000)).is_err());
//! # Ok(())
//! # }
//! ```
//!
//! A slice can't outlive the view that guards it:
//!
//! ```compile_fail,E0515
//! use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};
//! use vmm::memory::guarded::{DeviceMemory, SliceGuard};
//!
//! fn leak<'a>(memory: &'a std::sync::Arc<DeviceMemory>) -> VolatileSlice<'a, SliceGuard<'a>> {
//!     let view = memory.view("disk");
//!     view.get_slices(GuestAddress(0), 8, Permissions::Read).unwrap().next().unwrap().unwrap()
//! }
//! ```

mod attribute_map;
mod device_memory;
mod guard;
mod guards;
mod held;
mod in_flight;
mod pages;
mod pins;
mod quiesce;
mod ram_table;
mod refusal;
mod runs;
mod slices;
mod state_plane;
mod sub_states;
mod sync;
mod view;
mod writer;

pub use attribute_map::{AttributeMap, GpaRun};
pub use device_memory::{DeviceMemory, RefusalObserver, SizeMismatch};
pub use guard::{Guard, GuardHandle};
pub use guards::{Guards, Pin, Refused};
pub use held::{PinnedMemory, Window};
pub use pages::{MAX_PAGES, PageRange};
pub use quiesce::{LOOK_INTERVAL, Quiesce, Report, WaitForGuards, Waiting};
pub use ram_table::{RamPiece, RamTable, RamTableError};
pub use refusal::{Obstacle, RefusedAccess};
pub use runs::Run;
pub use slices::{GuardedPages, SliceGuard};
pub use state_plane::{PlaneError, PlaneStatistics, StatePlane};
pub use sub_states::SubState;
pub use view::DeviceView;
pub use writer::{ChangeError, Quiesced, Revoked, Writer};
