//! Option values as Cloud Hypervisor writes them: `key=value` pairs between commas, and sizes with a suffix.

use std::path::PathBuf;

use arch::x86_64::Isolation;
use vmm::config::{CpusConfig, MemoryConfig, SerialConfig};
use vmm::memory::conversion::{Policy, Rule};

/// The `key=value` pairs of one option, each key at most once and one of `known`.
fn pairs<'a>(text: &'a str, known: &[&str]) -> Result<Vec<(&'a str, &'a str)>, String> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not of the form key=value"))?;
        if !known.contains(&key) {
            return Err(format!("there is no {key:?} here: the keys are {}", known.join(", ")));
        }
        if found.iter().any(|(other, _)| *other == key) {
            return Err(format!("{key:?} is given twice"));
        }
        found.push((key, value));
    }
    Ok(found)
}

fn on_off(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("{key}={value:?} is neither on nor off")),
    }
}

/// A size in bytes, or with one of the suffixes K, M, G, T (powers of 1024).
fn size(value: &str) -> Result<u64, String> {
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K' | b'k') => (&value[..value.len() - 1], 10),
        Some(b'M' | b'm') => (&value[..value.len() - 1], 20),
        Some(b'G' | b'g') => (&value[..value.len() - 1], 30),
        Some(b'T' | b't') => (&value[..value.len() - 1], 40),
        _ => (value, 0),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("{value:?} is not a size: write bytes, or a number with K, M, G or T"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{value} is larger than the address space"))
}

/// `--memory size=512M,unmappable=on`
pub fn memory(text: &str) -> Result<MemoryConfig, String> {
    let mut config = MemoryConfig { size: 512 << 20, unmappable: None };
    for (key, value) in pairs(text, &["size", "unmappable"])? {
        match key {
            "size" => config.size = size(value)?,
            _ => config.unmappable = Some(on_off(key, value)?),
        }
    }
    Ok(config)
}

/// `--conversions implicit=refuse,explicit=100/s`
pub fn conversions(text: &str) -> Result<Policy, String> {
    let mut policy = Policy::default();
    for (kind, value) in pairs(text, &["explicit", "implicit", "host"])? {
        let rule = rule(value)?;
        match kind {
            "explicit" => policy.explicit = rule,
            "implicit" => policy.implicit = rule,
            _ => policy.host = rule,
        }
    }
    Ok(policy)
}

fn rule(value: &str) -> Result<Rule, String> {
    match value {
        "allow" => Ok(Rule::Allow),
        "refuse" => Ok(Rule::Refuse),
        _ => value
            .strip_suffix("/s")
            .and_then(|number| number.parse().ok())
            .map(|per_second| Rule::Limit { per_second })
            .ok_or_else(|| format!("{value:?} is no rule: choose allow, refuse, or a number above zero and /s")),
    }
}

/// `--cpus boot=4`
pub fn cpus(text: &str) -> Result<CpusConfig, String> {
    let mut config = CpusConfig { boot: 1 };
    for (_, value) in pairs(text, &["boot"])? {
        config.boot = match value.parse::<u64>() {
            Ok(count) => u8::try_from(count)
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| format!("boot={value} is not possible: a machine has 1 to 255 processors"))?,
            Err(_) => return Err(format!("boot={value:?} is not a number")),
        }
    }
    Ok(config)
}

/// `--serial tty|file=PATH|null`
pub fn serial(text: &str) -> Result<SerialConfig, String> {
    match text.split_once('=') {
        None if text == "tty" => Ok(SerialConfig::Tty),
        None if text == "null" => Ok(SerialConfig::Null),
        Some(("file", path)) if !path.is_empty() => Ok(SerialConfig::File(PathBuf::from(path))),
        _ => Err(format!("{text:?} is no place for a console: choose tty, null or file=PATH")),
    }
}

/// What `--platform` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Platform {
    /// The isolation; `None` for auto.
    pub isolation: Option<Isolation>,
}

/// `--platform isolation=auto|none|software`
pub fn platform(text: &str) -> Result<Platform, String> {
    let mut platform = Platform::default();
    for (_, value) in pairs(text, &["isolation"])? {
        platform.isolation = match value {
            "auto" => None,
            name => Some(name.parse().map_err(|error| format!("{error}, or auto"))?),
        };
    }
    Ok(platform)
}

/// `--event-monitor path=PATH`
pub fn event_monitor(text: &str) -> Result<PathBuf, String> {
    // The only key there is, so that a path may hold commas.
    match text.split_once('=') {
        Some(("path", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err(format!("{text:?} is not of the form path=PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_or_errors() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("4097"), Ok(4097));
        assert_eq!(size("1g"), Ok(1 << 30));
        for bad in ["", "M", "-1", "1.5G", "0x10", "99999999999999999999", "16777216T", "1MB", "ä"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_missing_and_repeated_keys_are_errors_that_name_them() {
        assert!(memory("size=1G,shared=on").unwrap_err().contains("shared"));
        assert!(memory("size=1G,size=2G").unwrap_err().contains("twice"));
        assert!(memory("1G").unwrap_err().contains("key=value"));
        assert!(memory("unmappable=maybe").unwrap_err().contains("maybe"));
        assert_eq!(memory("size=1G,unmappable=on"), Ok(MemoryConfig { size: 1 << 30, unmappable: Some(true) }));
    }

    #[test]
    fn conversions_have_a_rule_for_each_kind() {
        let limit = |per_second: u32| Rule::Limit { per_second: per_second.try_into().unwrap() };
        let policy = conversions("implicit=refuse,explicit=100/s").unwrap();
        assert_eq!(policy, Policy { explicit: limit(100), implicit: Rule::Refuse, host: Rule::Allow });
        for bad in
            ["implicit", "implicit=no", "explicit=0/s", "explicit=-1/s", "explicit=5", "host=9999999999/s", "x=allow"]
        {
            assert!(conversions(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn platforms_and_consoles_are_known_by_name() {
        assert_eq!(platform("isolation=auto"), Ok(Platform { isolation: None }));
        assert_eq!(platform("isolation=software"), Ok(Platform { isolation: Some(Isolation::Software) }));
        assert!(platform("isolation=magic").unwrap_err().contains("magic"));
        assert_eq!(serial("file=/tmp/x"), Ok(SerialConfig::File("/tmp/x".into())));
        assert!(serial("file=").is_err() && serial("pty").is_err());
        for bad in ["boot=0", "boot=256", "boot=-1", "boot=99999999999999999999", "max=1", "2"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
        assert_eq!((cpus("boot=1"), cpus("boot=255")), (Ok(CpusConfig { boot: 1 }), Ok(CpusConfig { boot: 255 })));
    }
}
