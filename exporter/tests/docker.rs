//! The Docker collectors against an engine whose answers are written here.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use evenkeel_exporter::collectors::{Collector, Look, docker::DockerCollector, docker_disk::DockerDisk};
use evenkeel_host::{
    docker::{
        Docker,
        fake::{Answer, FakeDocker},
    },
    metrics::{Family, Sample},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, advance};
use tokio_util::sync::CancellationToken;

/// An engine's containers, changed by the test: list entry and inspect answer by name.
type Containers = Arc<Mutex<BTreeMap<&'static str, (Value, Inspect)>>>;

/// How the engine answers an inspect.
#[derive(Clone)]
enum Inspect {
    Says(Value),
    NotFound,
    Broken,
    Never,
}

fn place() -> (TempDir, PathBuf, Docker) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let docker = Docker::at(&format!("unix://{}", socket.display()));
    (dir, socket, docker)
}

fn engine(containers: &Containers) -> impl Fn(&str) -> Answer + Send + Sync + use<> {
    let containers = Arc::clone(containers);
    move |path| {
        let containers = containers.lock().unwrap();
        match path {
            "/version" => Answer::json(json!({"Version": "20.10.24", "ApiVersion": "1.41"})),
            "/info" => Answer::json(json!({"Driver": "overlay2", "CgroupVersion": "2"})),
            "/containers/json?all=1" => {
                Answer::json(Value::Array(containers.values().map(|(entry, _)| entry.clone()).collect()))
            }
            path => {
                let id = path.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json"));
                match id.and_then(|id| containers.get(id)).map(|(_, inspect)| inspect) {
                    Some(Inspect::Says(value)) => Answer::json(value),
                    Some(Inspect::Never) => Answer::Nothing,
                    Some(Inspect::Broken) => Answer::Says(500, r#"{"message": "no"}"#.into()),
                    Some(Inspect::NotFound) | None => Answer::Says(404, r#"{"message": "none"}"#.into()),
                }
            }
        }
    }
}

/// The id is the name. `health` is what the status text says in parentheses.
fn running(name: &str, up: &str, health: Option<&str>, restarts: u64) -> (Value, Inspect) {
    let text = health.map_or_else(|| format!("Up {up}"), |health| format!("Up {up} ({health})"));
    let names = [format!("/{name}")];
    let entry = json!({"Id": name, "Names": names, "State": "running", "Status": text, "Image": "i"});
    let mut answer = json!({"Id": name, "Name": format!("/{name}"), "RestartCount": restarts,
        "State": {"Status": "running", "ExitCode": 0}});
    if let Some(health) = health {
        answer["State"]["Health"] = json!({"Status": health, "FailingStreak": restarts, "Log": []});
    }
    (entry, Inspect::Says(answer))
}

async fn look(collector: &impl Collector) -> Vec<Family> {
    match collector.look(Instant::now() + Duration::from_secs(5)).await {
        Ok(Look::Seen(blocks)) => blocks.iter().flat_map(|block| block.read_back()).collect(),
        other => panic!("{other:?}"),
    }
}

/// The values of one metric, by the value of one label; none for a metric that is not there.
fn values(families: &[Family], name: &str, label: &str) -> BTreeMap<String, f64> {
    let samples = families.iter().filter(|family| family.name == name).flat_map(|family| &family.samples);
    let labelled = |sample: &Sample| {
        let (_, value) = sample.labels.iter().find(|(key, _)| *key == label)?;
        Some((value.clone(), sample.value))
    };
    samples.filter_map(labelled).collect()
}

fn restarts(families: &[Family]) -> BTreeMap<String, f64> {
    values(families, "docker_container_restarts_total", "name")
}

/// The containers that were inspected since the last call.
fn inspected(fake: &FakeDocker) -> Vec<String> {
    let path =
        |path: String| path.strip_prefix("/v1.41/containers/")?.strip_suffix("/json").map(str::to_owned);
    fake.take_requests().into_iter().filter_map(path).collect()
}

#[tokio::test(start_paused = true)]
async fn only_what_may_have_changed_is_inspected() {
    let (_dir, socket, docker) = place();
    let containers = Containers::default();
    for (name, up, health, restarts) in [
        ("calm", "5 minutes", None, 1),
        ("fine", "3 days", Some("healthy"), 2),
        ("sick", "2 hours", Some("unhealthy"), 3),
        ("young", "1 second", None, 4),
    ] {
        containers.lock().unwrap().insert(name, running(name, up, health, restarts));
    }
    let fake = FakeDocker::start(&socket, engine(&containers));
    let collector = DockerCollector::new(docker, &Default::default());
    let expected = [("calm", 1.0), ("fine", 2.0), ("sick", 3.0), ("young", 4.0)];
    let expected = BTreeMap::from(expected.map(|(name, restarts)| (name.to_owned(), restarts)));

    assert_eq!(restarts(&look(&collector).await), expected);
    assert_eq!(inspected(&fake).len(), 4);

    // At once again: only the container that may have restarted within the last second.
    assert_eq!(restarts(&look(&collector).await), expected);
    assert_eq!(inspected(&fake), ["young"]);

    // After 15 s the failing streak is asked for again.
    advance(Duration::from_secs(16)).await;
    containers.lock().unwrap().insert("young", running("young", "20 seconds", None, 4));
    assert_eq!(restarts(&look(&collector).await), expected);
    assert_eq!(inspected(&fake), ["sick"]);

    // After 5 minutes everything is.
    advance(Duration::from_secs(300)).await;
    assert_eq!(restarts(&look(&collector).await), expected);
    assert_eq!(inspected(&fake).len(), 4);
}

#[tokio::test]
async fn a_restart_is_seen_at_the_next_look() {
    let (_dir, socket, docker) = place();
    let containers = Containers::default();
    containers.lock().unwrap().insert("web", running("web", "2 hours", None, 1));
    let _fake = FakeDocker::start(&socket, engine(&containers));
    let collector = DockerCollector::new(docker, &Default::default());
    assert_eq!(restarts(&look(&collector).await)["web"], 1.0);
    containers.lock().unwrap().insert("web", running("web", "Less than a second", None, 2));
    assert_eq!(restarts(&look(&collector).await)["web"], 2.0);
    // A verdict that differs is a reason of its own.
    containers.lock().unwrap().insert("web", running("web", "2 hours", Some("healthy"), 3));
    assert_eq!(restarts(&look(&collector).await)["web"], 3.0);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_be_inspected_harms_no_other() {
    let (_dir, socket, docker) = place();
    let containers = Containers::default();
    containers.lock().unwrap().insert("good", running("good", "5 minutes", None, 1));
    for (name, inspect) in
        [("gone", Inspect::NotFound), ("broken", Inspect::Broken), ("stuck", Inspect::Never)]
    {
        let (entry, _) = running(name, "5 minutes", Some("unhealthy"), 0);
        containers.lock().unwrap().insert(name, (entry, inspect));
    }
    let fake = FakeDocker::start(&socket, engine(&containers));
    let collector = DockerCollector::new(docker, &Default::default());
    let families = look(&collector).await;
    assert_eq!(restarts(&families), BTreeMap::from([("good".to_owned(), 1.0)]));
    // What the list says is published, but not of the one that went away.
    let listed: Vec<_> = values(&families, "docker_container_info", "name").into_keys().collect();
    assert_eq!(listed, ["broken", "good", "stuck"]);
    assert_eq!(values(&families, "docker_containers", "state")["running"], 3.0);
    fake.all_closed().await;
}

#[tokio::test(start_paused = true)]
async fn eight_are_inspected_at_a_time_and_the_deadline_holds() {
    const NAMES: [&str; 20] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
    let (_dir, socket, docker) = place();
    let containers = Containers::default();
    for name in NAMES {
        let (entry, _) = running(name, "5 minutes", None, 0);
        containers.lock().unwrap().insert(name, (entry, Inspect::Never));
    }
    let fake = FakeDocker::start(&socket, engine(&containers));
    let collector = DockerCollector::new(docker, &Default::default());
    // Too short for a second eight: they would be counted together with the first, which the engine still drops.
    let deadline = Instant::now() + Duration::from_millis(1500);
    let Ok(Look::Seen(blocks)) = collector.look(deadline).await else { panic!("no list") };
    let families = blocks[0].read_back();
    assert!(Instant::now() < deadline + Duration::from_millis(100));
    assert_eq!(fake.most_at_once(), 8);
    assert_eq!(values(&families, "docker_containers", "state")["running"], 20.0);
    assert_eq!(restarts(&families), BTreeMap::new());
}

#[tokio::test]
async fn an_engine_that_stops_is_a_failed_look_and_comes_back() {
    let (_dir, socket, docker) = place();
    let collector = DockerCollector::new(docker, &Default::default());
    let deadline = || Instant::now() + Duration::from_secs(5);
    let error = collector.look(deadline()).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot reach the Docker engine"), "{error}");
    let down = collector.down();
    assert_eq!((down.len(), down[0].name, down[0].samples[0].value), (1, "docker_up", 0.0));

    let containers = Containers::default();
    containers.lock().unwrap().insert("web", running("web", "2 hours", None, 1));
    let fake = FakeDocker::start(&socket, engine(&containers));
    assert_eq!(restarts(&look(&collector).await).len(), 1);
    drop(fake);
    while collector.look(deadline()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let fake = FakeDocker::start(&socket, engine(&containers));
    assert_eq!(restarts(&look(&collector).await).len(), 1);
    // What was known of the engine before is not trusted any more.
    assert_eq!(inspected(&fake), ["web"]);
}

/// An engine with this disk usage.
fn disk_engine(api: &'static str, answer: &'static str) -> impl Fn(&str) -> Answer + Send + Sync {
    move |path| match path {
        "/version" => Answer::json(json!({"ApiVersion": api})),
        _ => Answer::json(answer),
    }
}

const SUMS: &str = r#"{"ImageUsage": {"TotalSize": 1}, "BuildCacheUsage": {"TotalSize": 2},
    "VolumeUsage": {"TotalSize": 3}, "ContainerUsage": {"TotalSize": 4, "TotalCount": 5, "ActiveCount": 1}}"#;

/// Waits until the disk usage of so many kinds of objects is published.
async fn disk_usage(collector: &DockerDisk, kinds: usize) -> Vec<Family> {
    loop {
        let families = look(collector).await;
        if values(&families, "docker_disk_usage_bytes", "object").len() == kinds {
            return families;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn disk_usage_is_there_soon_and_asked_for_by_kind() {
    let (_dir, socket, docker) = place();
    let fake = FakeDocker::start(&socket, disk_engine("1.53", SUMS));
    let collector = DockerDisk::start(docker, &Default::default(), &CancellationToken::new());
    let families = disk_usage(&collector, 4).await;
    let bytes = values(&families, "docker_disk_usage_bytes", "object");
    let expected = [("build_cache", 2.0), ("containers", 4.0), ("images", 1.0), ("volumes", 3.0)];
    assert_eq!(bytes, expected.map(|(object, bytes)| (object.to_owned(), bytes)).into());
    assert_eq!(values(&families, "docker_disk_usage_last_success_timestamp_seconds", "object").len(), 4);
    assert_eq!(values(&families, "docker_disk_usage_active_objects", "object")["containers"], 1.0);
    let mut asked = fake.take_requests();
    asked.retain(|path| path.contains("/system/df"));
    asked.sort();
    let kinds = ["build-cache", "container", "image", "volume"];
    assert_eq!(asked, kinds.map(|kind| format!("/v1.53/system/df?type={kind}")));
    // One at a time.
    assert_eq!(fake.most_at_once(), 1);
}

#[tokio::test]
async fn an_old_engine_is_asked_once_for_everything() {
    let (_dir, socket, docker) = place();
    let all = r#"{"LayersSize": 1, "Images": [], "BuildCache": [], "Volumes": [], "Containers": []}"#;
    let fake = FakeDocker::start(&socket, disk_engine("1.41", all));
    let collector = DockerDisk::start(docker, &Default::default(), &CancellationToken::new());
    disk_usage(&collector, 4).await;
    assert_eq!(fake.take_requests(), ["/version", "/v1.41/system/df"]);
}

#[tokio::test]
async fn an_unknown_answer_is_a_failed_look_and_not_an_empty_disk() {
    let (_dir, socket, docker) = place();
    let _fake = FakeDocker::start(&socket, disk_engine("1.53", "{}"));
    let collector = DockerDisk::start(docker, &Default::default(), &CancellationToken::new());
    let error = loop {
        match collector.look(Instant::now()).await {
            Err(error) => break error.to_string(),
            Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert!(error.contains("/system/df has no known field"), "{error}");
    assert!(collector.down().iter().all(|family| family.samples.is_empty()));
}

#[tokio::test]
async fn the_task_ends_with_the_token_and_with_the_collector() {
    for by_token in [true, false] {
        let (_dir, socket, docker) = place();
        let fake = FakeDocker::start(&socket, |path: &str| match path {
            "/version" => Answer::json(r#"{"ApiVersion": "1.53"}"#),
            _ => Answer::Nothing,
        });
        let token = CancellationToken::new();
        let collector = DockerDisk::start(docker, &Default::default(), &token);
        while !fake.take_requests().iter().any(|path| path.contains("/system/df")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if by_token {
            token.cancel();
            fake.all_closed().await;
        } else {
            drop(collector);
            fake.all_closed().await;
            assert!(!token.is_cancelled());
        }
    }
}
