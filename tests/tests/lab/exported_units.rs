//! What the exporter says of units, against what `systemctl` says of the same ones, on a real systemd: after every way in
//! which units change.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings},
    exposition::Exposition,
    namespace,
    process::free_port,
    systemd_host::SystemdHost,
    wait::wait_for,
};
use libtest_mimic::Trial;
use rustix::time::{ClockId, clock_gettime};

use crate::{shared, trial};

/// More than one check proves in turn, so that what is seen at once was announced.
const APPS: usize = 40;

/// Longer than two checks take, which are a second apart here.
const WITHIN_ITS_PACE: Duration = Duration::from_secs(30);

/// What systemd announces, one line at a time: after each the next scrape has to be right.
const ANNOUNCED: &[&str] = &[
    "true",
    "systemctl start app-1 app-2 app-3 once remains; systemctl start --no-block fails missing",
    "systemctl kill --signal=KILL app-1 app-2 app-9",
    "systemctl kill --signal=SEGV app-1",
    "systemctl restart app-2",
    "systemctl stop app-4 app-5",
    "systemctl daemon-reload",
    "systemctl kill --signal=KILL app-6; systemctl daemon-reexec",
    "systemctl reset-failed fails missing; systemctl start once",
    "systemctl start app-4; systemctl kill --signal=KILL app-4",
    "systemctl start reloads; systemctl reload reloads",
    "systemctl mask --now app-10",
    "systemctl unmask app-10; systemctl start app-10",
    // Found at its start, without a reload.
    "cp /etc/systemd/system/app-1.service /etc/systemd/system/late.service; systemctl start late",
    // A unit file that changed, one that went while its unit ran, and a new one, with a restart in the same breath.
    "cd /etc/systemd/system; sed -i s/1000/2000/ app-7.service; rm app-8.service; cp app-1.service added.service
     systemctl daemon-reload; systemctl restart app-7; systemctl start added",
    "systemctl stop app-8",
    "systemctl start tick.timer; until [ -e /run/ticked ]; do sleep 0.1; done; sleep 0.5",
    // Its own time-out does not count while nobody greets it.
    "systemctl start hello.socket; timeout 1 busctl --address=unix:path=/run/hello list; sleep 0.5",
    "systemd-run --unit=stays sleep 1000; systemd-run --unit=brief --wait true",
    "systemctl stop stays",
    "systemd-run --scope --unit=scoped true; systemctl start app.slice",
    "systemctl set-property --runtime app-11 TasksMax=77",
    "systemctl freeze app-12; systemctl thaw app-12",
    "systemctl restart dbus.service",
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("exported_units_are_what_systemctl_shows", exported_units_are_what_systemctl_shows),
        trial("exported_units_survive_being_removed_while_read", being_removed_while_read),
    ]
}

async fn exported_units_are_what_systemctl_shows() -> Result<()> {
    let host = SystemdHost::start(shared::engine().await?).await?;
    host.exec(&["sh", "-ec", &unit_files()]).await?;
    host.systemctl(&["daemon-reload"]).await?;
    host.exec(&["sh", "-c", &format!("systemctl start $(seq -f app-%g {APPS})")]).await?;
    let exporter = exporter(&host).await?;
    for event in ANNOUNCED {
        // Some of what the lines say is meant to fail.
        host.exec(&["sh", "-c", &format!("{event}; true")]).await?;
        let (shown, scraped) = both_at_once(&host, &exporter).await.context(*event)?;
        agree(&shown, &scraped).with_context(|| format!("after {event}"))?;
        ensure!(shown.services.len() >= APPS, "only {} services were shown", shown.services.len());
    }
    let scraped = exporter.scrape().await?;
    ensure!(scraped_load(&scraped, "broken.service").as_deref() == Some("bad-setting"));
    timer_is_right(&host, &scraped).await?;
    let counters_reset = "systemctl kill --signal=KILL app-1; sleep 0.5; systemctl reset-failed app-1";
    let unannounced = [
        // Sets the restart counter back and changes no state.
        (counters_reset, "systemd_service_restart_total", "app-1.service", 0.0),
        (
            "timeout 1 busctl --address=unix:path=/run/counted list",
            "systemd_socket_accepted_connections_total",
            "counted.socket",
            1.0,
        ),
        ("touch /etc/systemd/system/app-2.service", "systemd_unit_need_daemon_reload", "app-2.service", 1.0),
        ("systemctl daemon-reload", "systemd_unit_need_daemon_reload", "app-2.service", 0.0),
        ("systemctl enable wanted", "systemd_unit_file_state", "wanted.service", 1.0),
    ];
    for (event, metric, unit, expected) in unannounced {
        host.exec(&["sh", "-c", &format!("{event}; true")]).await?;
        wait_for(&format!("what follows from {event}"), WITHIN_ITS_PACE, async || {
            let value = exporter.scrape().await?.value(metric, &[("name", unit)]);
            ensure!(value == Some(expected), "{metric} of {unit} is {value:?}");
            Ok(())
        })
        .await?;
    }
    let wrong = exporter
        .scrape()
        .await?
        .value("evenkeel_collector_missed_changes_total", &[("collector", "systemd")]);
    ensure!(wrong == Some(0.0), "{wrong:?} changes were not announced");
    Ok(())
}

/// Transient units that live for a moment, scraped all the while.
async fn being_removed_while_read() -> Result<()> {
    let host = SystemdHost::start(shared::engine().await?).await?;
    let exporter = exporter(&host).await?;
    let brief = "for n in $(seq 60); do systemd-run --collect --quiet --unit=brief-$n true; done";
    let program = ["sh", "-c", brief];
    let running = host.exec(&program);
    let scraping = async {
        loop {
            let scrape = exporter.scrape().await?;
            ensure!(scrape.value("systemd_up", &[]) == Some(1.0), "systemd is not up");
        }
    };
    tokio::select! {
        done = running => done.map(drop)?,
        failed = scraping => failed?,
    }
    let (shown, scraped) = both_at_once(&host, &exporter).await?;
    agree(&shown, &scraped)
}

async fn exporter(host: &SystemdHost) -> Result<Exporter> {
    let dir = namespace::place("units")?;
    let config = dir.join("exporter.yml");
    fs::write(&config, "systemd: {check_every: 1s}\n")?;
    let around = Surroundings { bus: Some(host.bus_address()), docker: None };
    let flags = ["--collector.systemd.unit-include=.+"];
    Exporter::start_with(&dir, free_port()?, Some(&config), &around, &flags).await
}

fn unit_files() -> String {
    let app = "[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nExecStart=/bin/sleep 1000\\nRestart=always\\nRestartSec=50ms\\n";
    format!(
        "cd /etc/systemd/system
        for n in $(seq {APPS}); do printf '{app}' >app-$n.service; done
        printf '[Service]\\nType=oneshot\\nExecStart=/bin/true\\n' >once.service
        printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\n' >remains.service
        printf '[Service]\\nExecStart=/bin/sh -c \"exit 7\"\\n' >fails.service
        printf '[Service]\\nExecStart=/no/such/program\\n' >missing.service
        printf '[Unit]\\nBefore=broken.service\\n[Service]\\nExecStart=/bin/true\\n' >mentions.service
        printf '[Service]\\nExecStart=not/absolute\\n' >broken.service
        printf '[Service]\\nExecStart=/bin/sleep 1000\\nExecReload=/bin/sleep 0.2\\n' >reloads.service
        printf '[Timer]\\nOnActiveSec=1s\\nAccuracySec=100ms\\nOnCalendar=daily\\n' >tick.timer
        printf '[Service]\\nType=oneshot\\nExecStart=/bin/touch /run/ticked\\n' >tick.service
        printf '[Socket]\\nListenStream=/run/hello\\n' >hello.socket
        printf '[Service]\\nExecStart=/bin/sleep 1000\\n' >hello.service
        printf '[Socket]\\nListenStream=/run/counted\\nAccept=yes\\n' >counted.socket
        printf '[Service]\\nExecStart=/bin/true\\nStandardInput=socket\\n' >counted@.service
        printf '[Service]\\nExecStart=/bin/sleep 1000\\n[Install]\\nWantedBy=multi-user.target\\n' >wanted.service
        mkdir multi-user.target.wants 2>/dev/null || true
        ln -s ../broken.service multi-user.target.wants/
        systemctl daemon-reload
        systemctl start counted.socket wanted.service"
    )
}

/// What `systemctl` says.
#[derive(PartialEq)]
struct Shown {
    /// Every unit in memory that exists: active and sub state.
    units: BTreeMap<String, (String, String)>,
    /// Loaded services with their properties, in the words of [`said`].
    services: BTreeMap<String, BTreeMap<&'static str, String>>,
}

/// What `systemctl` says and a scrape from a time in which that did not change.
async fn both_at_once(host: &SystemdHost, exporter: &Exporter) -> Result<(Shown, Exposition)> {
    let mut before = shown(host).await?;
    for _ in 0..100 {
        let scraped = exporter.scrape().await?;
        let after = shown(host).await?;
        // A bus that is just coming back is no unit that changed.
        if after == before && scraped.value("systemd_up", &[]) == Some(1.0) {
            return Ok((before, scraped));
        }
        before = after;
    }
    bail!("the units never stand still")
}

fn agree(shown: &Shown, scraped: &Exposition) -> Result<()> {
    for (unit, expected) in &shown.services {
        let said = said(scraped, unit);
        ensure!(said == *expected, "of {unit} the exporter says {said:?}, systemctl {expected:?}");
    }
    let mut said = BTreeMap::<String, (String, String)>::new();
    for sample in scraped.all("systemd_unit_state", &[]).filter(|sample| sample.value == 1.0) {
        said.entry(sample.labels["name"].clone()).or_default().0.clone_from(&sample.labels["state"]);
    }
    for sample in scraped.all("systemd_unit_sub_state", &[]) {
        said.entry(sample.labels["name"].clone()).or_default().1.clone_from(&sample.labels["sub_state"]);
    }
    for (unit, states) in &shown.units {
        ensure!(said.get(unit) == Some(states), "{unit}: {:?}, systemctl says {states:?}", said.get(unit));
    }
    said.retain(|unit, _| !shown.units.contains_key(unit));
    ensure!(said.is_empty(), "systemctl says nothing of {said:?}");
    Ok(())
}

async fn shown(host: &SystemdHost) -> Result<Shown> {
    // One call, because entering the container takes longer than asking.
    let text = host.exec(&["sh", "-ec", SHOW]).await?;
    let (list, services) = text.split_once("\n\n").context("two answers")?;
    let mut units = BTreeMap::new();
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (name, load, active, sub) = (word(), word(), word(), word());
        if load != "not-found" || active != "inactive" {
            units.insert(name, (active, sub));
        }
    }
    Ok(Shown { units, services: properties_of(services) })
}

/// The units, an empty line, and the properties of the services.
const SHOW: &str = "systemctl --no-pager list-units --all --plain --no-legend --full; echo
    exec systemctl --no-pager show --all --timestamp=unix --property=Id,LoadState,ActiveState,SubState,NRestarts,\
Result,ExecMainStatus,ExecMainExitTimestamp,ActiveEnterTimestamp,InactiveEnterTimestamp '*.service'";

fn properties_of(services: &str) -> BTreeMap<String, BTreeMap<&'static str, String>> {
    let mut units = BTreeMap::new();
    for block in services.split("\n\n") {
        let of_unit: BTreeMap<&str, &str> = block.lines().filter_map(|line| line.split_once('=')).collect();
        let value = |name: &str| of_unit.get(name).copied().unwrap_or_default().to_owned();
        if value("LoadState") != "loaded" {
            continue;
        }
        // Shown as `@seconds`, and as nothing for never.
        let time = |name: &str| value(name).trim_start_matches('@').to_owned();
        let or_never = |time: String| if time.is_empty() { "0".to_owned() } else { time };
        let ended = time("ExecMainExitTimestamp");
        let mut properties = BTreeMap::from([
            ("state", value("ActiveState")),
            ("sub state", value("SubState")),
            ("restarts", value("NRestarts")),
            ("result", value("Result")),
            ("active since", or_never(time("ActiveEnterTimestamp"))),
            ("inactive since", or_never(time("InactiveEnterTimestamp"))),
        ]);
        if !ended.is_empty() {
            properties.extend([("status", value("ExecMainStatus")), ("ended", ended)]);
        }
        units.insert(value("Id"), properties);
    }
    units
}

/// What the exporter says of a service.
fn said(scraped: &Exposition, unit: &str) -> BTreeMap<&'static str, String> {
    let name = [("name", unit)];
    let mut properties = BTreeMap::new();
    for (property, metric, label) in [
        ("state", "systemd_unit_state", "state"),
        ("sub state", "systemd_unit_sub_state", "sub_state"),
        ("result", "systemd_service_result", "result"),
    ] {
        let current: Vec<_> = scraped.all(metric, &name).filter(|sample| sample.value == 1.0).collect();
        let words: Vec<&str> = current.iter().map(|sample| sample.labels[label].as_str()).collect();
        properties.insert(property, words.join(" and "));
    }
    for (property, metric) in [
        ("restarts", "systemd_service_restart_total"),
        ("active since", "systemd_unit_active_enter_time_seconds"),
        ("inactive since", "systemd_unit_inactive_enter_time_seconds"),
        ("status", "systemd_service_exec_main_status"),
        ("ended", "systemd_service_exec_main_exit_timestamp_seconds"),
    ] {
        if let Some(value) = scraped.value(metric, &name) {
            properties.insert(property, value.floor().to_string());
        }
    }
    properties
}

fn scraped_load(scraped: &Exposition, unit: &str) -> Option<String> {
    scraped
        .all("systemd_unit_load_state", &[("name", unit)])
        .next()
        .map(|sample| sample.labels["load_state"].clone())
}

/// The timer that has run: when it did, and when it will again by its calendar.
async fn timer_is_right(host: &SystemdHost, scraped: &Exposition) -> Result<()> {
    let properties = ["LastTriggerUSec", "NextElapseUSecRealtime", "NextElapseUSecMonotonic"];
    let path = "/org/freedesktop/systemd1/unit/tick_2etimer";
    let asked =
        ["busctl", "get-property", "org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Timer"];
    // One a line, with its type before it.
    let text = host.exec(&[&asked[..], &properties].concat()).await?;
    let numbers: Vec<u64> =
        text.lines().filter_map(|line| line.split_once(' ')?.1.trim().parse().ok()).collect();
    let [last, realtime, monotonic] = numbers[..] else { bail!("busctl says {text:?}") };
    let set = |microseconds: u64| (!matches!(microseconds, 0 | u64::MAX)).then_some(microseconds);
    #[expect(clippy::cast_precision_loss)]
    let seconds = |microseconds: u64| microseconds as f64 / 1e6;
    let since_start = clock_gettime(ClockId::Monotonic);
    let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?
        - Duration::new(since_start.tv_sec.try_into()?, since_start.tv_nsec.try_into()?);
    let monotonic = set(monotonic).map(|since| start.as_secs_f64() + seconds(since));
    let next = [set(realtime).map(seconds), monotonic].into_iter().flatten().reduce(f64::min);
    let name = [("name", "tick.timer")];
    let said = scraped.value("systemd_timer_last_trigger_seconds", &name);
    ensure!(said == Some(seconds(last)) && last > 0, "last {said:?}, {last}");
    let (said, next) =
        (scraped.value("systemd_timer_next_trigger_seconds", &name), next.context("no next time")?);
    ensure!(said.is_some_and(|said| (said - next).abs() < 2.0), "next {said:?}, {next}");
    ensure!(
        scraped.value("systemd_timer_info", &[("name", "tick.timer"), ("unit", "tick.service")]) == Some(1.0)
    );
    Ok(())
}
