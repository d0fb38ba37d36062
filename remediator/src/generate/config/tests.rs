use std::{collections::BTreeMap, fs};

use super::*;
use crate::{
    config::{self, Config},
    policy::Mode,
};

/// Names that a host may have, and some that nothing should have.
const HOSTILE: [&str; 9] = [
    "shop\\x2dapi.service",
    "a@b\\x2fc.service",
    "*.service",
    "sh?p.service",
    "a\n  - name: evil",
    "\" # x",
    "ssh.service",
    "\u{1b}[31mred\u{202e}.service",
    "- {x: [y",
];

fn places() -> Places {
    Places {
        listen: "127.0.0.1:1234".to_owned(),
        token_file: "webhook.token".into(),
        state_dir: Some("st ate".into()),
    }
}

fn nothing() -> Survey {
    Survey {
        systemd: Source::Absent("there is no system bus".to_owned()),
        docker: Source::Silent("permission denied\nrules: []".to_owned()),
        filesystems: Vec::new(),
        redis: Vec::new(),
        node_exporter: None,
    }
}

fn service(name: &str) -> Service {
    Service { name: name.to_owned(), state: "active\nx".to_owned() }
}

fn container(name: &str, health: Health) -> Running {
    Running { name: name.to_owned(), image: "nginx:1\n#".to_owned(), health }
}

fn filesystem(mount_point: &str) -> Filesystem {
    Filesystem { mount_point: mount_point.to_owned(), fs_type: "ext4\n".to_owned(), used: 0.42 }
}

fn full() -> Survey {
    let services = Services {
        version: "252".to_owned(),
        units: 300,
        own: HOSTILE.iter().copied().chain(["shop-api.service"]).map(service).collect(),
        packaged: vec![service("nginx.service"), service("docker.service")],
    };
    let running = HOSTILE.map(|name| container(name, Health::None)).into_iter();
    let containers = Containers {
        version: "29".to_owned(),
        running: running
            .chain([container("shop-web", Health::Healthy), container("0_a.b", Health::None)])
            .collect(),
        stopped: 2,
    };
    Survey {
        systemd: Source::Found(services),
        docker: Source::Found(containers),
        filesystems: ["/", "/srv/*", "/a b", "/x\ny", "//", "relative"].map(filesystem).to_vec(),
        ..nothing()
    }
}

/// As `check-config` reads it.
fn loaded(text: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("webhook.token"), "a token that only this test knows\n").unwrap();
    let file = folder.path().join("remediator.yml");
    fs::write(&file, text).unwrap();
    config::load(&file).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn allowed(config: &Config) -> BTreeMap<&str, Vec<String>> {
    let allow = |rule: &crate::rules::Rule| rule.selector.allow.iter().map(ToString::to_string).collect();
    config.rules.iter().map(|rule| (rule.name.as_str(), allow(rule))).collect()
}

#[test]
fn what_was_found_is_what_the_rules_are_about() {
    let text = configuration(&full(), &places());
    let config = loaded(&text);
    let allowed = allowed(&config);
    // No pattern that a name could be taken for, nothing that is never touched, nothing that is no name.
    assert_eq!(allowed["unit-failed"], ["shop\\x2dapi.service", "a@b\\x2fc.service", "shop-api.service"]);
    // A container may be called like a unit that is never touched.
    assert_eq!(allowed["container-unhealthy"], ["ssh.service", "shop-web", "0_a.b"]);
    assert_eq!(allowed["disk-high"], ["/", "/a b"]);
    assert!(text.contains("        # - \"nginx.service\" ") && !text.contains("docker.service\""), "{text}");
    assert!(text.contains("has no healthcheck") && text.contains("nginx:1\\n#: healthy"), "{text}");
    assert!(text.contains("#   systemd      252: 300 units, 10 services of this host's own\n"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
}

#[test]
fn it_is_in_plan_mode_and_deletes_nothing() {
    for found in [full(), nothing()] {
        let config = loaded(&configuration(&found, &places()));
        assert_eq!((config.mode, config.deletion), (Mode::Plan, crate::policy::Deletion::None));
        assert!(config.rules.iter().all(|rule| rule.mode == Mode::Plan));
    }
}

#[test]
fn what_is_not_here_has_its_rules_left_out_with_the_reason() {
    let text = configuration(&nothing(), &places());
    let config = loaded(&text);
    assert!(config.rules.is_empty(), "{text}");
    for why in [
        "  # Left out: there is no system bus.\n",
        "  # Left out: permission denied\\nrules: [].\n",
        "  # Left out: no filesystem on a disk was found.\n",
        "  # - name: unit-failed\n",
    ] {
        assert!(text.contains(why), "{why}: {text}");
    }
}

#[test]
fn it_listens_and_keeps_its_state_where_it_is_told() {
    let config = loaded(&configuration(&full(), &places()));
    let listen: Vec<String> = config.access.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:1234"]);
    assert!(config.state_dir.ends_with("st ate"), "{:?}", config.state_dir);
}

/// A rule that is added to the example is thought of here as well.
#[test]
fn every_rule_of_the_example_is_fitted() {
    let rules = EXAMPLE.split_once(RULES).unwrap().1.split_once(MORE_RULES).unwrap().0;
    let names: Vec<&str> = rules.lines().filter_map(|line| line.strip_prefix("  - name: ")).collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        assert!(!matches!(fit(name, &nothing()), Fit::AsShipped), "{name}");
    }
    let full = full();
    let names = [("disk-high", 2), ("unit-failed", 3), ("container-unhealthy", 3)];
    for (name, count) in names {
        let Fit::About(found, _) = fit(name, &full) else { panic!("{name}") };
        assert_eq!(found.len(), count, "{name}");
    }
}

#[test]
fn long_lists_are_cut_and_say_so() {
    let own = (0..250).map(|number| service(&format!("shop-{number}.service"))).collect();
    let systemd = Source::Found(Services { own, ..Services::default() });
    let text = configuration(&Survey { systemd, ..nothing() }, &places());
    assert_eq!(allowed(&loaded(&text))["unit-failed"].len(), MOST);
    assert!(text.contains("        # and 150 more: "), "{text}");
}

#[test]
fn a_host_with_nothing_of_its_own_is_offered_what_packages_brought() {
    let systemd = Source::Found(Services { packaged: vec![service("nginx.service")], ..Services::default() });
    let text = configuration(&Survey { systemd, ..nothing() }, &places());
    assert_eq!(allowed(&loaded(&text))["unit-failed"], ["*.service"]);
    assert!(text.contains("        # - \"nginx.service\""), "{text}");
}
