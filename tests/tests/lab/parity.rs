//! Drop-in means: what node_exporter and redis_exporter say of a host, ours says too, under the same names and types and
//! with the same values, and the rules that people have for them work unchanged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Exporter, built},
    disk::Disk,
    exposition::Exposition,
    http,
    mounts::Mounts,
    namespace,
    peers::Peer,
    process::free_port,
    prometheus::Prometheus,
    redis_server::RedisServer,
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use promql_parser::parser::{self, BinaryExpr, Expr};
use serde::Deserialize;

use crate::trial;

/// The upstream defaults, given to both: distributions patch them.
const EXCLUDES: [&str; 2] = [
    "--collector.filesystem.mount-points-exclude=^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)",
    "--collector.filesystem.fs-types-exclude=^(autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|fusectl|hugetlbfs|iso9660|mqueue|nsfs|overlay|proc|procfs|pstore|rpc_pipefs|securityfs|selinuxfs|squashfs|erofs|sysfs|tracefs)$",
];

const RULES: &str = include_str!("../../published-rules.yml");

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("parity_filesystems_are_node_exporters", filesystems_are_node_exporters),
        trial("parity_redis_is_redis_exporters", redis_is_redis_exporters),
        trial("parity_published_rules_work_unchanged", published_rules_work_unchanged),
    ]
}

/// A name and its labels; an empty one is none.
type Series = (String, BTreeMap<String, String>);

fn series(text: &str) -> BTreeMap<Series, f64> {
    let exposition = Exposition::parse(text);
    let samples = exposition.samples().map(|sample| {
        let labels = sample.labels.iter().filter(|(_, value)| !value.is_empty());
        let labels = labels.map(|(name, value)| (name.clone(), value.clone())).collect();
        ((sample.name.clone(), labels), sample.value)
    });
    samples.collect()
}

fn differs(one: f64, other: f64, part: f64) -> bool {
    (one - other).abs() > part * one.abs().max(other.abs())
}

/// Filesystems of every kind that a lab can have, in a world of their own, because other tests mount things meanwhile.
async fn filesystems_are_node_exporters() -> Result<()> {
    let dir = namespace::place("filesystems")?;
    let disk = Disk::new("parity", 40)?;
    let mounts = Mounts::start(
        &dir,
        &format!(
            r#"cd {dir}
            mkdir small 'with space' ünï read-only bound inside stack below 'quote"d'
            mount -t tmpfs -o size=3m,nr_inodes=77 small-one small
            dd if=/dev/zero of=small/file bs=1k count=1000 2>/dev/null
            mount -t tmpfs -o size=64k 'spa ced' 'with space'
            mount -t tmpfs -o size=64k unicode ünï
            mount -t tmpfs -o size=64k quoted 'quote"d'
            mount -t tmpfs -o size=64k,ro read-only read-only
            mount --bind {disk} bound
            mount -o remount,bind,ro bound
            mkdir inside/there; mount -t tmpfs -o size=64k there inside/there; mount -t tmpfs -o size=64k over inside
            mount -t tmpfs -o size=64k underneath stack; mount -t tmpfs -o size=128k on-top stack
            mount -t ramfs ram below"#,
            dir = dir.display(),
            disk = disk.path().display(),
        ),
    )
    .await?;
    let flags = EXCLUDES.map(str::to_owned);
    let theirs = Peer::node_exporter(&dir, mounts.command(tools::program("node_exporter")?), &flags).await?;
    let mut command = mounts.command(built("evenkeel-exporter")?);
    command.args(["--collector.disable-defaults", "--collector.filesystem"]).args(EXCLUDES);
    let exporter = Exporter::start_as(&dir, free_port()?, command).await?;

    let (theirs, ours) = (theirs.scrape().await?, http::get(&format!("{}/metrics", exporter.url())).await?);
    let (described_theirs, described_ours) =
        (Exposition::descriptions(&theirs), Exposition::descriptions(&ours));
    let of_filesystems = |name: &str| name.starts_with("node_filesystem_");
    for (name, description) in described_theirs.iter().filter(|(name, _)| of_filesystems(name)) {
        ensure!(described_ours.get(name) == Some(description), "{name}: {:?}", described_ours.get(name));
    }
    let (mut theirs, mut ours) = (series(&theirs), series(&ours));
    theirs.retain(|(name, _), _| of_filesystems(name));
    ours.retain(|(name, _), _| of_filesystems(name));
    ensure!(theirs.len() > 100, "only {} series of node_exporter", theirs.len());

    // What the older ones of them do not have yet.
    ours.retain(|(name, _), _| described_theirs.contains_key(name.as_str()));
    // Two things are better on purpose. What lies below another mount they publish with the numbers of what lies above;
    let below = |(_, labels): &Series| labels.get("device").is_some_and(|device| device == "underneath");
    ensure!(theirs.keys().any(below) && !ours.keys().any(below), "the mount below another one");
    theirs.retain(|series, _| !below(series));
    // and we say what the error is of what cannot be reached, and whether it is read-only, as newer ones of them do.
    let there =
        |labels: &BTreeMap<String, String>| labels.get("device").is_some_and(|device| device == "there");
    let error = |series: &BTreeMap<Series, f64>| {
        let found =
            series.iter().find(|((name, labels), _)| name.ends_with("_device_error") && there(labels));
        found.map(|(_, value)| *value)
    };
    ensure!(error(&theirs) == Some(1.0) && error(&ours) == Some(1.0), "the mount that cannot be reached");
    for series in [&mut theirs, &mut ours] {
        series.retain(|(_, labels), _| !there(labels));
    }

    let (names_theirs, names_ours): (BTreeSet<_>, BTreeSet<_>) =
        (theirs.keys().collect(), ours.keys().collect());
    let missing: Vec<_> = names_theirs.difference(&names_ours).collect();
    let additional: Vec<_> = names_ours.difference(&names_theirs).collect();
    ensure!(missing.is_empty() && additional.is_empty(), "missing {missing:#?}, additional {additional:#?}");
    for (series, theirs) in &theirs {
        let ours = ours[series];
        // Somebody writes to the machine's disks all the time; nobody writes to what the test has mounted.
        let moves = series.1["mountpoint"].as_str();
        let part = if moves.starts_with(&*dir.to_string_lossy()) { 0.0 } else { 0.01 };
        ensure!(!differs(ours, *theirs, part), "{series:?}: {ours}, node_exporter says {theirs}");
    }
    Ok(())
}

/// What ours says of a Redis that redis_exporter does not.
const OUR_OWN: [&str; 4] =
    ["redis_ready", "redis_probe_failure", "redis_connect_duration_seconds", "redis_ping_duration_seconds"];

/// What moves all the time, and how far it may have moved between two scrapes of the same minute.
const MOVING: [(&str, f64); 4] = [
    ("redis_uptime_in_seconds", 60.0),
    ("redis_master_last_io_seconds_ago", 60.0),
    ("redis_cpu_sys_seconds_total", 5.0),
    ("redis_cpu_user_seconds_total", 5.0),
];

async fn redis_is_redis_exporters() -> Result<()> {
    let dir = namespace::place("redis-parity")?;
    let first =
        RedisServer::start_with(&["--appendonly", "yes", "--maxmemory", "200mb", "--maxclients", "123"])
            .await?;
    for command in ["SETRANGE big 30000000 x", "SET a 1", "SET b 1 EX 1000", "GET a", "GET none"] {
        first.ask(command).await?;
    }
    first.ask("BGSAVE").await?;
    let replica_of = format!("127.0.0.1 {}", first.port());
    let second = RedisServer::start_with(&["--save", "", "--replicaof", &replica_of]).await?;
    wait_for("the replica", Duration::from_secs(20), async || {
        let linked = second.ask("ROLE").await.is_ok() && info(&second, "master_link_status").await? == "up";
        ensure!(linked && info(&first, "rdb_bgsave_in_progress").await? == "0", "not yet");
        Ok(())
    })
    .await?;
    let config = dir.join("exporter.yml");
    let yaml = format!(
        "redis: [{{name: first, url: '{}'}}, {{name: second, url: '{}'}}]\n",
        first.url(),
        second.url()
    );
    fs::write(&config, yaml)?;
    let mut command = tools::command(built("evenkeel-exporter")?);
    command.args(["--collector.disable-defaults", "--collector.redis"]);
    command.arg(format!("--config.file={}", config.display()));
    let exporter = Exporter::start_as(&dir, free_port()?, command).await?;
    let url = format!("{}/metrics", exporter.url());

    for (name, server) in [("first", &first), ("second", &second)] {
        let peer = Peer::redis_exporter(&dir, &server.url()).await?;
        let (before, text, after) = (http::get(&url).await?, peer.scrape().await?, http::get(&url).await?);
        let theirs = series(&text);
        let (kinds_ours, kinds_theirs) = (Exposition::descriptions(&before), Exposition::descriptions(&text));
        let after = series(&after);
        let mut compared = BTreeSet::new();
        for (of_ours, ours) in series(&before) {
            let (metric, mut labels) = of_ours.clone();
            if !metric.starts_with("redis_") || labels.remove("redis").as_deref() != Some(name) {
                continue;
            }
            if OUR_OWN.contains(&metric.as_str()) {
                ensure!(!kinds_theirs.contains_key(metric.as_str()), "{metric} is theirs too");
                continue;
            }
            // The older ones of them do not say it.
            let later = |label: &String| metric == "redis_instance_info" && label == "master_replid";
            let found = theirs.iter().find(|((name, theirs), _)| {
                let said = theirs.iter().filter(|(label, _)| !later(label));
                *name == metric && said.eq(labels.iter().filter(|(label, _)| !later(label)))
            });
            let (_, theirs) =
                found.with_context(|| format!("redis_exporter does not say {metric} {labels:?}"))?;
            let later = after.get(&of_ours).with_context(|| format!("{metric} is gone"))?;
            let moved = MOVING.iter().find(|(name, _)| *name == metric).map_or(0.0, |(_, most)| *most);
            let between = ours.min(*later) <= *theirs && *theirs <= ours.max(*later);
            ensure!(
                between || !differs(ours, *theirs, 0.01) || (ours - theirs).abs() <= moved,
                "{metric} {labels:?}: {ours}, then {later}, redis_exporter says {theirs}"
            );
            let kind = |described: &BTreeMap<_, evenkeel_tests::exposition::Description<'_>>| {
                described.get(metric.as_str()).map(|description| description.kind.to_owned())
            };
            ensure!(kind(&kinds_ours) == kind(&kinds_theirs), "{metric}: {:?}", kind(&kinds_ours));
            compared.insert(metric);
        }
        let of_replicas = if name == "second" { 3 } else { 0 };
        ensure!(compared.len() >= 36 + of_replicas, "only {} compared: {compared:?}", compared.len());
    }
    Ok(())
}

/// A field of `INFO`.
async fn info(server: &RedisServer, field: &str) -> Result<String> {
    // A script, because its answer is one line.
    let script = format!("EVAL \"return{{ok=string.match(redis.call('INFO'),'{field}:([^\\\\r]*)')}}\" 0");
    Ok(server.ask(&script).await?.trim_start_matches('+').to_owned())
}

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    #[serde(alias = "record")]
    alert: String,
    expr: String,
}

/// A rule works when Prometheus evaluates it without an error, and finds series wherever the rule looks for them: both
/// sides of every comparison, and of every `and`.
async fn published_rules_work_unchanged() -> Result<()> {
    let dir = namespace::place("published")?;
    let (first, port) = (RedisServer::start_with(&["--maxmemory", "200mb"]).await?, free_port()?);
    let replica_of = format!("127.0.0.1 {}", first.port());
    let second = RedisServer::start_with(&["--save", "", "--replicaof", &replica_of]).await?;
    let config = dir.join("exporter.yml");
    let yaml = format!(
        "systemd: {{watch: [published.service]}}\n\
         redis: [{{name: first, url: '{}'}}, {{name: second, url: '{}'}}]\n",
        first.url(),
        second.url()
    );
    fs::write(&config, yaml)?;
    let disk = Disk::new("published", 40)?;
    let host = crate::shared::host().await?;
    host.install_unit("published.service", "[Service]\nExecStart=/bin/sleep 1000\nTasksMax=77\n").await?;
    host.systemctl(&["start", "published.service"]).await?;
    let mut command = host.at_home(built("evenkeel-exporter")?).await?;
    command.arg(format!("--config.file={}", config.display()));
    crate::shared::surroundings().await?.apply(&mut command);
    let exporter = Exporter::start_as(&dir, port, command).await?;
    let rules = dir.join("published-rules.yml");
    fs::write(&rules, RULES)?;
    let scraper = dir.join("prometheus.yml");
    let yaml = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\n\
         scrape_configs: [{{job_name: node, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n",
        rules.display()
    );
    fs::write(&scraper, yaml)?;
    let prometheus = Prometheus::start(&scraper, free_port()?).await?;

    let file: RuleFile = serde_saphyr::from_str(RULES)?;
    let rules: Vec<Rule> = file.groups.into_iter().flat_map(|group| group.rules).collect();
    ensure!(rules.len() >= 35, "only {} rules", rules.len());
    for rule in &rules {
        let expression = parser::parse(&rule.expr).map_err(anyhow::Error::msg).context(rule.alert.clone())?;
        let mut operands = Vec::new();
        operands_of(&expression, &mut operands);
        for operand in operands {
            wait_for(&format!("{}: {operand}", rule.alert), Duration::from_secs(60), async || {
                ensure!(!prometheus.query(&operand).await?.is_empty(), "no series");
                Ok(())
            })
            .await?;
        }
    }
    wait_for("every rule to be evaluated", Duration::from_secs(30), async || {
        let answer = http::get_json(&format!("{}/api/v1/rules", prometheus.url())).await?;
        let groups = answer["data"]["groups"].as_array().context("no groups")?;
        let all: Vec<_> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
        ensure!(all.len() == rules.len(), "{} of {} rules", all.len(), rules.len());
        for rule in all {
            ensure!(rule["health"] == "ok", "{rule:#}");
        }
        Ok(())
    })
    .await?;
    drop((disk, first, second, exporter));
    host.systemctl(&["stop", "published.service"]).await.map(drop)
}

/// The parts of an expression that have to give something for it ever to be true.
fn operands_of(expression: &Expr, found: &mut Vec<String>) {
    match expression {
        Expr::Paren(paren) => operands_of(&paren.expr, found),
        Expr::Binary(BinaryExpr { op, lhs, rhs, .. })
            if op.is_comparison_operator() || op.is_set_operator() =>
        {
            operands_of(lhs, found);
            operands_of(rhs, found);
        }
        Expr::NumberLiteral(_) => {}
        operand => found.push(operand.to_string()),
    }
}
