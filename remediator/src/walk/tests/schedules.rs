//! Random schedules of alerts, people, clocks, deaths and boots, through the real webhook, journal, worker and walk, in
//! simulated time. What was done is judged by an oracle that knows only the log of the host and what the schedule asked
//! for, in the time that really passed: never by the remediator's own counts.
//!
//! The schedules are made from their numbers, so that each run has the same ones; a failure is made small and printed
//! with how to run it again. `SCHEDULES=10000` runs so many (`make unit` does, `make test-long` ten times that),
//! `SEED=17` only that one.

mod host;
mod life;
mod oracle;
mod plan;

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config as Rules, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use self::{life::Stage, oracle::Seen};

/// How many when nobody says: what finds most mistakes, and is soon done.
const SCHEDULES: u64 = 500;

fn from_environment(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Makes the schedule of a number and runs it; the smallest one like it that fails, if it does.
fn try_one(seed: u64, stage: &Stage, sum: &mut Seen) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rules = Rules { failure_persistence: None, max_shrink_iters: 2000, ..Rules::default() };
    let mut runner = TestRunner::new_with_rng(rules, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let tree = plan::plan().new_tree(&mut runner).map_err(|reason| reason.to_string())?;
    let seen = std::cell::RefCell::new(Seen::default());
    let result = runner.run_one(tree, |plan| {
        let judged = stage.play(&plan).map_err(TestCaseError::fail)?;
        *seen.borrow_mut() = judged;
        Ok(())
    });
    *sum += seen.into_inner();
    result.map(drop).map_err(|error| {
        let again = format!("run it again: SEED={seed} cargo test -p evenkeel-remediator schedules::");
        match error {
            TestError::Fail(reason, plan) => format!("schedule {seed}: {reason}\n{plan}\n{again}"),
            TestError::Abort(reason) => format!("schedule {seed}: {reason}\n{again}"),
        }
    })
}

/// Nothing is done twice, blindly, too often or without leave, and everything comes to an end with a reason.
#[test]
fn whatever_happens_in_whatever_order_nothing_is_done_that_must_not_be() {
    let seeds = match from_environment("SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..from_environment("SCHEDULES").unwrap_or(SCHEDULES) + 1,
    };
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let hands = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let stage = Stage::new();
        let mut sum = Seen::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return Ok(sum);
            }
            if let Err(failure) = try_one(seed, &stage, &mut sum) {
                // The others stop too.
                next.store(seeds.end, Ordering::Relaxed);
                return Err(failure);
            }
        }
    };
    let mut sum = Seen::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..hands).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join().unwrap() {
                Ok(seen) => sum += seen,
                Err(failure) => panic!("{failure}"),
            }
        }
    });
    let count = seeds.end - seeds.start;
    eprintln!("{count} schedules in {:.0} s: {sum:?}", began.elapsed().as_secs_f64());
    // Schedules that try nothing prove nothing.
    if count > 100 {
        assert!(sum.calls > count && sum.refusals > count && sum.interrupted > count / 20, "{sum:?}");
    }
}
