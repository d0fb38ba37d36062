//! What the watched targets pull in, as a Mermaid diagram: drawn from what systemd has loaded, so that it is true of this
//! host now, with the units that do not exist or do not run marked.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write,
    path::Path,
};

use anyhow::{Context, bail};
use evenkeel_host::systemd::{self, Systemd, Ties, Unit, unit_files};

use crate::collectors::systemd::{Config, UnitPattern};

/// Units that somebody can still look at together.
const MOST: usize = 200;

/// What every unit is tied to says nothing about any.
const OF_ALL: [&str; 4] = ["basic.target", "shutdown.target", "sysinit.target", "umount.target"];

/// The host's own unit files.
const LOCAL_UNITS: &str = "/etc/systemd/system";

/// A unit in the diagram.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    name: String,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Active,
    Resting,
    Failed,
    Missing,
}

/// How one unit is tied to another, the stronger first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tie {
    Requires,
    Wants,
    After,
}

/// The diagram of this host's watched targets.
///
/// # Errors
/// When systemd does not answer, or no target is watched.
pub(super) async fn draw(systemd: &Systemd, config: &Config) -> anyhow::Result<String> {
    let units = systemd.units().await.context("systemd does not answer")?;
    let roots = roots(&units, &config.watch, &local_targets());
    if roots.is_empty() {
        bail!("no target is watched: name one in `systemd.watch`, such as app.target");
    }
    let (nodes, edges, left_out) = collect(systemd, units, roots).await.context("systemd does not answer")?;
    let mut diagram = mermaid(&nodes, &edges);
    if left_out > 0 {
        // A node of its own, because a comment is not to be seen in the picture.
        diagram += &format!(
            "  more[\"{left_out} more that these pull in are left out: watch fewer targets\"]:::missing\n"
        );
    }
    Ok(diagram)
}

/// The targets that the host's owner has made.
fn local_targets() -> BTreeSet<String> {
    let files = unit_files(Path::new("/"));
    let local =
        files.into_iter().filter(|(name, path)| name.ends_with(".target") && path.starts_with(LOCAL_UNITS));
    local.map(|(name, _)| name).collect()
}

/// The targets to draw: those that are watched, in systemd's memory or not; without a list the host's own.
fn roots(units: &[Unit], watch: &[UnitPattern], local: &BTreeSet<String>) -> BTreeSet<String> {
    if watch.is_empty() {
        return local.clone();
    }
    let in_memory = units.iter().map(|unit| unit.name.as_str());
    let named = watch.iter().filter_map(UnitPattern::literal);
    let is_meant =
        |name: &&str| name.ends_with(".target") && watch.iter().any(|pattern| pattern.matches(name));
    in_memory
        .chain(named)
        .chain(local.iter().map(String::as_str))
        .filter(is_meant)
        .map(str::to_owned)
        .collect()
}

type Edges = BTreeMap<(String, String), Tie>;

/// Walks from the roots along what units pull in. Answers also how many of those are left out because there are too many:
/// what these pull in themselves nobody has asked.
async fn collect(
    systemd: &Systemd,
    units: Vec<Unit>,
    roots: BTreeSet<String>,
) -> Result<(Vec<Node>, Edges, usize), systemd::Error> {
    let mut known: BTreeMap<String, Unit> = units.into_iter().map(|unit| (unit.name.clone(), unit)).collect();
    let mut ties: BTreeMap<String, Ties> = BTreeMap::new();
    let mut next: VecDeque<String> = roots.into_iter().collect();
    let mut seen: BTreeSet<String> = next.iter().cloned().collect();
    let mut left_out = BTreeSet::new();
    while let Some(name) = next.pop_front() {
        if !known.contains_key(&name) {
            let found = systemd.units_by_names(std::slice::from_ref(&name)).await?;
            known.extend(found.into_iter().map(|unit| (name.clone(), unit)));
        }
        let Some(unit) = known.get(&name).filter(|unit| unit.load_state == "loaded") else { continue };
        let of_unit = match systemd.ties(unit).await {
            Ok(of_unit) => of_unit,
            Err(error) if error.is_no_such_unit() => continue,
            Err(error) => return Err(error),
        };
        for pulled in of_unit.requires.iter().chain(&of_unit.wants).filter(|name| is_drawn(name)) {
            if seen.contains(pulled) {
                continue;
            }
            if seen.len() < MOST {
                seen.insert(pulled.clone());
                next.push_back(pulled.clone());
            } else {
                left_out.insert(pulled.clone());
            }
        }
        ties.insert(name, of_unit);
    }
    let nodes = seen.iter().map(|name| Node { name: name.clone(), state: state(known.get(name)) }).collect();
    Ok((nodes, edges(&seen, &ties), left_out.len()))
}

/// Slices, mounts and the like hold every unit up.
fn is_drawn(name: &str) -> bool {
    let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind);
    matches!(kind, "service" | "target" | "socket" | "timer" | "path") && !OF_ALL.contains(&name)
}

fn state(unit: Option<&Unit>) -> State {
    match unit.map(|unit| (unit.load_state.as_str(), unit.active_state.as_str())) {
        None | Some(("not-found", "inactive")) => State::Missing,
        Some((_, "failed")) => State::Failed,
        Some((_, "inactive")) => State::Resting,
        Some(_) => State::Active,
    }
}

/// The strongest tie between each two; the order only between units of which neither pulls the other in.
fn edges(nodes: &BTreeSet<String>, ties: &BTreeMap<String, Ties>) -> Edges {
    let mut edges = Edges::new();
    for (name, of_unit) in ties {
        let kinds =
            [(Tie::Requires, &of_unit.requires), (Tie::Wants, &of_unit.wants), (Tie::After, &of_unit.after)];
        for (tie, others) in kinds {
            for other in others.iter().filter(|other| nodes.contains(*other)) {
                edges.entry((name.clone(), other.clone())).or_insert(tie);
            }
        }
    }
    let pulls = |from: &String, to: &String| {
        edges.get(&(from.clone(), to.clone())).is_some_and(|tie| *tie != Tie::After)
    };
    let is_told = |((from, to), tie): &(&(String, String), &Tie)| **tie != Tie::After || !pulls(to, from);
    edges.iter().filter(is_told).map(|(ends, tie)| (ends.clone(), *tie)).collect()
}

fn mermaid(nodes: &[Node], edges: &Edges) -> String {
    let mut out = "flowchart LR\n".to_owned();
    let number: BTreeMap<&str, usize> =
        nodes.iter().enumerate().map(|(number, node)| (node.name.as_str(), number)).collect();
    // Writing to a string never fails.
    for (number, node) in nodes.iter().enumerate() {
        let note = match node.state {
            State::Active => "",
            State::Resting => "<br>inactive",
            State::Failed => "<br>failed",
            State::Missing => "<br>not found",
        };
        let class = match node.state {
            State::Active => "",
            State::Resting => ":::resting",
            State::Failed => ":::failed",
            State::Missing => ":::missing",
        };
        let _ = writeln!(out, "  u{number}[\"{}{note}\"]{class}", quoted(&node.name));
    }
    for ((from, to), tie) in edges {
        let (Some(from), Some(to)) = (number.get(from.as_str()), number.get(to.as_str())) else { continue };
        let _ = match tie {
            Tie::Requires => writeln!(out, "  u{from} ==>|requires| u{to}"),
            Tie::Wants => writeln!(out, "  u{from} --> u{to}"),
            Tie::After => writeln!(out, "  u{from} -.->|after| u{to}"),
        };
    }
    out += "  classDef resting fill:#eee,color:#555\n  \
            classDef failed fill:#f8d7da,stroke:#b00020,color:#000\n  \
            classDef missing fill:#fff,stroke:#999,color:#777,stroke-dasharray:4\n";
    out
}

/// A name in a quoted label, where Mermaid reads markup and entities.
fn quoted(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            c if c.is_ascii_alphanumeric() || ".-_@:".contains(c) => out.push(c),
            c => {
                let _ = write!(out, "#{};", u32::from(c));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use evenkeel_host::systemd::fake::{FakeSystemd, FakeUnit};

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn trader() -> Vec<FakeUnit> {
        let wants = ["quantum-clm.service", "quantum-execution.service", "quantum-pil.service"];
        vec![
            FakeUnit::new("quantum-trader.target")
                .with("Wants", names(&wants))
                .with("Requires", names(&["sysinit.target", "system.slice"]))
                .with("After", names(&wants)),
            FakeUnit::new("quantum-execution.service")
                .with("Requires", names(&["redis-server.service", "system.slice"]))
                .with("After", names(&["redis-server.service", "quantum-clm.service"])),
            FakeUnit::new("quantum-clm.service").states("loaded", "failed", "failed"),
            FakeUnit::new("quantum-pil.service").states("not-found", "inactive", "dead"),
            FakeUnit::new("redis-server.service"),
            FakeUnit::new("ssh.service"),
        ]
    }

    #[tokio::test]
    async fn the_watched_target_is_drawn_with_what_it_pulls_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let fake = FakeSystemd::start(folder.path(), trader());
        let systemd = Systemd::at(&fake.address()).with_limit(Duration::from_secs(20));
        let watch = vec!["quantum-*.service".parse().unwrap(), "quantum-trader.target".parse().unwrap()];
        let diagram = draw(&systemd, &Config { watch, ..Config::default() }).await.expect("drawn");
        assert_eq!(
            diagram,
            "flowchart LR
  u0[\"quantum-clm.service<br>failed\"]:::failed
  u1[\"quantum-execution.service\"]
  u2[\"quantum-pil.service<br>not found\"]:::missing
  u3[\"quantum-trader.target\"]
  u4[\"redis-server.service\"]
  u1 -.->|after| u0
  u1 ==>|requires| u4
  u3 --> u0
  u3 --> u1
  u3 --> u2
  classDef resting fill:#eee,color:#555
  classDef failed fill:#f8d7da,stroke:#b00020,color:#000
  classDef missing fill:#fff,stroke:#999,color:#777,stroke-dasharray:4
"
        );
    }

    #[tokio::test]
    async fn what_is_too_much_to_look_at_is_counted() {
        let many: Vec<String> = (0..MOST + 50).map(|number| format!("app-{number:03}.service")).collect();
        let target = FakeUnit::new("app.target").with("Wants", many.clone());
        let units = std::iter::once(target).chain(many.iter().map(|name| FakeUnit::new(name))).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let fake = FakeSystemd::start(folder.path(), units);
        let systemd = Systemd::at(&fake.address()).with_limit(Duration::from_secs(20));
        let watch = vec!["app.target".parse().unwrap()];
        let diagram = draw(&systemd, &Config { watch, ..Config::default() }).await.expect("drawn");
        let said = "more[\"51 more that these pull in are left out: watch fewer targets\"]:::missing";
        assert!(diagram.ends_with(&format!("  {said}\n")), "{diagram}");
        assert_eq!(diagram.matches("[\"app").count(), MOST);
    }

    #[tokio::test]
    async fn where_no_target_is_watched_that_is_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let fake = FakeSystemd::start(folder.path(), trader());
        let systemd = Systemd::at(&fake.address()).with_limit(Duration::from_secs(20));
        let watch = vec!["ssh.service".parse().unwrap()];
        let error = draw(&systemd, &Config { watch, ..Config::default() }).await.expect_err("no target");
        assert_eq!(
            error.to_string(),
            "no target is watched: name one in `systemd.watch`, such as app.target"
        );
    }

    #[test]
    fn without_a_watch_list_the_host_s_own_targets_are_drawn() {
        let local = BTreeSet::from(["app.target".to_owned()]);
        assert_eq!(roots(&[], &[], &local), local);
        let watch = ["quantum-*".parse().unwrap()];
        assert!(roots(&[], &watch, &local).is_empty());
    }

    #[test]
    fn of_two_ties_the_stronger_is_drawn() {
        let nodes = BTreeSet::from(["a.service".to_owned(), "b.service".to_owned()]);
        let tied = |wants: &[&str], after: &[&str]| Ties {
            wants: names(wants),
            after: names(after),
            ..Ties::default()
        };
        let ties = [
            ("a.service".to_owned(), tied(&["b.service", "elsewhere.service"], &["b.service"])),
            ("b.service".to_owned(), tied(&["a.service"], &[])),
        ];
        let edges = edges(&nodes, &ties.into());
        assert_eq!(edges.values().collect::<Vec<_>>(), [&Tie::Wants, &Tie::Wants]);
    }

    #[test]
    fn names_are_no_markup() {
        assert_eq!(quoted("dev-disk-by\\x2duuid.service"), "dev-disk-by#92;x2duuid.service");
        assert_eq!(quoted("\"]<b>\n"), "#34;#93;#60;b#62;#10;");
        assert_eq!(quoted("getty@tty1.service"), "getty@tty1.service");
    }
}
