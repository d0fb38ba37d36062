//! What Docker takes on disk.

use evenkeel_exporter::collectors::docker_disk::DockerDisk;

use super::*;

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
    assert_eq!(values(&collector.down(), "docker_disk_usage_bytes", "object"), BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_stalls_is_seen_to_and_delays_nothing_else() {
    let (_dir, socket, docker) = place();
    let containers = Containers::default();
    containers.lock().unwrap().insert("web", running("web", "2 hours", None, 1));
    let fake = {
        let engine = announcing(&containers, &Followers::default());
        FakeDocker::start(&socket, move |path: &str| match path {
            path if path.starts_with("/system/df") => Answer::Nothing,
            path => engine(path),
        })
    };
    let disk = DockerDisk::start(docker.clone(), &Default::default(), &CancellationToken::new());
    let collector = start(docker);
    let asked = |families: &[Family]| values(families, "docker_disk_usage_in_flight", "object");
    while !asked(&look(&disk).await).values().any(|asked| *asked == 1.0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = Instant::now();
    assert_eq!(restarts(&look(&collector).await)["web"], 1.0);
    assert!(begun.elapsed() < Duration::from_secs(1));
    let error = loop {
        match disk.look(Instant::now()).await {
            Err(error) => break error.to_string(),
            Ok(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    };
    assert_eq!(error, "the Docker engine did not answer within 60 s");
    let down = disk.down();
    let failures = values(&down, "docker_disk_usage_failures_total", "object");
    assert_eq!(failures.values().sum::<f64>(), 4.0, "{failures:?}");
    assert!(asked(&down).values().all(|asked| *asked == 0.0));
    // Not for hours, whatever a hundred times the last one is.
    fake.take_requests();
    tokio::time::sleep(Duration::from_secs(15 * 60 + 1)).await;
    assert!(fake.take_requests().iter().any(|path| path.contains("/system/df")));
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
