//! The shipped units on a real systemd, with the users, drop-ins and polkit rule that belong to them: what little they
//! may do is enough, and is all.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    exposition::Exposition, redis_server, systemd_host::SystemdHost, tools, wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{installed, shared, trial};

const SOON: Duration = Duration::from_secs(60);
const UNITS: [&str; 2] = ["evenkeel-exporter.service", "evenkeel-remediator.service"];
/// Above it nobody calls a unit safe.
const EXPOSURE_BELOW: f64 = 2.0;

const CONFIG: &str = r#"
server: {bearer_token_files: [webhook.token]}
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, deny_units: [shop-vault.service]}
rules:
  - name: unit-failed
    match: ['alertname="SystemdUnitFailed"']
    target: {unit: name, allow: ["shop-*.service"]}
    limits: [9/5m]
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 2s, within: 30s}
"#;
const TOKEN: &str = "a token that only this test knows";

const CONFIGURED: &str = r#"set -e
printf %s "$1" >/etc/evenkeel/remediator.yml
install -m 640 -g evenkeel-remediator /dev/null /etc/evenkeel/webhook.token
printf %s "$2" >/etc/evenkeel/webhook.token
evenkeel-remediator generate polkit >/etc/polkit-1/rules.d/50-evenkeel.rules
cd /etc/systemd/system
printf '[Service]\nExecStart=/bin/sleep 600\n' | tee shop-api.service shop-b.service shop-vault.service other.service ssh.service
ln -s other.service shop-alias.service
for at in /srv /home /media; do mount -t tmpfs -o size=16m data $at; done
mount -o remount,ro /media
systemctl daemon-reload
systemctl start shop-api shop-b shop-vault other ssh
"#;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("packaged_units_do_their_work_and_nothing_else", packaged_units)]
}

async fn packaged_units() -> Result<()> {
    let host = install().await?;
    let redis = redis_server::on_host(&host).await?;
    host.systemctl(&[&["start"], &UNITS[..]].concat()).await?;

    both_are_little_exposed(&host).await?;
    both_have_no_privileges(&host).await?;
    the_exporter_sees_what_everyone_may(&host).await?;
    the_remediator_restarts_a_failed_unit(&host).await?;
    polkit_allows_only_what_the_rules_need(&host).await?;
    reload_takes_a_good_file_and_keeps_the_old_at_a_bad_one(&host).await?;
    drop_ins_show_more(&host).await?;
    the_proxy_stands_for_the_group(&host).await?;
    sockets_start_what_is_asked(&host).await?;
    drop(redis);
    Ok(())
}

async fn install() -> Result<SystemdHost> {
    let host = installed::packaged_with_docker(shared::engine().await?).await?;
    host.exec(&["sh", "-c", CONFIGURED, "sh", CONFIG, TOKEN]).await?;
    Ok(host)
}

async fn both_are_little_exposed(host: &SystemdHost) -> Result<()> {
    for unit in UNITS.iter().chain(&["evenkeel-docker-proxy.service", "evenkeel-facts.service"]) {
        let said = host.exec(&["systemd-analyze", "--no-pager", "security", unit]).await?;
        let line = said.lines().find(|line| line.contains("Overall exposure level")).context("no figure")?;
        let figure = line.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).context("no figure")?;
        eprintln!("{unit}: exposure {figure}");
        ensure!(figure.parse::<f64>()? < EXPOSURE_BELOW, "{line}");
    }
    Ok(())
}

/// Neither can do more than any user may.
pub(crate) async fn both_have_no_privileges(host: &SystemdHost) -> Result<()> {
    for unit in UNITS {
        let pid = host.property(unit, "MainPID").await?;
        ensure!(pid != "0", "{unit} does not run: {}", log_of(host, unit).await?);
        let status = host.exec(&["cat", &format!("/proc/{pid}/status")]).await?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|rest| rest.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            ensure!(field(set) == "0000000000000000", "{unit} has {set} {}", field(set));
        }
        ensure!(field("NoNewPrivs:") == "1" && field("Seccomp:") == "2", "{unit}: {status}");
        ensure!(!field("Uid:").starts_with("0 "), "{unit} runs as root");
        let docker = host.exec(&["sh", "-c", "getent group docker | cut -d: -f3"]).await?;
        ensure!(!field("Groups:").split(' ').any(|group| group == docker), "{unit} is in the group docker");
    }
    Ok(())
}

async fn scrape(host: &SystemdHost) -> Result<Exposition> {
    let answer = host.http(19847, "GET", "/metrics", "", "").await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(Exposition::parse(body))
}

async fn the_exporter_sees_what_everyone_may(host: &SystemdHost) -> Result<()> {
    let page = wait_for("the exporter", SOON, async || {
        let page = scrape(host).await?;
        let redis = page.value("redis_up", &[]);
        ensure!(redis == Some(1.0), "redis_up {redis:?}");
        Ok(page)
    })
    .await?;
    let value = |name: &str, labels: &[(&str, &str)]| page.value(name, labels);
    ensure!(value("systemd_up", &[]) == Some(1.0), "systemd_up {:?}", value("systemd_up", &[]));
    let active = [("name", "shop-api.service"), ("state", "active")];
    ensure!(value("systemd_unit_state", &active) == Some(1.0), "the unit is not seen");
    ensure!(value("redis_ready", &[]) == Some(1.0), "redis is up and not ready");
    // Its own view is read-only: what counts is the host's.
    for (mount_point, read_only) in [("/srv", 0.0), ("/home", 0.0), ("/media", 1.0)] {
        let labels = [("mountpoint", mount_point)];
        let size = value("node_filesystem_size_bytes", &labels);
        ensure!(size == Some(16.0 * 1024.0 * 1024.0), "{mount_point} has {size:?} bytes");
        let said = value("node_filesystem_readonly", &labels);
        ensure!(said == Some(read_only), "{mount_point}: read-only {said:?}");
    }
    let broken: Vec<_> =
        page.all("node_filesystem_device_error", &[]).filter(|sample| sample.value != 0.0).collect();
    ensure!(broken.is_empty(), "{broken:?}");

    // A mount made after its start reaches it too.
    host.exec(&["mount", "-t", "tmpfs", "-o", "size=16m", "late", "/mnt"]).await?;
    let late = scrape(host).await?.value("node_filesystem_device_error", &[("mountpoint", "/mnt")]);
    ensure!(late == Some(0.0), "/mnt: device error {late:?}");

    // Docker's socket is there and not for it: that is said, and everything else is there.
    ensure!(value("docker_up", &[]) == Some(0.0), "docker_up {:?}", value("docker_up", &[]));
    for (collector, expected) in [("systemd", 1.0), ("filesystem", 1.0), ("redis", 1.0), ("docker", 0.0)] {
        let success = value("evenkeel_scrape_collector_success", &[("collector", collector)]);
        ensure!(success == Some(expected), "collector {collector}: success {success:?}");
    }
    let log = log_of(host, UNITS[0]).await?;
    ensure!(log.contains("this user may not use the socket"), "{log}");
    ensure!(!log.contains("running as root"), "{log}");
    Ok(())
}

async fn log_of(host: &SystemdHost, unit: &str) -> Result<String> {
    let read = "journalctl --sync && exec journalctl --no-pager --output=cat --unit=\"$1\"";
    host.exec(&["sh", "-c", read, "sh", unit]).await
}

async fn the_remediator_restarts_a_failed_unit(host: &SystemdHost) -> Result<()> {
    const UNIT: &str = "shop-api.service";
    host.systemctl(&["kill", "--signal=SEGV", UNIT]).await?;
    wait_for("the unit to fail", SOON, async || {
        let state = host.property(UNIT, "ActiveState").await?;
        ensure!(state == "failed", "it is {state}");
        Ok(())
    })
    .await?;
    let name = host.exec(&["hostname"]).await?;
    let alert = serde_json::json!({
        "version": "4", "status": "firing", "groupKey": "{}", "groupLabels": {}, "commonLabels": {},
        "alerts": [{"status": "firing", "fingerprint": "feed",
                    "labels": {"alertname": "SystemdUnitFailed", "name": UNIT, "host": name}}],
    });
    let headers = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
    let answer = host.http(19848, "POST", "/api/v1/alerts", &headers, &alert.to_string()).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let record = wait_for("the repair to end", SOON, async || {
        let lines = host.exec(&["evenkeel-remediator", "history", "--json"]).await?;
        let record: Value = serde_json::from_str(lines.lines().next().context("no record")?)?;
        ensure!(record["phase"] == "ended", "{record}");
        Ok(record)
    })
    .await?;
    ensure!(record["outcome"] == "succeeded", "{record:#}");
    ensure!(host.property(UNIT, "ActiveState").await? == "active");
    let log = log_of(host, UNITS[1]).await?;
    ensure!(!log.contains("running as root"), "{log}");
    Ok(())
}

/// Calls to systemd's manager as a user without a password, and whether they go through.
const CALLS: [(&str, &str, bool); 26] = [
    ("evenkeel-remediator", "RestartUnit ss shop-api.service replace", true),
    ("evenkeel-remediator", "RestartUnit ss shop-b.service replace", true),
    ("evenkeel-remediator", "ResetFailedUnit s shop-api.service", true),
    // Another unit, one on the deny-list, one that holds the host up, and another under an allowed name.
    ("evenkeel-remediator", "RestartUnit ss other.service replace", false),
    ("evenkeel-remediator", "RestartUnit ss shop-vault.service replace", false),
    ("evenkeel-remediator", "RestartUnit ss ssh.service replace", false),
    ("evenkeel-remediator", "RestartUnit ss shop-alias.service replace", false),
    ("evenkeel-remediator", "ResetFailedUnit s other.service", false),
    // Another verb.
    ("evenkeel-remediator", "StopUnit ss shop-api.service replace", false),
    // What takes root, for a rule that has no such step, and for no rule.
    ("evenkeel-remediator", "StartUnit ss evenkeel-hosts-alias@other:localhost.service replace", false),
    ("evenkeel-remediator", "StartUnit ss evenkeel-daemon-reload@x.service replace", false),
    ("evenkeel-remediator", "StartUnit ss shop-api.service replace", false),
    ("evenkeel-remediator", "ReloadUnit ss shop-api.service replace", false),
    ("evenkeel-remediator", "TryRestartUnit ss shop-api.service replace", false),
    ("evenkeel-remediator", "KillUnit ssi shop-api.service all 9", false),
    ("evenkeel-remediator", "SetUnitProperties sba(sv) shop-api.service true 0", false),
    ("evenkeel-remediator", "ResetFailed", false),
    // What names no unit, or makes one.
    ("evenkeel-remediator", "Reload", false),
    ("evenkeel-remediator", "Reexecute", false),
    ("evenkeel-remediator", "MaskUnitFiles asbb 1 shop-api.service false true", false),
    ("evenkeel-remediator", "EnableUnitFiles asbb 1 shop-api.service false true", false),
    (
        "evenkeel-remediator",
        "StartTransientUnit ssa(sv)a(sa(sv)) shop-x.service replace 1 ExecStart a(sasb) 1 /bin/true 1 true false 0",
        false,
    ),
    ("evenkeel-remediator", "SetEnvironment as 1 A=b", false),
    // Another user.
    ("evenkeel-exporter", "RestartUnit ss shop-api.service replace", false),
    ("evenkeel-exporter", "ResetFailedUnit s shop-api.service", false),
    ("nobody", "Reload", false),
];

async fn polkit_allows_only_what_the_rules_need(host: &SystemdHost) -> Result<()> {
    let before = host.property("other.service", "InvocationID").await?;
    // One program for all of them: each call of docker's takes longer than polkit.
    let mut script =
        "manager='org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager'\n"
            .to_owned();
    for (user, call, _) in CALLS {
        script += &format!(
            "setpriv --reuid {user} --regid \"$(id -g {user})\" --clear-groups busctl call $manager '{}' 2>&1 | tr '\\n' ' '; echo\n",
            call.replace(' ', "' '")
        );
    }
    let said = host.exec(&["sh", "-c", &script]).await?;
    let said: Vec<&str> = said.lines().collect();
    ensure!(said.len() == CALLS.len(), "{said:?}");
    for ((user, call, allowed), said) in CALLS.iter().zip(said) {
        // By polkit, by polkit for want of a person, by the bus itself.
        let words = ["Access denied", "nteractive authentication required", "Rejected send message"];
        let denied = words.iter().any(|words| said.contains(words));
        let done = said.starts_with("o \"") || said.trim().is_empty();
        ensure!(if *allowed { done } else { denied }, "{call} by {user}: {said}");
    }
    ensure!(host.property("other.service", "InvocationID").await? == before, "other.service was touched");
    ensure!(host.property("shop-x.service", "LoadState").await? == "not-found");
    Ok(())
}

const CONFIG_FILE: &str = "/etc/evenkeel/remediator.yml";

async fn reload_takes_a_good_file_and_keeps_the_old_at_a_bad_one(host: &SystemdHost) -> Result<()> {
    let pid = host.property(UNITS[1], "MainPID").await?;
    let renamed = CONFIG.replace("name: unit-failed", "name: unit-renamed");
    for (text, good, rule) in [
        (renamed.as_str(), 1.0, "unit-renamed"),
        ("rules: 7\n", 0.0, "unit-renamed"),
        (CONFIG, 1.0, "unit-failed"),
    ] {
        host.write_file(CONFIG_FILE, text).await?;
        host.systemctl(&["reload", UNITS[1]]).await?;
        wait_for("the reload", SOON, async || {
            let answer = host.http(19848, "GET", "/metrics", "", "").await?;
            let page = Exposition::parse(answer.split_once("\r\n\r\n").context("an answer has a head")?.1);
            let succeeded = page.value("evenkeel_remediator_config_last_reload_successful", &[]);
            ensure!(succeeded == Some(good), "reloaded: {succeeded:?}");
            let in_force = page.value("evenkeel_remediator_in_progress", &[("rule", rule)]);
            ensure!(in_force.is_some(), "{rule} is not in force");
            Ok(())
        })
        .await?;
    }
    let status = host.exec(&["evenkeel-remediator", "status"]).await?;
    ensure!(status.contains("  daemon         runs since "), "{status}");
    ensure!(host.property(UNITS[1], "MainPID").await? == pid, "it was restarted");
    let log = log_of(host, UNITS[1]).await?;
    ensure!(log.contains("the old one stays in force") && log.contains("`rules`: expected a list"), "{log}");
    Ok(())
}

async fn drop_ins_show_more(host: &SystemdHost) -> Result<()> {
    let add = "cd /packaging/drop-ins && for unit in *; do
        mkdir -p /etc/systemd/system/$unit && cp $unit/docker-group.conf $unit/journal.conf /etc/systemd/system/$unit/
        done && systemctl daemon-reload && systemctl restart evenkeel-exporter evenkeel-remediator";
    host.exec(&["sh", "-c", add]).await?;
    wait_for("docker through its group", SOON, async || {
        let page = scrape(host).await?;
        ensure!(page.value("docker_up", &[]) == Some(1.0));
        Ok(())
    })
    .await?;
    for unit in UNITS {
        let pid = host.property(unit, "MainPID").await?;
        let groups = host.exec(&["sh", "-c", &format!("grep ^Groups: /proc/{pid}/status | wc -w")]).await?;
        ensure!(groups.parse::<u32>()? >= 3, "{unit}: {groups}");
    }
    Ok(())
}

/// Copies a drop-in of both units, and takes another away.
async fn replace_drop_in(host: &SystemdHost, old: &str, new: &str) -> Result<()> {
    let script = "cd /packaging/drop-ins && for unit in *; do
        mkdir -p /etc/systemd/system/$unit && rm -f /etc/systemd/system/$unit/$1
        cp $unit/$2 /etc/systemd/system/$unit/
        done && systemctl daemon-reload";
    host.exec(&["sh", "-ec", script, "sh", old, new]).await.map(drop)
}

/// Docker by the shipped unit of the proxy: what the group gave, without the group.
async fn the_proxy_stands_for_the_group(host: &SystemdHost) -> Result<()> {
    const PROXY: &str = "evenkeel-docker-proxy.service";
    install_haproxy(host).await?;
    let generate = "evenkeel-remediator generate haproxy >/etc/evenkeel/docker-proxy.cfg";
    host.exec(&["sh", "-c", generate]).await?;
    replace_drop_in(host, "docker-group.conf", "docker-proxy.conf").await?;
    // The drop-ins want it.
    host.systemctl(&[&["restart"], &UNITS[..]].concat()).await?;
    let seen = wait_for("docker through the proxy", SOON, async || {
        let up = scrape(host).await?.value("docker_up", &[]);
        ensure!(up == Some(1.0), "docker_up {up:?}");
        Ok(())
    });
    if let Err(error) = seen.await {
        bail!("{error:#}: {}", log_of(host, PROXY).await?);
    }
    ensure!(host.property(PROXY, "ActiveState").await? == "active");
    both_have_no_privileges(host).await
}

/// The lab's HAProxy on the host, with the libraries that it needs.
async fn install_haproxy(host: &SystemdHost) -> Result<()> {
    let wrapper = tools::program("haproxy")?;
    let text = std::fs::read(&wrapper).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    let quoted = |after: &str| Some(text.split_once(after)?.1.split_once('\'')?.0.to_owned());
    let program = quoted("exec '").unwrap_or_else(|| wrapper.display().to_string());
    let mut ldd = tools::command("ldd");
    ldd.arg(&program).envs(quoted("LD_LIBRARY_PATH='").map(|path| ("LD_LIBRARY_PATH", path)));
    let libraries = tools::run(ldd, SOON).await?;
    let libraries = libraries.lines().filter_map(|line| line.split_once("=> ")?.1.split_once(" ("));
    // The host is of this machine's release, and has the C library itself.
    let libraries = libraries.map(|(path, _)| path).filter(|path| !path.contains("/libc.so"));
    host.exec(&["mkdir", "-p", "/opt/haproxy"]).await?;
    for file in libraries.chain([program.as_str()]) {
        let file = std::fs::canonicalize(file).map(|real| (real, file))?;
        let name = file.1.rsplit('/').next().unwrap_or_default();
        host.copy(&file.0, &format!("/opt/haproxy/{name}")).await?;
    }
    let start = "#!/bin/sh\nLD_LIBRARY_PATH=/opt/haproxy exec /opt/haproxy/haproxy \"$@\"\n";
    host.write_file("/usr/sbin/haproxy", start).await?;
    host.exec(&["chmod", "755", "/usr/sbin/haproxy"]).await.map(drop)
}

/// The drop-ins `socket.conf` with the shipped sockets: the first connection starts each, and is answered.
async fn sockets_start_what_is_asked(host: &SystemdHost) -> Result<()> {
    const SOCKETS: [&str; 2] = ["evenkeel-exporter.socket", "evenkeel-remediator.socket"];
    host.systemctl(&[&["stop"], &UNITS[..]].concat()).await?;
    host.write_file(CONFIG_FILE, &CONFIG.replace("server: {", "server: {systemd_socket: true, ")).await?;
    replace_drop_in(host, "journal.conf", "socket.conf").await?;
    host.systemctl(&[&["start"], &SOCKETS[..]].concat()).await?;
    for (unit, port, path) in [(UNITS[0], 19847, "/metrics"), (UNITS[1], 19848, "/-/ready")] {
        ensure!(host.property(unit, "ActiveState").await? == "inactive", "nobody has asked {unit} yet");
        let answer = host.http(port, "GET", path, "", "").await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{unit}: {answer}");
        ensure!(host.property(unit, "ActiveState").await? == "active", "{unit} does not run");
    }
    both_have_no_privileges(host).await
}
