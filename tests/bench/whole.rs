//! A whole host, 2,077 units and 300 containers, with every collector: storms of requests, memory, sources that stand
//! still, changes that must be seen, and the start.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    exposition::Exposition, http, namespace, process::Frozen, redis_server::RedisServer, wait::wait_for,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::sleep,
};

use crate::{
    client::{Client, Coding, Until, storm},
    docker::Containers,
    program::{Program, Setting},
    systemd::Host,
    table::{Row, quantiles, short},
};

const CONNECTIONS: usize = 32;
const SCRAPES: usize = 10_000;

/// Everything that one exporter looks at.
pub(crate) struct Whole {
    pub(crate) host: Arc<Host>,
    pub(crate) containers: Arc<Containers>,
    redis: RedisServer,
}

impl Whole {
    pub(crate) async fn new(host: Arc<Host>, containers: Arc<Containers>) -> Result<Self> {
        Ok(Self { host, containers, redis: RedisServer::start().await? })
    }

    fn setting(&self) -> Result<Setting> {
        let config = namespace::place("whole")?.join("exporter.yml");
        fs::write(&config, format!("redis: [{{name: bench, url: \"{}\"}}]\n", self.redis.url()))?;
        Ok(Setting::flags(&[&format!("--config.file={}", config.display())])
            .with("DBUS_SYSTEM_BUS_ADDRESS", self.host.systemd.bus_address())
            .with("DOCKER_HOST", self.containers.engine.host()))
    }

    async fn exporter(&self) -> Result<Program> {
        let program = Program::evenkeel(&self.setting()?).await?;
        wait_for("the exporter to see everything", Duration::from_secs(60), async || {
            let seen = seen(&program).await?;
            for up in ["systemd_up", "docker_up", "redis_up"] {
                ensure!(seen.value(up, &[]) == Some(1.0), "{up}");
            }
            Ok(())
        })
        .await?;
        Ok(program)
    }

    /// Requests per second, beside a server that sends the same bytes and does nothing else.
    pub(crate) async fn storms(&self) -> Result<Vec<Row>> {
        const TIME: Until = Until::Time(Duration::from_secs(10));
        let mut rows = Vec::new();
        for (coding, name) in [(Coding::Gzip, "as Prometheus asks"), (Coding::Identity, "without gzip")] {
            let program = self.exporter().await?;
            let body = Client::connect(program.port, coding).await?.scrape().await?.bytes;
            let mut measured = storm(program.port, coding, CONNECTIONS, TIME).await?;
            let memory = program.memory_mib("VmRSS")?;
            let floor = storm(static_body(body).await?, coding, CONNECTIONS, TIME).await?;
            let rate = measured.per_second();
            let text = format!(
                "{rate:.0}/s, {}; {} errors; {} MB afterwards",
                quantiles(&mut measured.times),
                measured.errors,
                short(memory * 1.048_576)
            );
            let what = format!(
                "`/metrics` over {CONNECTIONS} connections, {} units and 300 containers, {name} ({} kB)",
                self.host.units,
                body / 1000
            );
            let row = Row::new(what, text).beside(format!("a static body {:.0}/s", floor.per_second()));
            let row = if coding == Coding::Gzip { row.at_least(rate, 500.0, "/s") } else { row };
            rows.push(row);
            let row = Row::new(
                format!("Memory after that storm, {name}"),
                format!("{} MB", short(memory * 1.048_576)),
            );
            rows.push(row.at_most(memory * 1.048_576, 32.0, "MB"));
        }
        let peer = self.host.node_exporter().await?;
        let measured =
            storm(peer.port, Coding::Gzip, CONNECTIONS, Until::Time(Duration::from_secs(25))).await?;
        let memory = peer.memory_mib("VmRSS")? * 1.048_576;
        rows.push(Row::new(
            "The same asked of node_exporter's systemd collector alone",
            format!(
                "{}/s; {} errors; {} MB afterwards",
                short(measured.per_second()),
                measured.errors,
                short(memory)
            ),
        ));
        Ok(rows)
    }

    /// Memory after many scrapes.
    pub(crate) async fn memory(&self) -> Result<Vec<Row>> {
        const TIME: Duration = Duration::from_secs(120);
        let program = self.exporter().await?;
        let first = program.memory_mib("VmRSS")?;
        let mut done = storm(program.port, Coding::Gzip, 1, Until::Count(SCRAPES / 10, TIME)).await?.answers;
        let early = program.memory_mib("VmRSS")?;
        let rest = Until::Count(SCRAPES - SCRAPES / 10, TIME);
        done += storm(program.port, Coding::Gzip, 1, rest).await?.answers;
        let late = program.memory_mib("VmRSS")?;
        let text = format!(
            "{} MiB ({} at first, {} after a tenth of them, {} at most)",
            short(late),
            short(first),
            short(early),
            short(program.memory_mib("VmHWM")?)
        );
        let what =
            format!("Resident memory, {} units and 300 containers, after {done} scrapes", self.host.units);
        let row = Row::new(what, text).at_most(late, 24.0, "MiB");
        let flat = Row::new(
            "Of that, grown in the last nine tenths of the scrapes",
            format!("{} MiB", short(late - early)),
        );
        Ok(vec![row, flat.at_most(late - early, 1.0, "MiB")])
    }

    /// Each source stopped, and all of them.
    pub(crate) async fn stalls(&self) -> Result<Vec<Row>> {
        let program = self.exporter().await?;
        let mut worst = Duration::ZERO;
        let mut said = Vec::new();
        let mut intact = true;
        let [manager, bus] = self.host.systemd.daemons().await?;
        let [dockerd, _] = self.containers.engine.daemons();
        let redis = self.redis.id();
        let up = [("systemd_up", "systemd"), ("docker_up", "dockerd"), ("redis_up", "Redis")];
        let cases: [(&str, Vec<u32>, &[usize]); 5] = [
            ("systemd", vec![manager], &[0]),
            ("dbus-daemon", vec![bus], &[0]),
            ("dockerd", vec![dockerd], &[1]),
            ("Redis", vec![redis], &[2]),
            ("all", vec![manager, bus, dockerd, redis], &[0, 1, 2]),
        ];
        for (name, stopped, down) in cases {
            let frozen = stopped.into_iter().map(Frozen::new).collect::<Result<Vec<_>>>()?;
            let took = Client::connect(program.port, Coding::Gzip).await?.scrape().await?.took;
            worst = worst.max(took);
            let scrape = seen(&program).await?;
            for (position, (metric, _)) in up.iter().enumerate() {
                let wanted = f64::from(u8::from(!down.contains(&position)));
                intact &= scrape.value(metric, &[]) == Some(wanted);
            }
            intact &= scrape.value("node_filesystem_size_bytes", &[]).is_some();
            said.push(format!("{name} {:.1} s", took.as_secs_f64()));
            drop(frozen);
            wait_for("all sources to be back", Duration::from_secs(30), async || {
                let scrape = seen(&program).await?;
                ensure!(up.iter().all(|(metric, _)| scrape.value(metric, &[]) == Some(1.0)), "not yet");
                Ok(())
            })
            .await?;
        }
        let row = Row::new("Scrape with a source stopped (SIGSTOP), patience 10 s", said.join(", "));
        let holds = intact && worst < Duration::from_secs(10);
        Ok(vec![row.must("before the deadline, the rest intact", holds)])
    }

    /// What happens between two scrapes.
    pub(crate) async fn changes(&self) -> Result<Vec<Row>> {
        const TIMES: usize = 10;
        let program = self.exporter().await?;
        let mut shown = 0;
        for _ in 0..TIMES {
            shown += usize::from(self.crash_is_shown(&program).await?);
        }
        let row = Row::new(
            "A unit that crashed and was restarted between two scrapes, shown at the next",
            format!("{shown} of {TIMES}"),
        )
        .beside("a poll of states alone shows none: the unit is active before and after");
        let mut times = Vec::new();
        for number in 1..=TIMES {
            times.push(self.death_shown_after(&program, number).await?);
        }
        let longest = times.iter().max().copied().unwrap_or_default();
        let death = Row::new("A container's death, until it is shown", quantiles(&mut times));
        Ok(vec![
            row.must("always", shown == TIMES),
            death.at_most(longest.as_secs_f64() * 1000.0, 1000.0, "ms"),
        ])
    }

    async fn crash_is_shown(&self, program: &Program) -> Result<bool> {
        const UNIT: &str = "bench-restarting.service";
        let systemd = &self.host.systemd;
        let restarts = async || -> Result<f64> {
            let scrape = seen(program).await?;
            scrape
                .value("systemd_service_restart_total", &[("name", UNIT)])
                .context("no restarts of the unit")
        };
        let before = wait_for("the unit's restarts to be known", Duration::from_secs(30), restarts).await?;
        let count: u32 = systemd.property(UNIT, "NRestarts").await?.trim().parse()?;
        systemd.systemctl(&["kill", "--signal=KILL", UNIT]).await?;
        wait_for("systemd to restart the unit", Duration::from_secs(30), async || {
            let now: u32 = systemd.property(UNIT, "NRestarts").await?.trim().parse()?;
            let state = systemd.property(UNIT, "ActiveState").await?;
            ensure!(now > count && state.trim() == "active", "{now} restarts, {state}");
            Ok(())
        })
        .await?;
        Ok(restarts().await.is_ok_and(|now| now > before))
    }

    async fn death_shown_after(&self, program: &Program, number: usize) -> Result<Duration> {
        let engine = &self.containers.engine;
        let name = format!("bench-{number}");
        engine.docker(&["kill", &name]).await?;
        let begun = Instant::now();
        let labels = [("name", name.as_str()), ("state", "exited")];
        loop {
            let scrape = seen(program).await?;
            if scrape.value("docker_container_state", &labels) == Some(1.0) {
                break;
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "the death of {name} is never shown");
            sleep(Duration::from_millis(20)).await;
        }
        let took = begun.elapsed();
        engine.docker(&["start", &name]).await?;
        Ok(took)
    }

    /// From the start of the process to the first whole answer.
    pub(crate) async fn start(&self) -> Result<Vec<Row>> {
        let setting = self.setting()?;
        let mut times = Vec::new();
        for _ in 0..5 {
            let begun = Instant::now();
            // The first answer is awaited inside.
            let program = Program::evenkeel(&setting).await?;
            times.push(begun.elapsed());
            drop(program);
        }
        let nowhere = Setting::flags(&[])
            .with("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/lab/no-bus")
            .with("DOCKER_HOST", "unix:///run/lab/no-docker");
        let idle = Program::evenkeel(&nowhere).await?;
        Ok(vec![
            Row::new("Start to first answer, the whole host", quantiles(&mut times)),
            Row::new(
                "Resident memory without any source",
                format!("{} MiB", short(idle.memory_mib("VmRSS")?)),
            ),
            Row::new(
                "Exporter binary",
                format!("{} MiB", short(crate::program::size_mib("evenkeel-exporter")?)),
            ),
        ])
    }
}

async fn seen(program: &Program) -> Result<Exposition> {
    Ok(Exposition::parse(&http::get(&format!("http://127.0.0.1:{}/metrics", program.port)).await?))
}

/// A server that answers everything with so many bytes. Returns its port.
async fn static_body(bytes: usize) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + bytes, b'x');
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                // A request of this client comes in one piece.
                while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {
                    if stream.write_all(&answer).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(port)
}
