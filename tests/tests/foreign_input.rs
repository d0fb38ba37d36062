//! Every parser of what others have written is fed what nobody expects: real input with pieces changed, doubled, cut and
//! mixed. None may panic, and none may take long.
//!
//! Each test runs for `EVENKEEL_FUZZ_SECONDS` (1 when not given; `make fuzz` gives 20). What a run found is a sample of
//! its parser from then on.

use std::{path::Path, time::Duration, time::Instant};

use evenkeel_exporter::{by_root, check::Baseline, config::Config};
use evenkeel_host::foreign_input::{Parser, parsers};
use evenkeel_remediator::{
    config,
    matcher::Matcher,
    pattern::Pattern,
    policy::Limit,
    webhook::{self, Alert, Meaning},
};
use libtest_mimic::{Arguments, Failed, Trial};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
    test_runner::{Config as Rules, TestCaseError, TestRunner},
};
use rustix::time::{ClockId, clock_gettime};

/// Processor time for one input, in a build without optimization. A parser that takes longer is not linear.
const LONGEST: Duration = Duration::from_secs(1);

/// No input is longer, in bytes.
const LARGEST: usize = 64 << 10;

/// Looked at together.
const BATCH: u32 = 256;

fn main() {
    let trials = parsers().into_iter().chain(OURS.iter().copied());
    let trials = trials.map(|parser| Trial::test(parser.name.replace(' ', "_"), move || feed(parser)));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Those of the two binaries.
const OURS: &[Parser] = &[
    Parser {
        name: "exporter configuration",
        parse: |bytes| drop(Config::parse("exporter.yml", &String::from_utf8_lossy(bytes))),
        samples: &[include_str!("../../packaging/exporter.yml")],
    },
    Parser {
        name: "facts by root",
        parse: by_root::parse,
        samples: &[
            r#"{"version":1,"taken_seconds":1764000000,"environments":{"a.service":{"variables":{"REDIS_HOST":"met","B":"different"}},"b.service":{"nothing":"not_running"}},"container_logs":{"4f1a":123},"journal_bytes":7}"#,
        ],
    },
    Parser {
        name: "earlier check",
        parse: |bytes| drop(Baseline::parse(bytes)),
        samples: &[
            r#"{"version":1,"taken_seconds":1764000000,"expectations":[{"expectation":"disk_usage","title":"disk usage","met":false,"value":0.91,"bound":0.85,"comparison":"at_most","measure":"ratio","details":["/"]}]}"#,
        ],
    },
    Parser {
        name: "remediator configuration",
        parse: |bytes| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("remediator.yml");
            std::fs::write(&path, bytes).expect("written");
            drop(config::load(&path));
        },
        samples: &[include_str!("../../packaging/remediator.yml"), RULES],
    },
    Parser {
        name: "webhook",
        parse: |bytes| {
            let take = |_: &Alert, meaning| {
                // Only what is on the list becomes a target.
                if let Meaning::Ours(alert) = meaning {
                    let target = format!("{alert:?}");
                    assert!(target.contains("shop-"), "{target}");
                }
            };
            drop(webhook::read(bytes, &remediator(), true, take));
        },
        samples: &[
            r#"{"version":"4","groupKey":"{}:{alertname=\"A\"}","status":"firing","receiver":"r","groupLabels":{},"commonLabels":{"alertname":"A"},"commonAnnotations":{},"externalURL":"http://x","truncatedAlerts":0,"alerts":[{"status":"firing","labels":{"alertname":"A","host":"lab","name":"shop-api.service"},"annotations":{"summary":"s"},"startsAt":"2026-11-22T00:00:00.000Z","endsAt":"0001-01-01T00:00:00Z","generatorURL":"http://p","fingerprint":"0a1b2c3d4e5f6071"}]}"#,
            r#"{"version":"4","alerts":[{"status":"resolved","labels":{"alertname":"A","host":"lab","name":"../../x"}},{"labels":null}]}"#,
        ],
    },
    Parser {
        name: "alert matchers",
        parse: |bytes| {
            if let Ok(matcher) = Matcher::parse(&String::from_utf8_lossy(bytes)) {
                let labels = [("alertname", "A\n\"{}"), ("é", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
                let _ = (matcher.matches(&labels.into()), matcher.accepts_missing());
            }
        },
        samples: &[
            "alertname=\"A\"",
            "severity=~\"info|critical\"",
            "a!=\"b\\\"c\\\\\"",
            "instance!~'lab.*'",
            "x = y",
        ],
    },
    Parser {
        name: "limits and patterns",
        parse: |bytes| {
            let text = String::from_utf8_lossy(bytes);
            drop(text.parse::<Limit>());
            if let Ok(pattern) = text.parse::<Pattern>() {
                let _ = (pattern.matches(&text), pattern.matches("shop-api.service"), pattern.is_literal());
            }
        },
        samples: &["3/6h", "1/15m", "shop-*.service", "*", "a?[b-c]*", "/var/lib/docker"],
    },
];

const RULES: &str = r#"
server: {auth: none}
identity: {hosts: [lab]}
policy: {mode: auto}
rules:
  - name: a
    match: ['alertname="A"']
    target: {unit: name, allow: ["shop-*.service"]}
    limits: [1/5m, 3/1h]
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 60s, within: 4m}
"#;

/// Read once.
fn remediator() -> std::sync::Arc<config::Config> {
    static CONFIG: std::sync::OnceLock<std::sync::Arc<config::Config>> = std::sync::OnceLock::new();
    let load = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("remediator.yml");
        std::fs::write(&path, RULES).expect("written");
        std::sync::Arc::new(config::load(Path::new(&path)).expect("a good configuration"))
    };
    CONFIG.get_or_init(load).clone()
}

/// Gives a parser its samples, and then what becomes of them, until the time is over.
fn feed(parser: Parser) -> Result<(), Failed> {
    let seconds = std::env::var("EVENKEEL_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(seconds);
    for sample in parser.samples {
        (parser.parse)(sample.as_bytes());
    }
    let mut inputs: u64 = 0;
    while Instant::now() < end {
        let rules =
            Rules { cases: BATCH, failure_persistence: None, max_shrink_time: 10_000, ..Rules::default() };
        let input = input(parser.samples);
        let fed = TestRunner::new(rules).run(&input, |bytes| {
            let begun = processor_time();
            (parser.parse)(&bytes);
            let took = processor_time() - begun;
            if took > LONGEST { Err(TestCaseError::fail(format!("took {took:?}"))) } else { Ok(()) }
        });
        if let Err(error) = fed {
            return Err(format!("{}: {error}", parser.name).into());
        }
        inputs += u64::from(BATCH);
    }
    eprintln!("{}: {inputs} inputs", parser.name);
    Ok(())
}

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A change of what is there; positions are shares of its length, in 1/65536.
#[derive(Clone, Debug)]
enum Edit {
    Insert(u16, Vec<u8>),
    Replace(u16, Vec<u8>),
    Remove(u16, u16),
    /// A stretch again, so often.
    Repeat(u16, u16, u16),
    /// The rest is another sample's.
    Mix(u16, &'static str),
}

/// Mostly a sample with some changes, sometimes anything.
fn input(samples: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let edited = (select(samples), vec(edit(samples), 0..8)).prop_map(|(sample, edits)| {
        let mut bytes = sample.as_bytes().to_vec();
        edits.into_iter().for_each(|edit| apply(&mut bytes, edit));
        bytes
    });
    prop_oneof![8 => edited, 1 => vec(any::<u8>(), 0..256), 1 => any::<String>().prop_map(String::into_bytes)]
}

fn edit(samples: &'static [&'static str]) -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any::<u16>(), piece()).prop_map(|(at, piece)| Edit::Insert(at, piece)),
        (any::<u16>(), piece()).prop_map(|(at, piece)| Edit::Replace(at, piece)),
        (any::<u16>(), any::<u16>()).prop_map(|(at, length)| Edit::Remove(at, length)),
        (any::<u16>(), 0..4096u16, 1..512u16).prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
        (any::<u16>(), select(samples)).prop_map(|(at, sample)| Edit::Mix(at, sample)),
    ]
}

/// What breaks parsers.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = select(
        &[
            "\"",
            "'",
            "\\",
            "\n",
            "\r\n",
            "\t",
            "\0",
            "{",
            "}",
            "[",
            "]",
            ":",
            ": ",
            "- ",
            ",",
            "/",
            "=",
            "#",
            "&a ",
            "*a",
            "<<: ",
            "!!binary ",
            "|",
            "%",
            "null",
            "-1",
            "0",
            "1e999",
            "NaN",
            "18446744073709551616",
            "-9223372036854775809",
            "\\u0000",
            "\\ud800",
            "\\040",
            "\\777",
            "\u{feff}",
            "\u{202e}",
            "é",
            "🦀",
        ][..],
    );
    prop_oneof![
        3 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 1..8),
        1 => (any::<u8>(), 1..2048usize).prop_map(|(byte, times)| vec![byte; times]),
        1 => Just(vec![0xff, 0xfe, 0xc3]),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: Edit) {
    let share = |part: u16, whole: usize| whole * usize::from(part) / usize::from(u16::MAX);
    let length = bytes.len();
    match edit {
        Edit::Insert(at, piece) => drop(bytes.splice(share(at, length)..share(at, length), piece)),
        Edit::Replace(at, piece) => {
            let at = share(at, length);
            let end = (at + piece.len()).min(length);
            drop(bytes.splice(at..end, piece));
        }
        Edit::Remove(at, part) => {
            let at = share(at, length);
            let end = at + share(part, length - at);
            drop(bytes.drain(at..end));
        }
        Edit::Repeat(at, part, times) => {
            let at = share(at, length);
            let stretch = bytes[at..(at + usize::from(part)).min(length)].repeat(usize::from(times));
            drop(bytes.splice(at..at, stretch));
        }
        Edit::Mix(at, sample) => {
            bytes.truncate(share(at, length));
            let rest = &sample.as_bytes()[share(at, sample.len())..];
            bytes.extend_from_slice(rest);
        }
    }
    bytes.truncate(LARGEST);
}
