//! An engine whose announcements cannot be followed: its containers are listed at each look.

use tokio::time::advance;

use super::*;

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
    let collector = start(docker);
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
    let collector = start(docker);
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
    let collector = start(docker);
    let families = look(&collector).await;
    assert_eq!(restarts(&families), BTreeMap::from([("good".to_owned(), 1.0)]));
    // What the list says is published, but not of the one that went away.
    let listed: Vec<_> = values(&families, "docker_container_info", "name").into_keys().collect();
    assert_eq!(listed, ["broken", "good", "stuck"]);
    assert_eq!(values(&families, "docker_containers", "state")["running"], 3.0);
    drop(collector);
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
    let collector = start(docker);
    // Too short for a second eight: they would be counted together with the first, which the engine still drops.
    let deadline = Instant::now() + Duration::from_millis(1500);
    let Ok(Look::Seen(Seen { blocks, .. })) = collector.look(deadline).await else { panic!("no list") };
    let families = blocks[0].read_back();
    assert!(Instant::now() < deadline + Duration::from_millis(100));
    // One more may ask whether changes are announced by now.
    assert!((8..=9).contains(&fake.most_at_once()), "{}", fake.most_at_once());
    assert_eq!(values(&families, "docker_containers", "state")["running"], 20.0);
    assert_eq!(restarts(&families), BTreeMap::new());
}

#[tokio::test]
async fn an_engine_that_stops_is_a_failed_look_and_comes_back() {
    let (_dir, socket, docker) = place();
    let collector = start(docker);
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
