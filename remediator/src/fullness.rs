//! How full a filesystem may be, in bytes and in inodes, and what it lacks. Pure.

use std::fmt;

use crate::observe::Filesystem;

/// Shares of a filesystem that may be in use; at least one is given. One without a fixed number of inodes (btrfs) cannot
/// run out of them: a mark for inodes says nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Marks {
    /// Of its bytes.
    pub usage: Option<f64>,
    /// Of its inodes.
    pub inodes: Option<f64>,
}

/// What must come free until a filesystem is below its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lack {
    /// In bytes; `None` without a mark for them.
    pub bytes: Option<u64>,
    /// In inodes; `None` without a mark for them or a fixed number of them.
    pub inodes: Option<u64>,
}

impl Marks {
    /// Whether it is above one of them.
    pub fn exceeded(&self, filesystem: &Filesystem) -> bool {
        let inodes = filesystem.inodes.map(|inodes| inodes.used_ratio);
        self.usage.is_some_and(|mark| filesystem.used_ratio > mark)
            || self.inodes.zip(inodes).is_some_and(|(mark, used)| used > mark)
    }

    /// Whether it is below all of them.
    pub fn kept(&self, filesystem: &Filesystem) -> bool {
        let inodes = filesystem.inodes.map(|inodes| inodes.used_ratio);
        self.usage.is_none_or(|mark| filesystem.used_ratio < mark)
            && self.inodes.zip(inodes).is_none_or(|(mark, used)| used < mark)
    }

    /// What must come free until it is at them.
    pub fn lack(&self, filesystem: &Filesystem) -> Lack {
        let inodes = self.inodes.zip(filesystem.inodes);
        Lack {
            bytes: self.usage.map(|mark| missing(mark, filesystem.size_bytes, filesystem.avail_bytes)),
            inodes: inodes.map(|(mark, inodes)| missing(mark, inodes.total, inodes.free)),
        }
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part =
            |what: &str, mark: Option<f64>| mark.map(|mark| format!("{what} below {:.0} %", mark * 100.0));
        let parts: Vec<String> =
            [part("usage", self.usage), part("inodes", self.inodes)].into_iter().flatten().collect();
        f.write_str(&parts.join(" and "))
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what is missing needs no exact figure, and a negative one becomes 0"
)]
fn missing(mark: f64, all: u64, left: u64) -> u64 {
    (((1.0 - mark) * all as f64).round() as u64).saturating_sub(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Inodes;

    fn filesystem(used: f64, inodes: Option<f64>) -> Filesystem {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a thousand of each")]
        let left = |used: f64| ((1.0 - used) * 1000.0).round() as u64;
        Filesystem {
            size_bytes: 1000,
            avail_bytes: left(used),
            used_ratio: used,
            inodes: inodes.map(|used| Inodes { total: 1000, free: left(used), used_ratio: used }),
            device: 1,
        }
    }

    const BOTH: Marks = Marks { usage: Some(0.8), inodes: Some(0.8) };

    #[test]
    fn one_above_its_mark_is_enough_and_all_must_be_below() {
        for (used, inodes, exceeded, kept) in [
            (0.9, 0.5, true, false),
            (0.5, 0.9, true, false),
            (0.5, 0.5, false, true),
            (0.8, 0.5, false, false),
            (0.5, 0.8, false, false),
        ] {
            let filesystem = filesystem(used, Some(inodes));
            assert_eq!(
                (BOTH.exceeded(&filesystem), BOTH.kept(&filesystem)),
                (exceeded, kept),
                "{used} {inodes}"
            );
        }
    }

    #[test]
    fn what_it_has_no_mark_for_does_not_matter() {
        let full = filesystem(0.99, Some(0.99));
        let usage = Marks { usage: Some(0.8), inodes: None };
        let inodes = Marks { usage: None, inodes: Some(0.8) };
        assert_eq!(usage.lack(&full), Lack { bytes: Some(190), inodes: None });
        assert_eq!(inodes.lack(&full), Lack { bytes: None, inodes: Some(190) });
        assert!(usage.kept(&filesystem(0.5, Some(0.99))) && inodes.kept(&filesystem(0.99, Some(0.5))));
        assert_eq!(BOTH.lack(&filesystem(0.5, Some(0.85))), Lack { bytes: Some(0), inodes: Some(50) });
    }

    #[test]
    fn without_a_number_of_inodes_it_cannot_run_out_of_them() {
        let inodes = Marks { usage: None, inodes: Some(0.8) };
        let btrfs = filesystem(0.99, None);
        assert!(!inodes.exceeded(&btrfs) && inodes.kept(&btrfs));
        assert_eq!(inodes.lack(&btrfs), Lack::default());
        assert!(BOTH.exceeded(&btrfs) && !BOTH.kept(&btrfs), "its bytes count all the same");
    }

    #[test]
    fn marks_are_told() {
        assert_eq!(BOTH.to_string(), "usage below 80 % and inodes below 80 %");
        assert_eq!(Marks { usage: None, inodes: Some(0.9) }.to_string(), "inodes below 90 %");
    }
}
