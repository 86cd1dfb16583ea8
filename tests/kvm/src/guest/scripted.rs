//! The guest on the model: its commands are scripts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};
use hypervisor::model::{Action, Answer, ModelVm, Outcome as Did, Script};
use hypervisor::{Exit, GpaRange, MapGpaRangeReply, Vcpu, Vm};

use super::{Answered, Guest, Outcome, Reader, Stopped};
use crate::pattern::{LINE, Pattern};

/// A vCPU of the model's.
pub struct ScriptedGuest {
    vcpu: Box<dyn Vcpu>,
    script: Script,
    /// The address of the next word to be done, and what is expected there.
    next: u64,
    expected: Pattern,
}

impl ScriptedGuest {
    /// Adds vCPU `id` to a VM.
    pub fn new(vm: &ModelVm, id: u8) -> anyhow::Result<Self> {
        Ok(Self { vcpu: vm.create_vcpu(id)?, script: vm.script(id), next: 0, expected: Pattern::ZEROS })
    }

    /// Begins a command that does this to each word of a range.
    fn command(&mut self, range: GpaRange, expected: Pattern, word: impl Fn(u64) -> Action) -> anyhow::Result<Outcome> {
        self.script.clear();
        self.script.take_outcomes();
        (self.next, self.expected) = (range.start(), expected);
        self.script.extend((range.start()..range.end()).step_by(LINE as usize).map(word));
        self.resume()
    }

    /// What came of the words that are done.
    fn look(&mut self) -> anyhow::Result<Option<Outcome>> {
        for did in self.script.take_outcomes() {
            let gpa = self.next;
            self.next += LINE;
            let outcome = match did {
                Did::Written => continue,
                Did::Read(word) => match word_in(&word)? {
                    word if word == self.expected.word(gpa) => continue,
                    found => Outcome::Differs { gpa, found },
                },
                Did::GeneralProtection => Outcome::GeneralProtection,
                other => bail!("the guest did what nobody told it: {other:x?}"),
            };
            self.script.clear();
            return Ok(Some(outcome));
        }
        Ok(None)
    }

    fn read_until_fault(mut self, gpa: u64, reads: &AtomicU32) -> anyhow::Result<Stopped> {
        let mut last = 0;
        loop {
            self.script.push(Action::read(gpa, size_of::<u32>()));
            match self.vcpu.run()? {
                Exit::Halt => {}
                Exit::Interrupted => continue,
                Exit::MemoryFault(fault) => {
                    return Ok(Stopped { guest: Box::new(self), outcome: Outcome::Fault(fault), last });
                }
                other => bail!("the guest stops with an exit that nothing here causes: {other:x?}"),
            }
            for did in self.script.take_outcomes() {
                let Did::Read(word) = did else { bail!("the guest did what nobody told it: {did:x?}") };
                last = word_in(&word)?;
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn word_in(bytes: &[u8]) -> anyhow::Result<u32> {
    Ok(u32::from_le_bytes(bytes.try_into().context("not a word")?))
}

impl Guest for ScriptedGuest {
    fn writes(&mut self, range: GpaRange, pattern: Pattern) -> anyhow::Result<Outcome> {
        self.command(range, pattern, |gpa| Action::write(gpa, pattern.word(gpa).to_le_bytes()))
    }

    fn sees(&mut self, range: GpaRange, pattern: Pattern) -> anyhow::Result<Outcome> {
        self.command(range, pattern, |gpa| Action::read(gpa, size_of::<u32>()))
    }

    fn resume(&mut self) -> anyhow::Result<Outcome> {
        let stop = loop {
            break match self.vcpu.run()? {
                Exit::Interrupted => continue,
                Exit::Halt => Outcome::Done,
                Exit::MemoryFault(fault) => Outcome::Fault(fault),
                Exit::NoBacking => Outcome::NoBacking,
                Exit::MmioRead { gpa, .. } => Outcome::Mmio { gpa, written: None },
                Exit::MmioWrite { gpa, data } => Outcome::Mmio { gpa, written: Some(word_in(data)?) },
                other => bail!("the guest stops with an exit that nothing here causes: {other:x?}"),
            };
        };
        // A word that differs comes before whatever stopped the guest behind it.
        Ok(self.look()?.unwrap_or(stop))
    }

    fn asks(&mut self, arguments: [u32; 3], reply: Option<MapGpaRangeReply>) -> anyhow::Result<Answered> {
        let [gpa, pages, attributes] = arguments.map(u64::from);
        self.script.clear();
        self.script.push(Action::MapGpaRange { gpa, pages, attributes });
        let mut seen = None;
        loop {
            match self.vcpu.run()? {
                Exit::Interrupted => {}
                Exit::Halt => break,
                Exit::MapGpaRange(request) => {
                    seen = Some([request.gpa, request.pages, request.attributes]);
                    if let Some(reply) = reply {
                        request.reply(reply);
                    }
                }
                other => bail!("the guest stops with an exit that nothing here causes: {other:x?}"),
            }
        }
        match self.script.take_outcomes().as_slice() {
            [Did::Answered(Answer::Rax(value))] => Ok(Answered { seen, eax: *value as i32 }),
            other => bail!("the guest was answered {other:x?}"),
        }
    }

    fn vcpu(&mut self) -> &mut dyn Vcpu {
        &mut *self.vcpu
    }

    fn reads_on(self: Box<Self>, range: GpaRange) -> anyhow::Result<Reader> {
        let reads = Arc::new(AtomicU32::new(0));
        let counter = reads.clone();
        self.script.clear();
        Ok(Reader::start(
            move || Ok(counter.load(Ordering::Relaxed)),
            move || self.read_until_fault(range.start(), &reads),
        ))
    }
}
