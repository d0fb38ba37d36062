//! Filesystems mounted where no one would mount them.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use anyhow::{Result, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings},
    exposition::Exposition,
    http, namespace,
    process::free_port,
    tools,
};
use libtest_mimic::Trial;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("mount_points_of_any_name_are_published_whole", any_name_is_published)]
}

/// Unmounts when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(place: PathBuf) -> Result<Self> {
        std::fs::create_dir(&place)?;
        let arguments = ["-t", "tmpfs", "-o", "size=64k", "lab"].map(OsStr::new);
        let mut command = tools::command("mount");
        command.args(arguments).arg(&place);
        tools::run_blocking(command)?;
        Ok(Self(place))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mut command = tools::command("umount");
        command.arg(&self.0);
        if let Err(error) = tools::run_blocking(command) {
            eprintln!("cannot unmount {}: {error:#}", self.0.display());
        }
    }
}

async fn any_name_is_published() -> Result<()> {
    let dir = namespace::place("mounts")?;
    let names: [&[u8]; 5] = [
        b"with space and\ttab",
        b"line\nnode_filesystem_size_bytes{mountpoint=\"forged\"} 1\n# EOF",
        b"quote\"} back\\slash \\040",
        "snow ☃".as_bytes(),
        b"not \xff\xfe UTF-8",
    ];
    let places = names.map(|name| dir.join(OsString::from(OsStr::from_bytes(name))));
    let mounted = places.iter().cloned().map(Mounted::at).collect::<Result<Vec<_>>>()?;

    let exporter = Exporter::start(&dir, free_port()?, None, &Surroundings::default()).await?;
    let text = http::get(&format!("{}/metrics?collect[]=filesystem", exporter.url())).await?;
    ensure!(
        !text.lines().any(|line| line.contains("{mountpoint=\"forged\"} 1") && line.starts_with("node")),
        "{text}"
    );
    let scrape = Exposition::parse(&text);
    for place in &places {
        let name = place.to_string_lossy().into_owned();
        let size = scrape.value("node_filesystem_size_bytes", &[("mountpoint", &name), ("device", "lab")]);
        ensure!(size == Some(65_536.0), "{name:?} has {size:?} in\n{text}");
    }
    drop(mounted);
    Ok(())
}
