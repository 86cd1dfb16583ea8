//! MSI-X: a function's interrupt vectors, each a message that the guest chooses (PCI 3.0, 6.8.2).
//!
//! A vector that is triggered while it, or the whole function, is masked becomes pending, and is sent once it is unmasked. A
//! function whose MSI-X is off sends nothing: it has no other way to interrupt.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Result;
use crate::devices::interrupts::{Message, MsiLine, MsiLines};

/// Bytes of a table's entry.
pub const ENTRY_SIZE: u64 = 16;

/// Bits of the capability's message control word.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// All vectors are masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;

/// "Mask" of an entry's vector control.
const ENTRY_MASKED: u32 = 1;

/// The vectors of a function. Can be triggered from any thread.
pub struct Msix(Mutex<State>);

struct State {
    enabled: bool,
    masked: bool,
    vectors: Vec<Vector>,
}

struct Vector {
    line: MsiLine,
    message: Message,
    masked: bool,
    pending: bool,
    /// What the line sends at present.
    routed: Option<Message>,
}

impl Msix {
    /// A function with so many vectors, all of them masked.
    ///
    /// # Errors
    /// No interrupt lines left.
    pub fn new(lines: &Arc<MsiLines>, vectors: u16) -> Result<Arc<Self>> {
        let vector = |_| {
            let (message, line) = (Message::default(), lines.take()?);
            Ok(Vector { line, message, masked: true, pending: false, routed: None })
        };
        let vectors = (0..vectors).map(vector).collect::<Result<_>>()?;
        Ok(Arc::new(Self(Mutex::new(State { enabled: false, masked: false, vectors }))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts the guest, now or once the vector is unmasked. Does nothing for a vector that is not there.
    pub fn trigger(&self, vector: u16) {
        let mut state = self.state();
        let State { enabled, masked, vectors } = &mut *state;
        if let Some(vector) = vectors.get_mut(usize::from(vector))
            && *enabled
        {
            vector.pending = true;
            vector.settle(!*masked);
        }
    }

    /// The guest has written the message control word.
    pub fn set_control(&self, control: u16) {
        let mut state = self.state();
        state.enabled = control & CONTROL_ENABLE != 0;
        state.masked = control & CONTROL_MASK_ALL != 0;
        let open = state.enabled && !state.masked;
        state.vectors.iter_mut().for_each(|vector| vector.settle(open));
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (at, byte) in (offset..).zip(data) {
            let vector = usize::try_from(at / ENTRY_SIZE).ok().and_then(|index| state.vectors.get(index));
            *byte = vector.map_or(0, |vector| vector.entry()[(at % ENTRY_SIZE) as usize]);
        }
    }

    /// The guest writes the table, in whatever width.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        let open = state.enabled && !state.masked;
        let mut rest = (offset..).zip(data).peekable();
        while let Some((at, _)) = rest.peek() {
            let index = at / ENTRY_SIZE;
            let Some(vector) = usize::try_from(index).ok().and_then(|index| state.vectors.get_mut(index)) else {
                return;
            };
            let mut entry = vector.entry();
            while let Some((at, byte)) = rest.next_if(|(at, _)| at / ENTRY_SIZE == index) {
                entry[(at % ENTRY_SIZE) as usize] = *byte;
            }
            vector.set_entry(entry);
            vector.settle(open);
        }
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let pending = |bit: &usize| state.vectors.get(first.saturating_add(*bit)).is_some_and(|v| v.pending);
            *byte = (0..8).filter(pending).fold(0, |bits, bit| bits | 1 << bit);
        }
    }
}

impl Vector {
    /// Sends what is pending, if it may. `open` says whether the function as a whole may.
    fn settle(&mut self, open: bool) {
        if !open || self.masked {
            return;
        }
        if self.routed != Some(self.message) {
            self.line.route(self.message);
            self.routed = Some(self.message);
        }
        if std::mem::take(&mut self.pending) {
            self.line.trigger();
        }
    }

    fn entry(&self) -> [u8; ENTRY_SIZE as usize] {
        let mut entry = [0; ENTRY_SIZE as usize];
        entry[..8].copy_from_slice(&self.message.address.to_le_bytes());
        entry[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        entry[12..].copy_from_slice(&(u32::from(self.masked) * ENTRY_MASKED).to_le_bytes());
        entry
    }

    fn set_entry(&mut self, entry: [u8; ENTRY_SIZE as usize]) {
        let value = u128::from_le_bytes(entry);
        self.message = Message { address: value as u64, data: (value >> 64) as u32 };
        self.masked = (value >> 96) as u32 & ENTRY_MASKED != 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::model::{ModelHypervisor, ModelVm};
    use hypervisor::{Vm, VmType};
    use proptest::prelude::*;

    fn msix(vectors: u16) -> (Arc<ModelVm>, Arc<Msix>) {
        let vm = ModelHypervisor::new().create(VmType::Default).unwrap();
        vm.create_irqchip().unwrap();
        let msix = Msix::new(&MsiLines::new(vm.clone()), vectors).unwrap();
        (vm, msix)
    }

    fn entry(address: u64, data: u32, control: u32) -> Vec<u8> {
        [&address.to_le_bytes()[..], &data.to_le_bytes(), &control.to_le_bytes()].concat()
    }

    fn sent(msix: &Msix, vector: usize) -> bool {
        msix.state().vectors[vector].line.sent()
    }

    fn pending(msix: &Msix) -> u8 {
        let mut bits = [0xff];
        msix.read_pending(0, &mut bits);
        bits[0]
    }

    #[test]
    fn a_masked_vector_is_pending_until_it_is_unmasked() {
        let (vm, msix) = msix(3);
        msix.trigger(1);
        assert_eq!(pending(&msix), 0, "MSI-X is off");
        msix.write_table(16, &entry(0xfee0_0000, 0x41, 1));
        msix.set_control(CONTROL_ENABLE);
        msix.trigger(1);
        msix.trigger(7);
        assert_eq!((pending(&msix), sent(&msix, 1)), (0b10, false));
        msix.write_table(28, &[0]);
        assert_eq!((pending(&msix), sent(&msix, 1)), (0, true));
        assert_eq!(vm.msi_routes(), [hypervisor::MsiRoute { gsi: 25, address: 0xfee0_0000, data: 0x41 }]);
        // The same with all masked.
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        msix.trigger(1);
        assert_eq!((pending(&msix), sent(&msix, 1)), (0b10, false));
        msix.set_control(CONTROL_ENABLE);
        assert_eq!((pending(&msix), sent(&msix, 1)), (0, true));
        // A message that changes, in two writes.
        msix.write_table(24, &0x42u32.to_le_bytes());
        assert_eq!(vm.msi_routes()[0].data, 0x42);
        drop(msix);
        assert!(vm.msi_routes().is_empty() && vm.interrupt_lines().is_empty());
    }

    proptest! {
        /// Any write of any width anywhere changes what lies there, and nothing else.
        #[test]
        fn a_table_is_what_was_written_to_it(
            writes in prop::collection::vec((0..80u64, prop::collection::vec(any::<u8>(), 0..17)), 0..30)
        ) {
            let (_vm, msix) = msix(4);
            msix.set_control(CONTROL_ENABLE);
            let mut expected = [0; 64];
            (0..4).for_each(|vector| expected[vector * 16 + 12] = 1);
            for (offset, data) in &writes {
                msix.write_table(*offset, data);
                for (at, byte) in (*offset as usize..64).zip(data) {
                    // Of the control, one bit can be written.
                    expected[at] = match at % 16 {
                        12 => byte & 1,
                        13..=15 => 0,
                        _ => *byte,
                    };
                }
                msix.trigger(*offset as u16);
            }
            let mut table = [0xff; 80];
            msix.read_table(0, &mut table);
            prop_assert_eq!(&table[..64], &expected[..]);
            prop_assert_eq!(&table[64..], &[0; 16][..]);
        }
    }
}
