//! What the two binaries cost, measured in the lab: `make bench`, or
//! `cargo bench -p evenkeel-tests --features lab` after `cargo build --release --workspace`.
//!
//! Prints one Markdown table. Times depend on the machine; the counts of calls do not.

// The lab's purpose is to start other programs; the ban is for the two product binaries.
#![allow(clippy::disallowed_types)]

mod proxy;
mod scrape;
mod webhook;

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use evenkeel_tests::namespace::{self, World};

/// One row of the table: what, and the figure with its unit.
pub(crate) type Row = (String, String);

fn main() -> Result<()> {
    let lifeline = namespace::enter(World::Lab)?;
    std::thread::spawn(|| {
        lifeline.wait();
        std::process::exit(130);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let rows = runtime.block_on(async {
        let mut rows = scrape::measure().await?;
        rows.extend(webhook::measure().await?);
        anyhow::Ok(rows)
    })?;
    println!("| What | Measured |\n|---|---|");
    for (what, figure) in rows {
        println!("| {what} | {figure} |");
    }
    Ok(())
}

/// The `q`-quantile of some durations, in milliseconds.
pub(crate) fn quantile(durations: &mut [Duration], q: f64) -> f64 {
    durations.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let position = ((durations.len() as f64 * q).ceil() as usize).clamp(1, durations.len()) - 1;
    durations[position].as_secs_f64() * 1000.0
}

/// User and system CPU of a process so far, in milliseconds (proc(5), stat; 100 ticks a second).
pub(crate) fn cpu_ms(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).context("too short")?.parse::<u64>().context("no number");
    Ok((ticks(11)? + ticks(12)?) * 10)
}

/// A field of /proc/PID/status in MiB: `VmRSS` now, `VmHWM` at most so far.
pub(crate) fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

/// The size of a built binary in MiB.
pub(crate) fn size_mib(name: &str) -> Result<f64> {
    #[expect(clippy::cast_precision_loss)]
    Ok(fs::metadata(evenkeel_tests::binaries::built(name)?)?.len() as f64 / 1_048_576.0)
}
