//! A first configuration: the shipped example with every line commented out whose names are nobody's, and with what was
//! found on this host written down. Pure: the look is `survey`'s.

use evenkeel_host::{
    build,
    survey::{Redis, Source, Survey, quoted},
    text::printable,
};

/// What is shipped, so that there is one text to keep true.
const EXAMPLE: &str = include_str!("../../../packaging/exporter.yml");
/// More names than this make no list that somebody reads.
const MOST: usize = 40;

/// The configuration for a host where this was found.
pub fn configuration(found: &Survey) -> String {
    let mut text = head(found);
    let sections = EXAMPLE.split("\n\n").skip(1);
    for section in sections {
        text.push('\n');
        match key(section) {
            Some("collectors") if found.node_exporter.is_some() => text.push_str(&collectors(section)),
            Some("redis") if !found.redis.is_empty() => text.push_str(&redis(section, &found.redis)),
            Some("systemd") => text.push_str(&commented(&systemd(section, found))),
            _ => text.push_str(&commented(section)),
        }
    }
    text
}

/// What was found, and how to go on.
fn head(found: &Survey) -> String {
    let mut head = format!(
        "# Configuration of evenkeel-exporter, written by `evenkeel-exporter generate config` ({}) from what it found here:\n#\n",
        build::VERSION
    );
    for (what, words) in findings(found) {
        head.push_str(&format!("#   {what:<14} {}\n", printable(&words)));
    }
    head.push_str(concat!(
        "#\n",
        "# Every line is optional. What is commented out shows what else can be said, with names that are nobody's; the\n",
        "# defaults look at what is there. A key that is not known is an error. Check a changed file with:\n",
        "#   evenkeel-exporter --config.check --config.file=FILE\n",
    ));
    head
}

fn findings(found: &Survey) -> [(&'static str, String); 5] {
    let systemd = match &found.systemd {
        Source::Found(services) => format!(
            "{}: {} units, {} services of this host's own",
            services.version,
            services.units,
            services.own.len()
        ),
        Source::Absent(why) | Source::Silent(why) => why.clone(),
    };
    let docker = match &found.docker {
        Source::Found(containers) => format!(
            "{}: {} containers run, {} do not",
            containers.version,
            containers.running.len(),
            containers.stopped
        ),
        Source::Absent(why) | Source::Silent(why) => why.clone(),
    };
    let filesystems = found.filesystems.iter().map(|one| format!("{} ({})", one.mount_point, one.fs_type));
    let redis = found.redis.iter().map(|one| one.url.clone());
    let node_exporter = match &found.node_exporter {
        Some(why) => format!("{why}: the collector `filesystem` is off below"),
        None => "not seen".to_owned(),
    };
    [
        ("systemd", systemd),
        ("Docker", docker),
        ("filesystems", listed(filesystems, "none on a disk")),
        ("Redis", listed(redis, "none where it listens by default")),
        ("node_exporter", node_exporter),
    ]
}

fn listed(names: impl Iterator<Item = String>, none: &str) -> String {
    let names: Vec<String> = names.collect();
    match names.len() {
        0 => none.to_owned(),
        count if count > MOST => format!("{} and {} more", names[..MOST].join(", "), count - MOST),
        _ => names.join(", "),
    }
}

/// The key that a section of the example is about.
fn key(section: &str) -> Option<&str> {
    let line = section.lines().find(|line| !line.starts_with('#'))?;
    line.split_once(':').map(|(key, _)| key)
}

/// Every line as a comment.
fn commented(section: &str) -> String {
    let mut text = String::new();
    for line in section.lines() {
        let is_said = !line.trim().is_empty() && !line.trim_start().starts_with('#');
        text.push_str(if is_said { "# " } else { "" });
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// The comments above the first line that says something.
fn comments(section: &str) -> String {
    section.lines().take_while(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

fn collectors(section: &str) -> String {
    format!("{}collectors: {{filesystem: false}}\n", comments(section))
}

/// With the names that the default comes to, for who wants to choose.
fn systemd(section: &str, found: &Survey) -> String {
    let own = found.systemd.found().map(|services| services.own.as_slice()).unwrap_or_default();
    if own.is_empty() {
        return section.to_owned();
    }
    let mut text = String::new();
    for line in section.lines() {
        if line.trim_start().starts_with("watch:") {
            text.push_str("  watch:\n");
            for service in own.iter().take(MOST) {
                text.push_str(&format!("    - {}\n", quoted(&service.name)));
            }
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn redis(section: &str, found: &[Redis]) -> String {
    let mut text = comments(section);
    text.push_str("redis:\n");
    for (number, redis) in found.iter().enumerate() {
        // The label `redis`: each its own.
        let name = if number == 0 { "local".to_owned() } else { format!("local-{}", number + 1) };
        text.push_str(&format!("  - name: {name}\n    url: {}\n", quoted(&redis.url)));
        if redis.wants_login {
            text.push_str(concat!(
                "    # It wants a login: an ACL user that may run PING and INFO, and its password alone in a file.\n",
                "    # username: exporter\n",
                "    # password_file: /etc/evenkeel/redis.pass\n",
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use evenkeel_host::{
        docker::Health,
        survey::{Containers, Filesystem, Running, Service, Services},
    };

    use super::*;
    use crate::config::Config;

    fn nothing() -> Survey {
        Survey {
            systemd: Source::Absent("there is no system bus".to_owned()),
            docker: Source::Absent("there is no Docker socket".to_owned()),
            filesystems: Vec::new(),
            redis: Vec::new(),
            node_exporter: None,
        }
    }

    const HOSTILE: [&str; 6] =
        ["a\\x2db.service", "a\nredis: [x]", "\"", "*: &x", "\u{1b}[31m\u{202e}", "x#y: {z"];

    fn full() -> Survey {
        let service = |name: &str| Service { name: name.to_owned(), state: "active".to_owned() };
        let running =
            |name: &str| Running { name: name.to_owned(), image: name.to_owned(), health: Health::None };
        Survey {
            systemd: Source::Found(Services {
                version: "252\nx: y".to_owned(),
                units: 9,
                own: HOSTILE.map(service).to_vec(),
                packaged: Vec::new(),
            }),
            docker: Source::Found(Containers {
                version: "29\n".to_owned(),
                running: HOSTILE.map(running).to_vec(),
                stopped: 1,
            }),
            filesystems: HOSTILE
                .map(|name| Filesystem { mount_point: name.to_owned(), fs_type: name.to_owned(), used: 0.5 })
                .to_vec(),
            redis: vec![
                Redis { url: "redis://127.0.0.1:6379".to_owned(), wants_login: true },
                Redis { url: "unix:///run/redis/redis.sock".to_owned(), wants_login: false },
            ],
            node_exporter: Some("a\ncollectors: {docker: false}".to_owned()),
        }
    }

    #[test]
    fn where_nothing_was_found_nothing_is_said() {
        let text = configuration(&nothing());
        assert!(text.lines().all(|line| line.is_empty() || line.trim_start().starts_with('#')), "{text}");
        Config::parse("exporter.yml", &text).expect("it loads");
        for words in ["#   systemd        there is no system bus\n", "#   node_exporter  not seen\n"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn whatever_names_a_host_has_it_loads_and_says_what_was_found() {
        let text = configuration(&full());
        let config = Config::parse("exporter.yml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(config.collectors.is_off("filesystem") && !config.collectors.is_off("docker"));
        let redis: Vec<_> =
            config.redis.iter().map(|redis| (&*redis.name.value, &*redis.url.value)).collect();
        assert_eq!(redis, [("local", "redis://127.0.0.1:6379"), ("local-2", "unix:///run/redis/redis.sock")]);
        assert!(text.contains("#     - \"a\\\\x2db.service\"\n"), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
    }

    #[test]
    fn what_is_commented_out_is_right_when_the_marks_are_taken_away() {
        let text = configuration(&nothing());
        let example: String = EXAMPLE.split_once("\n\n").expect("a head").1.to_owned();
        for line in example.lines().filter(|line| !line.trim_start().starts_with('#') && !line.is_empty()) {
            assert!(text.contains(&format!("# {line}\n")), "{line}");
        }
    }
}
