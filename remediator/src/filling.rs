//! What fills a filesystem, in words: for the report, and for whoever is told that a repair was not enough.

use evenkeel_host::{config::format_bytes, filesystem};
use serde::{Deserialize, Serialize};

use crate::{fullness::Lack, text::printable};

/// What is told of each kind in a message.
const TOLD: usize = 3;
/// Smaller ones of the deleted files are not worth a word in a message.
const WORTH_A_WORD: u64 = 10_000_000;

/// What fills a filesystem; names are fit to be shown. The helper hands it over as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filling {
    /// Folders and files that hold most bytes, the largest first.
    pub by_bytes: Vec<(String, u64)>,
    /// Folders that hold most files and folders, the fullest first.
    pub by_inodes: Vec<(String, u64)>,
    /// Deleted files that processes have open, the largest first.
    pub deleted: Vec<Deleted>,
    /// What is free and kept for root, or by the filesystem for itself, in bytes.
    pub reserved_bytes: u64,
}

/// A deleted file that a process has open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Its last name.
    pub path: String,
    /// What it takes, in bytes.
    pub bytes: u64,
    /// Who has it open: program, process id and unit.
    pub holder: String,
}

impl From<filesystem::Filling> for Filling {
    fn from(seen: filesystem::Filling) -> Self {
        let shown = |entries: Vec<(std::path::PathBuf, u64)>| -> Vec<(String, u64)> {
            entries.into_iter().map(|(path, count)| (printable(&path.to_string_lossy()), count)).collect()
        };
        let deleted = |file: filesystem::Deleted| {
            let unit = file.unit.map(|unit| format!(", {unit}")).unwrap_or_default();
            Deleted {
                path: printable(&file.path.to_string_lossy()),
                bytes: file.bytes,
                holder: printable(&format!("{} (pid {}{unit})", file.command, file.pid)),
            }
        };
        Self {
            by_bytes: shown(seen.by_bytes),
            by_inodes: shown(seen.by_inodes),
            deleted: seen.deleted.into_iter().map(deleted).collect(),
            reserved_bytes: seen.reserved_bytes,
        }
    }
}

impl Filling {
    /// For a message about a filesystem that lacks so much, as clauses that begin with `; `; empty when nothing is known.
    pub fn clauses(&self, lack: Lack) -> String {
        let mut text = String::new();
        let lacks_inodes = lack.inodes.is_some_and(|inodes| inodes > 0);
        let only_inodes = lacks_inodes && lack.bytes.is_none_or(|bytes| bytes == 0);
        if !only_inodes {
            add(&mut text, "it is filled by", self.by_bytes.iter().map(sized));
            let held = self.deleted.iter().filter(|file| file.bytes >= WORTH_A_WORD).map(Deleted::told);
            add(&mut text, "deleted and still open:", held);
            if lack.bytes.is_some_and(|bytes| bytes > 0 && self.reserved_bytes >= bytes) {
                let reserved = format_bytes(self.reserved_bytes);
                text +=
                    &format!("; {reserved} are reserved for root, which is more than it lacks (tune2fs -m)");
            }
        }
        if lacks_inodes {
            add(&mut text, "most files are in", self.by_inodes.iter().map(counted));
        }
        text
    }

    /// All of it, as lines.
    pub fn report(&self) -> String {
        let mut text = "largest, on this filesystem:\n".to_owned();
        for (path, bytes) in &self.by_bytes {
            text += &format!("{:>10}  {path}\n", format_bytes(*bytes));
        }
        text += "\nmost files and folders, on this filesystem:\n";
        for (path, inodes) in &self.by_inodes {
            text += &format!("{inodes:>10}  {path}\n");
        }
        if !self.deleted.is_empty() {
            text += "\ndeleted, and taking room until they are closed:\n";
            for file in &self.deleted {
                text += &format!("{:>10}  {} by {}\n", format_bytes(file.bytes), file.path, file.holder);
            }
        }
        text + &format!("\nreserved for root or by the filesystem: {}\n", format_bytes(self.reserved_bytes))
    }
}

impl Deleted {
    fn told(&self) -> String {
        format!("{} {} by {}", self.path, format_bytes(self.bytes), self.holder)
    }
}

fn sized((path, bytes): &(String, u64)) -> String {
    format!("{path} {}", format_bytes(*bytes))
}

fn counted((path, inodes): &(String, u64)) -> String {
    format!("{path} {inodes}")
}

fn add(text: &mut String, what: &str, entries: impl Iterator<Item = String>) {
    let entries: Vec<String> = entries.take(TOLD).collect();
    if !entries.is_empty() {
        *text += &format!("; {what} {}", entries.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filling() -> Filling {
        let entries = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 30_000_000)).collect();
        let deleted = |bytes| Deleted {
            path: "/var/log/shop.log".to_owned(),
            bytes,
            holder: "shop (pid 7, shop.service)".to_owned(),
        };
        Filling {
            by_bytes: entries(&["/a", "/b", "/c", "/d"]),
            by_inodes: entries(&["/many"]),
            deleted: vec![deleted(2_000_000_000), deleted(4096)],
            reserved_bytes: 500,
        }
    }

    #[test]
    fn what_is_lacking_is_what_is_told() {
        let bytes = Lack { bytes: Some(1000), inodes: None };
        assert_eq!(
            filling().clauses(bytes),
            "; it is filled by /a 30.0 MB, /b 30.0 MB, /c 30.0 MB; deleted and still open: /var/log/shop.log 2.0 GB by shop (pid 7, shop.service)"
        );
        let inodes = Lack { bytes: Some(0), inodes: Some(9) };
        assert_eq!(filling().clauses(inodes), "; most files are in /many 30000000");
        let both = filling().clauses(Lack { bytes: Some(1000), inodes: Some(9) });
        assert!(both.contains("it is filled by /a") && both.contains("most files are in /many"), "{both}");
        assert_eq!(Filling::default().clauses(bytes), "");
    }

    #[test]
    fn what_is_reserved_is_told_where_it_would_be_enough() {
        let told = |bytes| filling().clauses(Lack { bytes: Some(bytes), inodes: None });
        assert!(
            told(500).ends_with("; 500 B are reserved for root, which is more than it lacks (tune2fs -m)")
        );
        assert!(!told(501).contains("reserved") && !told(0).contains("reserved"));
    }

    #[test]
    fn a_report_has_all_of_it() {
        let report = filling().report();
        for line in [
            "   30.0 MB  /d\n",
            "  30000000  /many\n",
            "    2.0 GB  /var/log/shop.log by shop (pid 7, shop.service)\n",
            "reserved for root or by the filesystem: 500 B\n",
        ] {
            assert!(report.contains(line), "no {line:?} in {report}");
        }
    }

    #[test]
    fn names_are_made_fit_to_be_shown() {
        let hostile = filesystem::Deleted {
            path: "/srv/\u{1b}[2Jx\ny".into(),
            bytes: 1,
            pid: 7,
            command: "a\nb".to_owned(),
            unit: None,
        };
        let seen = filesystem::Filling {
            by_bytes: vec![("/a\nb".into(), 1)],
            by_inodes: vec![("/\u{202e}x".into(), 1)],
            deleted: vec![hostile],
            reserved_bytes: 0,
        };
        let filling = Filling::from(seen);
        assert_eq!(filling.by_bytes[0].0, "/a\\nb");
        assert_eq!(filling.by_inodes[0].0, "/\\u{202e}x");
        assert_eq!(filling.deleted[0].path, "/srv/\\u{1b}[2Jx\\ny");
        assert_eq!(filling.deleted[0].holder, "a\\nb (pid 7)");
    }
}
