//! What is known of an engine at one moment, and the metrics of it. Pure: how the picture came about is the
//! collector's business.

use std::sync::Arc;

use evenkeel_host::{
    docker::{Container, Engine, Health, Listed, ProbeResult, State},
    metrics::Family,
};

use super::ContainerLabel;

/// An engine and its containers.
#[derive(Debug, Default)]
pub(super) struct Picture {
    /// `None` when the engine did not describe itself.
    pub(super) engine: Option<Engine>,
    /// Every container that the engine lists.
    pub(super) containers: Vec<Known>,
}

/// One container.
#[derive(Debug)]
pub(super) struct Known {
    /// Its line of the list.
    pub(super) listed: Listed,
    /// Inspect's answer where it is known to hold now; without it, what depends on it is left out.
    pub(super) detail: Option<Arc<Container>>,
}

impl Known {
    /// Inspect comes after the list: where they differ, it is right.
    fn state(&self) -> &State {
        self.detail.as_ref().map_or(&self.listed.state, |detail| &detail.state)
    }

    fn health(&self) -> Health {
        match &self.detail {
            Some(detail) => detail.health.as_ref().map_or(Health::None, |health| health.status),
            None => self.listed.health,
        }
    }
}

/// Everything but `docker_up`.
pub(super) fn families(picture: &Picture, labels: &[ContainerLabel]) -> Vec<Family> {
    let mut families = vec![engine_info(picture.engine.as_ref()), counts(&picture.containers)];
    families.extend(states(&picture.containers));
    families.extend(healthchecks(&picture.containers));
    families.extend(lives(&picture.containers));
    families.push(info(&picture.containers));
    families.push(container_labels(&picture.containers, labels));
    families
}

fn engine_info(engine: Option<&Engine>) -> Family {
    let mut family =
        Family::gauge("docker_engine_info", "What the Docker engine says about itself; always 1.");
    if let Some(engine) = engine {
        let (major, minor) = engine.api_version;
        let labels = [
            ("version", engine.version.as_str()),
            ("api_version", &format!("{major}.{minor}")),
            ("storage_driver", &engine.storage_driver),
            ("cgroup_version", &engine.cgroup_version),
        ];
        family.sample(&labels, 1.0);
    }
    family
}

fn counts(containers: &[Known]) -> Family {
    let mut family = Family::gauge("docker_containers", "Containers by state.");
    let count = |wanted: &dyn Fn(&State) -> bool| {
        containers.iter().filter(|known| wanted(known.state())).count() as f64
    };
    for state in State::ALL {
        family.sample(&[("state", state.as_str())], count(&|seen| *seen == state));
    }
    // Podman and engines to come have words of their own; they are counted, not quoted.
    let other = count(&|seen| matches!(seen, State::Other(_)));
    if other > 0.0 {
        family.sample(&[("state", "other")], other);
    }
    family
}

fn states(containers: &[Known]) -> [Family; 2] {
    let mut state =
        Family::gauge("docker_container_state", "1 for the state that the container is in, else 0.");
    let mut health = Family::gauge(
        "docker_container_health",
        "1 for the verdict of the healthcheck of a running container, else 0; none when it has no healthcheck.",
    );
    for known in containers {
        let name = known.listed.name.as_str();
        for candidate in State::ALL {
            let labels = [("name", name), ("state", candidate.as_str())];
            state.sample(&labels, flag(*known.state() == candidate));
        }
        if *known.state() == State::Running {
            for candidate in Health::ALL {
                let labels = [("name", name), ("status", candidate.as_str())];
                health.sample(&labels, flag(known.health() == candidate));
            }
        }
    }
    [state, health]
}

/// Of running containers only: the engine keeps the last words of a healthcheck when its container stops.
fn healthchecks(containers: &[Known]) -> [Family; 5] {
    let mut streak = Family::gauge(
        "docker_container_health_failing_streak",
        "Healthchecks that failed in a row (asked every 15 s, every 5 min while healthy).",
    );
    let mut broken = Family::gauge(
        "docker_container_healthcheck_broken",
        "1 when the last healthcheck failed because its program cannot ever run, which says nothing about the container.",
    );
    let mut result = Family::gauge(
        "docker_container_healthcheck_last_result",
        "What became of the last healthcheck; always 1.",
    );
    let mut exit_code = Family::gauge(
        "docker_container_healthcheck_last_exit_code",
        "Exit code of the last healthcheck; -1 when it could not be run or timed out.",
    );
    let mut last_run = Family::gauge(
        "docker_container_healthcheck_last_run_timestamp_seconds",
        "When the last healthcheck ended (asked every 15 s, every 5 min while healthy).",
    );
    for known in containers {
        let Some(detail) = known.detail.as_ref().filter(|detail| detail.state == State::Running) else {
            continue;
        };
        let Some(health) = &detail.health else { continue };
        let name = ("name", known.listed.name.as_str());
        streak.sample(&[name], health.failing_streak as f64);
        for reason in ProbeResult::ALL.into_iter().filter(|result| result.is_broken()) {
            broken.sample(&[name, ("reason", reason.as_str())], flag(health.broken() == Some(reason)));
        }
        if let Some(probe) = &health.last {
            result.sample(&[name, ("result", probe.result.as_str())], 1.0);
            exit_code.sample(&[name], probe.exit_code as f64);
            last_run.timestamp(&[name], probe.end);
        }
    }
    [streak, broken, result, exit_code, last_run]
}

/// Starts, ends and restarts.
fn lives(containers: &[Known]) -> [Family; 6] {
    let mut restarts = Family::counter(
        "docker_container_restarts_total",
        "Restarts by the restart policy; starts again from 0 when the container is started by hand.",
    );
    let mut exit_code = Family::gauge(
        "docker_container_exit_code",
        "Exit code of the last run of a container that does not run.",
    );
    let mut oom = Family::gauge(
        "docker_container_oom_killed",
        "1 when the engine saw the kernel kill for memory in the last run (best effort).",
    );
    let mut created =
        Family::gauge("docker_container_created_timestamp_seconds", "When the container was made.");
    let mut started =
        Family::gauge("docker_container_started_timestamp_seconds", "When the container was last started.");
    let mut finished = Family::gauge(
        "docker_container_finished_timestamp_seconds",
        "When the last run that ended, ended; a running container has it from the run before.",
    );
    for known in containers {
        let Some(detail) = &known.detail else { continue };
        let name = [("name", known.listed.name.as_str())];
        restarts.sample(&name, detail.restart_count as f64);
        // A container that was only created has no exit code, one whose start failed has.
        let has_run = detail.finished.is_some() || detail.exit_code != 0;
        if has_run && !matches!(detail.state, State::Running | State::Paused) {
            exit_code.sample(&name, detail.exit_code as f64);
        }
        oom.sample(&name, flag(detail.oom_killed));
        created.timestamp(&name, detail.created);
        started.timestamp(&name, detail.started);
        finished.timestamp(&name, detail.finished);
    }
    [restarts, exit_code, oom, created, started, finished]
}

fn info(containers: &[Known]) -> Family {
    let mut family =
        Family::gauge("docker_container_info", "What the container is and where it comes from; always 1.");
    for Known { listed, detail } in containers {
        let label = |key: &str| listed.labels.get(key).map_or("", String::as_str);
        let detail = detail.as_deref();
        let labels = [
            ("name", listed.name.as_str()),
            ("id", &listed.id),
            // The list has an id here once the image lost its tag.
            ("image", detail.map_or(&listed.image, |detail| &detail.image)),
            ("image_id", &listed.image_id),
            ("compose_project", label("com.docker.compose.project")),
            ("compose_service", label("com.docker.compose.service")),
            ("restart_policy", detail.map_or("", |detail| &detail.restart_policy)),
        ];
        family.sample(&labels, 1.0);
    }
    family
}

fn container_labels(containers: &[Known], wanted: &[ContainerLabel]) -> Family {
    let mut family = Family::gauge(
        "docker_container_labels",
        "The labels of the container that the configuration lists; always 1.",
    );
    if wanted.is_empty() {
        return family;
    }
    for Known { listed, .. } in containers {
        let mut labels = vec![("name", listed.name.as_str())];
        let value = |label: &ContainerLabel| listed.labels.get(&label.key).map_or("", String::as_str);
        labels.extend(wanted.iter().map(|label| (label.metric_label, value(label))));
        family.sample(&labels, 1.0);
    }
    family
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        time::{Duration, SystemTime},
    };

    use evenkeel_host::docker::{HealthDetail, LastProbe, classify_probe};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn container(name: &str, state: State) -> Container {
        Container {
            id: format!("{name}-id"),
            name: name.into(),
            state,
            health: None,
            restart_count: 0,
            exit_code: 0,
            oom_killed: false,
            created: Some(at(100)),
            started: Some(at(200)),
            finished: None,
            image: "web:1".into(),
            image_id: "sha256:1".into(),
            restart_policy: "always".into(),
            auto_remove: false,
            labels: BTreeMap::new(),
            network_mode: "none".into(),
            pid: 0,
            has_healthcheck: false,
        }
    }

    fn probed(status: Health, exit_code: i64, output: &str) -> Option<HealthDetail> {
        let result = classify_probe(exit_code, output);
        let last = Some(LastProbe { exit_code, output: output.into(), end: Some(at(300)), result });
        Some(HealthDetail { status, failing_streak: 7, last })
    }

    fn listed(container: &Container) -> Listed {
        let labels =
            [("com.docker.compose.project", "shop"), ("com.docker.compose.service", "web"), ("team", "a")];
        Listed {
            id: container.id.clone(),
            name: container.name.clone(),
            state: container.state.clone(),
            status_text: String::new(),
            image: "sha256:1".into(),
            image_id: "sha256:1".into(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            created: None,
            health: container.health.as_ref().map_or(Health::None, |health| health.status),
        }
    }

    fn known(container: Container) -> Known {
        Known { listed: listed(&container), detail: Some(Arc::new(container)) }
    }

    /// `name{label="value",…} value` for every sample of one metric, zeros left out.
    fn lines(containers: Vec<Known>, metric: &str) -> Vec<String> {
        let labels = [ContainerLabel::new("team"), ContainerLabel::new("not.there")];
        let families = families(&Picture { engine: None, containers }, &labels);
        let family = families.iter().find(|family| family.name == metric).expect(metric);
        let line = |sample: &evenkeel_host::metrics::Sample| {
            let labels: Vec<_> = sample.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{} {}", labels.join(","), sample.value)
        };
        family.samples.iter().filter(|sample| sample.value != 0.0).map(line).collect()
    }

    #[test]
    fn states_are_published_in_full_and_counted() {
        let containers = || {
            vec![
                known(container("a", State::Running)),
                known(container("b", State::Paused)),
                known(container("c", State::Other("\"}evil".into()))),
            ]
        };
        assert_eq!(
            lines(containers(), "docker_containers"),
            ["state=running 1", "state=paused 1", "state=other 1"]
        );
        assert_eq!(
            lines(containers(), "docker_container_state"),
            ["name=a,state=running 1", "name=b,state=paused 1"]
        );
        let families = families(&Picture { engine: None, containers: containers() }, &[]);
        let state = families.iter().find(|family| family.name == "docker_container_state").expect("states");
        assert_eq!(state.samples.len(), 3 * 7);
    }

    #[test]
    fn health_is_published_of_running_containers_only() {
        let containers = || {
            let running =
                Container { health: probed(Health::Unhealthy, 1, "no"), ..container("sick", State::Running) };
            // What the engine says of a paused container: unhealthy, and the last probe was fine.
            let paused =
                Container { health: probed(Health::None, 0, "fine"), ..container("paused", State::Paused) };
            vec![known(running), known(paused), known(container("plain", State::Running))]
        };
        assert_eq!(
            lines(containers(), "docker_container_health"),
            ["name=sick,status=unhealthy 1", "name=plain,status=none 1"]
        );
        assert_eq!(lines(containers(), "docker_container_health_failing_streak"), ["name=sick 7"]);
        assert_eq!(
            lines(containers(), "docker_container_healthcheck_last_result"),
            ["name=sick,result=failed 1"]
        );
        assert_eq!(lines(containers(), "docker_container_healthcheck_last_exit_code"), ["name=sick 1"]);
        assert_eq!(
            lines(containers(), "docker_container_healthcheck_last_run_timestamp_seconds"),
            ["name=sick 300"]
        );
    }

    #[test]
    fn a_broken_probe_is_told_from_a_sick_container() {
        let of = |name, exit_code, output| {
            let health = probed(Health::Unhealthy, exit_code, output);
            known(Container { health, ..container(name, State::Running) })
        };
        let containers = vec![
            of("missing", 127, "/bin/sh: curl: not found"),
            of("noexec", 126, "/bin/sh: /x: Permission denied"),
            of("sick", 1, "connection refused"),
            of("slow", -1, "Health check exceeded timeout (3s)"),
        ];
        assert_eq!(
            lines(containers, "docker_container_healthcheck_broken"),
            ["name=missing,reason=command_not_found 1", "name=noexec,reason=not_executable 1"]
        );
    }

    #[test]
    fn the_output_of_a_probe_is_published_nowhere() {
        let health = probed(Health::Unhealthy, 1, "password is hunter2");
        let containers = vec![known(Container { health, ..container("sick", State::Running) })];
        let shown = format!("{:?}", families(&Picture { engine: None, containers }, &[]));
        assert!(!shown.contains("hunter2"));
    }

    #[test]
    fn exit_codes_are_of_containers_that_ran_and_do_not_run() {
        let ended = |name, state, exit_code| {
            known(Container { exit_code, finished: Some(at(400)), ..container(name, state) })
        };
        let containers = vec![
            ended("exited", State::Exited, 3),
            ended("looping", State::Restarting, 7),
            ended("again", State::Running, 9),
            known(Container { exit_code: 127, ..container("badstart", State::Created) }),
            known(container("created", State::Created)),
        ];
        assert_eq!(
            lines(containers, "docker_container_exit_code"),
            ["name=exited 3", "name=looping 7", "name=badstart 127"]
        );
    }

    #[test]
    fn inspect_is_right_where_it_differs_from_the_list() {
        let mut known = known(container("a", State::Exited));
        known.listed.state = State::Running;
        assert_eq!(lines(vec![known], "docker_container_state"), ["name=a,state=exited 1"]);
    }

    #[test]
    fn without_details_the_list_speaks() {
        let health = probed(Health::Unhealthy, 1, "no");
        let sick = Container { health, ..container("sick", State::Running) };
        let only_listed = || vec![Known { listed: listed(&sick), detail: None }];
        assert_eq!(lines(only_listed(), "docker_container_health"), ["name=sick,status=unhealthy 1"]);
        assert_eq!(lines(only_listed(), "docker_container_restarts_total"), [""; 0]);
        assert_eq!(
            lines(only_listed(), "docker_container_info"),
            [
                "name=sick,id=sick-id,image=sha256:1,image_id=sha256:1,compose_project=shop,compose_service=web,restart_policy= 1"
            ]
        );
    }

    #[test]
    fn only_listed_labels_are_published() {
        let containers = vec![known(container("a", State::Running))];
        assert_eq!(
            lines(containers, "docker_container_labels"),
            ["name=a,container_label_team=a,container_label_not_there= 1"]
        );
        let families =
            families(&Picture { engine: None, containers: vec![known(container("a", State::Running))] }, &[]);
        let labels = families.iter().find(|family| family.name == "docker_container_labels").expect("labels");
        assert_eq!(labels.samples, []);
    }
}
