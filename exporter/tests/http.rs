//! The exporter over HTTP, with collectors that behave as they are told.

mod common;

use std::{collections::HashMap, io::Read, sync::Arc, time::Duration};

use common::{Does, Fake, up, value};
use evenkeel_exporter::{collectors::Collector, config::WebOptions};
use evenkeel_host::web::Listener;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct Exporter {
    address: String,
    _stop: DropGuard,
}

struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Exporter {
    async fn start(collectors: Vec<Arc<Fake>>) -> Self {
        Self::start_with(collectors, WebOptions::default()).await
    }

    async fn start_with(collectors: Vec<Arc<Fake>>, web: WebOptions) -> Self {
        let listener = Listener::bind(&"127.0.0.1:0".parse().expect("an address")).await.expect("bound");
        let address = listener.local_addr();
        let shutdown = CancellationToken::new();
        let collectors = collectors.into_iter().map(|fake| fake as Arc<dyn Collector>).collect();
        tokio::spawn(evenkeel_exporter::serve(collectors, None, web, vec![listener], shutdown.clone()));
        Self { address, _stop: shutdown.drop_guard() }
    }

    /// Sends a request with further header lines.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).await.expect("connected");
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut raw = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut raw)).await.expect("in time").expect("answered");
        let end = raw.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(raw[..end].to_vec()).expect("text");
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .expect("a status")
            .parse()
            .expect("a number");
        let headers =
            lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned()));
        Answer { status, headers: headers.collect(), body: raw[end + 4..].to_vec() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }
}

fn two() -> Vec<Arc<Fake>> {
    vec![
        Fake::new("systemd", Does::See(up())),
        Fake::new("docker", Does::See(value("docker_value", "a\"} 1\nforged 2\n\\"))),
    ]
}

const ESCAPED: &str = "docker_value{label=\"a\\\"} 1\\nforged 2\\n\\\\\"} 1.0\n";

#[tokio::test]
async fn both_formats_are_served_and_labels_cannot_break_out() {
    let exporter = Exporter::start(two()).await;
    let classic = exporter.get("/metrics").await;
    assert_eq!(
        (classic.status, classic.header("content-type")),
        (200, "text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(classic.text().contains("# TYPE evenkeel_collector_errors_total counter\n"));
    let openmetrics = exporter.ask("GET", "/metrics", "accept: application/openmetrics-text\r\n").await;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((openmetrics.status, openmetrics.header("content-type")), (200, content_type));
    assert!(openmetrics.text().contains("# TYPE evenkeel_collector_errors counter\n"));
    assert!(openmetrics.text().ends_with("# EOF\n"));
    for answer in [&classic, &openmetrics] {
        assert!(answer.text().contains(ESCAPED), "{}", answer.text());
        assert!(!answer.text().lines().any(|line| line.starts_with("forged")));
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    }

    let gzipped = exporter.ask("GET", "/metrics", "accept-encoding: gzip\r\n").await;
    assert_eq!(gzipped.header("content-encoding"), "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&gzipped.body[..]).read_to_string(&mut text).expect("gzip");
    assert!(text.contains(ESCAPED), "{text}");

    let head = exporter.ask("HEAD", "/metrics", "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
}

#[tokio::test]
async fn collectors_are_chosen_by_the_query() {
    let exporter = Exporter::start(two()).await;
    for (query, systemd, docker) in [
        ("collect[]=systemd", true, false),
        ("collect%5B%5D=docker", false, true),
        ("exclude[]=docker", true, false),
        ("exclude[]=docker&exclude[]=systemd", false, false),
        ("", true, true),
    ] {
        let answer = exporter.get(&format!("/metrics?{query}")).await;
        assert_eq!(answer.status, 200, "{query}");
        let text = answer.text();
        assert_eq!(text.contains("systemd_up 1.0"), systemd, "{query}");
        assert_eq!(text.contains("docker_value"), docker, "{query}");
        assert_eq!(text.contains("success{collector=\"docker\"}"), docker, "{query}");
        assert!(text.contains("evenkeel_exporter_build_info"), "{query}");
    }
    for (query, says) in [
        (
            "collect[]=systemd&exclude[]=docker",
            "collect[] and exclude[] exclude each other, use one of them\n",
        ),
        ("collect[]=nope", "no collector `nope` is running, only: systemd, docker\n"),
        ("exclude[]=redis", "no collector `redis` is running, only: systemd, docker\n"),
    ] {
        let answer = exporter.get(&format!("/metrics?{query}")).await;
        assert_eq!((answer.status, answer.text().as_str()), (400, says), "{query}");
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let exporter = Exporter::start(two()).await;
    for path in ["/none", "/metrics/", "/-/", "//metrics", "/-/reload"] {
        let answer = exporter.get(path).await;
        assert_eq!((answer.status, answer.text().as_str()), (404, "not found\n"), "{path}");
    }
    for path in ["/", "/metrics", "/-/healthy", "/-/ready"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = exporter.ask(method, path, "content-length: 0\r\n").await;
            assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"), "{method} {path}");
        }
    }
    let large = format!("x-large: {}\r\n", "x".repeat(32 << 10));
    assert_eq!(exporter.ask("GET", "/metrics", &large).await.status, 431);
    assert_eq!(exporter.get("/-/healthy").await.text(), "healthy\n");
    assert_eq!(exporter.get("/-/ready").await.text(), "ready\n");
}

#[tokio::test]
async fn scrapes_above_the_limit_are_refused_and_the_other_paths_are_not() {
    let web = WebOptions { max_requests: 2, ..WebOptions::default() };
    let exporter = Exporter::start_with(vec![Fake::new("slow", Does::Hang)], web).await;
    // Whichever comes last of the three; the others end at their deadlines.
    let scrapes = (0..3).map(|_| exporter.get("/metrics"));
    let mut answers = futures_util::future::join_all(scrapes).await;
    answers.sort_by_key(|answer| answer.status);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 503]);
    assert_eq!(answers[2].text(), "limit of concurrent requests reached (2), try again later\n");
    assert_eq!(answers[2].header("content-type"), "text/plain; charset=utf-8");
    let (scrape, health) = tokio::join!(exporter.get("/metrics"), exporter.get("/-/healthy"));
    assert_eq!((scrape.status, health.status), (200, 200));
}

#[tokio::test]
async fn the_landing_page_shows_how_the_collectors_are_doing() {
    let exporter = Exporter::start(vec![
        Fake::new("systemd", Does::See(up())),
        Fake::new("docker", Does::Fail("<b>refused</b>")),
        Fake::new("redis", Does::FindNothing),
    ])
    .await;
    let page = exporter.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    assert!(page.text().contains("<a href=\"/metrics\">") && page.text().contains("not asked yet"));

    exporter.get("/metrics").await;
    let page = exporter.get("/").await.text();
    assert!(page.contains("<td>systemd</td><td>watched: 1 series</td>"), "{page}");
    assert!(page.contains("<td>docker</td><td class=\"bad\">&lt;b&gt;refused&lt;/b&gt;</td>"), "{page}");
    assert!(page.contains("<td>redis</td><td>not watched: there is none</td>"), "{page}");
}

#[tokio::test]
async fn a_hanging_source_never_costs_the_scrape_its_deadline() {
    let hanging = Fake::new("systemd", Does::Hang);
    let exporter =
        Exporter::start(vec![Arc::clone(&hanging), Fake::new("well", Does::See(value("well", "x")))]).await;
    let begun = Instant::now();
    let header = "x-prometheus-scrape-timeout-seconds: 1\r\n";
    let scrapes = (0..20).map(|_| exporter.ask("GET", "/metrics", header));
    for answer in futures_util::future::join_all(scrapes).await {
        assert_eq!(answer.status, 200);
        let text = answer.text();
        assert!(text.contains("systemd_up 0.0") && text.contains("well{label=\"x\"} 1.0"), "{text}");
        assert!(text.contains("evenkeel_scrape_collector_success{collector=\"systemd\"} 0.0"), "{text}");
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(hanging.looks() <= 2, "{} looks for 20 scrapes at once", hanging.looks());
}
