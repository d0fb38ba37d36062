//! The tests that need the real things. They share one lab: `make lab-test` runs them all, and
//! `cargo test -p evenkeel-tests --features lab -- NAME` some (as root, after `make tools build`).

// The lab's purpose is to start other programs; the ban is for the two product binaries.
#![allow(clippy::disallowed_types)]

mod actions_on_docker;
mod actions_on_units;
mod alone;
mod between_deliveries;
mod blind;
mod checked;
mod clean_state;
mod closed_loop;
mod crash;
mod deb;
mod demo;
mod diagnosis;
mod disk;
mod drill;
mod duplicates;
mod exported_containers;
mod exported_units;
mod facts;
mod first_config;
mod fleet;
mod fleet_ledger;
mod fleet_redis;
mod full_disk;
mod generated;
mod golden;
mod hang;
mod hardened_host;
mod held_back;
mod helper;
mod hostile_mounts;
mod hosts_alias;
mod inhibition;
mod inodes;
mod installed;
mod itself;
mod maintenance;
mod metrics;
mod packaged;
mod parity;
mod plan;
mod redis_ways;
mod second_disk;
mod shared;
mod snapshot;
mod sockets;
mod stale_references;
mod truth;
mod unit;
mod unit_groups;
mod up;

use std::{future::Future, time::Instant};

use evenkeel_tests::namespace::{self, World};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    if !arguments.list {
        enter();
    }
    // Most of a test is waiting, and more at once would only make the waits longer: each runs several
    // daemons.
    arguments.test_threads.get_or_insert(3);
    // The longest first, so that none runs alone at the end.
    let trials = [
        demo::trials(),
        packaged::trials(),
        deb::trials(),
        snapshot::trials(),
        fleet::trials(),
        fleet_redis::trials(),
        drill::trials(),
        hardened_host::trials(),
        clean_state::trials(),
        maintenance::trials(),
        stale_references::trials(),
        hosts_alias::trials(),
        blind::trials(),
        between_deliveries::trials(),
        held_back::trials(),
        helper::trials(),
        actions_on_docker::trials(),
        inhibition::trials(),
        inodes::trials(),
        actions_on_units::trials(),
        unit::trials(),
        hang::trials(),
        plan::trials(),
        diagnosis::trials(),
        crash::trials(),
        disk::trials(),
        truth::trials(),
        second_disk::trials(),
        duplicates::trials(),
        up::trials(),
        exported_containers::trials(),
        exported_units::trials(),
        unit_groups::trials(),
        sockets::trials(),
        facts::trials(),
        first_config::trials(),
        golden::trials(),
        hostile_mounts::trials(),
        metrics::trials(),
        parity::trials(),
        redis_ways::trials(),
        fleet_ledger::trials(),
        full_disk::trials(),
        generated::trials(),
        itself::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit();
}

fn enter() {
    match namespace::enter(World::Lab) {
        Ok(lifeline) => {
            std::thread::spawn(|| {
                lifeline.wait();
                // Ending this process ends everything in its namespaces.
                std::process::exit(130);
            });
        }
        Err(error) => {
            eprintln!("the lab cannot run: {error:#}");
            std::process::exit(1);
        }
    }
}

/// One test with a runtime of its own. It says how long it took, because the lab's tests are the
/// ones that make a run long.
fn trial<F, R>(name: &'static str, test: F) -> Trial
where
    F: FnOnce() -> R + Send + 'static,
    R: Future<Output = anyhow::Result<()>>,
{
    Trial::test(name, move || {
        let start = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let result = runtime.block_on(test());
        eprintln!("{name}: {:.1} s", start.elapsed().as_secs_f64());
        result.map_err(|error| Failed::from(format!("{error:#}")))
    })
}
