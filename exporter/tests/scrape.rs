//! The frame with collectors that fail, hang, panic and block: nobody delays or hides anybody else.

mod common;

use std::{
    borrow::Borrow,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use common::{Does, Fake, up, value};
use evenkeel_exporter::{
    collectors::Collector,
    config::Config,
    evidence::Piece,
    expectations::Expectations,
    scrape::{Budget, Scraper},
};
use evenkeel_host::web::{Security, exposition::Exposition};
use http_body_util::BodyExt;
use hyper::{HeaderMap, header::HeaderValue};
use tokio::time::Instant;

fn scraper(collectors: &[&Arc<Fake>]) -> Arc<Scraper> {
    let collectors = collectors.iter().map(|fake| Arc::clone(fake) as Arc<dyn Collector>);
    Arc::new(Scraper::new(collectors.collect(), None, Security::default()))
}

/// A budget from now on, for a client with this patience in seconds.
fn patience(seconds: &'static str) -> Budget {
    let mut headers = HeaderMap::new();
    headers.insert("x-prometheus-scrape-timeout-seconds", HeaderValue::from_static(seconds));
    Budget::of(Instant::now(), &headers)
}

/// The text without what differs from run to run.
async fn text(exposition: impl Borrow<Exposition>) -> String {
    let body =
        exposition.borrow().respond(&HeaderMap::new()).into_body().collect().await.expect("whole").to_bytes();
    let text = String::from_utf8(body.to_vec()).expect("text");
    let varies =
        |line: &&str| ["process_", "build_info", "last_success"].iter().any(|name| line.contains(name));
    text.lines().filter(|line| !varies(line)).map(|line| format!("{line}\n")).collect()
}

#[track_caller]
fn assert_has(text: &str, line: &str) {
    assert!(text.lines().any(|other| other == line), "no line `{line}` in:\n{text}");
}

#[tokio::test(start_paused = true)]
async fn whatever_one_collector_does_the_others_are_published_in_time() {
    let well = Fake::new("well", Does::See(value("well_value", "x")));
    let absent = Fake::new("absent", Does::FindNothing);
    let failing = Fake::new("failing", Does::Fail("no route to host"));
    let hanging = Fake::new("systemd", Does::Hang);
    let panicking = Fake::new("panicking", Does::Panic);
    let twice = Fake::new("panics_twice", Does::Panic);
    let scraper = scraper(&[&well, &absent, &failing, &hanging, &panicking, &twice]);

    let begun = Instant::now();
    let exposition = scraper.all(patience("10")).await;
    assert_eq!(begun.elapsed(), Duration::from_millis(5100));
    assert_eq!(text(exposition).await, include_str!("golden/misbehaving.prom"));

    let status = scraper.status();
    let words: Vec<_> = status
        .iter()
        .map(|status| (status.name, status.last.as_ref().expect("looked").words.as_str()))
        .collect();
    assert_eq!(
        words,
        [
            ("well", "watched: 1 series"),
            ("absent", "not watched: there is none"),
            ("failing", "no route to host"),
            ("systemd", "did not answer in time"),
            ("panicking", "panicked: on purpose"),
            ("panics_twice", "panicked: on purpose"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_impatient_client_is_answered_in_its_time() {
    let hanging = Fake::new("systemd", Does::Hang);
    let well = Fake::new("well", Does::See(value("well_value", "x")));
    let scraper = scraper(&[&hanging, &well]);
    for (seconds, answered_ms) in [("1", 850), ("0.4", 350), ("3", 2600)] {
        let begun = Instant::now();
        let text = text(scraper.all(patience(seconds)).await).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(answered_ms));
        assert_has(&text, "systemd_up 0.0");
        assert_has(&text, "well_value{label=\"x\"} 1.0");
    }
    // Every look was cut off, so that each scrape could begin a new one.
    assert_eq!(hanging.looks(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_ends_exactly_at_its_deadline_counts() {
    let last_minute = Fake::new("systemd", Does::UseUp(up()));
    let text = text(scraper(&[&last_minute]).all(patience("1")).await).await;
    assert_has(&text, "systemd_up 1.0");
    assert_has(&text, "evenkeel_scrape_collector_duration_seconds{collector=\"systemd\"} 0.75");
}

#[tokio::test(start_paused = true)]
async fn scrapes_at_the_same_time_share_one_look_and_one_text() {
    let slow = Fake::new("systemd", Does::Take(Duration::from_secs(1), up()));
    let scraper = scraper(&[&slow]);
    let (one, two, three) = tokio::join!(
        scraper.all(patience("10")),
        scraper.all(patience("10")),
        scraper.some(&["systemd"], patience("10"))
    );
    assert!(Arc::ptr_eq(&one, &two));
    assert_has(&text(three).await, "systemd_up 1.0");
    assert_eq!(slow.looks(), 1);
    scraper.all(patience("10")).await;
    assert_eq!(slow.looks(), 2, "a later scrape looks anew");
}

#[tokio::test(start_paused = true)]
async fn sharing_a_look_costs_nobody_its_own_deadline() {
    let slow = Fake::new("systemd", Does::Take(Duration::from_secs(2), up()));
    let scraper = scraper(&[&slow]);
    let begun = Instant::now();
    let impatient = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let exposition = scraper.all(patience("1")).await;
        (begun.elapsed(), text(exposition).await)
    };
    let (patient, (answered, early)) = tokio::join!(scraper.all(patience("10")), impatient);
    assert_eq!(answered, Duration::from_millis(950));
    assert_has(&early, "systemd_up 0.0");
    assert_has(&text(patient).await, "systemd_up 1.0");
    assert_eq!(slow.looks(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_look_cut_short_for_another_client_is_begun_again() {
    let slow = Fake::new("systemd", Does::Take(Duration::from_secs(2), up()));
    let scraper = scraper(&[&slow]);
    let patient = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        scraper.all(patience("10")).await
    };
    let (impatient, patient) = tokio::join!(scraper.all(patience("1")), patient);
    assert_has(&text(impatient).await, "systemd_up 0.0");
    assert_has(&text(patient).await, "systemd_up 1.0");
    assert_eq!(slow.looks(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_takes_nothing_with_it() {
    let slow = Fake::new("systemd", Does::Take(Duration::from_secs(2), up()));
    let scraper = scraper(&[&slow]);
    let leaving = tokio::time::timeout(Duration::from_secs(1), scraper.all(patience("10")));
    let staying = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        scraper.all(patience("10")).await
    };
    let (left, stayed) = tokio::join!(leaving, staying);
    assert!(left.is_err());
    assert_has(&text(stayed).await, "systemd_up 1.0");
    assert_eq!(slow.looks(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waited_for_is_not_served_later() {
    let slow = Fake::new("systemd", Does::Take(Duration::from_secs(2), up()));
    let scraper = scraper(&[&slow]);
    let leaving = tokio::time::timeout(Duration::from_secs(1), scraper.all(patience("10"))).await;
    assert!(leaving.is_err());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_has(&text(scraper.all(patience("10")).await).await, "systemd_up 1.0");
    assert_eq!(slow.looks(), 2);
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_and_recovery_is_seen() {
    let fake = Fake::new("systemd", Does::Fail("gone"));
    let scraper = scraper(&[&fake]);
    scraper.all(patience("1")).await;
    let failed = text(scraper.all(patience("1")).await).await;
    assert_has(&failed, "evenkeel_collector_errors_total{collector=\"systemd\"} 2.0");
    let never = scraper.all(patience("1")).await.respond(&HeaderMap::new());
    let never = never.into_body().collect().await.expect("whole").to_bytes();
    assert!(!String::from_utf8_lossy(&never).contains("last_success"), "it never succeeded");

    fake.does_now(Does::Hang);
    let late = text(scraper.all(patience("1")).await).await;
    assert_has(&late, "evenkeel_collector_errors_total{collector=\"systemd\"} 3.0");
    assert_has(&late, "evenkeel_collector_timeouts_total{collector=\"systemd\"} 1.0");

    fake.does_now(Does::See(up()));
    let well = scraper.all(patience("1")).await;
    let raw = well.respond(&HeaderMap::new()).into_body().collect().await.expect("whole").to_bytes();
    let raw = String::from_utf8(raw.to_vec()).expect("text");
    assert_has(&raw, "evenkeel_scrape_collector_success{collector=\"systemd\"} 1.0");
    let time = raw.lines().find_map(|line| {
        line.strip_prefix("evenkeel_collector_last_success_timestamp_seconds{collector=\"systemd\"} ")
    });
    let time: f64 = time.expect("it succeeded").parse().expect("a number");
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((now - 60.0..=now).contains(&time), "{time} {now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_look_that_blocks_its_thread_is_never_begun_twice() {
    let (release, gate) = mpsc::channel();
    let blocking = Fake::new("systemd", Does::Block(Arc::new(Mutex::new(gate)), up()));
    let well = Fake::new("well", Does::See(value("well_value", "x")));
    let scraper = scraper(&[&blocking, &well]);
    for count in 1..=3 {
        let begun = Instant::now();
        let text = text(scraper.all(patience("0.4")).await).await;
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_has(&text, "systemd_up 0.0");
        assert_has(&text, "well_value{label=\"x\"} 1.0");
        assert_has(&text, &format!("evenkeel_collector_timeouts_total{{collector=\"systemd\"}} {count}.0"));
        assert_eq!(blocking.looks(), 1);
    }
    blocking.does_now(Does::See(up()));
    release.send(()).expect("it waits");
    // The look that was blocked ends at some time; from then on new ones are begun.
    let recovered =
        async { while !text(scraper.all(patience("0.4")).await).await.contains("systemd_up 1.0") {} };
    tokio::time::timeout(Duration::from_secs(20), recovered).await.expect("it recovers");
}

#[tokio::test(start_paused = true)]
async fn what_two_collectors_claim_is_published_once() {
    let one = Fake::new("one", Does::See(value("shared", "x")));
    let two = Fake::new("two", Does::See(value("shared", "x").with(&[("label", "y")], 2.0)));
    let text = text(scraper(&[&one, &two]).all(patience("1")).await).await;
    assert_eq!(text.matches("# TYPE shared gauge").count(), 1, "{text}");
    assert_eq!(text.matches("shared{").count(), 1, "{text}");
    assert_has(&text, "shared{label=\"x\"} 1.0");
    assert_has(&text, "evenkeel_scrape_duplicate_samples 2.0");
}

#[tokio::test(start_paused = true)]
async fn expectations_are_judged_by_the_looks_of_the_same_scrape() {
    let shows = |bytes| Does::Show(value("journal_value", "x"), Piece::Journal(bytes));
    let (journal, other) =
        (Fake::new("journal", shows(5_000_000_000)), Fake::new("other", Does::FindNothing));
    let text_of_config = "expectations: {journal_size: {max: 4GB}}\n";
    let expectations = Expectations::new(&Config::parse("c.yml", text_of_config).expect("good"));
    let collectors: Vec<Arc<dyn Collector>> = vec![journal.clone(), other.clone()];
    let scraper = Scraper::new(collectors, Some(expectations), Security::default());
    assert_eq!(scraper.names().collect::<Vec<_>>(), ["journal", "other", "expectations"]);

    let seen = text(scraper.all(patience("10")).await).await;
    assert_has(&seen, "evenkeel_expectation_met{expectation=\"journal_size\"} 0.0");
    assert_has(&seen, "evenkeel_expectation_value{expectation=\"journal_size\"} 5000000000.0");
    assert_has(&seen, "evenkeel_scrape_collector_success{collector=\"expectations\"} 1.0");
    assert_eq!(journal.looks(), 1, "one look serves both");

    // Asked for alone, they are judged all the same, and nothing else is told.
    journal.does_now(shows(1_000_000_000));
    let seen = text(scraper.some(&["expectations"], patience("10")).await).await;
    assert_has(&seen, "evenkeel_expectation_met{expectation=\"journal_size\"} 1.0");
    assert_eq!(journal.looks(), 2);
    assert!(!seen.contains("journal_value") && !seen.contains("collector=\"journal\""), "{seen}");
    let seen = text(scraper.some(&["other"], patience("10")).await).await;
    assert!(!seen.contains("expectation"), "{seen}");
    assert_eq!(journal.looks(), 2);

    journal.does_now(Does::Hang);
    let seen = text(scraper.all(patience("10")).await).await;
    assert_has(&seen, "evenkeel_expectation_unknown{expectation=\"journal_size\"} 1.0");
    assert!(!seen.contains("evenkeel_expectation_met"), "{seen}");
    assert_has(&seen, "evenkeel_scrape_collector_success{collector=\"expectations\"} 1.0");
}
