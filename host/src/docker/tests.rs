//! Asking a Docker engine that answers in every bad way.

use serde_json::json;
use tempfile::TempDir;

use super::{
    fake::{Answer, FakeDocker},
    *,
};

/// A place for a socket, and a client for it.
fn place() -> (TempDir, PathBuf, Docker) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let docker = Docker::at(&format!("unix://{}", socket.display()));
    (dir, socket, docker)
}

/// An engine of this API version, with `rest` for everything but its version.
fn engine(
    api: &'static str,
    rest: impl Fn(&str) -> Answer + Send + Sync,
) -> impl Fn(&str) -> Answer + Send + Sync {
    move |path| match path {
        "/version" => Answer::json(json!({"Version": "20.10.24", "ApiVersion": api, "Arch": "amd64"})),
        path => rest(path),
    }
}

const LIST: &str = r#"[
    {"Id": "aa", "Names": ["/web"], "State": "running", "Status": "Up 5 minutes"},
    {"Id": "bb", "Names": ["/pod"], "State": "configured", "Status": "weird", "Health": {"Status": "dreaming"}}
]"#;

#[tokio::test]
async fn the_engine_describes_itself() {
    let (_dir, socket, docker) = place();
    let fake = FakeDocker::start(
        &socket,
        engine("1.60", |path| match path {
            "/info" => {
                Answer::json(json!({"Driver": "overlay2", "CgroupVersion": "3", "DockerRootDir": "/data",
                "DriverStatus": [["Backing Filesystem", "extfs"], ["odd"]], "Isolation": "moon"}))
            }
            _ => Answer::Says(404, String::new()),
        }),
    );
    let seen = docker.engine().await.unwrap();
    assert_eq!((seen.version.as_str(), seen.api_version), ("20.10.24", (1, 60)));
    assert_eq!((seen.storage_driver.as_str(), seen.cgroup_version.as_str()), ("overlay2", "3"));
    assert_eq!(seen.root_dir, PathBuf::from("/data"));
    assert_eq!(seen.driver_status, [("Backing Filesystem".to_owned(), "extfs".to_owned())]);
    // A newer engine is asked in the newest version that is known.
    assert_eq!(fake.take_requests(), ["/version", "/v1.53/info"]);
    fake.all_closed().await;
}

#[tokio::test]
async fn an_unknown_state_does_not_lose_the_list() {
    let (_dir, socket, docker) = place();
    let _fake = FakeDocker::start(&socket, engine("1.41", |_| Answer::json(LIST)));
    let seen = docker.containers().await.unwrap();
    let states: Vec<_> = seen.into_iter().map(|container| (container.name, container.state)).collect();
    assert_eq!(
        states,
        [("web".to_owned(), State::Running), ("pod".to_owned(), State::Other("configured".into()))]
    );
}

#[tokio::test]
async fn a_container_that_went_away_is_none() {
    let (_dir, socket, docker) = place();
    let fake = FakeDocker::start(
        &socket,
        engine("1.41", |path| match path {
            "/containers/here/json" => {
                Answer::json(r#"{"Id": "aa", "Name": "/here", "State": {"Status": "running"}}"#)
            }
            "/containers/sick/json" => Answer::Says(500, r#"{"message": "layer does not exist"}"#.into()),
            _ => Answer::Says(404, r#"{"message": "No such container"}"#.into()),
        }),
    );
    assert_eq!(docker.inspect("here").await.unwrap().unwrap().name, "here");
    assert!(docker.inspect("gone").await.unwrap().is_none());
    assert_eq!(
        docker.inspect("sick").await.unwrap_err().to_string(),
        "the Docker engine refused with status 500: layer does not exist"
    );
    // The version is asked for once.
    assert_eq!(fake.take_requests().iter().filter(|path| *path == "/version").count(), 1);
    // No name leads elsewhere.
    assert!(docker.inspect("x/json?size=1&").await.unwrap().is_none());
    assert_eq!(fake.take_requests(), [""; 0]);
}

/// Time is paused: it jumps to the limit as soon as nothing else can happen.
#[tokio::test(start_paused = true)]
async fn a_silent_engine_runs_into_the_limit() {
    for silent in ["/version", "/containers/json?all=1"] {
        let (_dir, socket, docker) = place();
        let fake = FakeDocker::start(&socket, move |path: &str| {
            if path == silent { Answer::Nothing } else { engine("1.41", |_| Answer::json("[]"))(path) }
        });
        assert!(matches!(docker.containers().await, Err(Error::Timeout(_))), "{silent}");
        fake.all_closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_runs_into_the_limit() {
    let (_dir, socket, docker) = place();
    let fake = FakeDocker::start(&socket, engine("1.41", |_| Answer::Half("[{\"Id\":".into())));
    assert!(matches!(docker.containers().await, Err(Error::Timeout(_))));
    assert!(matches!(docker.inspect("web").await, Err(Error::Timeout(_))));
    assert!(matches!(docker.disk_usage(&[Object::Images]).await, Err(Error::Timeout(_))));
    fake.all_closed().await;
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_no_connection() {
    let (_dir, socket, docker) = place();
    let fake = FakeDocker::start(&socket, |_: &str| Answer::Nothing);
    let _ = tokio::time::timeout(Duration::from_millis(50), docker.containers()).await.unwrap_err();
    fake.all_closed().await;
}

#[tokio::test]
async fn a_huge_body_is_cut() {
    let (_dir, socket, docker) = place();
    let fake = FakeDocker::start(&socket, engine("1.41", |_| Answer::Endless));
    let error = docker.containers().await.unwrap_err();
    assert_eq!(error.to_string(), "the Docker engine's answer cannot be read: more than 67108864 bytes");
    assert_eq!(docker.disk_usage(&[Object::Images]).await.unwrap_err().reason(), "bad_answer");
    fake.all_closed().await;
}

#[tokio::test]
async fn a_stopped_engine_is_found_again() {
    let (_dir, socket, docker) = place();
    assert!(!docker.socket_exists());
    assert!(matches!(docker.containers().await, Err(Error::Unreachable(_))));

    let fake = FakeDocker::start(&socket, engine("1.41", |_| Answer::json(LIST)));
    assert!(docker.socket_exists());
    assert_eq!(docker.containers().await.unwrap().len(), 2);
    assert_eq!(fake.take_requests(), ["/version", "/v1.41/containers/json?all=1"]);

    // The daemon is gone, its socket file stays.
    drop(fake);
    while docker.containers().await.is_ok() {
        tokio::task::yield_now().await;
    }
    let error = docker.containers().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error}");

    // It comes back as another version, which is negotiated anew.
    let fake = FakeDocker::start(&socket, engine("1.45", |_| Answer::json(LIST)));
    assert_eq!(docker.containers().await.unwrap().len(), 2);
    assert_eq!(fake.take_requests(), ["/version", "/v1.45/containers/json?all=1"]);
}

#[tokio::test]
async fn an_engine_that_no_longer_speaks_the_version_is_asked_anew() {
    let (_dir, socket, docker) = place();
    let fake = FakeDocker::start(&socket, engine("1.41", |_| Answer::json("[]")));
    docker.containers().await.unwrap();
    drop(fake);
    let old = r#"{"message": "client version 1.41 is too old. Minimum supported API version is 1.44"}"#;
    let fake = FakeDocker::start(&socket, engine("1.53", |_| Answer::Says(400, old.into())));
    assert!(matches!(docker.containers().await, Err(Error::Refused { status: 400, .. })));
    assert_eq!(fake.take_requests(), ["/v1.41/containers/json?all=1"]);
    let _ = docker.containers().await;
    assert_eq!(fake.take_requests(), ["/version", "/v1.53/containers/json?all=1"]);
}

#[tokio::test]
async fn nonsense_is_a_bad_answer() {
    let (_dir, socket, docker) = place();
    for (version, rest) in
        [("<html>", "[]"), (r#"{"ApiVersion": "new"}"#, "[]"), (r#"{"ApiVersion": "1.41"}"#, "<html>")]
    {
        let _fake = FakeDocker::start(&socket, move |path: &str| {
            Answer::json(if path == "/version" { version } else { rest })
        });
        assert_eq!(docker.containers().await.unwrap_err().reason(), "bad_answer");
        assert_eq!(docker.engine().await.unwrap_err().reason(), "bad_answer");
    }
}

fn announcement(id: &str) -> String {
    json!({"Type": "container", "Action": "die", "Actor": {"ID": id}}).to_string() + "\n"
}

#[tokio::test]
async fn announcements_are_read_as_they_come() {
    let (_dir, socket, docker) = place();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let receiver = Mutex::new(Some(receiver));
    let fake = FakeDocker::start(
        &socket,
        engine("1.41", move |_| Answer::Follows(lock(&receiver).take().expect("asked once"))),
    );
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    let mut events = docker.events(since).await.unwrap();
    let path = fake.take_requests().pop().unwrap();
    assert!(path.starts_with("/v1.41/events?since=7.000000000&filters="), "{path}");
    // Two and a half in one piece, the rest in the next.
    let third = announcement("cc");
    let (first, rest) = third.split_at(9);
    sender.send(announcement("aa") + &announcement("bb") + first).unwrap();
    assert_eq!(events.next().await.unwrap().container, "aa");
    assert_eq!(events.next().await.unwrap().container, "bb");
    let waiting = tokio::time::timeout(Duration::from_millis(20), events.next()).await;
    assert!(waiting.is_err());
    sender.send(rest.to_owned()).unwrap();
    assert_eq!(events.next().await.unwrap().container, "cc");
    drop(sender);
    assert_eq!(events.next().await.unwrap_err().reason(), "broken");
    drop(events);
    fake.all_closed().await;
}

#[tokio::test]
async fn announcements_that_are_none_end_in_an_error() {
    for (answer, reason) in [
        (Answer::Endless, "bad_answer"),
        (Answer::json("<html>\n"), "bad_answer"),
        (Answer::json(r#"{"Actor": {}}"#.to_owned() + "\n"), "bad_answer"),
        (Answer::json(""), "broken"),
        (Answer::json("half"), "broken"),
        (Answer::Says(403, r#"{"message": "forbidden"}"#.into()), "refused"),
    ] {
        let (_dir, socket, docker) = place();
        let answer = Mutex::new(Some(answer));
        let fake =
            FakeDocker::start(&socket, engine("1.41", move |_| lock(&answer).take().expect("asked once")));
        let error = match docker.events(SystemTime::now()).await {
            Ok(mut events) => events.next().await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.reason(), reason, "{error}");
        fake.all_closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_announces_nothing_and_is_not_alive() {
    let (_dir, socket, docker) = place();
    let fake = FakeDocker::start(&socket, |path: &str| match path {
        "/version" => Answer::json(r#"{"ApiVersion": "1.41"}"#),
        _ => Answer::Nothing,
    });
    assert!(matches!(docker.ping().await, Err(Error::Timeout(CALL_LIMIT))));
    assert!(matches!(docker.events(SystemTime::now()).await, Err(Error::Timeout(CALL_LIMIT))));
    fake.all_closed().await;
}

#[tokio::test]
async fn a_sign_of_life_needs_no_version() {
    let (_dir, socket, docker) = place();
    assert_eq!(docker.ping().await.unwrap_err().reason(), "unreachable");
    let fake = FakeDocker::start(&socket, |_: &str| Answer::Says(200, "OK".into()));
    docker.ping().await.unwrap();
    assert_eq!(fake.take_requests(), ["/_ping"]);
    docker.ping().await.unwrap();
    assert_eq!((fake.take_requests().len(), fake.connections()), (1, 1));
    // The connection ends with the engine, and another one is opened to the next engine.
    drop(fake);
    while docker.ping().await.is_ok() {
        tokio::task::yield_now().await;
    }
    let fake = FakeDocker::start(&socket, |_: &str| Answer::Says(200, "OK".into()));
    docker.ping().await.unwrap();
    docker.ping().await.unwrap();
    assert_eq!((fake.take_requests().len(), fake.connections()), (2, 1));
    drop(docker);
    fake.all_closed().await;
}

#[tokio::test]
async fn a_sign_of_life_that_is_none_is_an_error() {
    for (answer, reason) in [
        (Answer::Endless, "broken"),
        (Answer::Says(500, r#"{"message": "no"}"#.into()), "refused"),
        (Answer::Says(400, String::new()), "refused"),
    ] {
        let (_dir, socket, docker) = place();
        let answer = Mutex::new(Some(answer));
        let fake = FakeDocker::start(&socket, move |_: &str| lock(&answer).take().expect("asked once"));
        assert_eq!(docker.ping().await.unwrap_err().reason(), reason);
        fake.all_closed().await;
    }
}

#[tokio::test]
async fn disk_usage_is_asked_for_by_kind_where_the_engine_can() {
    let sums =
        r#"{"BuildCacheUsage": {"TotalSize": 20, "Reclaimable": 10, "TotalCount": 2, "ActiveCount": 1}}"#;
    let lists = r#"{"LayersSize": 0, "Images": null, "BuildCache": [{"Size": 20}]}"#;
    for (api, body, path) in [
        ("1.41", lists, "/v1.41/system/df"),
        ("1.45", lists, "/v1.45/system/df?type=build-cache"),
        ("1.57", sums, "/v1.53/system/df?type=build-cache"),
    ] {
        let (_dir, socket, docker) = place();
        let fake = FakeDocker::start(&socket, engine(api, move |_| Answer::json(body)));
        let seen = docker.disk_usage(&[Object::BuildCache]).await.unwrap();
        assert_eq!(seen.get(Object::BuildCache).unwrap().bytes, 20);
        assert_eq!(seen.get(Object::Images), None);
        assert_eq!(fake.take_requests().last().unwrap(), path);
    }
}

#[tokio::test]
async fn a_long_list_of_objects_is_read_while_it_comes() {
    let (_dir, socket, docker) = place();
    let record = r#"{"ID": "p0qkyyc7yvxqk7cqk4h2rnz0l", "Type": "regular", "InUse": false, "Shared": false, "Size": 2}"#;
    let records = vec![record; 50_000].join(",");
    let body = format!(r#"{{"BuildCache": [{records}], "LayersSize": 0}}"#);
    let _fake = FakeDocker::start(&socket, engine("1.45", move |_| Answer::json(&body)));
    let seen = docker.disk_usage(&[Object::BuildCache]).await.unwrap().get(Object::BuildCache).unwrap();
    assert_eq!((seen.bytes, seen.objects), (100_000, 50_000));
}

#[tokio::test]
async fn no_disk_usage_is_too_long_and_none_comes_without_end() {
    for (answer, message) in [
        (Answer::Endless, "/system/df: more than 67108864 bytes"),
        (Answer::json("<html>"), "/system/df: expected value at line 1 column 1"),
        // The connection was closed in the middle, or the engine has nothing to say.
        (Answer::json(r#"{"BuildCache": ["#), "/system/df: EOF while parsing a list at line 1 column 16"),
        (Answer::json(""), "/system/df: EOF while parsing a value at line 1 column 0"),
    ] {
        let (_dir, socket, docker) = place();
        let answer = Mutex::new(Some(answer));
        let fake =
            FakeDocker::start(&socket, engine("1.45", move |_| lock(&answer).take().expect("asked once")));
        let error = docker.disk_usage(&[Object::BuildCache]).await.unwrap_err();
        assert_eq!(error.to_string(), format!("the Docker engine's answer cannot be read: {message}"));
        fake.all_closed().await;
    }
}

#[tokio::test]
async fn a_tcp_host_is_asked_over_plain_http() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let docker = Docker::at(&format!("tcp://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            let body = if request[..length].starts_with(b"GET /version ") {
                r#"{"ApiVersion":"1.41"}"#
            } else {
                LIST
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        }
    });
    assert!(docker.socket_exists());
    assert_eq!(docker.containers().await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_bollard_client_is_negotiated_and_forgotten() {
    let (_dir, socket, docker) = place();
    assert!(matches!(docker.client().await, Err(Error::Unreachable(_))));
    let fake = FakeDocker::start(&socket, engine("1.41", |_| Answer::json("[]")));
    let client = docker.client().await.unwrap();
    assert_eq!(client.client_version().to_string(), "1.41");
    let _ = docker.client().await.unwrap();
    assert_eq!(fake.take_requests().len(), 1);
    docker.forget();
    let _ = docker.client().await.unwrap();
    assert_eq!(fake.take_requests().len(), 1);
}

#[test]
fn only_names_get_into_a_path() {
    for good in ["web", "4f1c", "shop-web_1.2"] {
        assert!(is_container_name(good), "{good}");
    }
    for bad in ["", ".", "../info", "a/json?x=", "a b", "-x", "ä", "a%2f", &"a".repeat(256)] {
        assert!(!is_container_name(bad), "{bad}");
    }
}

#[test]
fn an_unusable_host_says_what_to_write() {
    assert_eq!(
        Docker::at("ssh://host").host().unwrap_err().to_string(),
        "cannot use the Docker host `ssh://host`: unix:// and tcp:// are supported"
    );
}

#[test]
fn a_refusal_is_cut() {
    let Error::Refused { message, .. } = Error::refused(500, &"ä".repeat(1000)) else {
        panic!("not a refusal")
    };
    assert_eq!(message.len(), 512);
}
