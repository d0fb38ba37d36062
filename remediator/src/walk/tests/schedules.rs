//! Random schedules of alerts, deaths, reboots and clocks that are set: in real time there are never more starts in any
//! window than its limit says. The seeds are fixed; a failure names its own.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep};

use super::bench::{Bench, Call, Does, failed, unit_rule};
use crate::{
    journal::StepState,
    policy::{Class, Limit},
};

const SCHEDULES: u64 = 40;
const MOVES: u64 = 60;
const TARGETS: [&str; 3] = ["app-a.service", "app-b.service", "app-c.service"];
const RULES: [&str; 2] = ["one", "two"];

/// Windows per scope, as the configuration below has them.
const RULE_TARGET: [&str; 2] = ["1/15m", "3/3h"];
const RULE: [&str; 2] = ["2/30m", "5/6h"];
const TARGET: [&str; 1] = ["2/1h"];
const CLASS_S2: [&str; 2] = ["2/10m", "8/3h"];
const HOST: [&str; 1] = ["6/2h"];

/// xorshift64*: small, and the same everywhere (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    fn seconds(&mut self, most: u64) -> Duration {
        Duration::from_secs(self.below(most))
    }
}

fn bench() -> Bench {
    let list = |limits: &[&str]| limits.join(", ");
    let rules = RULES.map(|name| {
        let keys = format!(
            "    limits: [{}]\n    rule_limits: [{}]\n    cooldown: 1s\n    breaker: {{after: 1000, hold: 1h}}\n",
            list(&RULE_TARGET),
            list(&RULE)
        );
        unit_rule(name, &keys)
    });
    let policy = format!(
        "policy: {{mode: auto, limits: {{S1: [999/1h], S2: [{}], target: [{}], host: [{}]}}}}",
        list(&CLASS_S2),
        list(&TARGET),
        list(&HOST)
    );
    Bench::under(&policy, &rules)
}

/// Every half-open window that ends at a start, and so every window: none may hold more than its limit.
fn within(limits: &[&str], starts: &[Instant], what: &str) {
    for limit in limits.iter().map(|text| text.parse::<Limit>().unwrap()) {
        for end in starts {
            let inside = starts
                .iter()
                .filter(|start| *start <= end && end.duration_since(**start) < limit.window)
                .count();
            assert!(inside <= limit.count as usize, "{inside} starts of {what} within {limit}");
        }
    }
}

fn check(bench: &Bench, seed: u64) {
    let calls: Vec<Call> = bench.world.calls().into_iter().filter(|call| call.class.acts()).collect();
    let mut starts: BTreeMap<i64, &Call> = BTreeMap::new();
    let mut steps = BTreeMap::new();
    for call in &calls {
        *steps.entry((call.remediation, call.action)).or_insert(0) += 1;
        // A walk that died between its reservation and its first call was counted then, and goes on with the next step.
        if call.action == "clear" {
            starts.insert(call.remediation, call);
        }
    }
    assert!(steps.values().all(|count| *count == 1), "seed {seed}: a step was called twice");
    let of = |which: &dyn Fn(&Call) -> bool| -> Vec<Instant> {
        starts.values().filter(|call| which(call)).map(|call| call.at).collect()
    };
    for rule in RULES {
        within(&RULE, &of(&|call| call.rule == rule), &format!("{rule}, seed {seed}"));
        for target in TARGETS {
            let what = format!("{rule} on {target}, seed {seed}");
            within(&RULE_TARGET, &of(&|call| call.rule == rule && call.target == target), &what);
        }
    }
    for target in TARGETS {
        within(&TARGET, &of(&|call| call.target == target), &format!("{target}, seed {seed}"));
    }
    let every_step: Vec<Instant> = calls.iter().map(|call| call.at).collect();
    let s2: Vec<Instant> = calls.iter().filter(|call| call.class == Class::S2).map(|call| call.at).collect();
    within(&CLASS_S2, &s2, &format!("S2, seed {seed}"));
    within(&HOST, &every_step, &format!("the host, seed {seed}"));
    for record in bench.reader().recent(None, None, 10_000).unwrap() {
        for step in bench.reader().steps(record.id).unwrap() {
            let open = matches!(step.state, StepState::Reserved | StepState::Running);
            assert!(record.outcome.is_none() || !open, "seed {seed}: #{} left a step open", record.id);
        }
    }
}

/// One host's life.
async fn live(seed: u64) -> usize {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut bench = bench();
    for rule in RULES {
        let does = [Does::Cure, Does::Nothing, Does::Sicken, Does::Refuse, Does::Hang];
        let clear = bench.fake("clear", Class::S1, Does::Nothing);
        let first = bench.fake("first", Class::S2, random.one(&does).clone());
        let second = bench.fake("second", Class::S2, random.one(&does).clone());
        bench.steps(rule, [clear, first, second]);
    }
    for target in TARGETS {
        bench.world.show(target, failed());
    }
    for _ in 0..MOVES {
        match random.below(12) {
            0..=3 => {
                let (rule, target) = (*random.one(&RULES), *random.one(&TARGETS));
                bench.world.sicken(target);
                bench.alert(rule, target).await;
            }
            4..=6 => {
                bench.journal().fuse.set(usize::try_from(random.below(80)).unwrap());
                let fuse = bench.journal().fuse.clone();
                let dead = tokio::select! {
                    biased;
                    () = fuse.blown() => true,
                    () = bench.drive() => false,
                };
                if dead {
                    bench.restart();
                }
                bench.journal().fuse.set(usize::MAX);
            }
            7 => bench.drive().await,
            8 | 9 => sleep(random.seconds(3600)).await,
            // The clock is set while the host runs, and the worker looks up now and then.
            10 => {
                let hours = i64::try_from(random.below(49)).unwrap() - 24;
                bench.set_wall_clock(hours * 3_600_000);
                bench.journal().open_targets(bench.now()).await.unwrap();
            }
            // A reboot. The hardware's clock may have lost time; that it gained some, nobody could know.
            _ => {
                sleep(random.seconds(60)).await;
                let lost =
                    if random.below(2) == 0 { 0 } else { -i64::try_from(random.below(86_400)).unwrap() };
                bench.reboot(lost * 1000);
                // The worker looks up first of all.
                bench.journal().open_targets(bench.now()).await.unwrap();
            }
        }
    }
    check(&bench, seed);
    bench.world.calls().len()
}

#[tokio::test(start_paused = true)]
async fn no_window_ever_holds_more_starts_than_its_limit() {
    let mut calls = 0;
    for seed in 1..=SCHEDULES {
        calls += live(seed).await;
    }
    assert!(calls > 300, "{calls} calls in all: the schedules try nothing");
}
