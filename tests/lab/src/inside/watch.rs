//! Whether a guest is still the one that was booted, and all of it.
//!
//! Umbra boots a guest anew that was reset, and whoever waits for the old one would wait in vain. A [`Watch`] reads umbra's
//! events: everything that waits for a guest asks it now and then. It also knows whether Linux missed a processor, which a
//! guest may recover from, but which explains a failure.

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

    /// An error if the guest was reset.
    pub fn check(&self) -> Result<()> {
        match self.events.reset()? {
            None => Ok(()),
            Some(reset) => bail!(words(reset)),
        }
    }

    /// The same error, and before it what became of the guest, unless the error says that itself.
    pub fn explain(&self, error: Error) -> Error {
        let reason = match self.events.reset() {
            Ok(Some(reset)) => words(reset),
            _ if self.stalled.load(Ordering::Relaxed) => "its guest's kernel missed one of its processors",
            _ => return error,
        };
        if format!("{error:#}").contains(reason) { error } else { error.context(reason) }
    }
}

fn words(reset: Reset) -> &'static str {
    match reset {
        Reset::TripleFault => "its guest crashed, and was booted anew",
        Reset::Asked => "its guest reset itself, and was booted anew",
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
    fn a_missed_processor_is_told_and_no_error_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let stalled = Arc::new(AtomicBool::new(false));
        let watch = Watch::new(EventFile::create(folder.path().join("events")).unwrap(), Arc::clone(&stalled));
        watch.check().unwrap();
        assert_eq!(watch.explain(anyhow!("no answer")).to_string(), "no answer");
        stalled.store(true, Ordering::Relaxed);
        watch.check().unwrap();
        let explained = format!("{:#}", watch.explain(anyhow!("no answer")));
        assert!(explained.ends_with("missed one of its processors: no answer"), "{explained}");
    }
}
