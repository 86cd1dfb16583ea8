//! What the demonstration measured, and whether that is a success.
//!
//! The part inside the nested host measures and writes [`Outcome`] as JSON; the part outside reads it back, judges it
//! ([`Outcome::shortcomings`]), and prints it. The user's `--json` file is [`Outcome::summary`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::inside::search::Findings;

/// How much of the guest's RAM must be private once it has booted, in percent.
const PRIVATE_PERCENT: u64 = 80;

/// Umbra's own account of the guest's memory, as its event `memory`/`stats` carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// Size of the guest's RAM.
    pub ram_bytes: u64,
    /// Of it, in memory that no process can map.
    pub private_bytes: u64,
    /// Of it, in memory that the VMM maps.
    pub shared_bytes: u64,
    /// Conversions that the guest announced.
    pub conversions_explicit: u64,
    /// Conversions because an access contradicted the map.
    pub conversions_implicit: u64,
    /// Conversions that were asked for and not made.
    pub conversions_failed: u64,
}

/// What was seen of one virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFigures {
    /// Umbra's account, asked for after boot, before the guest was told to power off.
    pub memory: MemoryStats,
    /// From exec of `umbra` to the first line of the guest's init.
    pub time_to_init_ms: u64,
    /// Memory of the VMM process that is not guest RAM.
    pub vmm_rss_bytes: u64,
    /// What the search program found in the VMM.
    pub search: Findings,
}

/// The same demonstration under both isolations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// With `isolation=software`.
    pub software: VmFigures,
    /// With `isolation=none`: the control, which shows that the search finds what can be found.
    pub none: VmFigures,
}

/// The figures for programs: those of the virtual machine with `isolation=software`, and both counts of the canary.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    memory: MemoryStats,
    time_to_init_ms: u64,
    vmm_rss_bytes: u64,
    canary_hits_software: u64,
    canary_hits_none: u64,
}

impl Outcome {
    /// The content of the `--json` file.
    pub fn summary(&self) -> Summary {
        Summary {
            memory: self.software.memory,
            time_to_init_ms: self.software.time_to_init_ms,
            vmm_rss_bytes: self.software.vmm_rss_bytes,
            canary_hits_software: self.software.search.canary_hits,
            canary_hits_none: self.none.search.canary_hits,
        }
    }

    /// Everything that keeps the demonstration from being a success, in words; empty if it is one.
    pub fn shortcomings(&self) -> Vec<String> {
        let mut found = Vec::new();
        let MemoryStats { ram_bytes, private_bytes, shared_bytes, .. } = self.software.memory;
        if self.software.search.canary_hits != 0 {
            found.push(format!(
                "the canary was found {} times in the VMM with isolation=software",
                self.software.search.canary_hits
            ));
        }
        if self.none.search.canary_hits == 0 {
            found.push("the control failed: with isolation=none, too, the canary was not found".to_owned());
        }
        for (isolation, figures) in self.columns() {
            if figures.search.seed_hits == 0 {
                found.push(format!(
                    "the search of the VMM with isolation={isolation} did not even find the seed, which stands in \
                     its arguments: it has not seen its memory"
                ));
            }
        }
        if private_bytes.checked_add(shared_bytes) != Some(ram_bytes) {
            found.push(format!(
                "private and shared memory ({private_bytes} + {shared_bytes} bytes) do not add up to the guest's RAM \
                 ({ram_bytes} bytes)"
            ));
        }
        if u128::from(private_bytes) * 100 <= u128::from(ram_bytes) * u128::from(PRIVATE_PERCENT) {
            found.push(format!(
                "only {private_bytes} of {ram_bytes} bytes of RAM are private after boot, not more than \
                 {PRIVATE_PERCENT} %"
            ));
        }
        found
    }

    /// The closing sentence of a success.
    pub fn verdict(&self) -> String {
        format!(
            "The guest's canary was found {} times in the VMM with isolation=none and not once with isolation=software.",
            self.none.search.canary_hits
        )
    }

    /// What the searches saw, place by place.
    pub fn details(&self) -> String {
        let mut lines = String::new();
        for (isolation, VmFigures { search, .. }) in self.columns() {
            let Findings { mappings, files, refused_files, .. } = search;
            lines.push_str(&format!(
                "search with isolation={isolation}: {mappings} mappings, {files} files, {} of them refused\n",
                refused_files.len()
            ));
            let mut list = |label: &str, items: &[String]| {
                items.iter().for_each(|item| lines.push_str(&format!("  {label}: {item}\n")));
            };
            list("refused to be read and to be mapped", refused_files);
            list("cannot be read", &search.unread);
            list("not a file", &search.streams);
            for place in &search.places {
                let (name, canaries, seeds) = (&place.name, place.canary_hits, place.seed_hits);
                lines.push_str(&format!("  canary {canaries} times, seed {seeds} times: {name}\n"));
            }
        }
        lines
    }

    fn columns(&self) -> [(&'static str, &VmFigures); 2] {
        [("software", &self.software), ("none", &self.none)]
    }
}

/// The table that the user sees.
impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        type Cell = fn(&VmFigures) -> String;
        let rows: [(&str, Cell); 10] = [
            ("RAM", |vm| mebibytes(vm.memory.ram_bytes)),
            ("  private", |vm| mebibytes(vm.memory.private_bytes)),
            ("  shared", |vm| mebibytes(vm.memory.shared_bytes)),
            ("conversions, explicit", |vm| vm.memory.conversions_explicit.to_string()),
            ("conversions, implicit", |vm| vm.memory.conversions_implicit.to_string()),
            ("conversions, failed", |vm| vm.memory.conversions_failed.to_string()),
            ("time to the guest's init", |vm| seconds(vm.time_to_init_ms)),
            ("memory of the VMM itself", |vm| mebibytes(vm.vmm_rss_bytes)),
            ("searched for the canary", |vm| mebibytes(vm.search.bytes)),
            ("canary found", |vm| format!("{} times", vm.search.canary_hits)),
        ];
        let mut line = |name: &str, cells: [String; 2]| writeln!(out, "{name:<26}{:>14}{:>14}", cells[0], cells[1]);
        line("isolation", self.columns().map(|(isolation, _)| isolation.to_owned()))?;
        for (name, cell) in rows {
            line(name, self.columns().map(|(_, figures)| cell(figures)))?;
        }
        Ok(())
    }
}

/// Bytes, for people.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Milliseconds, for people.
pub fn seconds(milliseconds: u64) -> String {
    format!("{}.{:02} s", milliseconds / 1000, milliseconds % 1000 / 10)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Figures as they should be.
    pub fn success() -> Outcome {
        let memory = MemoryStats {
            ram_bytes: 512 << 20,
            private_bytes: 448 << 20,
            shared_bytes: 64 << 20,
            conversions_explicit: 643,
            conversions_implicit: 514,
            conversions_failed: 0,
        };
        let search = Findings { canary_hits: 0, seed_hits: 3, bytes: 80 << 20, ..Findings::default() };
        let software = VmFigures { memory, time_to_init_ms: 5049, vmm_rss_bytes: 9 << 20, search };
        let mut none = software.clone();
        none.memory = MemoryStats { private_bytes: 0, shared_bytes: 512 << 20, conversions_explicit: 0, ..memory };
        none.search.canary_hits = 32_768;
        Outcome { software, none }
    }

    fn shortcomings(change: impl FnOnce(&mut Outcome)) -> Vec<String> {
        let mut outcome = success();
        change(&mut outcome);
        outcome.shortcomings()
    }

    #[test]
    fn success_has_no_shortcomings() {
        assert_eq!(shortcomings(|_| ()), Vec::<String>::new());
    }

    #[test]
    fn each_condition_is_judged() {
        let one = |found: Vec<String>, word: &str| {
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(word), "{found:?}");
        };
        one(shortcomings(|o| o.software.search.canary_hits = 1), "found 1 times");
        one(shortcomings(|o| o.none.search.canary_hits = 0), "control");
        one(shortcomings(|o| o.none.search.seed_hits = 0), "isolation=none");
        one(shortcomings(|o| o.software.search.seed_hits = 0), "isolation=software");
        one(shortcomings(|o| o.software.memory.shared_bytes -= 1), "add up");
        one(
            shortcomings(|o| {
                o.software.memory.ram_bytes = 1000;
                o.software.memory.private_bytes = 800;
                o.software.memory.shared_bytes = 200;
            }),
            "800 of 1000",
        );
        assert_eq!(
            shortcomings(|o| {
                o.software.memory.private_bytes = u64::MAX;
                o.software.memory.shared_bytes = u64::MAX;
                o.software.memory.ram_bytes = u64::MAX;
            })
            .len(),
            1
        );
    }

    #[test]
    fn summary_has_the_promised_keys() {
        let json = serde_json::to_value(success().summary()).unwrap();
        let expected = serde_json::json!({
            "ram_bytes": 536_870_912, "private_bytes": 469_762_048, "shared_bytes": 67_108_864,
            "conversions_explicit": 643, "conversions_implicit": 514, "conversions_failed": 0,
            "time_to_init_ms": 5049, "vmm_rss_bytes": 9_437_184,
            "canary_hits_software": 0, "canary_hits_none": 32_768,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn details_name_what_was_not_read() {
        let mut outcome = success();
        outcome.software.search.refused_files.push("anon_inode:[kvm-gmem] (descriptor 9): pread: no".to_owned());
        outcome.software.search.unread.push("[vvar] 1000-2000 r--p: 4096 bytes, no".to_owned());
        let details = outcome.details();
        assert!(
            details.starts_with("search with isolation=software: 0 mappings, 0 files, 1 of them refused\n"),
            "{details}"
        );
        for line in ["  refused to be read and to be mapped: anon_inode:[kvm-gmem]", "  cannot be read: [vvar]"] {
            assert!(details.contains(line), "{details}");
        }
    }

    #[test]
    fn table_shows_both_columns() {
        let table = success().to_string();
        assert!(table.starts_with("isolation                       software          none\n"), "{table}");
        assert!(table.contains("\ntime to the guest's init          5.04 s        5.04 s\n"), "{table}");
        assert!(table.ends_with("\ncanary found                     0 times   32768 times\n"), "{table}");
    }
}
