//! Messages as a receiver gets them, and receivers that are down, slow, refusing or somewhere else.

use std::{
    io::Write,
    sync::{Mutex, MutexGuard},
};

use evenkeel_host::web::{self, Limits, Listener, Response, Security, read_body, reply};
use hyper::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::*;

impl Notifier {
    /// One receiver whose messages stay in the test's hands.
    pub(crate) fn kept(on: Vec<On>) -> (Self, mpsc::Receiver<String>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let receiver = Receiver { url: Secret::new("http://receiver.example"), bearer_token: None, on };
        (Self { receivers: Arc::new(vec![(receiver, sender)]), host: "vps1".into(), metrics: None }, queue)
    }
}

/// A receiver that answers with these codes, the last of them for ever, and remembers what it got.
#[derive(Clone)]
struct Fake {
    url: String,
    got: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
}

impl Fake {
    async fn answering(codes: &'static [u16], location: Option<String>) -> Self {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let fake =
            Self { url: format!("http://{}/hook/s3cr3t-path", listener.local_addr()), got: Arc::default() };
        let got = fake.got.clone();
        let answer = move |request: web::Request, _| {
            let (got, location) = (got.clone(), location.clone());
            async move {
                let headers = request.headers().clone();
                let body = read_body(request, 1 << 20).await.unwrap();
                let mut got = got.lock().unwrap();
                let code = codes[got.len().min(codes.len() - 1)];
                got.push((headers, serde_json::from_slice(&body).unwrap()));
                respond(code, location)
            }
        };
        tokio::spawn(web::serve(
            vec![listener],
            Limits::default(),
            Security::default(),
            answer,
            CancellationToken::new(),
        ));
        fake
    }

    fn got(&self) -> MutexGuard<'_, Vec<(HeaderMap, Value)>> {
        self.got.lock().unwrap()
    }
}

fn respond(code: u16, location: Option<String>) -> Response {
    let mut response = reply::text(StatusCode::from_u16(code).unwrap(), "\n");
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location.parse().unwrap());
    }
    response
}

fn receiver(url: &str, on: &[On]) -> Receiver {
    Receiver {
        url: Secret::new(url),
        bearer_token: Some(Secret::new("t0ken-of-the-receiver")),
        on: on.to_vec(),
    }
}

fn notice(outcome: Outcome) -> Notice {
    Notice {
        id: 7,
        rule: "disk-high".to_owned(),
        kind: "filesystem".to_owned(),
        target: "/srv/it's; reboot".to_owned(),
        outcome,
        reason: "steps_used_up".to_owned(),
        summary: "it was done, and it is not well".to_owned(),
        before: Some("91.0 % used".to_owned()),
        after: Some("90.0 % used".to_owned()),
        steps: vec!["build_cache_prune [D1]: done, freed 1.0 GB".to_owned()],
        next_allowed: None,
    }
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(TIMEOUT).build().unwrap()
}

fn courier(url: &str) -> Courier {
    Courier {
        client: client(),
        receiver: receiver(url, &[On::All]),
        metrics: Metrics::new(&[]),
        pause: Duration::from_millis(1),
        stop: CancellationToken::new(),
    }
}

/// The whole thing, stopped and waited for.
async fn send_all(receivers: Vec<Receiver>, notices: &[Notice]) -> Metrics {
    drop(client());
    let (tasks, stop, metrics) = (TaskTracker::new(), CancellationToken::new(), Metrics::new(&[]));
    let notifier = Notifier::start(receivers, "vps1", &metrics, &tasks, &stop).unwrap();
    for notice in notices {
        notifier.tell(notice);
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    metrics
}

#[tokio::test]
async fn the_message_says_what_why_before_after_and_how_to_look() {
    let fake = Fake::answering(&[200], None).await;
    let metrics = send_all(vec![receiver(&fake.url, &[On::All])], &[notice(Outcome::Ineffective)]).await;
    let got = fake.got();
    assert_eq!(got.len(), 1);
    let (headers, body) = &got[0];
    assert_eq!(headers[header::AUTHORIZATION], "Bearer t0ken-of-the-receiver");
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(
        *body,
        json!({
            "version": "1",
            "host": "vps1",
            "id": 7,
            "rule": "disk-high",
            "kind": "filesystem",
            "target": "/srv/it's; reboot",
            "outcome": "ineffective",
            "reason": "steps_used_up",
            "summary": "it was done, and it is not well",
            "before": "91.0 % used",
            "after": "90.0 % used",
            "steps": ["build_cache_prune [D1]: done, freed 1.0 GB"],
            "next_allowed": null,
            "explain": "evenkeel-remediator explain disk-high '/srv/it'\\''s; reboot'",
        })
    );
    assert_eq!(metrics.notifications(Delivery::Delivered), 1);
}

#[tokio::test]
async fn each_receiver_hears_what_it_asked_for() {
    let (escalations, successes, all) = (
        Fake::answering(&[200], None).await,
        Fake::answering(&[200], None).await,
        Fake::answering(&[200], None).await,
    );
    let receivers = vec![
        receiver(&escalations.url, &[On::Escalated]),
        receiver(&successes.url, &[On::Outcome(Outcome::Succeeded), On::Outcome(Outcome::Limited)]),
        receiver(&all.url, &[On::All]),
    ];
    send_all(receivers, &Outcome::ALL.map(notice)).await;
    let heard = |fake: &Fake| -> Vec<String> {
        fake.got().iter().map(|(_, body)| body["outcome"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(heard(&escalations), ["ineffective", "failed", "unknown"]);
    assert_eq!(heard(&successes), ["succeeded", "limited"]);
    assert_eq!(heard(&all).len(), Outcome::ALL.len());
}

#[tokio::test]
async fn a_receiver_that_recovers_gets_it_and_one_that_does_not_is_given_up() {
    let fake = Fake::answering(&[500, 503, 200], None).await;
    assert_eq!(courier(&fake.url).try_hard("{}").await, Delivery::Delivered);
    assert_eq!(fake.got().len(), 3);
    for code in [&[500], &[429], &[404]] {
        let fake = Fake::answering(code, None).await;
        assert_eq!(courier(&fake.url).try_hard("{}").await, Delivery::Failed);
        assert_eq!(fake.got().len(), 4);
    }
    // Nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(courier(&format!("http://{free}/")).try_hard("{}").await, Delivery::Failed);
}

/// Whoever answers for the receiver does not get to send the message, and the token, elsewhere.
#[tokio::test]
async fn a_redirect_is_not_followed_and_not_taken_for_an_answer() {
    for code in [&[301], &[302], &[307], &[308]] {
        let elsewhere = Fake::answering(&[200], None).await;
        let fake = Fake::answering(code, Some(elsewhere.url.clone())).await;
        assert_eq!(courier(&fake.url).try_hard("{}").await, Delivery::Failed);
        assert!(elsewhere.got().is_empty());
    }
}

/// It takes connections and never answers: whoever tells does not wait, and what is too much is dropped and counted.
#[tokio::test]
async fn a_receiver_that_hangs_holds_nobody_up() {
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", hole.local_addr().unwrap());
    let fake = Fake::answering(&[200], None).await;
    drop(client());
    let (tasks, stop, metrics) = (TaskTracker::new(), CancellationToken::new(), Metrics::new(&[]));
    let receivers = vec![receiver(&url, &[On::All]), receiver(&fake.url, &[On::All])];
    let notifier = Notifier::start(receivers, "vps1", &metrics, &tasks, &stop).unwrap();
    let began = std::time::Instant::now();
    for _ in 0..QUEUE {
        notifier.tell(&notice(Outcome::Failed));
    }
    // The other one is not held up either.
    while fake.got().len() < QUEUE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..50 {
        notifier.tell(&notice(Outcome::Failed));
    }
    assert!(began.elapsed() < TIMEOUT, "telling took {:?}", began.elapsed());
    // One is on its way and a hundred wait.
    assert_eq!(metrics.notifications(Delivery::Dropped), 50 - 1);
    assert_eq!(metrics.notifications(Delivery::Failed), 0);
}

/// What the process logs, caught.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn neither_the_url_nor_the_token_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refusing = Fake::answering(&[500], None).await;
    for url in [
        &refusing.url,
        &format!("http://user:passw0rd@{free}/s3cr3t-path?key=s3cr3t-key"),
        "http://no-such-host.invalid/s3cr3t-path",
    ] {
        let courier = courier(url);
        let shown = format!("{:?}", courier.receiver);
        assert!(!shown.contains("s3cr3t") && !shown.contains("t0ken"), "{shown}");
        assert_eq!(courier.try_hard("{}").await, Delivery::Failed);
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    // What the libraries below say at trace level is switched off by `log::init`; here it is about our own words.
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("evenkeel_remediator")).collect();
    assert_eq!(ours.len(), 3, "{text}");
    for secret in ["s3cr3t", "passw0rd", "t0ken"] {
        assert!(ours.iter().all(|line| !line.contains(secret)), "{ours:#?}");
    }
    assert!(ours[0].contains("it answered 500") && ours[1].contains("onnection refused"), "{ours:#?}");
}
