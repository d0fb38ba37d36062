//! Whether a name resolves, and to what, the way the services of this host see it: by getaddrinfo, so that /etc/hosts, DNS
//! and whatever else nsswitch.conf names all count. Not here: a DNS server asked by itself, which no service does.

use std::{
    fmt, io,
    net::{IpAddr, ToSocketAddrs},
    path::Path,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use crate::blocking::{Error, InFlight};

/// The longest name that DNS has (RFC 1035).
const MAX_NAME_BYTES: usize = 253;

/// What std puts before the C library's own words.
const LOOKUP_FAILED: &str = "failed to lookup address information: ";

/// A name to resolve: letters, digits, `-`, `.` and `_`, which Docker and Compose use and DNS does not mind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = (1..=MAX_NAME_BYTES).contains(&text.len())
            && text.bytes().all(is_legal)
            && !text.starts_with(['-', '.'])
            && !text.contains("..");
        if is_name { Ok(Self(text.to_owned())) } else { Err(HostNameError(text.chars().take(64).collect())) }
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A text that is no name of a host.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is no host name: write redis, redis.example.com or quantum_redis", .0.escape_debug())]
pub struct HostNameError(String);

/// Why a name does not resolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody knows the name.
    NotFound,
    /// The name is known and has no address.
    NoAddress,
    /// No name server could be asked, or it said to come back later.
    Again,
    /// A name server refuses or fails for good.
    Fail,
    /// No answer in time.
    Timeout,
    /// The resolver itself failed.
    System,
}

impl Failure {
    /// All of them, in the order they are published.
    pub const ALL: [Self; 6] =
        [Self::NotFound, Self::NoAddress, Self::Again, Self::Fail, Self::Timeout, Self::System];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NoAddress => "no_address",
            Self::Again => "again",
            Self::Fail => "fail",
            Self::Timeout => "timeout",
            Self::System => "system",
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::NotFound => "the name is not known",
            Self::NoAddress => "the name has no address",
            Self::Again => "temporary failure in name resolution",
            Self::Fail => "the name server fails",
            Self::Timeout => "no answer in time",
            Self::System => "the resolver failed",
        }
    }

    /// By the words of glibc's `gai_strerror`: std passes them on and keeps the code to itself. They are not translated,
    /// because nothing here sets a locale.
    fn of(error: &io::Error) -> Self {
        match error.to_string().strip_prefix(LOOKUP_FAILED) {
            Some("Name or service not known") => Self::NotFound,
            Some("No address associated with hostname" | "Address family for hostname not supported") => {
                Self::NoAddress
            }
            Some("Temporary failure in name resolution") => Self::Again,
            Some("Non-recoverable failure in name resolution") => Self::Fail,
            _ => Self::System,
        }
    }
}

/// Resolves names, each by one question at a time. Clones share what is under way.
#[derive(Debug, Clone, Default)]
pub struct Resolver {
    questions: InFlight<Arc<[IpAddr]>>,
}

impl Resolver {
    /// The addresses of a name in the resolver's order, each once.
    ///
    /// # Errors
    /// After `limit`, at once when an earlier question about the same name is known to be stuck, and when there is no
    /// address.
    pub async fn resolve(&self, host: &HostName, limit: Duration) -> Result<Arc<[IpAddr]>, Failure> {
        let name = host.to_string();
        self.resolve_by(host, limit, move || look_up(&name)).await
    }

    async fn resolve_by(
        &self,
        host: &HostName,
        limit: Duration,
        look_up: impl FnOnce() -> io::Result<Arc<[IpAddr]>> + Send + 'static,
    ) -> Result<Arc<[IpAddr]>, Failure> {
        let addresses = self.questions.run(Path::new(host.as_str()).into(), limit, look_up).await;
        match addresses {
            Ok(addresses) if addresses.is_empty() => Err(Failure::NoAddress),
            Ok(addresses) => Ok(addresses),
            Err(Error::Os(error)) => Err(Failure::of(&error)),
            Err(Error::Thread(_)) => Err(Failure::System),
            Err(Error::Stuck | Error::TimedOut | Error::TooMany) => Err(Failure::Timeout),
        }
    }
}

/// May block for as long as resolv.conf says, and longer.
fn look_up(name: &str) -> io::Result<Arc<[IpAddr]>> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    // The port means nothing: only addresses are asked for.
    for address in (name, 0).to_socket_addrs()? {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    Ok(addresses.into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn name(text: &str) -> HostName {
        text.parse().expect(text)
    }

    #[test]
    fn names_are_checked() {
        for good in ["redis", "quantum_redis", "a.b-c.example", "xn--bcher-kva.example", "127.0.0.1", "a."] {
            assert_eq!(name(good).as_str(), good);
        }
        let long = "a".repeat(254);
        for bad in ["", "-rf", ".a", "a..b", "a b", "a\n", "a;b", "ä", "a/b", "[::1]", long.as_str()] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
        let error = "a\nb".parse::<HostName>().expect_err("two lines").to_string();
        assert!(error.starts_with("`a\\nb` is no host name: write "), "{error}");
    }

    #[tokio::test]
    async fn what_stands_in_etc_hosts_resolves() {
        let addresses = Resolver::default().resolve(&name("localhost"), PATIENCE).await.expect("localhost");
        assert!(addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
        let distinct: std::collections::BTreeSet<_> = addresses.iter().collect();
        assert_eq!(distinct.len(), addresses.len(), "each once");
    }

    #[tokio::test]
    async fn a_name_that_nobody_has_is_not_found_or_nobody_could_be_asked() {
        let failure = Resolver::default().resolve(&name("no-such-host.invalid"), PATIENCE).await;
        let failure = failure.expect_err("reserved never to exist");
        assert!(matches!(failure, Failure::NotFound | Failure::Again | Failure::NoAddress), "{failure:?}");
    }

    #[test]
    fn reasons_are_told_apart_by_the_c_library_s_words() {
        for (words, failure) in [
            ("Name or service not known", Failure::NotFound),
            ("No address associated with hostname", Failure::NoAddress),
            ("Temporary failure in name resolution", Failure::Again),
            ("Non-recoverable failure in name resolution", Failure::Fail),
            ("Memory allocation failure", Failure::System),
        ] {
            assert_eq!(Failure::of(&io::Error::other(format!("{LOOKUP_FAILED}{words}"))), failure, "{words}");
        }
        assert_eq!(Failure::of(&io::Error::from_raw_os_error(24)), Failure::System);
    }

    #[tokio::test]
    async fn a_resolver_that_hangs_is_waited_for_once() {
        let resolver = Resolver::default();
        let (release, wait) = mpsc::channel::<()>();
        let hangs = move || {
            let _ = wait.recv();
            Ok(Arc::from([IpAddr::from([127, 0, 0, 1])]))
        };
        let limit = Duration::from_millis(50);
        let late = resolver.resolve_by(&name("slow"), limit, hangs).await;
        assert_eq!(late, Err(Failure::Timeout));
        let again = resolver.resolve_by(&name("slow"), PATIENCE, || unreachable!("a second question")).await;
        assert_eq!(again, Err(Failure::Timeout));
        assert!(resolver.resolve(&name("localhost"), PATIENCE).await.is_ok(), "others are asked");
        drop(release);
    }

    #[tokio::test]
    async fn no_address_is_no_success() {
        let none = Resolver::default().resolve_by(&name("empty"), PATIENCE, || Ok(Arc::from([]))).await;
        assert_eq!(none, Err(Failure::NoAddress));
    }
}
