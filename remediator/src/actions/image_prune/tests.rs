//! The parameters, and the whole action against an engine that a test scripts.

use evenkeel_host::config::parse as yaml;

use super::*;
use crate::{
    actions::{Step, bench::Bench},
    fullness::Marks,
    policy::Class,
};

fn read(text: &str) -> Result<Step, String> {
    let steps: Result<Vec<Step>, _> = yaml("t.yml", &format!("- image_prune: {text}\n"));
    steps.map(|mut steps| steps.remove(0)).map_err(|error| error.to_string())
}

#[test]
fn its_class_is_that_of_what_it_deletes() {
    assert_eq!(read("{}").unwrap().0.class(), Class::D1);
    assert_eq!(read("{min_age: 24h}").unwrap().0.class(), Class::D1);
    assert_eq!(read("{unused: true}").unwrap().0.class(), Class::D2);
    assert!(read("{keep_last: 2}").unwrap_err().contains("go with `unused: true`"));
    assert!(read("{unused: true, force: true}").is_err());
}

const ENGINE: &str = r#"{"DockerRootDir": "/", "Driver": "overlay2"}"#;

fn id(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

/// An engine with an image that goes, one that a stopped container uses, and one that was built here.
fn answer(path: &str) -> Option<String> {
    let image = |digit, tag: &str, digests: &str| {
        format!(
            r#"{{"Id": "{}", "RepoTags": ["{tag}"], "RepoDigests": [{digests}], "Created": 1600000000, "Size": 5000}}"#,
            id(digit)
        )
    };
    Some(match path {
        "/info" => ENGINE.to_owned(),
        "/images/json" => format!(
            "[{}, {}, {}]",
            image('a', "old:1", r#""old@sha256:1""#),
            image('b', "used:1", r#""used@sha256:2""#),
            image('c', "local:1", "")
        ),
        "/containers/json?all=1" => {
            format!(
                r#"[{{"Id": "1", "Names": ["/c"], "Image": "used:1", "ImageID": "{}", "State": "exited"}}]"#,
                id('b')
            )
        }
        path if path.starts_with("/images/sha256:") => {
            r#"{"Metadata": {"LastTagTime": "2020-11-20T10:00:00Z"}}"#.to_owned()
        }
        path if path.starts_with("/system/df") => {
            r#"{"LayersSize": 15000, "Images": [{"Size": 5000, "SharedSize": 0, "Containers": 1}]}"#
                .to_owned()
        }
        _ => return None,
    })
}

#[tokio::test]
async fn only_what_nothing_uses_and_can_come_again_is_deleted_and_never_by_force() {
    let bench = Bench::new(|path| match path {
        "/images/old:1?force=false&noprune=false" => Some("[]".to_owned()),
        path => answer(path),
    });
    let step = read("{unused: true, keep_last: 0}").unwrap();
    let job = bench.disk("/", 100);
    assert_eq!(step.0.check(&job).await, Ok(Check::Frees(5000)));
    let done = step.0.run(&job).await.unwrap();
    assert_eq!(done.detail, "deleted old:1");
    let deleted: Vec<String> =
        bench.docker.take_requests().into_iter().filter(|path| path.contains("force")).collect();
    assert_eq!(deleted.len(), 1, "{deleted:?}");
}

#[tokio::test]
async fn what_the_engine_refuses_is_told_and_no_failure() {
    let bench = Bench::refusing("/images/old:1", 409, answer);
    let step = read("{unused: true, keep_last: 0}").unwrap();
    let done = step.0.run(&bench.disk("/", 100)).await.unwrap();
    assert_eq!(done.detail, "deleted no image; the engine keeps old:1");
}

#[tokio::test]
async fn an_image_that_lost_one_of_its_names_is_told_so() {
    let two = |path: &str| match path {
        "/images/json" => Some(answer(path)?.replace(r#"["old:1"]"#, r#"["older:1", "old:1"]"#)),
        "/images/older:1?force=false&noprune=false" => Some("[]".to_owned()),
        path => answer(path),
    };
    let bench = Bench::refusing("/images/old:1", 409, two);
    let step = read("{unused: true, keep_last: 0}").unwrap();
    let done = step.0.run(&bench.disk("/", 100)).await.unwrap();
    assert_eq!(done.detail, "deleted no image; the engine keeps older:1 without its name older:1");
}

#[tokio::test]
async fn another_prune_at_work_is_waited_for_and_no_failure() {
    let bench = Bench::refusing("/images/prune", 409, answer);
    let failed = read("{}").unwrap().0.run(&bench.disk("/", 100)).await;
    assert_eq!(failed, Err(Failure::Busy("the engine prunes already: no".to_owned())));
}

#[tokio::test]
async fn nameless_images_that_are_too_young_are_not_counted() {
    let now = jiff::Timestamp::now().as_second();
    let bench = Bench::new(move |path| match path {
        "/images/json" => Some(format!(
            r#"[{{"Id": "{}", "Created": 1600000000, "Size": 700}}, {{"Id": "{}", "Created": {now}, "Size": 300}}]"#,
            id('a'),
            id('c')
        )),
        path => answer(path),
    });
    let job = bench.disk("/", 100);
    for (text, frees) in [("{}", 1000), ("{min_age: 24h}", 700)] {
        assert_eq!(read(text).unwrap().0.check(&job).await, Ok(Check::Frees(frees)), "{text}");
    }
}

#[tokio::test]
async fn nothing_is_deleted_beyond_the_mark() {
    let bench = Bench::new(answer);
    let step = read("{unused: true, keep_last: 0}").unwrap();
    // Less is lacking than has come free meanwhile.
    let mut job = bench.disk("/", 100);
    job.done_below = Some(Marks { usage: Some(1.0), inodes: None });
    let done = step.0.run(&job).await.unwrap();
    assert_eq!(done.detail, "deleted no image; 1 more were not needed to reach the mark");
}

#[tokio::test]
async fn images_elsewhere_are_left_alone() {
    let bench = Bench::new(answer);
    for text in ["{}", "{unused: true}"] {
        let step = read(text).unwrap();
        // The engine's folder is on /, the disk in need is another.
        let check = step.0.check(&bench.disk("/proc", 100)).await;
        assert!(matches!(check, Ok(Check::Skip("not_on_this_filesystem", _))), "{check:?}");
    }
}

#[tokio::test]
async fn a_host_whose_images_are_all_in_use_is_told_so() {
    let bench = Bench::new(|path| match path {
        "/images/json" => Some(format!(
            r#"[{{"Id": "{}", "RepoTags": ["used:1"], "RepoDigests": ["used@sha256:2"], "Size": 5000}}]"#,
            id('b')
        )),
        path => answer(path),
    });
    let check = read("{unused: true}").unwrap().0.check(&bench.disk("/", 100)).await;
    assert_eq!(check, Ok(Check::Skip("nothing_to_delete", "1 in use".to_owned())));
}
