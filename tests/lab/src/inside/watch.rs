//! Whether a guest is still the one that was booted, and all of it.
//!
//! Umbra boots a guest anew that was reset, and a guest one of whose processors went silent gets nowhere: whoever waits for
//! them would wait in vain. A [`Watch`] reads umbra's events, and knows what the guest's console said: everything that waits
//! for a guest asks it now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Error, Result, bail};

use super::events::{EventFile, Reset};

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

    /// The same error, with what [`Self::check`] says before it, unless it says that itself.
    pub fn explain(&self, error: Error) -> Error {
        match self.check() {
            Err(reason) if !format!("{error:#}").contains(&reason.to_string()) => error.context(reason.to_string()),
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
    fn a_reset_is_noticed_and_told_once() {
        for (properties, said) in
            [(r#"{"cause": "triple-fault"}"#, "its guest crashed"), ("null", "its guest reset itself")]
        {
            let (_folder, watch) = watch(properties);
            let reason = watch.check().unwrap_err();
            assert!(reason.to_string().starts_with(said), "{reason:#}");
            let explained = format!("{:#}", watch.explain(anyhow!("no answer")));
            assert!(explained.starts_with(said) && explained.ends_with(": no answer"), "{explained}");
            assert_eq!(watch.explain(anyhow!("step: {reason}")).to_string(), format!("step: {reason}"));
        }
        let (folder, gone) = watch("null");
        drop(folder);
        gone.check().unwrap();
        assert_eq!(gone.explain(anyhow!("no answer")).to_string(), "no answer");
    }

    #[test]
    fn a_silent_processor_is_noticed_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let stalled = Arc::new(AtomicBool::new(false));
        let watch = Watch::new(EventFile::create(folder.path().join("events")).unwrap(), Arc::clone(&stalled));
        watch.check().unwrap();
        stalled.store(true, Ordering::Relaxed);
        assert!(watch.check().unwrap_err().to_string().contains("misses"));
        assert!(
            format!("{:#}", watch.explain(anyhow!("no answer"))).contains("misses one of its processors: no answer")
        );
    }
}
