//! Each file that cannot be meant, and exactly what is said about it.

use std::path::Path;

use evenkeel_host::web::Security;

use crate::certificates::Authority;

/// What stands in the file, and what is said.
const REFUSED: &[(&str, &str)] = &[
    (
        "tls_config: {}\n",
        "web.yml:1:1: unknown key `tls_config`: expected one of `tls_server_config`, `http_server_config`, `basic_auth_users`, `rate_limit`",
    ),
    (
        "tls_server_config: {certfile: server.crt}\n",
        "web.yml:1:21: unknown key `tls_server_config.certfile`: expected one of `cert`, `key`, `client_ca`, `cert_file`, `key_file`, `client_ca_file`, `client_auth_type`, `client_allowed_sans`, `min_version`, `max_version`, `cipher_suites`, `curve_preferences`, `prefer_server_cipher_suites`; did you mean `cert_file`?",
    ),
    (
        "basic_auth_users: {}\nbasic_auth_users: {}\n",
        "web.yml:2:1: duplicate key `basic_auth_users`: each key may stand only once, remove one of the two",
    ),
    ("tls_server_config: [a]\n", "web.yml:1:20: `tls_server_config`: expected a map of keys and values"),
    ("- a\n", "web.yml:1:1: expected a map of keys and values"),
    (
        "basic_auth_users: {alice: open: sesame\n",
        "web.yml:1:31: not valid YAML here: while parsing a flow mapping, did not find expected ',' or '}'",
    ),
    (
        "http_server_config: {http2: perhaps}\n",
        "web.yml:1:29: `http_server_config.http2`: expected true or false",
    ),
    (
        "http_server_config: {headers: {X-Powered-By: evenkeel}}\n",
        "web.yml:1:32: unknown key `http_server_config.headers.X-Powered-By`: expected one of `Content-Security-Policy`, `X-Frame-Options`, `X-Content-Type-Options`, `X-XSS-Protection`, `Strict-Transport-Security`",
    ),
    (
        "http_server_config: {headers: {X-Frame-Options: allow}}\n",
        "web.yml:1:49: `http_server_config.headers.X-Frame-Options`: unknown value: write deny or sameorigin",
    ),
    (
        "http_server_config: {headers: {X-Content-Type-Options: sniff}}\n",
        "web.yml:1:56: `http_server_config.headers.X-Content-Type-Options`: unknown value: write nosniff",
    ),
    (
        "http_server_config: {headers: {X-XSS-Protection: \"1\\n2\"}}\n",
        "web.yml:1:50: `http_server_config.headers.X-XSS-Protection`: a header has printable characters only, in one line",
    ),
    (
        "basic_auth_users: {alice: open sesame}\n",
        "web.yml:1:27: `basic_auth_users.alice`: this is no bcrypt hash: put the output of `htpasswd -nBC 10 alice` behind the colon, never the password itself",
    ),
    (
        "basic_auth_users: {alice: $2y$18$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG}\n",
        "web.yml:1:27: `basic_auth_users.alice`: a hash of cost 18 cannot be computed within a request: make one with `htpasswd -nBC 10 alice`",
    ),
    (
        "basic_auth_users: {\"a:b\": $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG}\n",
        "web.yml:1:27: `basic_auth_users`: a name that is empty or has a colon or control characters cannot log in: choose another",
    ),
    (
        "basic_auth_users: {alice: }\n",
        "web.yml:1:25: `basic_auth_users.alice`: expected a text, not an empty value",
    ),
    (
        "rate_limit: {interval: 1s}\n",
        "web.yml:1:13: `rate_limit.burst` is 0, which would refuse every request: write how many may come at once, such as 20",
    ),
    ("rate_limit: {burst: 3}\n", "web.yml:1:14: missing key `rate_limit.interval`: it is required"),
    (
        "rate_limit: {interval: often, burst: 3}\n",
        "web.yml:1:24: `rate_limit.interval`: `often` is not a duration: write 30s, 15m, 1h30m, 7d or 100ms",
    ),
    (
        "rate_limit: {interval: 2h, burst: 3}\n",
        "web.yml:1:13: `rate_limit.interval` is longer than an hour: it is the time between two requests, such as 1s",
    ),
    (
        "tls_server_config: {min_version: TLS13}\n",
        "web.yml:1:20: `tls_server_config` has no certificate: name one with cert_file, or remove the section to serve without TLS",
    ),
    (
        "tls_server_config: {cert_file: server.crt}\n",
        "web.yml:1:20: `tls_server_config` has no key for its certificate: name it with key_file",
    ),
    (
        "tls_server_config: {cert_file: none.crt, key_file: server.key}\n",
        "web.yml:1:32: `tls_server_config.cert_file`: none.crt cannot be read: No such file or directory (os error 2): correct the path, which is relative to this file, or let this user read it",
    ),
    (
        "tls_server_config: {cert_file: text, key_file: server.key}\n",
        "web.yml:1:32: `tls_server_config.cert_file`: text holds no certificate: it must have PEM blocks that begin with -----BEGIN CERTIFICATE-----",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: text}\n",
        "web.yml:1:54: `tls_server_config.key_file`: text holds no private key: it must have a PEM block that begins with -----BEGIN PRIVATE KEY-----",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.crt}\n",
        "web.yml:1:54: `tls_server_config.key_file`: server.crt holds no private key: it must have a PEM block that begins with -----BEGIN PRIVATE KEY-----",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: locked.key}\n",
        "web.yml:1:54: `tls_server_config.key_file`: locked.key is encrypted: a daemon has nobody to ask for the pass phrase, so store it without one (openssl pkey) in a file that only its user can read",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: other.key}\n",
        "web.yml:1:54: `tls_server_config.key_file`: other.key does not belong to the certificate in server.crt: give the two that were made together",
    ),
    (
        "tls_server_config: {cert_file: empty.crt, key_file: server.key}\n",
        "web.yml:1:32: `tls_server_config.cert_file`: empty.crt cannot be used: invalid peer certificate: BadEncoding: make a certificate with a SAN and an RSA, ECDSA or Ed25519 key",
    ),
    (
        "tls_server_config: {cert: a, cert_file: server.crt, key_file: server.key}\n",
        "web.yml:1:27: both `tls_server_config.cert` and `tls_server_config.cert_file` are given: remove one of the two",
    ),
    (
        "tls_server_config: {cert: a, key_file: server.key}\n",
        "web.yml:1:27: `tls_server_config.cert` holds no certificate: it must have PEM blocks that begin with -----BEGIN CERTIFICATE-----",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, min_version: TLS10}\n",
        "web.yml:1:79: `tls_server_config.min_version`: TLS10 is no longer secure and not supported: write TLS12 or TLS13",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, max_version: TLS14}\n",
        "web.yml:1:79: `tls_server_config.max_version`: `TLS14` is no TLS version: write TLS12 or TLS13",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, min_version: TLS13, max_version: TLS12}\n",
        "web.yml:1:79: `tls_server_config.min_version` is above max_version, so that no client could connect: lower it or raise max_version",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]}\n",
        "web.yml:1:82: `tls_server_config.cipher_suites`: `TLS_RSA_WITH_AES_128_CBC_SHA` is not supported: remove it, or use some of TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, cipher_suites: [TLS_AES_128_GCM_SHA256], max_version: TLS12}\n",
        "web.yml:1:20: `tls_server_config`: no cipher suite is left for these TLS versions: raise max_version, or list other cipher_suites",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, curve_preferences: [X25519, CurveP521]}\n",
        "web.yml:1:94: `tls_server_config.curve_preferences`: `CurveP521` is not supported: use some of X25519, CurveP256, CurveP384",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: Required}\n",
        "web.yml:1:84: `tls_server_config.client_auth_type`: `Required` is not known: write RequireAndVerifyClientCert, VerifyClientCertIfGiven, RequireAnyClientCert, RequestClientCert or NoClientCert",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, client_ca_file: ca.crt}\n",
        "web.yml:1:82: `tls_server_config.client_ca_file`: ca.crt is given, but clients are not asked for certificates: set client_auth_type: RequireAndVerifyClientCert, or remove it",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: RequireAndVerifyClientCert}\n",
        "web.yml:1:84: `tls_server_config.client_auth_type` verifies certificates, but nothing says whose: name the CA with client_ca_file",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: VerifyClientCertIfGiven, client_ca_file: text}\n",
        "web.yml:1:125: `tls_server_config.client_ca_file`: text holds no certificate: it must have PEM blocks that begin with -----BEGIN CERTIFICATE-----",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: VerifyClientCertIfGiven, client_ca_file: empty.crt}\n",
        "web.yml:1:125: `tls_server_config.client_ca_file`: empty.crt holds a certificate that cannot be a CA: invalid peer certificate: BadEncoding: give the CA's own certificate",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, client_allowed_sans: [a.example]}\n",
        "web.yml:1:88: `tls_server_config.client_allowed_sans` needs clients that show a certificate: set client_auth_type: RequireAndVerifyClientCert",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: RequireAnyClientCert, client_allowed_sans: [a@example.org]}\n",
        "web.yml:1:128: `tls_server_config.client_allowed_sans`: `a@example.org` is no name that can be checked: write a DNS name, an IP address or a URI",
    ),
];

fn refused(folder: &Path, web: &str) -> String {
    let path = folder.join("web.yml");
    std::fs::write(&path, web).expect("written");
    let error = Security::load(&path).expect_err(web).to_string();
    error.replace(&format!("{}/", folder.display()), "")
}

/// Certificates, keys, and what is none.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new();
    authority.server().write(folder.path());
    for (name, content) in [
        ("ca.crt", authority.pem()),
        ("other.key", authority.server().key),
        ("text", "no PEM\n".to_owned()),
        (
            "locked.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n".to_owned(),
        ),
        ("empty.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()),
    ] {
        std::fs::write(folder.path().join(name), content).expect("written");
    }
    folder
}

#[test]
fn what_cannot_be_meant_is_refused_in_these_words() {
    let folder = folder();
    let mut wrong = String::new();
    for (web, says) in REFUSED {
        let said = refused(folder.path(), web);
        if said != *says {
            wrong += &format!("{web}{said}\n\n");
        }
    }
    assert_eq!(wrong, "");
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let error = Security::load(&folder.path().join("none.yml")).expect_err("no file").to_string();
    assert!(
        error.ends_with("none.yml: cannot read the file: No such file or directory (os error 2)"),
        "{error}"
    );
}

/// Neither a password that stands where a hash belongs, nor the line it stands in.
#[test]
fn no_error_shows_what_may_be_a_secret() {
    let folder = folder();
    for web in [
        "basic_auth_users: {alice: hunter2}\n",
        "basic_auth_users: {alice: [hunter2]}\n",
        "basic_auth_users: {alice: hunter2: x}\n",
        "basic_auth_users:\n  alice: hunter2\n  alice: hunter2\n",
        "basic_auth_users: hunter2\n",
        "tls_server_config: {cert_file: server.crt, key: hunter2}\n",
        "tls_server_config: {cert_file: server.crt, key: [hunter2]}\n",
        "tls_server_config: {cert_file: server.crt, keys: hunter2}\n",
    ] {
        let said = refused(folder.path(), web);
        assert!(!said.contains("hunter2"), "{said}");
    }
}
