//! The receiver's contract with Alertmanager: which answer to which request, and that an answer of 200 is durable.
//! In-process, over real sockets, with a state directory of its own.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it says")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::Future,
    path::Path,
    sync::Arc,
    time::Duration,
};

use evenkeel_host::web::{self, Limits, Listener};
use evenkeel_remediator::{
    clock::Clock,
    config::{self, Config},
    control::{Control, Reloader},
    daemon::Sources,
    fleet::settings::Role,
    journal::{Incoming, Journal, Labels, Reader},
    metrics::Metrics,
    pipeline::{Arrivals, Report},
    serve,
    server::{Room, Server},
    target::{Kind, Selector},
    worker::Bell,
};
use reqwest::{Client, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const NEXT_TOKEN: &str = "fedcba9876543210fedcba9876543210";

/// Targets are mount points that do not exist: nothing of this machine is asked, and each ends as `probe_unknown`.
const CONFIG: &str = "
identity: {hosts: [vps1]}
server: {bearer_token_files: [webhook.token, next.token]}
state: {dir: state}
rules:
  - name: disk-high
    match: ['alertname=\"HostDiskHigh\"']
    target: {filesystem: mountpoint, allow: [/no/such/*]}
    steps: [build_cache_prune]
    verify: {usage_below: 80%, within: 5m}
";

/// A receiver on a port of its own.
struct Receiver {
    address: String,
    folder: tempfile::TempDir,
    client: Client,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

fn configuration(folder: &Path) -> Config {
    configuration_of(folder, CONFIG)
}

fn configuration_of(folder: &Path, text: &str) -> Config {
    fs::write(folder.join("webhook.token"), TOKEN).unwrap();
    fs::write(folder.join("next.token"), NEXT_TOKEN).unwrap();
    fs::write(folder.join("r.yml"), text).unwrap();
    config::load(&folder.join("r.yml")).unwrap()
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
}

async fn listener() -> (Listener, String) {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().to_owned();
    (listener, address)
}

impl Receiver {
    /// The whole daemon.
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, client) = (configuration(folder.path()), client());
        let (listener, address) = listener().await;
        let stop = CancellationToken::new();
        let daemon = serve::run(config, Role::Agent, vec![listener], Arc::new(Notify::new()), stop.clone());
        let running = tokio::spawn(async move { daemon.await.unwrap() });
        Self { address, folder, client, stop, running }
    }

    /// The routes alone, so that nothing takes up what they accept, over a journal that the test holds too.
    async fn routes() -> (Self, Server) {
        Self::routes_of(CONFIG).await
    }

    async fn routes_of(text: &str) -> (Self, Server) {
        let folder = tempfile::tempdir().unwrap();
        let (config, client) = (configuration_of(folder.path(), text), client());
        let (listener, address) = listener().await;
        let journal = Journal::open(&config.state_dir).unwrap();
        let (clock, bell, metrics) = (Clock::default(), Bell::default(), Metrics::new(&config.rules));
        let (changes, live) = watch::channel(Arc::new(config));
        let sources = Sources {
            started: clock.now(),
            metrics: metrics.clone(),
            standing: journal.standing(),
            pipeline: watch::channel(Report::default()).1,
            arrivals: Arrivals::default(),
            role: None,
            fleet: watch::channel(None).1,
        };
        let control = Control {
            journal: journal.clone(),
            live: live.clone(),
            clock: clock.clone(),
            bell: bell.clone(),
            reloader: Arc::new(Reloader::new(changes, metrics.clone())),
            sources,
        };
        let server = Server {
            live,
            journal,
            metrics,
            clock,
            bell,
            stop: CancellationToken::new(),
            room: Room::default(),
            control,
            gateway: None,
        };
        let stop = CancellationToken::new();
        let routes = server.clone();
        let answer = move |request, caller| routes.clone().answer(request, caller);
        let running = tokio::spawn(web::serve(
            vec![listener],
            Limits::default(),
            server.security(),
            answer,
            stop.clone(),
        ));
        (Self { address, folder, client, stop, running }, server)
    }

    async fn stop(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.running.await.unwrap();
        self.folder
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> Response {
        self.post_to("/api/v1/alerts", TOKEN, "application/json", body).await
    }

    async fn post_to(&self, path: &str, token: &str, kind: &str, body: impl Into<reqwest::Body>) -> Response {
        let request = self.client.post(self.url(path)).bearer_auth(token).header(header::CONTENT_TYPE, kind);
        request.body(body).send().await.unwrap()
    }

    /// The value of one line of `/metrics`, 0 when it is not there.
    async fn metric(&self, series: &str) -> f64 {
        let text = self.client.get(self.url("/metrics")).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    fn reader(&self) -> Reader {
        reader(self.folder.path())
    }
}

fn reader(folder: &Path) -> Reader {
    Reader::open(&folder.join("state")).unwrap()
}

fn alert(status: &str, mount_point: &str) -> Value {
    json!({
        "status": status,
        "labels": {"alertname": "HostDiskHigh", "instance": "vps1:9100", "mountpoint": mount_point, "größe": "✓"},
        "annotations": {"summary": "disk high"},
        "startsAt": "2026-01-01T00:00:00.123456789Z", "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example:9090/graph", "fingerprint": "0011223344556677",
    })
}

fn delivery(alerts: &[Value]) -> String {
    json!({
        "version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "status": "firing", "receiver": "host\\.ops",
        "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "http://am.example",
        "notification_reason": "first notification", "routeLabels": {"a": "b"}, "alerts": alerts,
    })
    .to_string()
}

fn firing(mount_point: &str) -> String {
    delivery(&[alert("firing", mount_point)])
}

/// Waits for a fact.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_the_webhook_is_open_and_none_redirects() {
    let receiver = Receiver::start().await;
    for (number, path) in ["/api/v1/alerts", "/api/v1/alerts/", "/"].into_iter().enumerate() {
        let body = firing(&format!("/no/such/{number}"));
        let answer = receiver.post_to(path, TOKEN, "application/json; charset=utf-8", body).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(answer.json::<Value>().await.unwrap(), json!({"accepted": 1, "ignored": 0}));
    }
    let ended = || async { receiver.reader().open_remediations().unwrap().is_empty() };
    until("all looked at", ended).await;
    let known = receiver.reader().recent(None, None, 10).unwrap();
    let mut targets: Vec<&str> = known.iter().map(|remediation| remediation.target.as_str()).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["/no/such/0", "/no/such/1", "/no/such/2"]);
    assert!(known.iter().all(|remediation| remediation.reason.as_deref() == Some("probe_unknown")));
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_means_nothing_here_is_200_too() {
    let receiver = Receiver::start().await;
    let other_host = json!({"status": "firing", "labels": {"alertname": "HostDiskHigh", "host": "vps2"}});
    let no_rule = json!({"status": "firing", "labels": {"alertname": "Watchdog", "host": "vps1"}});
    let resolved = alert("resolved", "/no/such/x");
    for (alerts, ignored, accepted) in [
        (vec![], 0, 0),
        (vec![other_host.clone(), no_rule.clone()], 2, 0),
        (vec![alert("firing", "../x"), alert("firing", "-rf"), alert("firing", "/etc")], 3, 0),
        (vec![alert("firing", "/no/such/a\nb"), alert("firing", &"/".repeat(10_000))], 2, 0),
        (vec![no_rule, resolved], 1, 1),
    ] {
        let answer = receiver.post(delivery(&alerts)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.json::<Value>().await.unwrap(), json!({"accepted": accepted, "ignored": ignored}));
    }
    // Grafana's version of the same shape, with what it adds.
    let grafana = delivery(&[other_host])
        .replace("\"version\":\"4\"", "\"version\":\"1\",\"orgId\":1,\"state\":\"alerting\"");
    assert_eq!(receiver.post(grafana).await.status(), StatusCode::OK);
    assert!(receiver.reader().recent(None, None, 10).unwrap().is_empty(), "something was remembered");
    let ignored = |reason| format!("evenkeel_remediator_alerts_ignored_total{{reason=\"{reason}\"}}");
    for (reason, count) in
        [("other_host", 2.0), ("no_rule", 2.0), ("target_not_a_name", 4.0), ("target_not_allowed", 1.0)]
    {
        assert_eq!(receiver.metric(&ignored(reason)).await, count, "{reason}");
    }
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_told_why_and_nothing_is_remembered() {
    let receiver = Receiver::start().await;
    let deep_alerts =
        format!("{{\"version\":\"4\",\"alerts\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    let deep_labels =
        firing("/no/such/a").replace("\"✓\"", &format!("{}1{}", "[".repeat(200), "]".repeat(200)));
    let good_then_bad = delivery(&[alert("firing", "/no/such/a"), json!({"status": "firing", "labels": 7})]);
    for body in [
        String::new(),
        "{".to_owned(),
        "not json".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        json!({"version": "4"}).to_string(),
        json!({"version": "5", "alerts": []}).to_string(),
        json!({"alerts": []}).to_string(),
        firing("/no/such/a").replace("\"firing\"", "\"pending\""),
        firing("/no/such/a") + "{}",
        good_then_bad,
        deep_alerts,
        deep_labels,
    ] {
        let answer = receiver.post(body.clone()).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body:.80}");
        let why = answer.text().await.unwrap();
        assert!(why.len() < 300 && why.ends_with('\n') && why.lines().count() == 1, "{why}");
    }
    // What is not read cannot hurt: it is skipped, however deep.
    let deep =
        format!("{{\"version\":\"4\",\"alerts\":[],\"x\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    assert_eq!(receiver.post(deep).await.status(), StatusCode::OK);
    let binary = receiver.post(&b"\xff\xfe{\"version\":\"4\",\"alerts\":[]}"[..]).await;
    assert_eq!(binary.status(), StatusCode::BAD_REQUEST);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let answer = receiver.post_to("/api/v1/alerts", TOKEN, kind, firing("/no/such/a")).await;
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
    }
    let browser = receiver.client.post(receiver.url("/api/v1/alerts")).bearer_auth(TOKEN);
    let browser = browser
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ORIGIN, "http://rebound.example");
    let answer = browser.body(firing("/no/such/a")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert!(receiver.reader().recent(None, None, 10).unwrap().is_empty(), "something was remembered");
    let requests = |code| format!("evenkeel_remediator_webhook_requests_total{{code=\"{code}\"}}");
    assert_eq!(receiver.metric(&requests(400)).await, 14.0);
    assert_eq!(receiver.metric(&requests(415)).await, 4.0);
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_known_token_lets_in_and_both_do() {
    let receiver = Receiver::start().await;
    for token in [TOKEN, NEXT_TOKEN] {
        let answer = receiver.post_to("/", token, "application/json", delivery(&[])).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    let url = receiver.url("/api/v1/alerts");
    let bare = || {
        receiver.client.post(&url).header(header::CONTENT_TYPE, "application/json").body(firing("/no/such/a"))
    };
    let basic = bare().basic_auth("user", Some(TOKEN));
    let (wrong, none) = (bare().bearer_auth(&TOKEN[1..]), bare().bearer_auth(""));
    for request in [bare(), basic, wrong, none, bare().header("X-Token", TOKEN)] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(answer.headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"evenkeel\"");
        assert!(!answer.text().await.unwrap().contains(TOKEN));
    }
    // Who may not enter does not learn what is inside either, and costs no 16 MiB.
    let answer = bare().body(vec![b'x'; 17 << 20]).send().await;
    assert!(answer.is_err() || answer.unwrap().status() == StatusCode::UNAUTHORIZED);
    assert!(receiver.reader().recent(None, None, 10).unwrap().is_empty());
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_and_paths_are_told_so() {
    let receiver = Receiver::start().await;
    let ask = |method: &'static str, path: &str| {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = receiver.client.request(method, receiver.url(path)).bearer_auth(TOKEN).send();
        async move { request.await.unwrap() }
    };
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in ["/api/v1/alerts", "/api/v1/alerts/"] {
            let answer = ask(method, path).await;
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_eq!(answer.headers()[header::ALLOW], "POST");
        }
    }
    for (method, path, status) in [
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/-/healthy", 200),
        ("GET", "/-/ready", 200),
        ("PUT", "/", 405),
        ("POST", "/metrics", 405),
        ("POST", "/-/ready", 405),
        ("POST", "/api/v2/alerts", 404),
        ("POST", "/api/v1/alerts/x", 404),
        ("POST", "/api/v1", 404),
        ("POST", "//", 404),
        ("GET", "/api/v1/alerts/../../../etc/passwd", 404),
        ("GET", "/favicon.ico", 404),
    ] {
        assert_eq!(ask(method, path).await.status().as_u16(), status, "{method} {path}");
    }
    receiver.stop().await;
}

/// What an alert says is on the page, as text; the page is for whoever may send alerts, a browser shows the token as a
/// password.
#[tokio::test]
async fn the_status_page_is_for_those_who_are_let_in_and_shows_names_as_text() {
    let receiver = Receiver::start().await;
    let hostile = "/no/such/<script>alert(1)<_script>&\"'";
    let answer = receiver.post(delivery(&[alert("firing", hostile)])).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let ask = || receiver.client.get(receiver.url("/"));
    for stranger in [ask(), ask().basic_auth("x", Some("wrong")), ask().basic_auth(TOKEN, Some(""))] {
        let answer = stranger.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(answer.headers()[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Basic "));
        assert!(!answer.text().await.unwrap().contains("disk-high"));
    }
    for friend in [ask().bearer_auth(TOKEN), ask().basic_auth("anybody", Some(NEXT_TOKEN))] {
        let answer = friend.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        let page = answer.text().await.unwrap();
        let shown = "filesystem /no/such/&lt;script&gt;alert(1)&lt;_script&gt;&amp;&quot;&#39;";
        assert!(page.contains(shown) && !page.contains("<script"), "{page}");
        assert!(!page.contains(TOKEN) && !page.contains(NEXT_TOKEN), "{page}");
    }
    // A password opens the page, and nothing that has an effect.
    let delivered = receiver.client.post(receiver.url("/api/v1/alerts")).basic_auth("x", Some(TOKEN));
    assert_eq!(delivered.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    receiver.stop().await;
}

/// Announces a body of so many bytes, sends none of it, and answers with all that comes back: a client that sends may
/// see its own broken pipe instead.
async fn announced(address: &str, length: usize) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Sends a chunked body, whose length nobody announces, and answers with the status line.
async fn chunked(address: &str, chunks: usize) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..chunks {
        // The receiver may have had enough.
        if stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_16_mib_is_413_however_it_comes() {
    let receiver = Receiver::start().await;
    let body = firing("/no/such/a");
    let padded = |size: usize| body.clone() + &" ".repeat(size - body.len());
    assert_eq!(receiver.post(padded(16 << 20)).await.status(), StatusCode::OK);
    let answer = announced(&receiver.address, (16 << 20) + 1).await;
    assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\na delivery may have 16 MiB at most\n"), "{answer}");
    assert_eq!(chunked(&receiver.address, 17).await, "HTTP/1.1 413 Payload Too Large");
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_of_a_group_counts_by_itself() {
    let (receiver, _server) = Receiver::routes().await;
    assert_eq!(receiver.post(firing("/no/such/a")).await.status(), StatusCode::OK);
    // The group fires, because one of it does; the other is resolved.
    let group = delivery(&[alert("resolved", "/no/such/a"), alert("firing", "/no/such/b")]);
    assert_eq!(
        receiver.post(group).await.json::<Value>().await.unwrap(),
        json!({"accepted": 2, "ignored": 0})
    );
    let open = receiver.reader().open_remediations().unwrap();
    let resolved: BTreeMap<&str, bool> =
        open.iter().map(|one| (one.target.as_str(), one.resolved_wall_ms.is_some())).collect();
    assert_eq!(resolved, BTreeMap::from([("/no/such/a", true), ("/no/such/b", false)]));
    // Firing again takes it back, and is absorbed.
    assert_eq!(receiver.post(firing("/no/such/a")).await.status(), StatusCode::OK);
    let open = receiver.reader().open_remediations().unwrap();
    assert_eq!((open.len(), open[0].deliveries, open[0].resolved_wall_ms), (2, 2, None));
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_stops_it_asks_to_come_again() {
    let (receiver, server) = Receiver::routes().await;
    server.stop.cancel();
    let answer = receiver.post(firing("/no/such/a")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let ready = receiver.client.get(receiver.url("/-/ready")).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(receiver.reader().recent(None, None, 10).unwrap().is_empty());
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_asks_to_come_again_and_loses_nothing_it_took() {
    let (receiver, server) = Receiver::routes().await;
    let other =
        rusqlite::Connection::open(receiver.folder.path().join("state/evenkeel-remediator.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let selector =
        Selector { kind: Kind::Filesystem, label: String::new(), allow: vec!["*".parse().unwrap()] };
    let mut taken = Vec::new();
    let mut number = 0;
    while server.journal.has_room() {
        let incoming = Incoming {
            rule: "disk-high".to_owned(),
            target: selector.admit(&format!("/no/such/q{number}")).unwrap(),
            firing: true,
            impact: false,
            fingerprint: String::new(),
            labels: Labels::default(),
            triggered_by: None,
        };
        let (journal, now) = (server.journal.clone(), server.clock.now());
        let target = incoming.target.name().to_owned();
        taken.push(tokio::spawn(async move { (target, journal.accept(vec![incoming], 10_000, now).await) }));
        number += 1;
        tokio::task::yield_now().await;
        assert!(number < 5000, "the queue has no end");
    }
    let answer = receiver.post(firing("/no/such/a")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    other.execute_batch("ROLLBACK").unwrap();
    let mut confirmed = BTreeSet::new();
    for one in taken {
        let (target, answer) = one.await.unwrap();
        confirmed.extend(answer.is_ok().then_some(target));
    }
    let open = receiver.reader().open_remediations().unwrap();
    let there: BTreeSet<String> = open.iter().map(|one| one.target.clone()).collect();
    assert_eq!(open.len(), there.len(), "each once");
    // On a slow disk one may be there that nobody was still waiting for; never the other way round.
    assert!(confirmed.is_subset(&there), "what was confirmed is what is there");
    // One more where the writer has already taken the first.
    assert!(number >= 1024 && !confirmed.is_empty(), "{} of {number}", confirmed.len());
    assert!(open.iter().all(|remediation| remediation.target != "/no/such/a"));
    // And it works again.
    assert_eq!(receiver.post(firing("/no/such/a")).await.status(), StatusCode::OK);
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_503_and_counted() {
    let (receiver, _server) = Receiver::routes().await;
    let other =
        rusqlite::Connection::open(receiver.folder.path().join("state/evenkeel-remediator.sqlite")).unwrap();
    // Somebody else holds the file for longer than the writer waits.
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(receiver.post(firing("/no/such/a")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    other.execute_batch("ROLLBACK").unwrap();
    assert!(receiver.reader().recent(None, None, 10).unwrap().is_empty(), "503, and yet it is there");
    assert_eq!(receiver.metric("evenkeel_remediator_state_write_errors_total").await, 1.0);
    // The disk refuses this one row.
    other
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON remediation WHEN NEW.target = '/no/such/a'
             BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .unwrap();
    let both = delivery(&[alert("firing", "/no/such/b"), alert("firing", "/no/such/a")]);
    assert_eq!(receiver.post(both).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(receiver.reader().recent(None, None, 10).unwrap().is_empty(), "half a delivery was stored");
    assert_eq!(receiver.metric("evenkeel_remediator_state_write_errors_total").await, 2.0);
    assert_eq!(receiver.post(firing("/no/such/b")).await.status(), StatusCode::OK);
    receiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_alerts_are_taken_at_once_and_one_more_is_not() {
    let (receiver, server) = Receiver::routes().await;
    let mount_points: Vec<String> = (0..10_000).map(|number| format!("/no/such/{number}")).collect();
    let alerts: Vec<Value> = mount_points.iter().map(|mount_point| alert("firing", mount_point)).collect();
    let body = delivery(&alerts);
    let answer = receiver.post(body.clone()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({"accepted": 10_000, "ignored": 0}));
    assert_eq!(receiver.reader().queue().unwrap().0, 10_000);
    // The same again is absorbed: there is room for what is known.
    assert_eq!(receiver.post(body).await.status(), StatusCode::OK);
    assert_eq!(receiver.post(firing("/no/such/more")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(receiver.reader().queue().unwrap().0, 10_000);
    drop(server);
    let folder = receiver.stop().await;
    assert_eq!(reader(folder.path()).queue().unwrap().0, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_bound_refuses_the_whole_delivery_and_keeps_nothing_of_it() {
    let (receiver, _server) =
        Receiver::routes_of(&CONFIG.replace("{dir: state}", "{dir: state, open_max: 2}")).await;
    let both = delivery(&[alert("firing", "/no/such/a"), alert("firing", "/no/such/b")]);
    assert_eq!(receiver.post(both).await.status(), StatusCode::OK);
    // Known and new together: not even that the known one came again is noted.
    let mixed = delivery(&[
        alert("firing", "/no/such/a"),
        alert("resolved", "/no/such/b"),
        alert("firing", "/no/such/c"),
    ]);
    let answer = receiver.post(mixed).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.text().await.unwrap(), "too many remediations are open: send it again\n");
    let open = receiver.reader().open_remediations().unwrap();
    assert_eq!(open.len(), 2);
    assert!(open.iter().all(|one| one.deliveries == 1 && one.resolved_wall_ms.is_none()));
    receiver.stop().await;
}
