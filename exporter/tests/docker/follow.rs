//! An engine whose announcements are followed: a look asks whether it is alive, and nothing else.

use tokio::time::{advance, sleep};

use super::*;

/// An engine with some containers, and a collector that has read them.
struct Bench {
    _dir: TempDir,
    socket: PathBuf,
    containers: Containers,
    followers: Followers,
    fake: FakeDocker,
    collector: DockerCollector,
}

impl Bench {
    async fn with(containers: &[(&'static str, (Value, Inspect))]) -> Self {
        let (dir, socket, docker) = place();
        let containers = Containers::new(Mutex::new(containers.iter().cloned().collect()));
        let followers = Followers::default();
        let fake = FakeDocker::start(&socket, announcing(&containers, &followers));
        let collector = start(docker);
        let bench = Self { _dir: dir, socket, containers, followers, fake, collector };
        bench.is_followed().await;
        bench
    }

    /// Waits until a look asks for nothing but life.
    async fn is_followed(&self) {
        loop {
            self.fake.take_requests();
            if self.collector.look(Instant::now() + Duration::from_secs(5)).await.is_ok()
                && self.fake.take_requests() == ["/_ping"]
            {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn change(&self, name: &'static str, container: (Value, Inspect)) {
        self.containers.lock().unwrap().insert(name, container);
    }

    fn remove(&self, name: &str) {
        self.containers.lock().unwrap().remove(name);
    }

    /// Sends everyone who follows this text.
    fn say(&self, text: &str) {
        self.followers.lock().unwrap().retain(|follower| follower.send(text.to_owned()).is_ok());
    }

    fn announce(&self, id: &str) {
        self.say(&announcement(id));
    }

    /// Looks until it is so.
    async fn shows(&self, expected: &[(&str, f64)]) {
        let expected: BTreeMap<String, f64> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        loop {
            let seen = restarts(&look(&self.collector).await);
            if seen == expected {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn missed(&self) -> Option<u64> {
        self.collector.missed_changes()
    }
}

fn announcement(id: &str) -> String {
    let event = json!({"status": "start", "id": id, "Type": "container", "Action": "start",
        "Actor": {"ID": id, "Attributes": {"name": id}}, "scope": "local", "time": 1, "timeNano": 1});
    format!("{event}\n")
}

/// A container that has run for two hours.
fn steady(name: &str, restarts: u64) -> (Value, Inspect) {
    running(name, "2 hours", None, restarts)
}

#[tokio::test]
async fn an_idle_engine_is_asked_for_life_and_nothing_else() {
    let bench = Bench::with(&[("a", steady("a", 1)), ("b", steady("b", 2))]).await;
    for _ in 0..5 {
        assert_eq!(restarts(&look(&bench.collector).await).len(), 2);
    }
    assert_eq!(bench.fake.take_requests(), ["/_ping"; 5]);
    assert_eq!(bench.followers.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn only_what_is_announced_is_inspected() {
    let bench = Bench::with(&[("a", steady("a", 1)), ("b", steady("b", 2))]).await;
    bench.change("a", steady("a", 7));
    bench.announce("a");
    bench.shows(&[("a", 7.0), ("b", 2.0)]).await;
    // A new one, and one that goes.
    bench.change("c", steady("c", 3));
    bench.announce("c");
    bench.shows(&[("a", 7.0), ("b", 2.0), ("c", 3.0)]).await;
    bench.remove("b");
    bench.announce("b");
    bench.shows(&[("a", 7.0), ("c", 3.0)]).await;
    // One that is removed before it can be inspected.
    bench.announce("d");
    bench.change("a", steady("a", 8));
    bench.announce("a");
    bench.shows(&[("a", 8.0), ("c", 3.0)]).await;
    assert_eq!(bench.missed(), Some(0));
    let mut asked = inspected(&bench.fake);
    asked.sort_unstable();
    assert_eq!(asked, ["a", "a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_name_belongs_to_the_container_that_got_it_last() {
    let bench = Bench::with(&[("old", steady("old", 1))]).await;
    // Recreated: the old one is renamed, and a new one takes its name. Only the second half is announced in time.
    let named = |id: &str, name: &str, restarts: u64| {
        let Inspect::Says(mut answer) = steady(id, restarts).1 else { panic!("an answer") };
        answer["Name"] = json!(format!("/{name}"));
        (json!(null), Inspect::Says(answer))
    };
    bench.change("old", named("old", "old_web", 1));
    bench.change("new", named("new", "old", 5));
    bench.announce("new");
    bench.shows(&[("old", 5.0), ("old_web", 1.0)]).await;
}

#[tokio::test]
async fn a_lost_stream_is_opened_anew_and_everything_read_again() {
    let bench = Bench::with(&[("a", steady("a", 1)), ("b", steady("b", 2))]).await;
    bench.change("a", steady("a", 7));
    bench.followers.lock().unwrap().clear();
    // Nothing announced it, and it is seen nevertheless.
    bench.shows(&[("a", 7.0), ("b", 2.0)]).await;
    bench.is_followed().await;
    assert_eq!(bench.followers.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_an_announcement_ends_the_stream() {
    for garbage in ["{\"Actor\": 5}\n".to_owned(), "\0\u{1}\n".to_owned(), "x".repeat(3 << 20)] {
        let bench = Bench::with(&[("a", steady("a", 1))]).await;
        bench.change("a", steady("a", 7));
        bench.say(&garbage);
        bench.shows(&[("a", 7.0)]).await;
        bench.is_followed().await;
    }
}

#[tokio::test]
async fn an_engine_that_stops_is_down_at_once_and_followed_when_it_is_back() {
    let Bench { _dir, socket, containers, followers, fake, collector } =
        Bench::with(&[("a", steady("a", 1))]).await;
    drop(fake);
    let deadline = || Instant::now() + Duration::from_secs(5);
    while collector.look(deadline()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    containers.lock().unwrap().insert("a", steady("a", 7));
    let fake = FakeDocker::start(&socket, announcing(&containers, &followers));
    assert_eq!(restarts(&look(&collector).await)["a"], 7.0);
    let bench = Bench { _dir, socket, containers, followers, fake, collector };
    bench.is_followed().await;
    bench.shows(&[("a", 7.0)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_picture_that_nobody_confirms_is_not_published() {
    let (_dir, socket, docker) = place();
    let containers = Containers::default();
    containers.lock().unwrap().insert("a", steady("a", 1));
    let followers = Followers::default();
    let is_hung = Arc::new(Mutex::new(false));
    let fake = {
        let (engine, is_hung) = (announcing(&containers, &followers), Arc::clone(&is_hung));
        FakeDocker::start(&socket, move |path: &str| match path {
            "/_ping" if *is_hung.lock().unwrap() => Answer::Nothing,
            path => engine(path),
        })
    };
    let collector = start(docker);
    let bench = Bench { _dir, socket, containers, followers, fake, collector };
    bench.is_followed().await;
    *is_hung.lock().unwrap() = true;
    let deadline = Instant::now() + Duration::from_secs(60);
    let error = bench.collector.look(deadline).await.unwrap_err();
    assert_eq!(error.to_string(), "the Docker engine did not answer within 10 s");
    *is_hung.lock().unwrap() = false;
    bench.shows(&[("a", 1.0)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_not_followed_until_a_minute_is_quiet() {
    let bench = Bench::with(&[("a", steady("a", 1)), ("b", steady("b", 2))]).await;
    bench.say(&announcement("a").repeat(1000));
    let lists = |requests: Vec<String>| requests.iter().filter(|path| path.contains("/json?all=1")).count();
    while lists(bench.fake.take_requests()) == 0 {
        look(&bench.collector).await;
    }
    // The list at each look, and no question for any of the thousand.
    bench.change("a", running("a", "1 second", None, 7));
    bench.shows(&[("a", 7.0), ("b", 2.0)]).await;
    look(&bench.collector).await;
    assert!(lists(bench.fake.take_requests()) > 0);
    advance(Duration::from_secs(61)).await;
    bench.is_followed().await;
    bench.shows(&[("a", 7.0), ("b", 2.0)]).await;
    assert_eq!(bench.missed(), Some(0));
    // It was the same stream all the time.
    assert_eq!(bench.followers.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_missed_change_is_found_counted_and_ends_the_stream() {
    let bench = Bench::with(&[("a", steady("a", 1)), ("b", steady("b", 2))]).await;
    // The list shows all of it.
    let (mut entry, Inspect::Says(mut answer)) = steady("b", 9) else { panic!("an answer") };
    entry["State"] = json!("paused");
    answer["State"]["Status"] = json!("paused");
    bench.change("b", (entry, Inspect::Says(answer)));
    bench.change("c", steady("c", 3));
    bench.remove("a");
    advance(Duration::from_secs(60)).await;
    bench.shows(&[("b", 9.0), ("c", 3.0)]).await;
    while bench.missed() < Some(3) {
        sleep(Duration::from_millis(100)).await;
    }
    bench.is_followed().await;
    bench.shows(&[("b", 9.0), ("c", 3.0)]).await;
    assert_eq!(bench.missed(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn the_healthchecks_last_words_are_asked_for_in_rounds() {
    let sick = || running("sick", "2 hours", Some("unhealthy"), 3);
    let bench = Bench::with(&[
        ("calm", steady("calm", 0)),
        ("fine", running("fine", "2 hours", Some("healthy"), 0)),
        ("sick", sick()),
    ])
    .await;
    bench.fake.take_requests();
    // Until the engine is asked about the content one.
    let begun = Instant::now();
    let mut asked = Vec::new();
    while !asked.contains(&"fine".to_owned()) {
        let (entry, Inspect::Says(mut answer)) = sick() else { panic!("an answer") };
        answer["State"]["Health"]["FailingStreak"] = json!(3 + asked.len());
        bench.change("sick", (entry, Inspect::Says(answer)));
        sleep(Duration::from_secs(1)).await;
        asked.extend(inspected(&bench.fake));
        asked.retain(|name| name != "calm");
    }
    // A comparison asks about a few for no reason, so that is the upper bound.
    assert!(begun.elapsed() <= Duration::from_secs(310), "{:?}", begun.elapsed());
    let rounds = begun.elapsed().as_secs() / 15;
    let sick = asked.iter().filter(|name| *name == "sick").count() as u64;
    assert!((rounds..=rounds + 3).contains(&sick), "{sick} in {rounds} rounds");
    let families = look(&bench.collector).await;
    let streak = &values(&families, "docker_container_health_failing_streak", "name")["sick"];
    assert!(*streak >= sick as f64, "{streak} after {sick}");
    assert_eq!(bench.missed(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_failed_is_announced_by_nobody_and_found_in_a_round() {
    let made = |exit_code: i64| {
        let entry = json!({"Id": "made", "Names": ["/made"], "State": "created", "Status": "Created"});
        let answer = json!({"Id": "made", "State": {"Status": "created", "ExitCode": exit_code}});
        (entry, Inspect::Says(answer))
    };
    let bench = Bench::with(&[("made", made(0))]).await;
    let codes = async || values(&look(&bench.collector).await, "docker_container_exit_code", "name");
    assert_eq!(codes().await, BTreeMap::new());
    bench.change("made", made(127));
    let begun = Instant::now();
    while codes().await.is_empty() {
        sleep(Duration::from_millis(500)).await;
    }
    assert!(begun.elapsed() <= Duration::from_secs(31), "{:?}", begun.elapsed());
    sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.missed(), Some(1));
    // It was asked about for its age, which says nothing about the stream.
    assert_eq!(bench.followers.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_the_engine_does_not_describe_is_read_off_the_list() {
    let bench = Bench::with(&[("good", steady("good", 1)), ("stuck", steady("stuck", 2))]).await;
    let (mut entry, _) = steady("stuck", 2);
    entry["State"] = json!("exited");
    entry["Status"] = json!("Exited (1) 1 second ago");
    bench.change("stuck", (entry, Inspect::Never));
    bench.announce("stuck");
    loop {
        let families = look(&bench.collector).await;
        if values(&families, "docker_containers", "state")["exited"] == 1.0 {
            // What only inspect knows is left out rather than stale.
            assert_eq!(restarts(&families), BTreeMap::from([("good".to_owned(), 1.0)]));
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    // It is asked for again by itself.
    bench.change("stuck", steady("stuck", 5));
    bench.shows(&[("good", 1.0), ("stuck", 5.0)]).await;
}

#[tokio::test]
async fn the_task_ends_with_the_token_and_with_the_collector() {
    for by_token in [true, false] {
        let (_dir, socket, docker) = place();
        let followers = Followers::default();
        let fake = FakeDocker::start(&socket, announcing(&Containers::default(), &followers));
        let token = CancellationToken::new();
        let collector = DockerCollector::start(docker, &Default::default(), &token);
        while followers.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(5)).await;
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

#[tokio::test]
async fn what_happens_while_the_list_is_written_is_not_lost() {
    let (_dir, socket, docker) = place();
    let containers = Containers::default();
    let followers = Followers::default();
    containers.lock().unwrap().insert("new", steady("new", 5));
    let (list, receiver) = unbounded_channel();
    let receiver = Mutex::new(Some(receiver));
    let fake = {
        let engine = announcing(&containers, &followers);
        FakeDocker::start(&socket, move |path: &str| match path {
            "/containers/json?all=1" => match receiver.lock().unwrap().take() {
                Some(receiver) => Answer::Follows(receiver),
                None => Answer::Says(500, r#"{"message": "asked twice"}"#.into()),
            },
            path => engine(path),
        })
    };
    let collector = start(docker);
    let bench = Bench { _dir, socket, containers, followers, fake, collector };
    while bench.followers.lock().unwrap().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    // The engine has begun its list: one container is made, another one goes.
    bench.announce("new");
    bench.announce("gone");
    let mut asked = Vec::new();
    while asked.len() < 2 {
        asked.extend(inspected(&bench.fake));
        sleep(Duration::from_millis(5)).await;
    }
    let (entry, _) = steady("gone", 0);
    list.send(json!([entry]).to_string()).unwrap();
    drop(list);
    bench.shows(&[("new", 5.0)]).await;
    assert_eq!(bench.missed(), Some(0));
}
