//! What can be wrong with the fleet's Redis, as words for metrics and for people. All of it means the same: the fleet
//! cannot be asked now.

use redis::RedisError;

use crate::text::printable;

/// Why the fleet could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", kind.words())]
pub struct Fault {
    /// As a word.
    pub kind: Kind,
    /// What Redis or the connection said, made fit to be shown.
    pub detail: String,
}

/// The words are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// No connection: nobody listens, the name does not resolve, the certificate is not trusted.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// Wrong or missing credentials.
    Auth,
    /// The user may not do this.
    Forbidden,
    /// It has no room left, or cannot save.
    Full,
    /// It is a replica.
    ReadOnly,
    /// It reads its data.
    Loading,
    /// Another error.
    ErrorReply,
    /// An answer that makes no sense.
    Nonsense,
    /// An answer that would fill the memory.
    TooLarge,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Auth,
        Self::Forbidden,
        Self::Full,
        Self::ReadOnly,
        Self::Loading,
        Self::ErrorReply,
        Self::Nonsense,
        Self::TooLarge,
    ];

    /// As in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Auth => "auth",
            Self::Forbidden => "forbidden",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Loading => "loading",
            Self::ErrorReply => "error_reply",
            Self::Nonsense => "nonsense",
            Self::TooLarge => "too_large",
        }
    }

    /// For people, with the cure where it is theirs.
    pub fn words(self) -> &'static str {
        match self {
            Self::Unreachable => "the fleet's Redis cannot be reached",
            Self::Timeout => "the fleet's Redis does not answer in time",
            Self::Auth => {
                "the fleet's Redis does not let us in: look at fleet.username and fleet.password_file"
            }
            Self::Forbidden => {
                "the fleet's Redis forbids it: give its user the commands and keys of docs/fleet.md"
            }
            Self::Full => "the fleet's Redis has no room left: raise its maxmemory, or look at its disk",
            Self::ReadOnly => "the fleet's Redis is a replica: name the one that takes writes",
            Self::Loading => "the fleet's Redis is reading its data",
            Self::ErrorReply => "the fleet's Redis answered with an error",
            Self::Nonsense => "the fleet's Redis answered with something that is no answer",
            Self::TooLarge => "the fleet's Redis answered with more than is read",
        }
    }
}

impl Fault {
    /// A fault in words that may come from anywhere.
    pub fn new(kind: Kind, detail: &str) -> Self {
        let short: String = detail.chars().take(200).collect();
        Self { kind, detail: printable(&short) }
    }

    /// An answer of another form than its question has.
    pub(super) fn nonsense(detail: &str) -> Self {
        Self::new(Kind::Nonsense, detail)
    }
}

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        let detail = error.to_string();
        let said = |kind: Option<Kind>| kind.map(|kind| Self::new(kind, &detail));
        let replied = said(error.code().map(|code| of_reply(code, error.detail().unwrap_or_default())));
        let by_connection = match error.kind() {
            redis::ErrorKind::AuthenticationFailed => Some(Kind::Auth),
            _ if error.is_timeout() => Some(Kind::Timeout),
            _ if error.is_io_error() || error.is_connection_dropped() => Some(Kind::Unreachable),
            _ => None,
        };
        // Of several commands at once, the first that was refused tells.
        let first = || {
            let refused = error.into_server_errors()?;
            let (_, first) = refused.first()?;
            Some(of_reply(first.code(), first.details().unwrap_or_default()))
        };
        replied
            .or_else(|| said(by_connection))
            .or_else(|| said(first()))
            .unwrap_or_else(|| Self::new(Kind::Nonsense, &detail))
    }
}

/// What an error of Redis's means, by its first word and the others.
fn of_reply(code: &str, detail: &str) -> Kind {
    match code {
        "NOAUTH" | "WRONGPASS" | "DENIED" => Kind::Auth,
        "NOPERM" => Kind::Forbidden,
        "OOM" | "MISCONF" => Kind::Full,
        "READONLY" | "NOREPLICAS" | "MASTERDOWN" => Kind::ReadOnly,
        "LOADING" => Kind::Loading,
        // Before version 7 an error inside a script comes with its own words behind others.
        _ if detail.contains("NOPERM") || detail.contains("can't run this command") => Kind::Forbidden,
        _ if detail.contains("OOM command") || detail.contains("MISCONF") => Kind::Full,
        _ if detail.contains("READONLY") => Kind::ReadOnly,
        _ => Kind::ErrorReply,
    }
}
