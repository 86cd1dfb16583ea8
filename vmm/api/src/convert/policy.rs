//! Policies as text.

use vmm::memory::conversion::{Policy, Rule};

use super::ConfigError;
use crate::types::PolicyConfig;

/// A rule as it is written.
pub fn rule_text(rule: Rule) -> String {
    match rule {
        Rule::Allow => "allow".into(),
        Rule::Refuse => "refuse".into(),
        Rule::Limit { per_second } => format!("{per_second}/s"),
    }
}

/// The most digits of a limit, as the document says.
const MAX_DIGITS: usize = 9;

fn rule(field: &str, text: &str) -> Result<Rule, ConfigError> {
    let limit = || {
        let digits = text.strip_suffix("/s")?;
        let fine = digits.len() <= MAX_DIGITS && !digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit());
        fine.then(|| digits.parse().ok()).flatten().map(|per_second| Rule::Limit { per_second })
    };
    match text {
        "allow" => Ok(Rule::Allow),
        "refuse" => Ok(Rule::Refuse),
        _ => limit().ok_or_else(|| {
            ConfigError::new(
                field,
                format!("{text:?} is no rule: choose allow, refuse, or a number from 1 to 999999999 and /s"),
            )
        }),
    }
}

impl PolicyConfig {
    /// A policy with what is said here, and the rest as it is.
    ///
    /// # Errors
    /// Text that is no rule.
    pub fn over(&self, mut policy: Policy) -> Result<Policy, ConfigError> {
        let kinds = [
            ("explicit", &self.explicit, &mut policy.explicit),
            ("implicit", &self.implicit, &mut policy.implicit),
            ("host", &self.host, &mut policy.host),
        ];
        for (field, text, target) in kinds {
            if let Some(text) = text {
                *target = rule(field, text)?;
            }
        }
        Ok(policy)
    }
}

impl From<Policy> for PolicyConfig {
    fn from(policy: Policy) -> Self {
        let text = |rule| Some(rule_text(rule));
        Self { explicit: text(policy.explicit), implicit: text(policy.implicit), host: text(policy.host) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays_and_what_is_said_reads_back() {
        let config = PolicyConfig { implicit: Some("refuse".into()), host: Some("7/s".into()), explicit: None };
        let policy = config.over(Policy::default()).unwrap();
        let all = PolicyConfig { explicit: Some("allow".into()), ..config };
        assert_eq!(PolicyConfig::from(policy), all);
        for most in ["999999999/s", "1/s"] {
            let config = PolicyConfig { host: Some(most.into()), ..Default::default() };
            assert_eq!(PolicyConfig::from(config.over(policy).unwrap()).host, config.host);
        }
        // What the document's pattern does not match.
        for bad in [
            "",
            "no",
            "0/s",
            "-1/s",
            "5",
            "9999999999/s",
            "4294967295/s",
            "1000000000/s",
            "+5/s",
            "007/s",
            "/s",
            "5 /s",
            "٣/s",
            "allow ",
        ] {
            let error = PolicyConfig { host: Some(bad.into()), ..Default::default() }.over(policy).unwrap_err();
            assert_eq!(error.field, "host");
        }
    }
}
