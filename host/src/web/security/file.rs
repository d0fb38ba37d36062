//! The web configuration as it is written: keys and types of the exporter-toolkit's file, nothing else.
//! <https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md>
//!
//! Nothing here has `Debug`: hashes and keys may stand in the file itself.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::{Located, PromDuration};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) tls_server_config: Option<Located<Tls>>,
    pub(super) http_server_config: Option<Http>,
    pub(super) basic_auth_users: Option<BTreeMap<String, Located<String>>>,
    pub(super) rate_limit: Option<Located<Rate>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) cert: Option<Located<String>>,
    pub(super) key: Option<Located<String>>,
    pub(super) client_ca: Option<Located<String>>,
    pub(super) cert_file: Option<Located<String>>,
    pub(super) key_file: Option<Located<String>>,
    pub(super) client_ca_file: Option<Located<String>>,
    pub(super) client_auth_type: Option<Located<String>>,
    pub(super) client_allowed_sans: Option<Vec<Located<String>>>,
    pub(super) min_version: Option<Located<String>>,
    pub(super) max_version: Option<Located<String>>,
    pub(super) cipher_suites: Option<Vec<Located<String>>>,
    pub(super) curve_preferences: Option<Vec<Located<String>>>,
    pub(super) prefer_server_cipher_suites: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Http {
    /// Taken, whatever it says: HTTP/2 is never offered, and every client that speaks it speaks HTTP/1.1 too.
    pub(super) http2: Option<bool>,
    pub(super) headers: Option<Headers>,
}

/// The toolkit's own list: others cannot be set.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Headers {
    #[serde(rename = "Content-Security-Policy")]
    pub(super) content_security_policy: Option<Located<String>>,
    #[serde(rename = "X-Frame-Options")]
    pub(super) x_frame_options: Option<Located<String>>,
    #[serde(rename = "X-Content-Type-Options")]
    pub(super) x_content_type_options: Option<Located<String>>,
    #[serde(rename = "X-XSS-Protection")]
    pub(super) x_xss_protection: Option<Located<String>>,
    #[serde(rename = "Strict-Transport-Security")]
    pub(super) strict_transport_security: Option<Located<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rate {
    pub(super) interval: PromDuration,
    #[serde(default)]
    pub(super) burst: u32,
}
