//! The common configuration (virtio 1.3, 4.1.4.3): what driver and device agree on, step by step.
//!
//! Registers have different sizes, and a driver is free to access them in other widths. So an access is taken apart: a write
//! changes bytes of the image that a read would give, and each register that it touches takes its new value.
//!
//! What a driver must not do has no effect: features after it has said that they are final, queues after they are
//! enabled or the device works, a queue size that is no power of two, status bits that are the device's, or none.

use super::interrupts::Interrupts;

/// Bytes of the structure.
pub(super) const SIZE: u64 = 60;

/// Bits of the status (virtio 1.3, 2.1).
pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 0x40;
pub(super) const FAILED: u8 = 0x80;

/// A register, its offset and its size in bytes.
type Register = (Name, usize, usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    Queues,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    Descriptors,
    Available,
    Used,
}

#[rustfmt::skip]
const REGISTERS: [Register; 16] = [
    (Name::DeviceFeatureSelect, 0, 4), (Name::DeviceFeature, 4, 4),
    (Name::DriverFeatureSelect, 8, 4), (Name::DriverFeature, 12, 4),
    (Name::ConfigVector, 16, 2), (Name::Queues, 18, 2), (Name::Status, 20, 1), (Name::Generation, 21, 1),
    (Name::QueueSelect, 22, 2), (Name::QueueSize, 24, 2), (Name::QueueVector, 26, 2), (Name::QueueEnable, 28, 2),
    (Name::QueueNotifyOffset, 30, 2),
    (Name::Descriptors, 32, 8), (Name::Available, 40, 8), (Name::Used, 48, 8),
];

/// What a write asks of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Reset,
    Activate,
}

/// A queue as the driver describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueSettings {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl QueueSettings {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, ready: false, descriptors: 0, available: 0, used: 0 }
    }
}

/// The state.
#[derive(Debug)]
pub(super) struct Common {
    offered: u64,
    required: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSettings>,
}

impl Common {
    /// A device that offers these features, insists on some of them, and has queues of at most these sizes.
    pub(super) fn new(offered: u64, required: u64, sizes: &[u16]) -> Self {
        Self {
            offered,
            required,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            queue_select: 0,
            queues: sizes.iter().copied().map(QueueSettings::new).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, self.required, &sizes);
    }

    /// The device can't go on before it is reset.
    pub(super) fn need_reset(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// The features that driver and device agree on.
    pub(super) fn features(&self) -> u64 {
        self.accepted
    }

    /// The queues that the driver has made ready, each with its number.
    pub(super) fn ready_queues(&self) -> impl Iterator<Item = (u16, &QueueSettings)> {
        (0..).zip(&self.queues).filter(|(_, queue)| queue.ready)
    }

    /// Reads; what lies beyond the structure is left alone.
    pub(super) fn read(&self, interrupts: &Interrupts, offset: u64, data: &mut [u8]) {
        let image = self.image(interrupts);
        for (byte, value) in data.iter_mut().zip(image.iter().skip(offset.min(SIZE) as usize)) {
            *byte = *value;
        }
    }

    /// Writes, and says what that asks of the device.
    pub(super) fn write(&mut self, interrupts: &Interrupts, offset: u64, data: &[u8]) -> Change {
        let start = offset.min(SIZE) as usize;
        let end = SIZE.min(offset.saturating_add(data.len() as u64)) as usize;
        let mut change = Change::None;
        for (name, at, size) in REGISTERS.into_iter().filter(|(_, at, size)| *at < end && start < at + size) {
            // Taken anew for each: a register that was written may have changed what the next one is about.
            let mut image = self.image(interrupts);
            image[start..end].copy_from_slice(&data[..end - start]);
            let value = image[at..at + size].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            match self.set(interrupts, name, value) {
                Change::None => {}
                new => change = new,
            }
            if change == Change::Reset {
                break;
            }
        }
        change
    }

    fn image(&self, interrupts: &Interrupts) -> [u8; SIZE as usize] {
        let mut image = [0; SIZE as usize];
        for (name, at, size) in REGISTERS {
            image[at..at + size].copy_from_slice(&self.get(interrupts, name).to_le_bytes()[..size]);
        }
        image
    }

    fn get(&self, interrupts: &Interrupts, name: Name) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |value: fn(&QueueSettings) -> u64| queue.map_or(0, value);
        match name {
            Name::DeviceFeatureSelect => self.device_feature_select.into(),
            Name::DeviceFeature => half(self.offered, self.device_feature_select),
            Name::DriverFeatureSelect => self.driver_feature_select.into(),
            Name::DriverFeature => half(self.accepted, self.driver_feature_select),
            Name::ConfigVector => interrupts.config_vector().into(),
            Name::Queues => self.queues.len() as u64,
            Name::Status => self.status.into(),
            Name::Generation => interrupts.generation().into(),
            Name::QueueSelect => self.queue_select.into(),
            Name::QueueSize => of_queue(|queue| queue.size.into()),
            Name::QueueVector => interrupts.queue_vector(self.queue_select).into(),
            Name::QueueEnable => of_queue(|queue| queue.ready.into()),
            Name::QueueNotifyOffset => queue.map_or(0, |_| self.queue_select.into()),
            Name::Descriptors => of_queue(|queue| queue.descriptors),
            Name::Available => of_queue(|queue| queue.available),
            Name::Used => of_queue(|queue| queue.used),
        }
    }

    fn set(&mut self, interrupts: &Interrupts, name: Name, value: u64) -> Change {
        match name {
            Name::DeviceFeatureSelect => self.device_feature_select = value as u32,
            Name::DriverFeatureSelect => self.driver_feature_select = value as u32,
            Name::DriverFeature => self.accept(value as u32),
            Name::ConfigVector => interrupts.set_config_vector(value as u16),
            Name::Status => return self.set_status(value as u8),
            Name::QueueSelect => self.queue_select = value as u16,
            Name::QueueVector => interrupts.set_queue_vector(self.queue_select, value as u16),
            Name::QueueSize | Name::QueueEnable | Name::Descriptors | Name::Available | Name::Used => {
                self.set_queue(name, value);
            }
            Name::DeviceFeature | Name::Queues | Name::Generation | Name::QueueNotifyOffset => {}
        }
        Change::None
    }

    fn accept(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let (shift, value) = match self.driver_feature_select {
            0 => (0, u64::from(value)),
            1 => (32, u64::from(value)),
            _ => return,
        };
        self.accepted = self.accepted & !(0xffff_ffff << shift) | value << shift;
    }

    fn set_queue(&mut self, name: Name, value: u64) {
        let works = self.status & DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if works || queue.ready {
            return;
        }
        match name {
            Name::QueueSize => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            // Only a reset takes it back.
            Name::QueueEnable => queue.ready = value == 1,
            Name::Descriptors => queue.descriptors = value,
            Name::Available => queue.available = value,
            Name::Used => queue.used = value,
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8) -> Change {
        if value == 0 {
            return Change::Reset;
        }
        let mut new = value & (ACKNOWLEDGE | DRIVER | FAILED | FEATURES_OK | DRIVER_OK) & !self.status;
        if new & FEATURES_OK != 0 && !self.features_are_sound() {
            new &= !FEATURES_OK;
        }
        if (self.status | new) & FEATURES_OK == 0 || self.status & NEEDS_RESET != 0 {
            new &= !DRIVER_OK;
        }
        self.status |= new;
        if new & DRIVER_OK != 0 { Change::Activate } else { Change::None }
    }

    fn features_are_sound(&self) -> bool {
        self.accepted & !self.offered == 0 && self.required & !self.accepted == 0
    }
}

/// 32 of 64 features.
fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}
