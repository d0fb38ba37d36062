//! A first configuration: the shipped example in plan mode, with what was found on this host in place of its names. Pure: the
//! look is `survey`'s. A rule about something that is not here is commented out.

use std::path::{Path, PathBuf};

use clap::Args;
use evenkeel_host::{
    build,
    docker::Health,
    survey::{Containers, Filesystem, Running, Service, Services, Source, Survey, quoted},
    text::printable,
};

use crate::{
    pattern::Pattern,
    policy::DenyList,
    target::{Kind, Selector},
};

/// What is shipped, so that there is one text to keep true.
const EXAMPLE: &str = include_str!("../../../packaging/remediator.yml");
/// Where it stops speaking of itself.
const SETTINGS: &str = "# As shipped it changes nothing";
/// Where the rules begin in it, and where they end.
const RULES: &str = "\nrules:\n";
const MORE_RULES: &str = "\n# More that rules can do";
/// Longer lists nobody reads: what is above is for a pattern.
const MOST: usize = 100;
/// As many are shown of what only might be wanted.
const MOST_OFFERED: usize = 20;

/// Where things are, when not where the packages put them.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// The address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:19848")]
    pub listen: String,
    /// The file with Alertmanager's token; relative to the configuration's folder.
    #[arg(long, value_name = "FILE", default_value = "/etc/evenkeel/webhook.token")]
    pub token_file: PathBuf,
    /// The directory of the state; relative to the configuration's folder.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// The configuration for a host where this was found.
pub fn configuration(found: &Survey, places: &Places) -> String {
    let (settings, rules) = EXAMPLE.split_once(RULES).unwrap_or((EXAMPLE, ""));
    let (rules, more) = rules.split_once(MORE_RULES).unwrap_or((rules, ""));
    let settings = settings.find(SETTINGS).map_or(settings, |place| &settings[place..]);
    let rules: Vec<String> = rules.trim_end().split("\n\n").map(|rule| fitted(rule, found)).collect();
    // A list of comments alone would be no list.
    let is_empty = !rules.iter().any(|rule| rule.lines().any(|line| line.starts_with("  - ")));
    let [head, settings] = [head(found), placed(settings, places)];
    let list = if is_empty { "\nrules: []\n" } else { RULES };
    format!("{head}{settings}{list}{}{MORE_RULES}{more}", rules.join("\n"))
}

fn head(found: &Survey) -> String {
    let mut head = format!(
        "# Configuration of evenkeel-remediator, written by `evenkeel-remediator generate config` ({}) from what it found\n# here:\n#\n",
        build::VERSION
    );
    for (what, words) in [
        ("systemd", of_systemd(&found.systemd)),
        ("Docker", of_docker(&found.docker)),
        ("filesystems", of_filesystems(&found.filesystems)),
    ] {
        head.push_str(&format!("#   {what:<12} {}\n", printable(&words)));
    }
    head.push_str("#\n");
    head
}

fn of_systemd(systemd: &Source<Services>) -> String {
    match systemd {
        Source::Found(Services { version, units, own, .. }) => {
            format!("{version}: {units} units, {} services of this host's own", own.len())
        }
        Source::Absent(why) | Source::Silent(why) => why.clone(),
    }
}

fn of_docker(docker: &Source<Containers>) -> String {
    match docker {
        Source::Found(Containers { version, running, stopped }) => {
            format!("{version}: {} containers run, {stopped} do not", running.len())
        }
        Source::Absent(why) | Source::Silent(why) => why.clone(),
    }
}

fn of_filesystems(filesystems: &[Filesystem]) -> String {
    if filesystems.is_empty() {
        return "none on a disk of this host".to_owned();
    }
    let shown =
        |one: &Filesystem| format!("{} ({}, {:.0} % full)", one.mount_point, one.fs_type, one.used * 100.0);
    filesystems.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn placed(settings: &str, places: &Places) -> String {
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let mut text = String::new();
    for line in settings.lines() {
        if line.starts_with("  listen: [") {
            text.push_str(&format!("  listen: [{}]", quoted(&places.listen)));
        } else if line.starts_with("  bearer_token_files: [") {
            text.push_str(&format!("  bearer_token_files: [{}]", path(&places.token_file)));
        } else if let (true, Some(dir)) = (line.starts_with("# Ceilings for every rule"), &places.state_dir) {
            text.push_str(&format!(
                "# What it keeps: history, limits, reports.\nstate: {{dir: {}}}\n\n{line}",
                path(dir)
            ));
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

/// What a rule of the example may be about here.
enum Fit {
    /// What it says in the example.
    AsShipped,
    /// These, each with what is known of it, and others that might be wanted.
    About(Vec<Named>, Vec<Named>),
    /// Nothing, and why.
    Nothing(String),
}

/// A name and what is known of it.
struct Named {
    name: String,
    note: String,
}

/// A rule of the example, as it fits this host.
fn fitted(rule: &str, found: &Survey) -> String {
    let name = rule.lines().find_map(|line| line.strip_prefix("  - name: ")).unwrap_or_default();
    match fit(name, found) {
        Fit::AsShipped => format!("{rule}\n"),
        Fit::About(names, others) => about(rule, &names, &others),
        Fit::Nothing(why) => left_out(rule, &why),
    }
}

fn fit(rule: &str, found: &Survey) -> Fit {
    let only_with = |why: Option<&str>| match why {
        None => Fit::AsShipped,
        Some(why) => Fit::Nothing(why.to_owned()),
    };
    match rule {
        "disk-high" => filesystems(found),
        "unit-failed" => units(&found.systemd),
        "container-unhealthy" => containers(&found.docker),
        "drill" | "unit-looping" | "unit-stale-reference" => only_with(found.systemd.why_not()),
        "weekly-build-cache" | "monthly-unused-images" => only_with(found.docker.why_not()),
        "hosts-alias" => Fit::Nothing("no name is known that services here need".to_owned()),
        _ => Fit::AsShipped,
    }
}

fn filesystems(found: &Survey) -> Fit {
    let named = |one: &Filesystem| Named {
        name: one.mount_point.clone(),
        note: format!("{}, {:.0} % full", one.fs_type, one.used * 100.0),
    };
    let names = nameable(Kind::Filesystem, found.filesystems.iter().map(named));
    if names.is_empty() {
        Fit::Nothing("no filesystem on a disk was found".to_owned())
    } else {
        Fit::About(names, Vec::new())
    }
}

fn units(systemd: &Source<Services>) -> Fit {
    let services = match systemd {
        Source::Found(services) => services,
        Source::Absent(why) | Source::Silent(why) => return Fit::Nothing(why.clone()),
    };
    let deny = DenyList::with(Vec::new());
    let named = |one: &Service| Named { name: one.name.clone(), note: one.state.clone() };
    let allowed = |services: &[Service]| {
        let services = services.iter().filter(|service| !deny.denies(&service.name));
        nameable(Kind::Unit, services.map(named))
    };
    let (own, packaged) = (allowed(&services.own), allowed(&services.packaged));
    if own.is_empty() {
        // As shipped it is about every service, which says what would be done about those of packages.
        return if packaged.is_empty() {
            Fit::AsShipped
        } else {
            Fit::About(
                vec![Named { name: "*.service".to_owned(), note: "none is this host's own".to_owned() }],
                packaged,
            )
        };
    }
    Fit::About(own, packaged)
}

fn containers(docker: &Source<Containers>) -> Fit {
    let containers = match docker {
        Source::Found(containers) => containers,
        Source::Absent(why) | Source::Silent(why) => return Fit::Nothing(why.clone()),
    };
    let note = |one: &Running| match one.health {
        Health::None => format!("{}: has no healthcheck, and so is never unhealthy", one.image),
        health => format!("{}: {}", one.image, health.as_str()),
    };
    let named = |one: &Running| Named { name: one.name.clone(), note: note(one) };
    let names = nameable(Kind::Container, containers.running.iter().map(named));
    if names.is_empty() {
        Fit::Nothing("no container runs".to_owned())
    } else {
        Fit::About(names, Vec::new())
    }
}

/// Those that an allow-list can name: whose name is one, and means nothing else.
fn nameable(kind: Kind, names: impl Iterator<Item = Named>) -> Vec<Named> {
    let is_literal = |name: &str| name.parse::<Pattern>().is_ok_and(|pattern| pattern.is_literal());
    let everything = Selector { kind, label: String::new(), allow: "*".parse().into_iter().collect() };
    names.filter(|named| is_literal(&named.name) && everything.admit(&named.name).is_ok()).collect()
}

/// The rule about these names.
fn about(rule: &str, names: &[Named], others: &[Named]) -> String {
    let mut text = String::new();
    for line in rule.lines() {
        let target = line.strip_prefix("    target: {").and_then(|rest| rest.split_once(", allow:"));
        let Some((selector, _)) = target else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        text.push_str(&format!(
            "    target:\n      {selector}\n      allow:    # what was found; everything else is refused\n"
        ));
        for named in names.iter().take(MOST) {
            text.push_str(&item("        - ", named));
        }
        if names.len() > MOST {
            text.push_str(&format!(
                "        # and {} more: a pattern such as \"shop-*\" names many\n",
                names.len() - MOST
            ));
        }
        if !others.is_empty() {
            text.push_str("        # Of packages:\n");
        }
        for named in others.iter().take(MOST_OFFERED) {
            text.push_str(&item("        # - ", named));
        }
    }
    text
}

fn item(mark: &str, named: &Named) -> String {
    format!("{mark}{:<32} # {}\n", quoted(&named.name), printable(&named.note))
}

/// The rule as a comment, and why.
fn left_out(rule: &str, why: &str) -> String {
    let mut text = format!("  # Left out: {}.\n", printable(why));
    for line in rule.lines() {
        match line.strip_prefix("  ") {
            Some(rest) if !rest.starts_with('#') => text.push_str(&format!("  # {rest}\n")),
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    text
}

#[cfg(test)]
mod tests;
