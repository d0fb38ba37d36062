//! The metrics of what is known of an engine: all that changes only when the picture does. Pure.

use evenkeel_host::{
    docker::{Engine, Health, ProbeResult, State},
    metrics::Family,
};

use super::{
    ContainerLabel,
    picture::{Detail, Known, Picture},
};

/// Everything but `docker_up` and what moves at every look.
pub(super) fn families(picture: &Picture, labels: &[ContainerLabel]) -> Vec<Family> {
    let containers: Vec<&Known> = picture.containers.values().collect();
    let details: Vec<Detailed<'_>> =
        containers.iter().filter_map(|known| Some((*known, known.detail.as_deref()?))).collect();
    let mut families = vec![engine_info(picture.engine.as_ref()), counts(&containers)];
    families.extend(states(&containers));
    families.extend(healthchecks(&details));
    families.extend(lives(&details));
    families.extend(bounds(&details));
    families.push(info(picture));
    families.push(container_labels(&containers, labels));
    families
}

/// A container of which everything is known.
type Detailed<'a> = (&'a Known, &'a Detail);

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

fn counts(containers: &[&Known]) -> Family {
    let mut family = Family::gauge("docker_containers", "Containers by state.");
    let count = |wanted: &dyn Fn(&State) -> bool| {
        containers.iter().filter(|known| wanted(&known.state)).count() as f64
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

fn states(containers: &[&Known]) -> [Family; 2] {
    let mut state =
        Family::gauge("docker_container_state", "1 for the state that the container is in, else 0.");
    let mut health = Family::gauge(
        "docker_container_health",
        "1 for the verdict of the healthcheck of a running container, else 0; none when it has no healthcheck.",
    );
    for known in containers {
        let name = &*known.name;
        for candidate in State::ALL {
            let labels = [("name", name), ("state", candidate.as_str())];
            state.sample(&labels, flag(known.state == candidate));
        }
        if known.state == State::Running {
            for candidate in Health::ALL {
                let labels = [("name", name), ("status", candidate.as_str())];
                health.sample(&labels, flag(known.health == candidate));
            }
        }
    }
    [state, health]
}

/// Of running containers only: the engine keeps the last words of a healthcheck when its container stops.
fn healthchecks(containers: &[Detailed<'_>]) -> [Family; 5] {
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
    for (known, detail) in containers.iter().filter(|(known, _)| known.state == State::Running) {
        let Some(health) = &detail.health else { continue };
        let name = ("name", &*known.name);
        streak.sample(&[name], health.failing_streak as f64);
        let last = health.last.as_ref();
        for reason in ProbeResult::ALL.into_iter().filter(|result| result.is_broken()) {
            let is_it = last.is_some_and(|probe| probe.result == reason);
            broken.sample(&[name, ("reason", reason.as_str())], flag(is_it));
        }
        if let Some(probe) = last {
            result.sample(&[name, ("result", probe.result.as_str())], 1.0);
            exit_code.sample(&[name], probe.exit_code as f64);
            last_run.timestamp(&[name], probe.end);
        }
    }
    [streak, broken, result, exit_code, last_run]
}

/// Starts, ends and restarts.
fn lives(containers: &[Detailed<'_>]) -> [Family; 6] {
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
    for (known, detail) in containers {
        let name = [("name", &*known.name)];
        restarts.sample(&name, detail.restart_count as f64);
        // A container that was only created has no exit code, one whose start failed has.
        let has_run = detail.finished.is_some() || detail.exit_code != 0;
        if has_run && !matches!(known.state, State::Running | State::Paused) {
            exit_code.sample(&name, detail.exit_code as f64);
        }
        oom.sample(&name, flag(detail.oom_killed));
        created.timestamp(&name, detail.created);
        started.timestamp(&name, detail.started);
        finished.timestamp(&name, detail.finished);
    }
    [restarts, exit_code, oom, created, started, finished]
}

fn bounds(containers: &[Detailed<'_>]) -> [Family; 2] {
    let mut memory = Family::gauge(
        "docker_container_memory_limit_bytes",
        "Bytes of memory that the container may have; absent when it has no limit.",
    );
    let mut rotation = Family::gauge(
        "docker_container_log_rotation",
        "1 when the engine keeps the container's log file from growing without end, or writes none; 0 when it may fill the disk.",
    );
    for (known, detail) in containers {
        let name = [("name", &*known.name)];
        if let Some(limit) = detail.memory_limit {
            memory.sample(&name, limit as f64);
        }
        rotation.sample(&name, flag(detail.has_log_rotation));
    }
    [memory, rotation]
}

fn info(picture: &Picture) -> Family {
    let mut family =
        Family::gauge("docker_container_info", "What the container is and where it comes from; always 1.");
    for (id, known) in &picture.containers {
        let labels = [
            ("name", &*known.name),
            ("id", id),
            ("image", &known.image),
            ("image_id", &known.image_id),
            ("compose_project", &known.compose_project),
            ("compose_service", &known.compose_service),
            ("restart_policy", known.detail.as_ref().map_or("", |detail| &detail.restart_policy)),
        ];
        family.sample(&labels, 1.0);
    }
    family
}

fn container_labels(containers: &[&Known], wanted: &[ContainerLabel]) -> Family {
    let mut family = Family::gauge(
        "docker_container_labels",
        "The labels of the container that the configuration lists; always 1.",
    );
    if wanted.is_empty() {
        return family;
    }
    for known in containers {
        let values = known.labels.iter().map(|value| &**value);
        let mut labels = vec![("name", &*known.name)];
        labels.extend(wanted.iter().map(|label| label.metric_label).zip(values));
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

    use evenkeel_host::docker::{Container, HealthDetail, LastProbe, Listed, classify_probe};
    use tokio::time::Instant;

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
            labels: labels(),
            network_mode: "none".into(),
            pid_mode: String::new(),
            ipc_mode: String::new(),
            pid: 0,
            memory_limit: None,
            log_path: None,
            has_log_rotation: true,
            has_healthcheck: false,
        }
    }

    fn probed(status: Health, exit_code: i64, output: &str) -> Option<HealthDetail> {
        let result = classify_probe(exit_code, output);
        let last = Some(LastProbe { exit_code, output: output.into(), end: Some(at(300)), result });
        Some(HealthDetail { status, failing_streak: 7, last })
    }

    fn labels() -> BTreeMap<String, String> {
        let labels =
            [("com.docker.compose.project", "shop"), ("com.docker.compose.service", "web"), ("team", "a")];
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    fn wanted() -> [ContainerLabel; 2] {
        [ContainerLabel::new("team"), ContainerLabel::new("not.there")]
    }

    fn picture(containers: Vec<Container>) -> Picture {
        let known = |container: Container| {
            (container.id.clone().into(), Known::inspected(container, Instant::now(), &wanted()))
        };
        Picture { engine: None, containers: containers.into_iter().map(known).collect() }
    }

    /// `name{label="value",…} value` for every sample of one metric, zeros left out.
    fn lines(containers: Vec<Container>, metric: &str) -> Vec<String> {
        lines_of(&picture(containers), metric)
    }

    fn lines_of(picture: &Picture, metric: &str) -> Vec<String> {
        let families = families(picture, &wanted());
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
                container("a", State::Running),
                container("b", State::Paused),
                container("c", State::Other("\"}evil".into())),
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
        let families = families(&picture(containers()), &[]);
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
            vec![running, paused, container("plain", State::Running)]
        };
        assert_eq!(
            lines(containers(), "docker_container_health"),
            ["name=plain,status=none 1", "name=sick,status=unhealthy 1"]
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
            Container { health, ..container(name, State::Running) }
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
        let containers = vec![Container { health, ..container("sick", State::Running) }];
        let shown = format!("{:?}", families(&picture(containers), &[]));
        assert!(!shown.contains("hunter2"));
    }

    #[test]
    fn exit_codes_are_of_containers_that_ran_and_do_not_run() {
        let ended = |name, state, exit_code| Container {
            exit_code,
            finished: Some(at(400)),
            ..container(name, state)
        };
        let containers = vec![
            ended("exited", State::Exited, 3),
            ended("looping", State::Restarting, 7),
            ended("again", State::Running, 9),
            Container { exit_code: 127, ..container("badstart", State::Created) },
            container("created", State::Created),
        ];
        assert_eq!(
            lines(containers, "docker_container_exit_code"),
            ["name=badstart 127", "name=exited 3", "name=looping 7"]
        );
    }

    #[test]
    fn without_details_the_list_speaks() {
        let listed = Listed {
            id: "sick-id".into(),
            name: "sick".into(),
            state: State::Running,
            status_text: String::new(),
            image: "sha256:1".into(),
            image_id: "sha256:1".into(),
            labels: labels(),
            created: None,
            health: Health::Unhealthy,
        };
        let containers = [("sick-id".into(), Known::listed(listed, Instant::now(), &wanted()))].into();
        let picture = Picture { engine: None, containers };
        assert_eq!(lines_of(&picture, "docker_container_health"), ["name=sick,status=unhealthy 1"]);
        assert_eq!(lines_of(&picture, "docker_container_restarts_total"), [""; 0]);
        assert_eq!(
            lines_of(&picture, "docker_container_info"),
            [
                "name=sick,id=sick-id,image=sha256:1,image_id=sha256:1,compose_project=shop,compose_service=web,restart_policy= 1"
            ]
        );
    }

    #[test]
    fn what_bounds_a_container_is_published_where_there_is_a_bound() {
        let bounded = Container { memory_limit: Some(1024), ..container("bounded", State::Running) };
        let growing = Container { has_log_rotation: false, ..container("growing", State::Running) };
        let containers = || vec![bounded.clone(), growing.clone()];
        assert_eq!(lines(containers(), "docker_container_memory_limit_bytes"), ["name=bounded 1024"]);
        assert_eq!(lines(containers(), "docker_container_log_rotation"), ["name=bounded 1"]);
    }

    #[test]
    fn only_listed_labels_are_published() {
        let containers = vec![container("a", State::Running)];
        assert_eq!(
            lines(containers, "docker_container_labels"),
            ["name=a,container_label_team=a,container_label_not_there= 1"]
        );
        let families = families(&picture(vec![container("a", State::Running)]), &[]);
        let labels = families.iter().find(|family| family.name == "docker_container_labels").expect("labels");
        assert_eq!(labels.samples, []);
    }
}
