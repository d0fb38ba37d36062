//! What `make up` shows of a host: a few lines from one scrape of the exporter. Pure. What the host
//! does not have is said to be absent, and what does not answer is not called well.

use evenkeel_host::config::format_bytes;

use crate::exposition::{Exposition, Sample};

/// So many names of failed things are shown, then only how many more there are.
const NAMES: usize = 3;

/// Filesystems that are no disks, as in the shipped alerts.
const NO_DISKS: [&str; 6] = ["tmpfs", "ramfs", "overlay", "squashfs", "iso9660", "erofs"];

/// One line: what it is about, and what is to be said.
pub type Line = (&'static str, String);

/// The lines about the host.
#[must_use]
pub fn of_host(scrape: &Exposition) -> Vec<Line> {
    vec![
        ("units", units(scrape)),
        ("containers", containers(scrape)),
        ("fullest disk", fullest_disk(scrape)),
        ("build cache", build_cache(scrape)),
        ("Redis", redis(scrape)),
    ]
}

/// Why a subject has nothing to show, if so.
fn silent(scrape: &Exposition, collector: &str, what: &str) -> Option<String> {
    let labels = [("collector", collector)];
    if scrape.value("evenkeel_collector_absent", &labels) == Some(1.0) {
        return Some(format!("absent: this host has no {what}"));
    }
    let success = scrape.value("evenkeel_scrape_collector_success", &labels);
    (success != Some(1.0)).then(|| format!("unknown: {what} does not answer"))
}

fn units(scrape: &Exposition) -> String {
    if let Some(why) = silent(scrape, "systemd", "systemd (no system bus)") {
        return why;
    }
    let loaded: f64 = scrape.all("systemd_units", &[]).map(|sample| sample.value).sum();
    let failed = names(scrape, "systemd_unit_state", &[("state", "failed")]);
    if failed.is_empty() {
        format!("none of {loaded} failed")
    } else {
        format!("{} of {loaded} failed: {}", failed.len(), some(&failed))
    }
}

fn containers(scrape: &Exposition) -> String {
    if let Some(why) = silent(scrape, "docker", "Docker") {
        return why;
    }
    let running = scrape.value("docker_containers", &[("state", "running")]).unwrap_or(0.0);
    let broken = names(scrape, "docker_container_healthcheck_broken", &[]);
    let mut unhealthy = names(scrape, "docker_container_health", &[("status", "unhealthy")]);
    unhealthy.retain(|name| !broken.contains(name));
    let mut text = format!("{running} running, ");
    if unhealthy.is_empty() {
        text += "none unhealthy";
    } else {
        text += &format!("{} unhealthy: {}", unhealthy.len(), some(&unhealthy));
    }
    if !broken.is_empty() {
        text += &format!("; a healthcheck that cannot work: {}", some(&broken));
    }
    text
}

fn fullest_disk(scrape: &Exposition) -> String {
    if let Some(why) = silent(scrape, "filesystem", "filesystem") {
        return why;
    }
    let is_disk = |size: &&Sample| !NO_DISKS.contains(&label(size, "fstype")) && size.value > 0.0;
    let disks: Vec<&Sample> = scrape.all("node_filesystem_size_bytes", &[]).filter(is_disk).collect();
    // A disk that is mounted at several places is named by the shortest.
    let is_main = |size: &&&Sample| {
        let depth = |one: &Sample| label(one, "mountpoint").len();
        !disks.iter().any(|one| label(one, "device") == label(size, "device") && depth(one) < depth(size))
    };
    let fullest = disks
        .iter()
        .filter(is_main)
        .filter_map(|size| {
            let point = label(size, "mountpoint");
            let labels = [("mountpoint", point)];
            let avail = scrape.value("node_filesystem_avail_bytes", &labels)?;
            let read_only = scrape.value("node_filesystem_readonly", &labels) == Some(1.0);
            (!read_only).then(|| (point, 1.0 - avail / size.value, size.value))
        })
        .max_by(|one, other| one.1.total_cmp(&other.1));
    match fullest {
        Some((point, used, size)) => format!("{point} {:.0} % of {}", used * 100.0, bytes(size)),
        None => "none".to_owned(),
    }
}

fn build_cache(scrape: &Exposition) -> String {
    if let Some(why) = silent(scrape, "docker_disk", "Docker") {
        return why;
    }
    let labels = [("object", "build_cache")];
    match scrape.value("docker_disk_usage_bytes", &labels) {
        Some(all) => {
            let free = scrape.value("docker_disk_usage_reclaimable_bytes", &labels).unwrap_or(0.0);
            format!("{}, of which {} can be freed", bytes(all), bytes(free))
        }
        None => "Docker has not said yet".to_owned(),
    }
}

fn redis(scrape: &Exposition) -> String {
    if let Some(why) = silent(scrape, "redis", "Redis on 127.0.0.1:6379") {
        return why;
    }
    let states: Vec<String> = scrape
        .all("redis_up", &[])
        .map(|up| {
            let name = label(up, "redis");
            let labels = [("redis", name)];
            let failure = scrape.all("redis_probe_failure", &labels).find(|failure| failure.value == 1.0);
            let ready = scrape.value("redis_ready", &labels) == Some(1.0);
            let state = match (failure, ready) {
                (Some(failure), _) => format!("does not answer ({})", label(failure, "reason")),
                (None, true) => "ready".to_owned(),
                (None, false) => "up, not ready".to_owned(),
            };
            format!("{name} {state}")
        })
        .collect();
    states.join(", ")
}

/// The names of the things for which a metric with these labels is 1, each once.
fn names(scrape: &Exposition, metric: &str, labels: &[(&str, &str)]) -> Vec<String> {
    let there = scrape.all(metric, labels).filter(|sample| sample.value == 1.0);
    let mut names: Vec<String> = there.map(|sample| label(sample, "name").to_owned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn label<'a>(sample: &'a Sample, name: &str) -> &'a str {
    sample.labels.get(name).map_or("", String::as_str)
}

fn some(names: &[String]) -> String {
    let shown = names.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of one disk, for people")]
fn bytes(count: f64) -> String {
    format_bytes(count.max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        of_host(&Exposition::parse(text)).into_iter().map(|(what, said)| format!("{what}: {said}")).collect()
    }

    #[test]
    fn a_host_in_trouble() {
        let all_well = ["systemd", "docker", "docker_disk", "filesystem", "redis"]
            .map(|name| {
                format!(
                    "evenkeel_scrape_collector_success{{collector=\"{name}\"}} 1.0\nevenkeel_collector_absent{{collector=\"{name}\"}} 0.0\n"
                )
            })
            .concat();
        let text = all_well
            + r#"systemd_units{state="active"} 140.0
systemd_units{state="failed"} 4.0
systemd_unit_state{name="a.service",state="failed"} 1.0
systemd_unit_state{name="a.service",state="active"} 0.0
systemd_unit_state{name="b.service",state="failed"} 1.0
systemd_unit_state{name="c.service",state="failed"} 1.0
systemd_unit_state{name="d.service",state="failed"} 1.0
docker_containers{state="running"} 6.0
docker_container_health{name="api",status="unhealthy"} 1.0
docker_container_health{name="web",status="unhealthy"} 1.0
docker_container_health{name="db",status="unhealthy"} 0.0
docker_container_healthcheck_broken{name="web",reason="command_not_found"} 1.0
node_filesystem_size_bytes{device="a",fstype="ext4",mountpoint="/"} 100.0e9
node_filesystem_avail_bytes{fstype="ext4",mountpoint="/"} 60.0e9
node_filesystem_readonly{fstype="ext4",mountpoint="/"} 0.0
node_filesystem_size_bytes{device="b",fstype="ext4",mountpoint="/var/lib"} 10.0e9
node_filesystem_avail_bytes{fstype="ext4",mountpoint="/var/lib"} 1.3e9
node_filesystem_size_bytes{device="b",fstype="ext4",mountpoint="/var"} 10.0e9
node_filesystem_avail_bytes{fstype="ext4",mountpoint="/var"} 1.3e9
node_filesystem_size_bytes{fstype="tmpfs",mountpoint="/run"} 10.0
node_filesystem_avail_bytes{fstype="tmpfs",mountpoint="/run"} 0.0
docker_disk_usage_bytes{object="build_cache"} 1.3e9
docker_disk_usage_reclaimable_bytes{object="build_cache"} 1.1e9
redis_up{redis="local"} 1.0
redis_ready{redis="local"} 0.0
redis_up{redis="cache"} 0.0
redis_ready{redis="cache"} 0.0
redis_probe_failure{redis="cache",reason="refused"} 1.0
"#;
        assert_eq!(
            shown(&text),
            [
                "units: 4 of 144 failed: a.service, b.service, c.service and 1 more",
                "containers: 6 running, 1 unhealthy: api; a healthcheck that cannot work: web",
                "fullest disk: /var 87 % of 10.0 GB",
                "build cache: 1.3 GB, of which 1.1 GB can be freed",
                "Redis: local up, not ready, cache does not answer (refused)",
            ]
        );
    }

    #[test]
    fn what_is_absent_and_what_does_not_answer_are_two_things() {
        let text = r#"evenkeel_scrape_collector_success{collector="systemd"} 1.0
evenkeel_collector_absent{collector="systemd"} 1.0
evenkeel_scrape_collector_success{collector="docker"} 0.0
evenkeel_collector_absent{collector="docker"} 0.0
"#;
        let shown = shown(text);
        assert_eq!(shown[0], "units: absent: this host has no systemd (no system bus)");
        assert_eq!(shown[1], "containers: unknown: Docker does not answer");
        assert_eq!(shown[2], "fullest disk: unknown: filesystem does not answer");
    }
}
