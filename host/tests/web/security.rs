//! TLS, client certificates, logins, headers, the rate limit, and their files changing under way.

use std::{path::PathBuf, time::Duration};

use evenkeel_host::web::{Limits, Offers, Security};
use reqwest::{Certificate, Client, Identity, StatusCode, tls::Version};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::{
    certificates::{Authority, Pair},
    server::{PATIENCE, Server, exchange, limits},
};

const TLS: &str = "tls_server_config: {cert_file: server.crt, key_file: server.key";

/// A folder with a server's certificate, and the CA of all.
struct Fixture {
    folder: TempDir,
    authority: Authority,
}

impl Fixture {
    fn new() -> Self {
        // Both ring and nothing else; a second test in the same process finds it done.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (folder, authority) = (tempfile::tempdir().expect("temporary directory"), Authority::new());
        authority.server().write(folder.path());
        std::fs::write(folder.path().join("ca.crt"), authority.pem()).expect("written");
        Self { folder, authority }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, web: &str) -> PathBuf {
        let path = self.path("web.yml");
        std::fs::write(&path, web).expect("written");
        path
    }

    async fn serve(&self, web: &str) -> Server {
        let security = Security::load(&self.write(web)).expect("a good file");
        Server::start_on("127.0.0.1:0", limits(), security).await
    }

    /// A client that trusts the CA, and shows a certificate if it has one. Each of its requests is a new connection.
    fn client(&self, identity: Option<&Pair>) -> Client {
        let roots = Certificate::from_pem(self.authority.pem().as_bytes()).expect("a certificate");
        let mut client =
            Client::builder().tls_certs_only([roots]).pool_max_idle_per_host(0).timeout(PATIENCE);
        if let Some(Pair { certificate, key }) = identity {
            let pem = format!("{certificate}{key}");
            client = client.identity(Identity::from_pem(pem.as_bytes()).expect("an identity"));
        }
        client.build().expect("a client")
    }
}

async fn who(client: &Client, server: &Server) -> Result<String, reqwest::Error> {
    client.get(format!("https://{}/who", server.address)).send().await?.text().await
}

const NOBODY: &str = "logged in: false, certificate: false\n";
const CERTIFIED: &str = "logged in: false, certificate: true\n";
const LOGGED_IN: &str = "logged in: true, certificate: false\n";

#[tokio::test]
async fn tls_is_spoken_in_the_versions_that_are_allowed() {
    let fixture = Fixture::new();
    for (versions, allows_12, allows_13) in [
        ("", true, true),
        (", min_version: TLS13", false, true),
        (", max_version: TLS12", true, false),
        (", cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]", true, true),
        (", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]", false, true),
        (", curve_preferences: [CurveP384], prefer_server_cipher_suites: false", true, true),
    ] {
        let server = fixture.serve(&format!("{TLS}{versions}}}")).await;
        for (version, allowed) in [(Version::TLS_1_2, allows_12), (Version::TLS_1_3, allows_13)] {
            let roots = Certificate::from_pem(fixture.authority.pem().as_bytes()).expect("a certificate");
            let client =
                Client::builder().tls_certs_only([roots]).tls_version_min(version).tls_version_max(version);
            let answer = who(&client.build().expect("a client"), &server).await;
            assert_eq!(answer.is_ok(), allowed, "{versions} {version:?}: {answer:?}");
            assert!(answer.is_err() || answer.is_ok_and(|text| text == NOBODY));
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn certificate_and_key_may_stand_in_the_file_itself() {
    let fixture = Fixture::new();
    let Pair { certificate, key } = fixture.authority.server();
    let indented = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let web =
        format!("tls_server_config:\n  cert: |\n{}  key: |\n{}", indented(&certificate), indented(&key));
    let server = fixture.serve(&web).await;
    assert_eq!(who(&fixture.client(None), &server).await.expect("answered"), NOBODY);
    server.stop().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_ends_the_connection() {
    let fixture = Fixture::new();
    let security = Security::load(&fixture.write(&format!("{TLS}}}"))).expect("a good file");
    let limits = Limits { head_timeout: Duration::from_millis(200), ..limits() };
    let server = Server::start_on("127.0.0.1:0", limits, security).await;
    // Nothing, half a record, and what is no TLS.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let answer = exchange(TcpStream::connect(&server.address).await.expect("connected"), bytes).await;
        assert!(!answer.contains("HTTP"), "{answer}");
    }
    assert_eq!(who(&fixture.client(None), &server).await.expect("answered"), NOBODY);
    server.stop().await;
}

#[tokio::test]
async fn client_certificates_are_asked_for_in_five_ways() {
    let fixture = Fixture::new();
    let ours = fixture.authority.client("prometheus.example");
    let theirs = Authority::new().client("prometheus.example");
    let (ca, refused) = (", client_ca_file: ca.crt", "");
    for (auth, none, foreign, own) in [
        ("NoClientCert", NOBODY, NOBODY, NOBODY),
        ("RequestClientCert", NOBODY, NOBODY, NOBODY),
        ("RequireAnyClientCert", refused, NOBODY, NOBODY),
        ("VerifyClientCertIfGiven", NOBODY, refused, CERTIFIED),
        ("RequireAndVerifyClientCert", refused, refused, CERTIFIED),
    ] {
        let ca = if auth.contains("Verify") { ca } else { "" };
        let server = fixture.serve(&format!("{TLS}, client_auth_type: {auth}{ca}}}")).await;
        for (identity, expected) in [(None, none), (Some(&theirs), foreign), (Some(&ours), own)] {
            let answer = who(&fixture.client(identity), &server).await;
            let shown = identity.is_some();
            match answer {
                Ok(text) => assert_eq!(text, expected, "{auth}, certificate shown: {shown}"),
                Err(error) => assert_eq!(refused, expected, "{auth}, certificate shown: {shown}: {error:?}"),
            }
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn only_clients_with_an_allowed_name_are_let_in() {
    let fixture = Fixture::new();
    let web = format!(
        "{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt, client_allowed_sans: [a.example]}}"
    );
    let server = fixture.serve(&web).await;
    let (right, wrong) = (fixture.authority.client("a.example"), fixture.authority.client("b.example"));
    assert_eq!(who(&fixture.client(Some(&right)), &server).await.expect("answered"), CERTIFIED);
    assert!(who(&fixture.client(Some(&wrong)), &server).await.is_err());
    server.stop().await;
}

fn users(users: &[(&str, &str)]) -> String {
    let lines = users
        .iter()
        .map(|(name, password)| format!("  {name}: {}\n", bcrypt::hash(password, 4).expect("a hash")));
    format!("basic_auth_users:\n{}", lines.collect::<String>())
}

async fn log_in(server: &Server, login: Option<(&str, &str)>) -> (StatusCode, String) {
    let request = Client::new().get(format!("http://{}/who", server.address)).timeout(PATIENCE);
    let request = match login {
        Some((name, password)) => request.basic_auth(name, Some(password)),
        None => request,
    };
    let response = request.send().await.expect("answered");
    let challenged = response.headers().get("www-authenticate").is_some();
    assert_eq!(challenged, response.status() == StatusCode::UNAUTHORIZED);
    (response.status(), response.text().await.expect("a body"))
}

fn refused() -> (StatusCode, String) {
    (StatusCode::UNAUTHORIZED, "unauthorized\n".to_owned())
}

fn let_in() -> (StatusCode, String) {
    (StatusCode::OK, LOGGED_IN.to_owned())
}

#[tokio::test]
async fn only_users_get_an_answer() {
    let fixture = Fixture::new();
    let server = fixture.serve(&users(&[("alice", "open sesame"), ("bob", "hunter2")])).await;
    for _ in 0..2 {
        assert_eq!(log_in(&server, Some(("alice", "open sesame"))).await, let_in());
        assert_eq!(log_in(&server, Some(("bob", "hunter2"))).await, let_in());
        assert_eq!(log_in(&server, Some(("alice", "hunter2"))).await, refused());
        assert_eq!(log_in(&server, Some(("mallory", "hunter2"))).await, refused());
        assert_eq!(log_in(&server, None).await, refused());
    }
    // Whatever the path: nobody learns which ones there are.
    let answer = server.get("/none").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn other_credentials_stand_for_a_login() {
    let fixture = Fixture::new();
    let security = Security::load(&fixture.write(&users(&[("alice", "open sesame")]))).expect("a good file");
    let security = security.accepting(|headers| {
        headers.get("authorization").is_some_and(|value| value == "Bearer 0123456789abcdef")
    });
    let server = Server::start_on("127.0.0.1:0", limits(), security).await;
    for (token, status) in [("0123456789abcdef", StatusCode::OK), ("wrong", StatusCode::UNAUTHORIZED)] {
        let request = Client::new().get(format!("http://{}/who", server.address)).bearer_auth(token);
        assert_eq!(request.send().await.expect("answered").status(), status);
    }
    server.stop().await;
}

#[tokio::test]
async fn the_file_counts_on_socket_files_too() {
    let fixture = Fixture::new();
    let security = Security::load(&fixture.write(&users(&[("alice", "open sesame")]))).expect("a good file");
    let socket = fixture.path("web.sock");
    let server = Server::start_on(&format!("unix:{}", socket.display()), limits(), security).await;
    let ask = async |head: &str| {
        let request = format!("GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}\r\n");
        exchange(UnixStream::connect(&socket).await.expect("connected"), request.as_bytes()).await
    };
    assert!(ask("").await.starts_with("HTTP/1.1 401 "));
    // alice:open sesame
    let answer = ask("authorization: Basic YWxpY2U6b3BlbiBzZXNhbWU=\r\n").await;
    assert!(answer.ends_with(LOGGED_IN), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn headers_are_added_to_every_answer() {
    let fixture = Fixture::new();
    let web = "http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n    Content-Security-Policy: default-src 'self'\n    X-XSS-Protection: ''\n    Strict-Transport-Security: max-age=60\n";
    let server = fixture.serve(web).await;
    for path in ["/", "/none", "/panic"] {
        let answer = server.get(path).await;
        for line in [
            "x-frame-options: deny\r\n",
            "content-security-policy: default-src 'self'\r\n",
            "strict-transport-security: max-age=60\r\n",
        ] {
            assert!(answer.contains(line), "{path}: {answer}");
        }
        assert!(!answer.contains("x-xss-protection"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn requests_above_the_rate_limit_are_refused() {
    let fixture = Fixture::new();
    let server = fixture.serve("rate_limit: {interval: 1h, burst: 3}").await;
    for expected in ["200", "200", "200", "429", "429"] {
        let answer = server.get("/").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{answer}");
    }
    server.stop().await;
}

/// The metric of the last reading.
fn is_good(security: &Security) -> bool {
    let text = format!("{:?}", security.families());
    text.contains("value: 1.0")
}

#[tokio::test]
async fn changed_users_count_from_the_next_request_also_on_a_kept_connection() {
    let fixture = Fixture::new();
    let security = Security::load(&fixture.write(&users(&[("alice", "open sesame")]))).expect("a good file");
    let server = Server::start_on("127.0.0.1:0", limits(), security.clone()).await;
    let mut kept = TcpStream::connect(&server.address).await.expect("connected");
    let ask = async |kept: &mut TcpStream| {
        kept.write_all(
            b"GET /who HTTP/1.1\r\nhost: x\r\nauthorization: Basic YWxpY2U6b3BlbiBzZXNhbWU=\r\n\r\n",
        )
        .await
        .expect("sent");
        let mut answer = vec![0; 4096];
        let length = timeout(PATIENCE, kept.read(&mut answer)).await.expect("in time").expect("answered");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    assert!(ask(&mut kept).await.starts_with("HTTP/1.1 200 "));
    fixture.write(&users(&[("alice", "changed")]));
    assert!(ask(&mut kept).await.starts_with("HTTP/1.1 401 "));
    assert_eq!(log_in(&server, Some(("alice", "changed"))).await, let_in());
    assert!(is_good(&security));
    server.stop().await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing_until_it_is_good_again() {
    let fixture = Fixture::new();
    let good = users(&[("alice", "open sesame")]);
    let security = Security::load(&fixture.write(&good)).expect("a good file");
    let server = Server::start_on("127.0.0.1:0", limits(), security.clone()).await;
    for bad in [
        "basic_auth_users: {alice: password}\n",
        "basic_auth: {}\n",
        "- nonsense\n",
        // Good in itself, but it would open or close what is open or closed now.
        "",
        "http_server_config: {http2: false}\n",
        &format!("{TLS}}}\n{good}"),
    ] {
        fixture.write(bad);
        assert_eq!(log_in(&server, Some(("alice", "open sesame"))).await, let_in(), "{bad}");
        assert_eq!(log_in(&server, None).await, refused(), "{bad}");
        assert!(!is_good(&security), "{bad}");
    }
    std::fs::remove_file(fixture.path("web.yml")).expect("removed");
    assert_eq!(log_in(&server, Some(("alice", "open sesame"))).await, let_in());
    assert!(!is_good(&security));
    fixture.write(&users(&[("alice", "changed")]));
    assert_eq!(log_in(&server, Some(("alice", "open sesame"))).await, refused());
    assert_eq!(log_in(&server, Some(("alice", "changed"))).await, let_in());
    assert!(is_good(&security));
    server.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_counts_from_the_next_connection() {
    let mut fixture = Fixture::new();
    let security = Security::load(&fixture.write(&format!("{TLS}}}"))).expect("a good file");
    let server = Server::start_on("127.0.0.1:0", limits(), security.clone()).await;
    assert_eq!(who(&fixture.client(None), &server).await.expect("answered"), NOBODY);

    let renewed = Authority::new();
    let Pair { certificate, key } = renewed.server();
    std::fs::write(fixture.path("server.crt"), certificate).expect("written");
    // Half way the key does not fit: the old pair is still served.
    assert_eq!(who(&fixture.client(None), &server).await.expect("answered"), NOBODY);
    assert!(!is_good(&security));
    std::fs::write(fixture.path("server.key"), key).expect("written");
    assert!(
        who(&fixture.client(None), &server).await.is_err(),
        "signed by a CA that this client does not know"
    );
    fixture.authority = renewed;
    assert_eq!(who(&fixture.client(None), &server).await.expect("answered"), NOBODY);
    assert!(is_good(&security));
    server.stop().await;
}

#[test]
fn it_says_what_it_offers() {
    let fixture = Fixture::new();
    let demand = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt";
    let offers = |web: &str| Security::load(&fixture.write(web)).expect(web).offers();
    let nothing = Offers::default();
    let tls = Offers { tls: true, ..nothing };
    for (web, offered) in [
        (String::new(), nothing),
        ("tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n".to_owned(), nothing),
        ("rate_limit: {interval: 0, burst: 5}".to_owned(), nothing),
        ("rate_limit: {interval: 1s, burst: 5}".to_owned(), Offers { rate_limit: true, ..nothing }),
        (format!("{TLS}}}"), tls),
        (format!("{TLS}, client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.crt}}"), tls),
        (format!("{TLS}{demand}}}"), Offers { client_certificates: true, ..tls }),
        (users(&[("a", "b")]), Offers { users: true, ..nothing }),
    ] {
        assert_eq!(offers(&web), offered, "{web}");
    }
    assert_eq!(Security::default().offers(), nothing);
    assert!(Security::default().families().is_empty());
}
