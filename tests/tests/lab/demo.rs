//! `make demo` from end to end: it says that everything healed only when it did.

use std::time::Duration;

use anyhow::{Result, ensure};
use evenkeel_tests::{binaries::built, tools};
use libtest_mimic::Trial;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("demo_heals_what_it_breaks", heals_what_it_breaks)]
}

async fn heals_what_it_breaks() -> Result<()> {
    let mut demo = tools::command(built("evenkeel-lab")?);
    demo.arg("demo");
    // An exit code other than 0 is an error with everything that it printed.
    let printed = tools::run(demo, Duration::from_secs(180)).await?;
    for said in [
        "acted: unit_restart [S2] done",
        "acted: container_restart [S2] done",
        "acted: build_cache_prune [D1] done",
        "alert HostDiskHigh is resolved",
        "alert SystemdUnitFailed is resolved",
        "alert ContainerUnhealthy is resolved",
        "shop-frontend was not restarted: healthcheck_broken",
        "All that could be healed has healed.",
    ] {
        ensure!(printed.contains(said), "it does not say {said:?}: {printed}");
    }
    let verified = printed.matches("verified: ").count();
    ensure!(verified == 3, "{verified} repairs were verified: {printed}");
    Ok(())
}
