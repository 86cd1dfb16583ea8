//! Reads what apt prints. Everything here is a function of text.

/// What a package index says about one version of a package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stanza {
    /// The package's name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The size of its .deb in bytes; 0 when not said.
    pub size: u64,
    /// What it depends on, the first of each list of alternatives.
    pub depends: Vec<String>,
}

/// The stanzas of `apt-cache show`.
pub fn stanzas(text: &str) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    for block in text.split("\n\n") {
        let mut stanza = Stanza::default();
        for line in block.lines() {
            let Some((key, value)) = line.split_once(": ") else { continue };
            match key {
                "Package" => stanza.package = value.trim().to_owned(),
                "Version" => stanza.version = value.trim().to_owned(),
                "Size" => stanza.size = value.trim().parse().unwrap_or(0),
                "Depends" => stanza.depends = dependencies(value),
                _ => {}
            }
        }
        if !stanza.package.is_empty() && !stanza.version.is_empty() {
            stanzas.push(stanza);
        }
    }
    stanzas
}

/// The names in a line like `a (= 1), b:any | c`: a and b.
fn dependencies(line: &str) -> Vec<String> {
    let name = |item: &str| item.trim().split([' ', ':', '(']).next().unwrap_or_default().to_owned();
    line.split(',').filter_map(|item| item.split('|').next()).map(name).filter(|name| !name.is_empty()).collect()
}

/// The kernel image that a meta-package stands for.
pub fn image_of_meta(stanza: &Stanza) -> Option<&str> {
    stanza.depends.iter().map(String::as_str).find(|name| name.starts_with("linux-image-"))
}

/// Whether `name` fits `pattern`, in which `*` stands for any text.
pub fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether a package is a variant that nobody boots: without signature, debug symbols, or a template.
pub fn is_variant(name: &str) -> bool {
    ["-unsigned", "-dbg", "-dbgsym", "-template"].iter().any(|suffix| name.ends_with(suffix))
}

/// The packages that `apt-get -s` would remove.
pub fn removed(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Remv "))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// A file that `apt-get --print-uris` would download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToDownload {
    /// Its name here: name, version and architecture of a package.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

impl ToDownload {
    /// The version, if it is this package.
    pub fn version_of(&self, package: &str) -> Option<String> {
        let version = self.name.strip_prefix(package)?.strip_prefix('_')?.split('_').next()?;
        Some(version.replace("%3a", ":"))
    }
}

/// The files that `apt-get --print-uris` would download.
pub fn files(text: &str) -> Vec<ToDownload> {
    let file = |line: &str| {
        let mut words = line.split(' ').skip(1);
        Some(ToDownload { name: words.next()?.to_owned(), size: words.next()?.parse().ok()? })
    };
    text.lines().filter(|line| line.starts_with('\'')).filter_map(file).collect()
}

/// The first two numbers of the program's own version, in a version of a package like `1:11.1.3+ds-1`.
pub fn upstream(version: &str) -> Option<(u32, u32)> {
    let own = version.split_once(':').map_or(version, |(_, own)| own);
    let mut numbers = own.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What apt says of a file that the server does not have any more.
pub const NOT_THERE: &str = "404  Not Found";

/// What apt complains about, in one line: its last error, or what is behind it.
pub fn complaint(text: &str) -> String {
    const UNREACHABLE: [&str; 5] =
        ["Could not resolve", "Temporary failure", "Unable to connect", "Network is unreachable", "Could not connect"];
    if text.contains("No space left on device") || text.contains("not have enough free space") {
        return "the disk is full".to_owned();
    }
    if let Some(line) = text.lines().find(|line| UNREACHABLE.iter().any(|sign| line.contains(sign))) {
        return format!("the package server cannot be reached; check the network ({})", strip(line));
    }
    let not_there = || text.lines().find(|line| line.contains(NOT_THERE));
    let last_error = || text.lines().rev().find(|line| line.starts_with("E: "));
    let last_line = || text.lines().rev().find(|line| !line.trim().is_empty());
    not_there().or_else(last_error).or_else(last_line).map_or("it gave no reason", strip).to_owned()
}

fn strip(line: &str) -> &str {
    line.trim().trim_start_matches("E: ").trim_start_matches("W: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "\
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 6.1.192-2
Provides: linux-image-generic, wireguard-modules (= 1.0.0)
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Description: Linux for x86-64 cloud (meta-package)
Size: 1480

";
    const IMAGE: &str = "\
Package: linux-image-6.1.0-56-cloud-amd64
Version: 6.1.192-2
Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb11u2) | linux-initramfs-tool
Size: 24680468
";

    #[test]
    fn stanzas_are_read() {
        let stanzas = stanzas(&format!("{META}{IMAGE}"));
        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[0].version, "6.1.192-2");
        assert_eq!(stanzas[1].size, 24_680_468);
        assert_eq!(stanzas[1].depends, ["kmod", "linux-base", "initramfs-tools"]);
    }

    #[test]
    fn a_meta_package_leads_to_its_image_and_an_image_nowhere() {
        assert_eq!(image_of_meta(&stanzas(META)[0]), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(image_of_meta(&stanzas(IMAGE)[0]), None);
    }

    #[test]
    fn what_would_be_downloaded_is_read() {
        let text = "\
Reading package lists...
'http://mirror.test/pool/q/a_1%3a2.3%2bds-1_amd64.deb' a_1%3a2.3+ds-1_amd64.deb 49432 MD5Sum:8c82
'http://mirror.test/pool/q/ab_4_all.deb' ab_4_all.deb 10 SHA256:00
'nonsense'
";
        let files = files(text);
        assert_eq!(files.iter().map(|file| file.size).sum::<u64>(), 49_442);
        assert_eq!(files.iter().find_map(|file| file.version_of("a")), Some("1:2.3+ds-1".to_owned()));
        assert_eq!(files.iter().find_map(|file| file.version_of("c")), None);
    }

    #[test]
    fn a_program_s_own_version_is_read() {
        assert_eq!(upstream("1:11.1.3+ds-1~bpo13+1"), Some((11, 1)));
        assert_eq!(upstream("6.12-4"), Some((6, 12)));
        assert_eq!(upstream("a:b"), None);
        assert!(upstream("nonsense") < Some((0, 0)));
    }

    #[test]
    fn nonsense_gives_no_stanzas() {
        assert!(stanzas("").is_empty());
        assert!(stanzas("N: Unable to locate package nothing\n\n\n: \nVersion: 1\n").is_empty());
    }

    #[test]
    fn patterns() {
        let pattern = "linux-image-6.12*-cloud-amd64";
        assert!(fits(pattern, "linux-image-6.12.117+deb12-cloud-amd64"));
        assert!(fits(pattern, "linux-image-6.12-cloud-amd64"));
        assert!(!fits(pattern, "linux-image-6.12.117+deb12-cloud-amd64-unsigned"));
        assert!(!fits(pattern, "linux-image-6.1.0-56-cloud-amd64"));
        assert!(fits("abc", "abc") && !fits("abc", "abcd") && fits("*", "") && fits("a*b*c", "a.b.b.c"));
        assert!(!fits("ab*bc", "abc"), "parts may not overlap");
    }

    #[test]
    fn variants() {
        for name in ["linux-image-6.12-amd64-dbg", "linux-image-6.12.1-amd64-unsigned", "x-signed-template"] {
            assert!(is_variant(name), "{name}");
        }
        assert!(!is_variant("linux-image-6.12.117+deb12-amd64"));
    }

    #[test]
    fn removals_are_found() {
        let text =
            "Inst liblzma5 [5.4.1-1] (5.4.1-1+deb12u2)\nRemv qemu-utils [1:7.2+dfsg-7+deb12u15]\nConf liblzma5\n";
        assert_eq!(removed(text), ["qemu-utils"]);
        assert!(removed("Inst a (1)\n").is_empty());
    }

    #[test]
    fn a_complaint_is_one_line() {
        let network =
            "W: Failed to fetch http://x/InRelease  Temporary failure resolving 'x'\nE: Some index files failed\n";
        assert!(complaint(network).starts_with("the package server cannot be reached"));
        assert_eq!(complaint("E: write error - write (28: No space left on device)"), "the disk is full");
        assert_eq!(complaint("noise\nE: Unable to locate package nothing\n"), "Unable to locate package nothing");
        assert_eq!(complaint("\n"), "it gave no reason");
        let old =
            "E: Failed to fetch http://x/a_1.deb  404  Not Found [IP: 1.2.3.4 80]\nE: Unable to fetch some archives\n";
        assert!(complaint(old).contains(NOT_THERE));
    }
}
