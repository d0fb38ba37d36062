//! Provokes the failures of `host/tests/diagnose/cases.txt` on a real systemd and writes down what systemd and the journal say
//! of them. `tests/record-failures.sh` makes the image for it and runs it.
//!
//! With `fail` as its first argument it is itself the Rust program that fails, in the ways of Rust programs.

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    fmt::Write as _,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use evenkeel_host::systemd::{Failure, Systemd};
use evenkeel_tests::{
    engine::{Engine, Options},
    inside,
    namespace::{self, World},
    systemd_host::SystemdHost,
    tools,
    wait::wait_for,
};
use serde_json::{Value, json};

/// Long enough for every time-out among the cases.
const SOON: Duration = Duration::from_secs(60);

/// What is kept of each entry: what the product asks the journal for.
const FIELDS: [&str; 8] = [
    "__REALTIME_TIMESTAMP",
    "MESSAGE",
    "SYSLOG_IDENTIFIER",
    "_COMM",
    "_PID",
    "_SYSTEMD_UNIT",
    "_SYSTEMD_INVOCATION_ID",
    "INVOCATION_ID",
];

fn main() -> Result<(), Box<dyn StdError>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["fail", how, what] => fail(how, what),
        [image, to] => {
            let lifeline = namespace::enter(World::Lab)?;
            Ok(inside::run(lifeline, record(image, to))?)
        }
        _ => Err("usage: record_failures IMAGE FILE".into()),
    }
}

/// Fails as Rust programs do: what `main` returns, a panic, an error with its causes, a line of a log, no memory.
#[allow(clippy::unwrap_used, clippy::panic, reason = "a program that panics is one of the cases")]
fn fail(how: &str, what: &str) -> Result<(), Box<dyn StdError>> {
    match how {
        "create" => drop(File::create(what)?),
        "unwrap" => drop(File::create(what).unwrap()),
        "context" => {
            let error = File::create(what).context("cannot keep the journal").err();
            eprintln!("Error: {:?}", error.context("it could be made")?);
            std::process::exit(1);
        }
        "line" => {
            let error =
                File::options().create(true).append(true).open(what).err().context("it could be opened")?;
            eprintln!("failing: cannot open {what}: {error}");
            std::process::exit(1);
        }
        "bind" => drop(TcpListener::bind(what)?),
        "connect" => drop(TcpStream::connect(what)?),
        "allocate" => drop(std::hint::black_box(Vec::<u8>::with_capacity(what.parse()?))),
        "panic" => panic!("{what}"),
        _ => return Err("no such way to fail".into()),
    }
    Ok(())
}

/// One case of the table.
#[derive(Debug, Default)]
struct Case {
    name: String,
    before: Vec<String>,
    after: Vec<String>,
    unit: String,
}

/// The script that prepares the host, and the cases.
fn read_cases() -> Result<(String, Vec<Case>)> {
    let text = fs::read_to_string(tools::repository().join("host/tests/diagnose/cases.txt"))?;
    let (mut setup, mut cases) = (String::new(), Vec::<Case>::new());
    let mut is_setup = false;
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("## ") {
            is_setup = head == "setup";
            if let Some((name, _)) = head.split_once(": ") {
                cases.push(Case { name: name.to_owned(), ..Case::default() });
            }
        } else if is_setup {
            writeln!(setup, "{line}")?;
        } else if let Some(case) = cases.last_mut() {
            if let Some(command) = line.strip_prefix("$ ") {
                case.before.push(command.to_owned());
            } else if let Some(command) = line.strip_prefix("! ") {
                case.after.push(command.to_owned());
            } else {
                writeln!(case.unit, "{line}")?;
            }
        }
    }
    Ok((setup, cases))
}

async fn record(image: &str, to: &str) -> Result<()> {
    let (setup, cases) = read_cases()?;
    let engine = Arc::new(Engine::start(Options::default()).await?);
    let itself = std::env::current_exe()?;
    let volumes = [format!("{}:/srv/rust/failing:ro", itself.display())];
    let host = SystemdHost::start_with(engine, image, &volumes).await?;
    let systemd = Systemd::at(&host.bus_address());
    host.exec(&["sh", "-ec", &setup]).await.context("the setup")?;
    let mut records = BTreeMap::new();
    for case in &cases {
        let unit = format!("{}.service", case.name);
        host.write_file(&format!("/etc/systemd/system/{unit}"), &case.unit).await?;
        for command in &case.before {
            host.exec(&["sh", "-ec", command]).await.with_context(|| case.name.clone())?;
        }
    }
    host.systemctl(&["daemon-reload"]).await?;
    for case in &cases {
        let recorded = record_one(&host, &systemd, case).await.with_context(|| case.name.clone())?;
        println!("{}: {}", case.name, last_words(&recorded));
        records.insert(case.name.clone(), recorded);
    }
    // One line a case, so that what changes is seen.
    let mut text = "{\n".to_owned();
    for (place, (name, recorded)) in records.iter().enumerate() {
        let comma = if place + 1 < records.len() { "," } else { "" };
        writeln!(text, "{}: {recorded}{comma}", json!(name))?;
    }
    text += "}\n";
    fs::write(to, text)?;
    println!("{} cases recorded in {to}", records.len());
    Ok(())
}

async fn record_one(host: &SystemdHost, systemd: &Systemd, case: &Case) -> Result<Value> {
    let unit = format!("{}.service", case.name);
    // Most of them fail at this call.
    host.exec(&["sh", "-c", "systemctl start \"$1\" || true", "sh", &unit]).await?;
    let mut failure = failed(systemd, &unit, "").await?;
    for command in &case.after {
        let command = format!("UNIT={unit}; {command} || true");
        host.exec(&["sh", "-c", &command]).await?;
        failure = failed(systemd, &unit, &failure.invocation_id).await?;
    }
    // As the product asks: so many lines, the newest first.
    let read = "journalctl --sync && exec journalctl --lines=200 --reverse --output=json --no-pager \
        _SYSTEMD_UNIT=\"$1\" + UNIT=\"$1\"";
    let entries = host.exec(&["sh", "-c", read, "sh", &unit]).await?;
    let kept = |line: &str| {
        let entry: Value = serde_json::from_str(line)?;
        let fields =
            FIELDS.iter().filter_map(|field| Some(((*field).to_owned(), entry.get(*field)?.clone())));
        Ok(fields.collect::<serde_json::Map<_, _>>())
    };
    let journal: Vec<_> = entries.lines().map(kept).collect::<Result<_>>()?;
    Ok(json!({"failure": failure, "journal": journal}))
}

/// Waits until the unit has failed in another run than this one.
async fn failed(systemd: &Systemd, unit: &str, run: &str) -> Result<Failure> {
    wait_for("it to fail", SOON, async || {
        let failure = systemd.failure(unit).await?.context("it is a service")?;
        ensure!(failure.is_one(), "it is {} ({})", failure.active_state, failure.sub_state);
        if failure.invocation_id == run && !run.is_empty() {
            bail!("it has not been started again");
        }
        // One that is restarted at once is on its way to its start limit.
        let is_limited = failure.sub_state == "auto-restart" && !unit.starts_with("loop-");
        ensure!(!is_limited, "it is restarted");
        Ok(failure)
    })
    .await
}

fn last_words(recorded: &Value) -> String {
    let newest = recorded["journal"].as_array().into_iter().flatten();
    let of_program = newest.filter(|entry| entry["_PID"] != "1").take(1);
    let words: Vec<String> = of_program.map(|entry| entry["MESSAGE"].to_string()).collect();
    format!("{} {}", recorded["failure"]["result"], words.concat())
}
