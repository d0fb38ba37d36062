//! What a web configuration file says, checked, with certificates and keys read.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::{
    HeaderMap,
    header::{
        CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
        X_FRAME_OPTIONS, X_XSS_PROTECTION,
    },
};

use super::{
    Offers,
    file::{File, Headers, Rate},
    passwords::Users,
    stamp::{Stamp, stamp},
    tls::{Acceptor, Reader},
};
use crate::config::{self, ConfigError, Located};

/// bcrypt at this cost takes some seconds; what is above would outlast the request.
const MAX_COST: u32 = 15;

/// The longest interval of `rate_limit`, in seconds.
const MAX_INTERVAL: u64 = 3600;

/// One reading of the file.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// Without it the server speaks plain HTTP.
    pub(super) tls: Option<Acceptor>,
    /// Without any nobody has to log in.
    pub(super) users: Users,
    /// Added to every answer.
    pub(super) headers: HeaderMap,
    /// Interval and burst.
    pub(super) rate: Option<(Duration, u32)>,
}

/// Reads the file, and the files that it names; `read` says which those are and how they were before, also where one of
/// them is bad.
pub(super) fn load(path: &Path, read: &mut Vec<(PathBuf, Stamp)>) -> Result<Settings, ConfigError> {
    read.push((path.to_owned(), stamp(path)));
    // A line of this file may hold a hash or a key: errors do not show it.
    let file = config::load(path).map_err(ConfigError::without_snippet)?;
    checked(file, &path.display().to_string(), path.parent().unwrap_or(Path::new("")), read)
}

/// What the file means.
fn checked(
    file: File,
    origin: &str,
    base: &Path,
    read: &mut Vec<(PathBuf, Stamp)>,
) -> Result<Settings, ConfigError> {
    let mut reader = Reader { origin, base, read: Vec::new() };
    let tls = file.tls_server_config.as_ref().map(|section| reader.acceptor(section)).transpose();
    read.append(&mut reader.read);
    let headers = file.http_server_config.and_then(|http| http.headers).unwrap_or_default();
    Ok(Settings {
        tls: tls?.flatten(),
        users: users(origin, file.basic_auth_users.unwrap_or_default())?,
        headers: extra_headers(origin, &headers)?,
        rate: file.rate_limit.and_then(|limit| rate(origin, &limit).transpose()).transpose()?,
    })
}

fn users(origin: &str, file: BTreeMap<String, Located<String>>) -> Result<Users, ConfigError> {
    let mut users = Users::new();
    for (name, hash) in file {
        let wrong = |message: String| Err(ConfigError::at(origin, &hash, message));
        if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
            return wrong(
                "`basic_auth_users`: a name that is empty or has a colon or control characters cannot log in: choose another".to_owned(),
            );
        }
        match hash.value.parse::<bcrypt::HashParts>().map(|parts| parts.get_cost()) {
            Err(_) => {
                return wrong(format!(
                    "`basic_auth_users.{name}`: this is no bcrypt hash: put the output of `htpasswd -nBC 10 {name}` behind the colon, never the password itself"
                ));
            }
            Ok(cost) if !(4..=MAX_COST).contains(&cost) => {
                return wrong(format!(
                    "`basic_auth_users.{name}`: a hash of cost {cost} cannot be computed within a request: make one with `htpasswd -nBC 10 {name}`"
                ));
            }
            Ok(_) => users.insert(name, hash.value),
        };
    }
    Ok(users)
}

/// A blank value counts as not given.
fn extra_headers(origin: &str, file: &Headers) -> Result<HeaderMap, ConfigError> {
    let any: &[&str] = &[];
    let given = [
        (CONTENT_SECURITY_POLICY, "Content-Security-Policy", &file.content_security_policy, any),
        (X_FRAME_OPTIONS, "X-Frame-Options", &file.x_frame_options, &["deny", "sameorigin"]),
        (X_CONTENT_TYPE_OPTIONS, "X-Content-Type-Options", &file.x_content_type_options, &["nosniff"]),
        (X_XSS_PROTECTION, "X-XSS-Protection", &file.x_xss_protection, any),
        (STRICT_TRANSPORT_SECURITY, "Strict-Transport-Security", &file.strict_transport_security, any),
    ];
    let mut headers = HeaderMap::new();
    for (name, key, value, words) in given {
        if let Some(value) = value.as_ref().filter(|value| !value.value.is_empty()) {
            headers.insert(name, header_value(origin, key, value, words)?);
        }
    }
    Ok(headers)
}

fn header_value(
    origin: &str,
    key: &str,
    value: &Located<String>,
    words: &[&str],
) -> Result<HeaderValue, ConfigError> {
    let wrong = |message: String| ConfigError::at(origin, value, message);
    if !words.is_empty() && !words.contains(&value.value.as_str()) {
        let words = words.join(" or ");
        return Err(wrong(format!("`http_server_config.headers.{key}`: unknown value: write {words}")));
    }
    HeaderValue::from_str(&value.value).map_err(|_| {
        wrong(format!(
            "`http_server_config.headers.{key}`: a header has printable characters only, in one line"
        ))
    })
}

/// As in the toolkit an interval of 0 turns it off.
fn rate(origin: &str, file: &Located<Rate>) -> Result<Option<(Duration, u32)>, ConfigError> {
    let Rate { interval, burst } = file.value;
    let interval = interval.get();
    if interval.is_zero() {
        return Ok(None);
    }
    if burst == 0 {
        let message = "`rate_limit.burst` is 0, which would refuse every request: write how many may come at once, such as 20";
        return Err(ConfigError::at(origin, file, message));
    }
    if interval.as_secs() > MAX_INTERVAL {
        let message =
            "`rate_limit.interval` is longer than an hour: it is the time between two requests, such as 1s";
        return Err(ConfigError::at(origin, file, message));
    }
    Ok(Some((interval, burst)))
}

impl Settings {
    /// What requests are protected by.
    pub(super) fn offers(&self) -> Offers {
        Offers {
            tls: self.tls.is_some(),
            users: !self.users.is_empty(),
            client_certificates: self.tls.as_ref().is_some_and(|tls| tls.demands),
            rate_limit: self.rate.is_some(),
        }
    }

    /// Puts the headers on an answer; they win over its own.
    pub(super) fn decorate(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            headers.insert(HeaderName::clone(name), value.clone());
        }
    }
}

#[cfg(feature = "foreign-input")]
pub(super) fn parse(text: &str) {
    let nowhere = Path::new("/nonexistent");
    if let Ok(file) = config::parse("web.yml", text) {
        drop(checked(file, "web.yml", nowhere, &mut Vec::new()));
    }
}
