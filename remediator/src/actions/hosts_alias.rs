//! Gives a name an address in /etc/hosts, by one marked line, or takes that line away again.

use std::{net::IpAddr, path::Path, time::Duration};

use evenkeel_host::resolve::HostName;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{
    Action, Check, Done, Failure, Job, Permission, by_root,
    safe_file::{self, Manner, SafeFile},
};
use crate::{
    helper::Verb,
    hosts::{self, Refusal},
    observe::{Hostname, Observation},
    policy::Class,
    target::{Kind, Target},
};

pub(super) const NAME: &str = "hosts_alias";

/// Who caches names looks at the file again within two seconds (systemd-resolved.service(8)).
const SEEN_WITHIN: Duration = Duration::from_secs(5);
const PACE: Duration = Duration::from_millis(200);

/// Gives a name an address in /etc/hosts, by one marked line, or takes that line away again (class S2).
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(try_from = "Parameters")]
#[schemars(with = "Parameters")]
pub(super) enum HostsAlias {
    /// The name has this address.
    Address(IpAddr),
    /// We give it none.
    Absent,
}

/// Gives a name an address in /etc/hosts, by one marked line, or takes that line away again (class S2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["address"]}, {"required": ["absent"]}]))]
struct Parameters {
    /// The address that the name gets, of IPv4 or IPv6.
    address: Option<IpAddr>,
    /// Takes away what an earlier step gave it, instead.
    #[serde(default)]
    absent: bool,
}

impl TryFrom<Parameters> for HostsAlias {
    type Error = &'static str;

    fn try_from(parameters: Parameters) -> Result<Self, &'static str> {
        match parameters {
            Parameters { address: Some(address), absent: false }
                if !address.is_unspecified() && !address.is_multicast() =>
            {
                Ok(Self::Address(address))
            }
            Parameters { address: None, absent: true } => Ok(Self::Absent),
            Parameters { address: Some(_), absent: false } => {
                Err("`hosts_alias.address` is the address of one host, such as 127.0.0.1 or ::1")
            }
            _ => Err("`hosts_alias` wants an address, {address: 127.0.0.1}, or {absent: true}"),
        }
    }
}

impl Action for HostsAlias {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Hostname
    }

    fn is_for(&self, seen: &Observation) -> bool {
        match (self, seen) {
            (Self::Address(address), Observation::Hostname(name)) => !name.resolves_to(*address),
            (Self::Absent, Observation::Hostname(name)) => name.alias.is_some(),
            _ => false,
        }
    }

    fn plan(&self, target: &Target) -> String {
        let call = match self {
            Self::Address(address) => format!("{}: {}", hosts::FILE, hosts::line_of(target.name(), *address)),
            Self::Absent => format!("{}: without our line for {}", hosts::FILE, target.name()),
        };
        by_root::plan(&call, Verb::HostsAlias)
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Helper(Verb::HostsAlias.template())]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            if !self.is_for(&job.seen) {
                return Ok(Check::Skip("already_well", job.seen.summary()));
            }
            let (how, name) = (*self, job.target.name().to_owned());
            let judged = spawn_blocking(move || {
                let file = hosts_file()?;
                Ok(match how.change(file.bytes(), &name) {
                    Ok(_) => Check::Changes(how.told(file.bytes(), &name, file.manner()?)),
                    Err((reason, why)) => Check::Skip(reason, format!("{}: {why}", hosts::FILE)),
                })
            });
            judged.await.unwrap_or_else(|broken| Err(Failure::Refused(broken.to_string())))
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            if !by_root::is_root() {
                return by_root::done(job, Verb::HostsAlias).await;
            }
            let (how, name) = (*self, job.target.name().to_owned());
            let written = spawn_blocking(move || how.write(&name));
            let written = written.await.unwrap_or_else(|broken| Err(Failure::Unknown(broken.to_string())))?;
            let Err(seen) = self.shows(job).await else {
                return Ok(Done { detail: written.detail, ..Done::default() });
            };
            let taken_back = spawn_blocking(move || written.after.write(&written.before));
            let why = format!("it did not help: {}", seen.summary());
            match taken_back.await.unwrap_or_else(|broken| Err(Failure::Unknown(broken.to_string()))) {
                Ok(_) => Err(Failure::Refused(format!("{why}; {} is as it was", hosts::FILE))),
                Err(error) => Err(Failure::Unknown(format!("{why}; it cannot be taken back: {error}"))),
            }
        })
    }
}

/// What was written.
struct Written {
    before: Vec<u8>,
    after: SafeFile,
    detail: String,
}

impl HostsAlias {
    /// What the file is to say; otherwise why it stays as it is, as a word and for people.
    fn change(self, text: &[u8], name: &str) -> Result<Vec<u8>, (&'static str, String)> {
        match self {
            Self::Address(address) => match hosts::with(text, name, address) {
                Ok(Some(text)) => Ok(text),
                Ok(None) => {
                    Err(("already_there", "our line is there: does nsswitch.conf ask `files`?".to_owned()))
                }
                Err(refusal @ Refusal::SameAddress(_)) => {
                    Err(("already_there", format!("{refusal}: does nsswitch.conf ask `files`?")))
                }
                Err(refusal @ Refusal::OtherAddress { .. }) => Err(("named_otherwise", refusal.to_string())),
            },
            Self::Absent => hosts::without(text, name)
                .ok_or_else(|| ("nothing_to_remove", format!("no line of ours names {name}"))),
        }
    }

    /// The change for whoever is to approve of it.
    fn told(self, text: &[u8], name: &str, manner: Manner) -> String {
        let before = hosts::alias(text, name).map(|address| hosts::line_of(name, address));
        let after = match self {
            Self::Address(address) => Some(hosts::line_of(name, address)),
            Self::Absent => None,
        };
        let how = match manner {
            Manner::Replaced => "",
            Manner::InPlace => {
                ", in place because something is mounted on it: who reads it meanwhile may read half of it"
            }
        };
        let lines = [("-", before), ("+", after)];
        let lines = lines.into_iter().filter_map(|(sign, line)| Some(format!("\n{sign} {}", line?)));
        format!("changes one line of {}{how}{}", hosts::FILE, lines.collect::<String>())
    }

    /// Backs the file up and changes it.
    fn write(self, name: &str) -> Result<Written, Failure> {
        let file = hosts_file()?;
        let text = self
            .change(file.bytes(), name)
            .map_err(|(_, why)| Failure::Refused(format!("{}: {why}", hosts::FILE)))?;
        let told = self.told(file.bytes(), name, file.manner()?);
        let backup = file.back_up(Path::new(safe_file::BACKUPS), Timestamp::now().as_millisecond())?;
        let after = file.write(&text)?;
        let detail = format!("{told}\nbackup {}", backup.display());
        Ok(Written { before: file.bytes().to_owned(), after, detail })
    }

    /// Looks until the change shows where services look; the last look when it does not.
    async fn shows(self, job: &Job) -> Result<(), Observation> {
        let Self::Address(address) = self else { return Ok(()) };
        let Ok(host) = job.target.name().parse::<HostName>() else { return Ok(()) };
        let deadline = Instant::now() + SEEN_WITHIN;
        loop {
            let answer = job.host.resolver.resolve(&host, SEEN_WITHIN).await;
            let seen = Hostname {
                failure: answer.as_ref().err().map(|failure| failure.words().to_owned()),
                addresses: answer.map(|addresses| addresses.to_vec()).unwrap_or_default(),
                alias: None,
            };
            if seen.resolves_to(address) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Observation::Hostname(seen));
            }
            sleep(PACE).await;
        }
    }
}

fn hosts_file() -> Result<SafeFile, Failure> {
    let path = Path::new(hosts::FILE);
    let (folder, name) = (path.parent(), path.file_name());
    match folder.zip(name) {
        Some((folder, name)) => SafeFile::read(folder, Path::new(name)),
        None => Err(Failure::Refused(format!("{} is no file", hosts::FILE))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::Step;

    fn step(text: &str) -> Result<Step, String> {
        let steps: Result<Vec<Step>, _> =
            evenkeel_host::config::parse("t.yml", &format!("- hosts_alias: {text}\n"));
        steps.map(|mut steps| steps.remove(0)).map_err(|error| error.to_string())
    }

    fn name(addresses: &[&str], alias: Option<&str>) -> Observation {
        Observation::Hostname(Hostname {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            failure: None,
            alias: alias.map(|address| address.parse().unwrap()),
        })
    }

    #[test]
    fn it_gives_an_address_or_takes_it_away() {
        assert_eq!(step("{address: 127.0.0.1}").unwrap().0.class(), Class::S2);
        assert!(step("{address: '::1'}").is_ok() && step("{absent: true}").is_ok());
        for wrong in ["{}", "{absent: false}", "{address: 127.0.0.1, absent: true}"] {
            assert!(step(wrong).unwrap_err().contains("wants an address"), "{wrong}");
        }
        for wrong in ["0.0.0.0", "'::'", "224.0.0.1"] {
            let error = step(&format!("{{address: {wrong}}}")).unwrap_err();
            assert!(error.contains("the address of one host"), "{error}");
        }
        assert!(step("{address: db.example}").is_err());
    }

    #[test]
    fn it_is_for_a_name_that_has_another_address_or_none() {
        let alias = HostsAlias::Address("127.0.0.1".parse().unwrap());
        assert!(alias.is_for(&name(&[], None)) && alias.is_for(&name(&["10.0.0.7"], None)));
        assert!(alias.is_for(&name(&["127.0.0.1", "::1"], None)));
        assert!(!alias.is_for(&name(&["127.0.0.1"], None)));
        assert!(HostsAlias::Absent.is_for(&name(&["127.0.0.1"], Some("127.0.0.1"))));
        assert!(!HostsAlias::Absent.is_for(&name(&[], None)));
    }

    #[test]
    fn the_change_is_shown_and_what_is_not_ours_refused() {
        let alias = HostsAlias::Address("127.0.0.1".parse().unwrap());
        let text = b"127.0.0.1 localhost\n";
        let told = alias.told(text, "quantum_redis", Manner::Replaced);
        assert_eq!(told, "changes one line of /etc/hosts\n+ 127.0.0.1 quantum_redis # evenkeel: hosts_alias");
        let after = alias.change(text, "quantum_redis").unwrap();
        let told = HostsAlias::Absent.told(&after, "quantum_redis", Manner::InPlace);
        assert!(told.starts_with("changes one line of /etc/hosts, in place because"), "{told}");
        assert!(told.ends_with("\n- 127.0.0.1 quantum_redis # evenkeel: hosts_alias"), "{told}");
        assert_eq!(HostsAlias::Absent.change(&after, "quantum_redis").unwrap(), text);
        for (text, word) in [
            (&after[..], "already_there"),
            (b"127.0.0.1 quantum_redis\n", "already_there"),
            (b"10.0.0.7 quantum_redis\n", "named_otherwise"),
        ] {
            assert_eq!(alias.change(text, "quantum_redis").unwrap_err().0, word);
        }
        assert_eq!(HostsAlias::Absent.change(text, "quantum_redis").unwrap_err().0, "nothing_to_remove");
    }
}
