//! The Debian packages (`make deb`) on a real systemd, of this machine's release and of a newer one, by the commands of
//! packaging/README.md: installed they work, without privileges and without changing anything; an upgrade keeps what
//! an administrator wrote; a drill passes; removed and purged nothing of theirs is left.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    alerting::replaced,
    alertmanager,
    exposition::Exposition,
    namespace,
    process::Process,
    systemd_host::{SystemdHost, image},
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;

use crate::{packaged, shared, trial};

const SOON: Duration = Duration::from_secs(60);
const PACKAGES: [&str; 2] = ["evenkeel-exporter", "evenkeel-remediator"];
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-1");
/// Shipped, and for an administrator to start.
const IDLE: [&str; 5] = [
    "evenkeel-exporter.socket",
    "evenkeel-remediator.socket",
    "evenkeel-facts.timer",
    "evenkeel-docker-proxy.service",
    "evenkeel-drill.service",
];
/// 127.0.0.1 with the ports 19847 and 19848, as /proc/net/tcp writes them.
const LISTENING: [&str; 2] = ["0100007F:4D87", "0100007F:4D88"];

/// The same packages under a lower version, in which two configuration files were others.
const OLDER: &str = r#"
mkdir /tmp/older
for package in evenkeel-exporter evenkeel-remediator; do
    dpkg-deb --raw-extract /packages/${package}_*.deb /tmp/$package
    sed -i 's/^Version: .*/Version: 0.0.1-1/' /tmp/$package/DEBIAN/control
done
echo '# of 0.0.1' | tee -a /tmp/evenkeel-remediator/etc/evenkeel/remediator.yml >>/tmp/evenkeel-remediator/etc/default/evenkeel-remediator
for package in evenkeel-exporter evenkeel-remediator; do
    dpkg-deb -Znone --build /tmp/$package /tmp/older/$package.deb
    rm -r /tmp/$package
done
"#;

/// What an administrator does: both configurations are his now. On a busy machine a drill has to be let begin.
const CONFIGURED: &str = r#"
echo 'systemd: {not_found_ok: [absent.service]}' >>/etc/evenkeel/exporter.yml
gates='{grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}'
sed -i "s/^policy:$/policy:\n  gates: $gates/" /etc/evenkeel/remediator.yml
sha256sum /etc/evenkeel/*.yml >/root/of-the-administrator
evenkeel-remediator pause --reason 'an upgrade'
"#;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials =
        vec![trial("deb_from_installation_to_purge", || from_installation_to_purge(image("own")))];
    // Only where the package archive of this machine has a newer release (tests/fetch-tools.sh).
    if tools::run_folder().join("tools/images/newer.tar").exists() {
        let newer = || from_installation_to_purge("newer".to_owned());
        trials.push(trial("deb_from_installation_to_purge_on_a_newer_release", newer));
    }
    trials
}

async fn from_installation_to_purge(image: String) -> Result<()> {
    let packages = packages()?;
    let volumes = [format!("{}:/packages:ro", packages.display())];
    let host = SystemdHost::start_with(shared::engine().await?, &image, &volumes).await?;
    eprintln!("{image}: {}", host.exec(&["sh", "-c", "systemctl --version | head -n1"]).await?);
    let before = files(&host).await?;

    host.exec(&["sh", "-ec", OLDER]).await?;
    apt(&host, "install", &["/tmp/older/evenkeel-exporter.deb", "/tmp/older/evenkeel-remediator.deb"])
        .await?;
    both_work(&host, "0.0.1-1").await?;
    nothing_else_was_begun(&host).await?;
    the_upgrade_keeps_what_was_written(&host).await?;
    a_drill_passes(&host).await?;
    removed_they_are_stopped(&host).await?;
    purged_nothing_is_left(&host, &before).await
}

/// Where the packages are that belong to the binaries of this run.
fn packages() -> Result<PathBuf> {
    let folder = tools::run_folder().join("packages");
    ensure!(folder.join("made").exists(), "no packages in {}: make lab-test makes them", folder.display());
    Ok(folder)
}

async fn apt(host: &SystemdHost, order: &str, arguments: &[&str]) -> Result<String> {
    // As unattended upgrades do: what was changed here is kept, and nobody is asked.
    let apt = "DEBIAN_FRONTEND=noninteractive exec apt-get -y -o DPkg::Lock::Timeout=60 \
               -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \"$@\"";
    host.exec(&[&["sh", "-c", apt, "apt", order], arguments].concat()).await
}

/// Both run, as users of their own without privileges, and answer on loopback alone.
async fn both_work(host: &SystemdHost, version: &str) -> Result<()> {
    for package in PACKAGES {
        let unit = format!("{package}.service");
        wait_for(&unit, SOON, async || {
            let state = host.property(&unit, "ActiveState").await?;
            ensure!(state == "active", "it is {state}");
            Ok(())
        })
        .await?;
        ensure!(host.systemctl(&["is-enabled", &unit]).await? == "enabled", "{unit}");
        let installed = host.exec(&["dpkg-query", "-W", "-f", "${Status} ${Version}", package]).await?;
        ensure!(installed == format!("install ok installed {version}"), "{package}: {installed}");
        let process = format!("/proc/{}", host.property(&unit, "MainPID").await?);
        let user = host.exec(&["stat", "-c", "%U", &process]).await?;
        ensure!(user == package, "{unit} runs as {user}");
    }
    packaged::both_have_no_privileges(host).await?;
    let beside = "cd /usr/share; for name in evenkeel-exporter evenkeel-remediator; do test -s man/man1/$name.1.gz; \
                  test -s bash-completion/completions/$name; test -s zsh/vendor-completions/_$name; \
                  test -s fish/vendor_completions.d/$name.fish; done";
    host.exec(&["sh", "-ec", beside]).await.context("manual pages or completions")?;
    let page = wait_for("/metrics", SOON, async || page(host, 19847).await).await?;
    ensure!(page.value("systemd_up", &[]) == Some(1.0), "systemd_up {:?}", page.value("systemd_up", &[]));
    wait_for("the remediator", SOON, async || page_of_a_ready_remediator(host).await).await?;
    let listening = listening(host).await?;
    ensure!(listening.iter().map(String::as_str).eq(LISTENING), "{listening:?}");
    Ok(())
}

async fn page(host: &SystemdHost, port: u16) -> Result<Exposition> {
    let answer = host.http(port, "GET", "/metrics", "", "").await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(Exposition::parse(body))
}

async fn page_of_a_ready_remediator(host: &SystemdHost) -> Result<()> {
    let page = page(host, 19848).await?;
    let read = page.value("evenkeel_remediator_config_last_reload_successful", &[]);
    ensure!(read == Some(1.0), "its configuration: {read:?}");
    let answer = host.http(19848, "GET", "/-/ready", "", "").await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

/// Addresses that something listens on in the host's own network.
async fn listening(host: &SystemdHost) -> Result<BTreeSet<String>> {
    let sockets = host.exec(&["cat", "/proc/net/tcp", "/proc/net/tcp6"]).await?;
    let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 0A is LISTEN.
    Ok(fields.filter(|of| of.get(3) == Some(&"0A")).map(|of| of[1].to_owned()).collect())
}

/// It plans and deletes nothing; what is opt-in is not in; the token is nobody else's.
async fn nothing_else_was_begun(host: &SystemdHost) -> Result<()> {
    let status = host.exec(&["evenkeel-remediator", "status"]).await?;
    ensure!(status.contains("mode plan, deletion none"), "{status}");
    ensure!(status.contains("  daemon         runs since "), "{status}");
    for unit in IDLE {
        let state = host.property(unit, "ActiveState").await?;
        ensure!(state == "inactive", "{unit} is {state}");
        ensure!(host.property(unit, "LoadState").await? == "loaded", "{unit} is not there");
    }
    let token = host.exec(&["stat", "-c", "%a %U %G %s", "/etc/evenkeel/webhook.token"]).await?;
    ensure!(token == "640 root evenkeel-remediator 64", "{token}");
    let failed = host.systemctl(&["list-units", "--failed", "--plain", "--no-legend", "*evenkeel*"]).await?;
    ensure!(failed.is_empty(), "{failed}");
    Ok(())
}

async fn the_upgrade_keeps_what_was_written(host: &SystemdHost) -> Result<()> {
    host.exec(&["sh", "-ec", CONFIGURED]).await?;
    let mut before = Vec::new();
    for package in PACKAGES {
        before.push(host.property(&format!("{package}.service"), "MainPID").await?);
    }
    let debs = host.exec(&["sh", "-c", "echo /packages/*.deb"]).await?;
    apt(host, "install", &debs.split(' ').collect::<Vec<_>>()).await?;
    both_work(host, VERSION).await?;
    for (package, before) in PACKAGES.iter().zip(before) {
        let now = host.property(&format!("{package}.service"), "MainPID").await?;
        ensure!(now != before, "{package} was not restarted");
    }
    host.exec(&["sha256sum", "--check", "/root/of-the-administrator"]).await?;
    // What he has not touched is the new one, and what both have changed lies beside his.
    let found = "! grep -r 'of 0.0.1' /etc/default && ls /etc/evenkeel/*.dpkg-*";
    let beside = host.exec(&["sh", "-c", found]).await?;
    ensure!(beside == "/etc/evenkeel/remediator.yml.dpkg-dist", "{beside}");
    let status = host.exec(&["evenkeel-remediator", "status"]).await?;
    ensure!(status.contains("an upgrade"), "the pause is gone: {status}");
    host.exec(&["evenkeel-remediator", "resume"]).await.map(drop)
}

/// From the packages to a repaired unit, by the words of the documentation: a drill by root, repaired by the remediator,
/// which is not root, as its polkit rule lets it.
async fn a_drill_passes(host: &SystemdHost) -> Result<()> {
    let commands = documented("### From there to a repaired unit")?;
    let restart = "systemctl restart prometheus-alertmanager\n";
    let (routes, drill) = commands.split_once(restart).context("Alertmanager is restarted")?;
    // As Debian's Alertmanager comes.
    let flags = "/etc/default/prometheus-alertmanager";
    let there = format!("groupadd --system prometheus; mkdir /etc/prometheus; echo 'ARGS=\"\"' >{flags}");
    host.exec(&["sh", "-ec", &there]).await?;
    host.exec(&["bash", "-ec", routes]).await?;
    let flags = host.exec(&["cat", flags]).await?;
    ensure!(flags == r#"ARGS="--cluster.listen-address= --web.listen-address=127.0.0.1:9093""#, "{flags}");
    let alertmanager = alertmanager_of(host).await?;
    let said = host.exec(&["bash", "-ec", drill]).await?;
    ensure!(said.contains("unit_restart: restart job done") && said.contains("passed"), "{said}");
    drop(alertmanager);
    let his = "rm -r /etc/prometheus /etc/default/prometheus-alertmanager; \
               sha256sum /etc/evenkeel/*.yml >/root/of-the-administrator";
    host.exec(&["sh", "-ec", his]).await.map(drop)
}

/// The commands below a heading of packaging/README.md.
fn documented(heading: &str) -> Result<String> {
    let text = std::fs::read_to_string(tools::repository().join("packaging/README.md"))?;
    let below = text.split_once(heading).with_context(|| format!("no {heading}"))?.1;
    let block = below.split_once("```sh\n").and_then(|(_, rest)| rest.split_once("```"));
    Ok(block.with_context(|| format!("no commands below {heading}"))?.0.to_owned())
}

/// The lab's Alertmanager on the host's loopback, as it is configured there; it only waits less.
async fn alertmanager_of(host: &SystemdHost) -> Result<Process> {
    let dir = namespace::place("routes")?;
    let here = dir.display().to_string();
    let token = host.exec(&["cat", "/etc/prometheus/webhook.token"]).await?;
    std::fs::write(dir.join("webhook.token"), token)?;
    let text = host.exec(&["cat", "/etc/prometheus/alertmanager.yml"]).await?;
    let text = replaced(&text, "/etc/prometheus", &here)?;
    let text = replaced(&text, "group_wait: 10s", "group_wait: 1s\n      group_interval: 1s")?;
    let file = dir.join("alertmanager.yml");
    std::fs::write(&file, text)?;
    alertmanager::on_host(host, &file).await
}

async fn removed_they_are_stopped(host: &SystemdHost) -> Result<()> {
    apt(host, "remove", &PACKAGES).await?;
    for package in PACKAGES {
        let unit = format!("{package}.service");
        ensure!(host.property(&unit, "ActiveState").await? == "inactive", "{unit} still runs");
        ensure!(host.property(&unit, "LoadState").await? == "not-found", "{unit} is still there");
    }
    ensure!(listening(host).await?.is_empty());
    // Whoever installs it again finds everything as it was.
    host.exec(&["sha256sum", "--check", "/root/of-the-administrator"]).await?;
    host.exec(&["sh", "-c", "ls /var/lib/evenkeel-remediator/*"]).await.map(drop)
}

async fn purged_nothing_is_left(host: &SystemdHost, before: &BTreeSet<String>) -> Result<()> {
    host.exec(&["rm", "-r", "/root/of-the-administrator", "/tmp/older"]).await?;
    apt(host, "purge", &PACKAGES).await?;
    let after = files(host).await?;
    let left: Vec<_> = after.difference(before).collect();
    ensure!(left.is_empty(), "left behind: {left:#?}");
    let gone: Vec<_> = before.difference(&after).collect();
    ensure!(gone.is_empty(), "taken along: {gone:#?}");
    // Debian keeps users: what is theirs elsewhere must not become somebody else's.
    for package in PACKAGES {
        host.exec(&["getent", "passwd", package]).await?;
    }
    Ok(())
}

/// Every file and folder of the host, but for what package managers and systemd write down about themselves.
async fn files(host: &SystemdHost) -> Result<BTreeSet<String>> {
    let find = r#"find / /run /tmp -xdev \
        \( -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /run/systemd \
        -o -path '*/systemd-private-*' \) \
        -prune -o -print; find / /run /tmp -xdev -name '*evenkeel*' -not -path '/var/lib/dpkg/*' -not -path '/var/log/*'"#;
    let all = host.exec(&["sh", "-c", find]).await?;
    Ok(all.lines().map(str::to_owned).collect())
}
