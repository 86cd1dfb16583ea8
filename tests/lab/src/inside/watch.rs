//! Whether a guest is still the one that was booted, and all of it.
//!
//! Umbra boots a guest anew that was reset, and a guest one of whose processors went silent gets nowhere: whoever waits for
//! them would wait in vain. A [`Watch`] reads umbra's events, and knows what the guest's console said: everything that waits
//! for a guest asks it now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Error, Result, bail};

use super::events::{EventFile, Reset};
use crate::second_chance::Flaw;

/// Knows of resets and of silent processors.
#[derive(Clone, Debug)]
pub struct Watch {
    events: EventFile,
    stalled: Arc<AtomicBool>,
}

impl Watch {
    /// By these events, and by what becomes true when the guest's kernel misses a processor.
    pub fn new(events: EventFile, stalled: Arc<AtomicBool>) -> Self {
        Self { events, stalled }
    }

    /// An error if the guest was reset, or misses a processor.
    pub fn check(&self) -> Result<()> {
        match self.events.reset()? {
            None if self.stalled.load(Ordering::Relaxed) => bail!("its guest misses one of its processors"),
            None => Ok(()),
            Some(Reset::TripleFault) => bail!("its guest crashed, and was booted anew"),
            Some(Reset::Asked) => bail!("its guest reset itself, and was booted anew"),
        }
    }

    /// The same error, with a [`Flaw`] in its chain if the guest has one, whatever became of that.
    pub fn explain(&self, error: Error) -> Error {
        match self.events.reset() {
            Ok(Some(Reset::TripleFault)) => error.context(Flaw::GuestCrashed),
            _ if self.stalled.load(Ordering::Relaxed) => error.context(Flaw::ProcessorSilent),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn watch(properties: &str) -> (tempfile::TempDir, Watch) {
        let folder = tempfile::tempdir().unwrap();
        let events = EventFile::create(folder.path().join("events")).unwrap();
        let event = format!(r#"{{"source": "vm", "event": "rebooting", "properties": {properties}}}"#);
        std::fs::write(events.path(), event).unwrap();
        (folder, Watch::new(events, Arc::default()))
    }

    #[test]
    fn a_reset_is_noticed_and_only_a_crash_explains_a_failure() {
        let (_folder, crashed) = watch(r#"{"cause": "triple-fault"}"#);
        assert!(crashed.check().unwrap_err().to_string().contains("crashed"));
        assert!(crashed.explain(anyhow!("no answer")).is::<Flaw>());
        let (_folder, asked) = watch("null");
        assert!(asked.check().unwrap_err().to_string().contains("reset itself"));
        assert!(!asked.explain(anyhow!("no answer")).is::<Flaw>());
        let (folder, gone) = watch("null");
        drop(folder);
        gone.check().unwrap();
    }
    #[test]
    fn a_silent_processor_is_noticed_and_explains_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let stalled = Arc::new(AtomicBool::new(false));
        let watch = Watch::new(EventFile::create(folder.path().join("events")).unwrap(), Arc::clone(&stalled));
        watch.check().unwrap();
        assert!(!watch.explain(anyhow!("no answer")).is::<Flaw>());
        stalled.store(true, Ordering::Relaxed);
        assert!(watch.check().unwrap_err().to_string().contains("misses"));
        assert_eq!(watch.explain(anyhow!("no answer")).downcast_ref(), Some(&Flaw::ProcessorSilent));
    }
}
