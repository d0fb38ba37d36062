//! The parsers of what others have written, by name, so that a test can feed them what nobody expects. Only for tests:
//! behind the feature `foreign-input`.

use crate::{cgroup, config, diagnose, docker, environ, filesystem, journal, redis, systemd, web};

/// One parser.
#[derive(Debug, Clone, Copy)]
pub struct Parser {
    /// What it reads.
    pub name: &'static str,
    /// Reads it. It may refuse anything and must always come back.
    pub parse: fn(&[u8]),
    /// What it usually reads.
    pub samples: &'static [&'static str],
}

/// Every parser of this crate that reads foreign bytes or text.
pub fn parsers() -> Vec<Parser> {
    [
        cgroup::PARSERS,
        config::PARSERS,
        diagnose::PARSERS,
        docker::PARSERS,
        environ::PARSERS,
        filesystem::PARSERS,
        journal::PARSERS,
        redis::PARSERS,
        systemd::PARSERS,
        systemd::snapshot::PARSERS,
        web::PARSERS,
        web::SECURITY_PARSERS,
    ]
    .concat()
}

/// As text, the way the sources' bytes become text.
pub(crate) fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
