//! Who is let in, by the whole daemon: tokens, users and client certificates, over TLS and without.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it says")]

use std::{fs, path::Path, sync::Arc};

use evenkeel_host::web::Listener;
use evenkeel_remediator::{config, fleet::settings::Role, serve};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use reqwest::{Certificate, Client, ClientBuilder, Identity, RequestBuilder, StatusCode};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "0123456789abcdef";

/// A CA, its PEM, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key for 127.0.0.1.
    fn sign(&self) -> (String, String) {
        let (mut parameters, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        parameters.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        (parameters.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

struct Daemon {
    folder: tempfile::TempDir,
    authority: Authority,
    address: String,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Daemon {
    /// With this `server` section and this web configuration.
    async fn start(server: &str, web: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let (certificate, key) = authority.sign();
        write("server.crt", &certificate);
        write("server.key", &key);
        write("ca.crt", &authority.0.pem());
        write("token", TOKEN);
        write("web.yml", web);
        write("r.yml", &format!("server: {server}\nidentity: {{hosts: [lab]}}\nstate: {{dir: state}}\n"));
        let config = config::load(&folder.path().join("r.yml")).unwrap();
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stop) = (listener.local_addr(), CancellationToken::new());
        let daemon = serve::run(config, Role::Agent, vec![listener], Arc::default(), stop.clone());
        let running = tokio::spawn(async move { daemon.await.unwrap() });
        Self { folder, authority, address, stop, running }
    }

    fn client(&self) -> ClientBuilder {
        let root = Certificate::from_pem(self.authority.0.pem().as_bytes()).unwrap();
        Client::builder().no_proxy().tls_certs_only([root])
    }

    /// A delivery that is about nothing here.
    fn delivery(&self, client: &Client, scheme: &str) -> RequestBuilder {
        client
            .post(format!("{scheme}://{}/api/v1/alerts", self.address))
            .header("content-type", "application/json")
            .body(r#"{"version":"4","alerts":[]}"#)
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
        drop(self.folder);
    }
}

async fn status(request: RequestBuilder) -> StatusCode {
    request.send().await.unwrap().status()
}

fn users(password: &str) -> String {
    format!("basic_auth_users: {{alertmanager: {}}}\n", bcrypt::hash(password, 4).unwrap())
}

#[tokio::test]
async fn a_user_or_a_token_is_let_in() {
    let server = "{bearer_token_files: [token], web_config_file: web.yml}";
    let daemon = Daemon::start(server, &users("open sesame")).await;
    let client = daemon.client().build().unwrap();
    let delivery = || daemon.delivery(&client, "http");
    assert_eq!(status(delivery()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(delivery().bearer_auth("wrong")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(delivery().basic_auth("alertmanager", Some("wrong"))).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(delivery().bearer_auth(TOKEN)).await, StatusCode::OK);
    assert_eq!(status(delivery().basic_auth("alertmanager", Some("open sesame"))).await, StatusCode::OK);
    // With users every path asks, as in the toolkit.
    let metrics = || client.get(format!("http://{}/metrics", daemon.address));
    assert_eq!(status(metrics()).await, StatusCode::UNAUTHORIZED);
    let text = metrics().bearer_auth(TOKEN).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("evenkeel_web_config_last_reload_successful 1"), "{text}");

    fs::write(daemon.folder.path().join("web.yml"), users("changed")).unwrap();
    assert_eq!(
        status(delivery().basic_auth("alertmanager", Some("open sesame"))).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(status(delivery().basic_auth("alertmanager", Some("changed"))).await, StatusCode::OK);
    daemon.stop().await;
}

const TLS: &str = "tls_server_config: {cert_file: server.crt, key_file: server.key";
const CLIENTS: &str = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt";

fn identity(authority: &Authority) -> Identity {
    let (certificate, key) = authority.sign();
    Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap()
}

#[tokio::test]
async fn a_client_certificate_is_enough_where_nothing_else_is_asked() {
    let daemon = Daemon::start("{web_config_file: web.yml}", &format!("{TLS}{CLIENTS}}}\n")).await;
    let ours = daemon.client().identity(identity(&daemon.authority)).build().unwrap();
    assert_eq!(status(daemon.delivery(&ours, "https")).await, StatusCode::OK);
    let theirs = daemon.client().identity(identity(&Authority::new())).build().unwrap();
    let nobody = daemon.client().build().unwrap();
    for client in [theirs, nobody] {
        assert!(daemon.delivery(&client, "https").send().await.is_err());
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_token_is_asked_for_beside_a_client_certificate() {
    let server = "{bearer_token_files: [token], web_config_file: web.yml}";
    let daemon = Daemon::start(server, &format!("{TLS}{CLIENTS}}}\n")).await;
    let client = daemon.client().identity(identity(&daemon.authority)).build().unwrap();
    assert_eq!(status(daemon.delivery(&client, "https")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(daemon.delivery(&client, "https").bearer_auth(TOKEN)).await, StatusCode::OK);
    daemon.stop().await;
}

/// Both are needed beyond loopback, and then it is a good configuration.
#[test]
fn another_address_than_loopback_needs_tls_and_authentication() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let (certificate, key) = Authority::new().sign();
    write("server.crt", &certificate);
    write("server.key", &key);
    write("token", TOKEN);
    let load = |path: &Path| config::load(path).map_err(|error| error.to_string());
    for (server, web, good) in [
        ("bearer_token_files: [token], ", TLS, true),
        ("bearer_token_files: [token], ", "http_server_config: {http2: true", false),
        ("auth: none, ", TLS, false),
        ("", TLS, false),
    ] {
        write("web.yml", &format!("{web}}}\n"));
        let listen = "listen: [\"192.0.2.1:19848\"], web_config_file: web.yml";
        write("r.yml", &format!("server: {{{server}{listen}}}\n"));
        let loaded = load(&folder.path().join("r.yml"));
        assert_eq!(loaded.is_ok(), good, "{server} {web}: {loaded:?}");
    }
}
