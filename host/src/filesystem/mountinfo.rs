//! What is mounted where, from `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use std::{
    borrow::Cow,
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The source as the kernel writes it, escapes and all, which is how node_exporter shows it: `/dev/vda1`, `tmpfs`.
    pub device: String,
    /// Where it is, escapes undone.
    pub mount_point: Arc<Path>,
    /// `ext4`, `tmpfs`, `nfs4` …
    pub fs_type: String,
    /// Mounted read-only, here or as a whole, or made so by the filesystem after errors.
    pub read_only: bool,
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
}

/// The mounts of PID 1, which sees the host as it is even when we run in a namespace of our own; ours where PID 1's cannot
/// be read. In the kernel's order: of two mounts at one place the later one is what shows.
///
/// # Errors
/// When neither file can be read.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let read = |path| read(BufReader::new(File::open(path)?));
    read("/proc/1/mountinfo").or_else(|_| read("/proc/self/mountinfo"))
}

/// The mounts in a mountinfo text. Lines that do not have its form are left out.
pub fn parse_mountinfo(text: &str) -> Vec<Mount> {
    // Reading from memory never fails.
    read(text.as_bytes()).unwrap_or_default()
}

/// Paths need not be UTF-8, hence bytes. Line by line: with hundreds of containers the text is larger than the list, and
/// each thread that reads it keeps the room for it.
fn read(mut text: impl BufRead) -> io::Result<Vec<Mount>> {
    let (mut mounts, mut line) = (Vec::new(), Vec::new());
    while text.read_until(b'\n', &mut line)? > 0 {
        mounts.extend(parse_line(line.strip_suffix(b"\n").unwrap_or(&line)));
        line.clear();
    }
    Ok(mounts)
}

/// `36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`: the optional fields before the
/// dash are any number.
fn parse_line(line: &[u8]) -> Option<Mount> {
    // A source may be empty, so each single space separates.
    let mut fields = line.split(|byte| *byte == b' ');
    let (major, minor) = device_numbers(fields.nth(2)?)?;
    let mount_point = fields.nth(1)?;
    let options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let (fs_type, device) = (fields.next()?, fields.next()?);
    let super_options = fields.next()?;
    Some(Mount {
        device: String::from_utf8_lossy(device).into_owned(),
        mount_point: Path::new(OsStr::from_bytes(&unescape(mount_point))).into(),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        read_only: says_read_only(options) || says_read_only(super_options),
        major,
        minor,
    })
}

fn device_numbers(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `emergency_ro` is what newer kernels show of an ext4 that stopped writing after errors.
fn says_read_only(options: &[u8]) -> bool {
    options.split(|byte| *byte == b',').any(|option| matches!(option, b"ro" | b"emergency_ro"))
}

/// The kernel writes space, tab, newline, backslash (and `#` in sources) as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Cow<'_, [u8]> {
    if !field.contains(&b'\\') {
        return field.into();
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        if let (b'\\', Some(byte)) = (first, after.get(..3).and_then(octal)) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    bytes.into()
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| u8::from_str_radix(digits, 8).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device, mount point, type, read-only and numbers of each mount.
    fn rows(text: &str) -> Vec<(String, String, String, bool, u32, u32)> {
        parse_mountinfo(text)
            .into_iter()
            .map(|mount| {
                let mount_point = mount.mount_point.to_str().unwrap().to_owned();
                (mount.device, mount_point, mount.fs_type, mount.read_only, mount.major, mount.minor)
            })
            .collect()
    }

    fn row(
        device: &str,
        point: &str,
        fs: &str,
        ro: bool,
        major: u32,
        minor: u32,
    ) -> (String, String, String, bool, u32, u32) {
        (device.into(), point.into(), fs.into(), ro, major, minor)
    }

    #[test]
    fn debian_with_optional_fields_and_autofs() {
        let text = "\
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
34 22 0:29 / /proc/sys/fs/binfmt_misc rw,relatime shared:14 - autofs systemd-1 rw,fd=30,pgrp=1,timeout=0,minproto=5
90 27 254:15 / /boot/efi rw,relatime shared:43 master:2 propagate_from:1 - vfat /dev/vda15 rw,fmask=0022,errors=remount-ro
99 25 0:39 / /run/credentials/systemd-journald.service ro,nosuid,nodev,noexec,nosymfollow shared:45 - tmpfs none rw,size=1024k
";
        assert_eq!(
            rows(text),
            [
                row("/dev/vda1", "/", "ext4", false, 254, 1),
                row("systemd-1", "/proc/sys/fs/binfmt_misc", "autofs", false, 0, 29),
                row("/dev/vda15", "/boot/efi", "vfat", false, 254, 15),
                row("none", "/run/credentials/systemd-journald.service", "tmpfs", true, 0, 39),
            ]
        );
    }

    #[test]
    fn ubuntu_with_snaps_and_namespaces() {
        let text = "\
31 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,discard,errors=remount-ro
45 31 7:0 / /snap/core22/1564 ro,nodev,relatime shared:26 - squashfs /dev/loop0 ro,errors=continue,threads=single
70 29 0:26 /snapd/ns /run/snapd/ns rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,size=401032k,mode=755,inode64
71 70 0:4 mnt:[4026532290] /run/snapd/ns/lxd.mnt rw - nsfs nsfs rw
";
        assert_eq!(
            rows(text),
            [
                row("/dev/sda1", "/", "ext4", false, 8, 1),
                row("/dev/loop0", "/snap/core22/1564", "squashfs", true, 7, 0),
                row("tmpfs", "/run/snapd/ns", "tmpfs", false, 0, 26),
                row("nsfs", "/run/snapd/ns/lxd.mnt", "nsfs", false, 0, 4),
            ]
        );
    }

    #[test]
    fn bind_mounts_and_btrfs_subvolumes() {
        let text = "\
60 27 254:1 /srv/data /var/lib/data rw,relatime shared:1 - ext4 /dev/vda1 rw
61 27 254:1 /srv/data /srv/readonly ro,relatime shared:1 - ext4 /dev/vda1 rw
62 27 0:44 /@home /home rw,noatime shared:31 - btrfs /dev/sdb1 rw,space_cache=v2,subvolid=257,subvol=/@home
";
        assert_eq!(
            rows(text),
            [
                row("/dev/vda1", "/var/lib/data", "ext4", false, 254, 1),
                row("/dev/vda1", "/srv/readonly", "ext4", true, 254, 1),
                row("/dev/sdb1", "/home", "btrfs", false, 0, 44),
            ]
        );
    }

    #[test]
    fn odd_names() {
        let text = concat!(
            "80 27 0:50 / /mnt/a\\040b\\011c\\012d\\134e rw - tmpfs tmpfs rw\n",
            "81 27 0:51 / /mnt/- rw - tmpfs - rw\n",
            "82 27 0:52 / /mnt/empty rw -  fuse.x  rw\n",
            "83 27 0:53 / /mnt/\\04 rw - cifs //server/my\\040share rw\n",
            "84 27 0:54 / /mnt/\\777\\+11 rw - nfs4 [2001:db8::1]:/export\\043 rw,ro_is_not_me\n",
            "85 27 0:55 / /mnt/\u{fc} rw - 9p 源 rw\n",
        );
        assert_eq!(
            rows(text),
            [
                row("tmpfs", "/mnt/a b\tc\nd\\e", "tmpfs", false, 0, 50),
                row("-", "/mnt/-", "tmpfs", false, 0, 51),
                row("fuse.x", "/mnt/empty", "", false, 0, 52),
                row("//server/my\\040share", "/mnt/\\04", "cifs", false, 0, 53),
                row("[2001:db8::1]:/export\\043", "/mnt/\\777\\+11", "nfs4", false, 0, 54),
                row("源", "/mnt/\u{fc}", "9p", false, 0, 55),
            ]
        );
    }

    #[test]
    fn a_filesystem_that_stopped_writing_is_read_only() {
        let text = "27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,emergency_ro,errors=remount-ro\n";
        assert!(parse_mountinfo(text)[0].read_only);
    }

    #[test]
    fn paths_need_not_be_utf8() {
        let mounts = read(&b"80 27 0:50 / /mnt/\xff rw - tmpfs \xfe rw\n"[..]).unwrap();
        assert_eq!(mounts[0].mount_point.as_os_str().as_encoded_bytes(), b"/mnt/\xff");
        assert_eq!(mounts[0].device, "\u{fffd}");
    }

    #[test]
    fn lines_of_another_form_are_left_out() {
        for line in [
            "",
            "27 1 254:1",
            "27 1 254 / / rw - ext4 /dev/vda1 rw",
            "27 1 a:b / / rw - ext4 /dev/vda1 rw",
            "27 1 99999999999:1 / / rw - ext4 /dev/vda1 rw",
            "27 1 254:1 / / rw shared:1 ext4 /dev/vda1 rw",
            "27 1 254:1 / / rw - ext4",
        ] {
            assert_eq!(parse_mountinfo(line), [], "{line}");
        }
    }

    #[test]
    fn this_machine_has_a_root() {
        let mounts = mounts().unwrap();
        assert!(mounts.iter().any(|mount| &*mount.mount_point == Path::new("/")), "{mounts:?}");
    }
}
