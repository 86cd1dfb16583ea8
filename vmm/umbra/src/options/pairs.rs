//! Pairs of keys and values, and what they become in JSON.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// What a value is.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Anything.
    Text,
    /// A number.
    Number,
    /// A number of processors.
    Processors,
    /// Bytes, with a suffix if one likes.
    Size,
    /// On or off.
    Switch,
}

/// A key, the name of its field, and its kind.
pub type Key = (&'static str, &'static str, Kind);

/// How much alike (of 1) a key must be to be what was meant. What clap takes for its options.
const ALIKE: f64 = 0.7;

/// Reads pairs into a structure.
pub fn parse<T: DeserializeOwned>(text: &str, keys: &[Key], defaults: Value) -> Result<T, String> {
    let mut fields = match defaults {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    let mut seen = Vec::new();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not of the form key=value"))?;
        let Some((_, field, kind)) = keys.iter().find(|(known, _, _)| *known == key) else {
            let known: Vec<&str> = keys.iter().map(|(key, _, _)| *key).collect();
            let meant = known.iter().map(|known| (strsim::jaro(key, known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
            let meant = meant.filter(|(alike, _)| *alike > ALIKE);
            let meant = meant.map_or(String::new(), |(_, known)| format!("did you mean {known:?}? "));
            return Err(format!("there is no {key:?} here: {meant}The keys are {}", known.join(", ")));
        };
        if seen.contains(&key) {
            return Err(format!("{key:?} is given twice"));
        }
        seen.push(key);
        let value = match kind {
            Kind::Text => value.into(),
            Kind::Number => value.parse::<u64>().map_err(|_| format!("{key}={value:?} is not a number"))?.into(),
            Kind::Processors => processors(key, value)?.into(),
            Kind::Size => size(value)?.into(),
            Kind::Switch => on_off(key, value)?.into(),
        };
        fields.insert((*field).into(), value);
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}

fn processors(key: &str, value: &str) -> Result<u8, String> {
    let number: u64 = value.parse().map_err(|_| format!("{key}={value:?} is not a number"))?;
    let fits = u8::try_from(number).ok().filter(|count| *count > 0);
    fits.ok_or_else(|| format!("{key}={value} is not possible: a machine has 1 to 255 processors"))
}

fn on_off(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("{key}={value:?} is neither on nor off")),
    }
}

/// A size in bytes, or with one of the suffixes K, M, G, T (powers of 1024).
pub fn size(value: &str) -> Result<u64, String> {
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
}
