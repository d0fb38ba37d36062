//! Messages as a receiver gets them, and receivers that are down, slow, refusing or somewhere else.

use std::{
    io::Write,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use evenkeel_host::web::{self, Limits, Listener, Response, Security, read_body, reply};
use hyper::{HeaderMap, StatusCode, header};
use reqwest::{Client, redirect};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{courier::Courier, *};
use crate::{
    clock::Moment,
    config::{Config, tests::config},
};

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
        form: Form::Webhook,
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
        occasion: Occasion::Ended(outcome),
        reason: "steps_used_up".to_owned(),
        summary: "it was done, and it is not well".to_owned(),
        before: Some("91.0 % used".to_owned()),
        after: Some("90.0 % used".to_owned()),
        cure: None,
        steps: vec!["build_cache_prune [D1]: done, freed 1.0 GB".to_owned()],
        since_wall_ms: Some(0),
        next_allowed_wall_ms: None,
        expires_wall_ms: None,
    }
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap()
}

/// Where messages wait, by a clock that a test sets.
struct Waiting {
    post: Post,
    ahead: Arc<Mutex<Duration>>,
    _dir: TempDir,
}

impl Waiting {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let ahead = Arc::new(Mutex::new(Duration::ZERO));
        let set = ahead.clone();
        let clock = Clock::new(move || {
            let ms = i64::try_from(set.lock().unwrap().as_millis()).unwrap();
            Moment { wall_ms: ms, boot_ms: ms, boot_id: "boot".to_owned() }
        });
        let post = Post {
            journal: Journal::open(dir.path()).unwrap(),
            clock,
            metrics: Metrics::new(&[]),
            bell: Arc::new(watch::Sender::new(())),
        };
        Self { post, ahead, _dir: dir }
    }

    async fn tell(&self, receivers: &[Receiver], notice: &Notice) {
        let notifier = Notifier::new(self.post.clone()).to(receivers, "vps1");
        let letters = notifier.letters(notice);
        let dropped = self.post.journal.post(letters, self.post.clock.now()).await.unwrap();
        notifier.ring(dropped);
    }

    fn count(&self, delivery: Delivery) -> u64 {
        self.post.metrics.notifications(delivery)
    }

    fn courier(&self, url: &str) -> Courier {
        Courier {
            client: client(),
            bell: self.post.bell.subscribe(),
            post: self.post.clone(),
            receiver: receiver(url, &[On::All]),
            pause: Duration::from_millis(1),
            replaced: CancellationToken::new(),
            stop: CancellationToken::new(),
        }
    }

    /// The whole thing.
    fn office(&self, receivers: &[Receiver]) -> Office {
        drop(client());
        let (changes, live) = watch::channel(to(receivers));
        let stop = CancellationToken::new();
        let office = PostOffice::new(self.post.clone(), live, stop.clone()).unwrap();
        Office { changes, stop, running: tokio::spawn(office.run()) }
    }
}

struct Office {
    changes: watch::Sender<Arc<Config>>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Office {
    async fn close(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

/// A configuration with these receivers.
fn to(receivers: &[Receiver]) -> Arc<Config> {
    let mut config = config("rules: []\n").unwrap();
    config.receivers = receivers.to_vec();
    Arc::new(config)
}

/// Tells, and delivers what can be.
async fn send_all(receivers: Vec<Receiver>, notices: &[Notice]) -> Waiting {
    let waiting = Waiting::new();
    for notice in notices {
        waiting.tell(&receivers, notice).await;
    }
    waiting.office(&receivers).close().await;
    waiting
}

/// Waits for a fact.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn slack_gets_the_text_and_no_key_that_it_does_not_know() {
    let (plain, slack) = (Fake::answering(&[200], None).await, Fake::answering(&[200], None).await);
    let of_slack = Receiver { form: Form::Slack, bearer_token: None, ..receiver(&slack.url, &[On::All]) };
    let receivers = vec![receiver(&plain.url, &[On::All]), of_slack];
    let sent = send_all(receivers, &[notice(Outcome::Ineffective)]).await;
    let (plain, slack) = (plain.got(), slack.got());
    assert_eq!(slack[0].1, json!({"text": plain[0].1["text"]}));
    assert!(
        slack[0].1["text"]
            .as_str()
            .unwrap()
            .starts_with("*vps1: disk-high on filesystem /srv/it's; reboot: ")
    );
    assert!(slack[0].0.get(header::AUTHORIZATION).is_none());
    assert_eq!(sent.count(Delivery::Delivered), 2);
}

/// Both forms to one address, as to a chat that reads either: each message once.
#[tokio::test]
async fn two_forms_at_one_address_are_two_receivers() {
    let fake = Fake::answering(&[200], None).await;
    let one = receiver(&fake.url, &[On::All]);
    let other = Receiver { form: Form::Slack, ..one.clone() };
    assert_ne!(one.key(), other.key());
    drop(send_all(vec![one, other], &[notice(Outcome::Succeeded)]).await);
    let got = fake.got();
    let kinds: Vec<bool> = got.iter().map(|(_, body)| body.get("subject").is_some()).collect();
    assert!(kinds == [true, false] || kinds == [false, true], "{got:?}");
}

#[tokio::test]
async fn the_message_says_what_why_before_after_and_how_to_look() {
    let fake = Fake::answering(&[200], None).await;
    let sent = send_all(vec![receiver(&fake.url, &[On::All])], &[notice(Outcome::Ineffective)]).await;
    let got = fake.got();
    assert_eq!(got.len(), 1);
    let (headers, body) = &got[0];
    assert_eq!(headers[header::AUTHORIZATION], "Bearer t0ken-of-the-receiver");
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    let subject = "vps1: disk-high on filesystem /srv/it's; reboot: the repair did not help, a person is needed \
                   (since 1970-01-01 00:00 UTC)";
    assert!(body["text"].as_str().unwrap().starts_with(&format!("*{subject}*\nWhy: it was done")), "{body}");
    assert_eq!(
        *body,
        json!({
            "version": "1",
            "host": "vps1",
            "subject": subject,
            "text": body["text"],
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
            "since": "1970-01-01T00:00:00Z",
            "next_allowed": null,
            "explain": "evenkeel-remediator explain disk-high '/srv/it'\\''s; reboot'",
        })
    );
    assert_eq!(sent.count(Delivery::Delivered), 1);
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
async fn what_no_restart_cures_is_told_to_whoever_wants_to_hear_when_a_person_is_needed() {
    let escalations = Fake::answering(&[200], None).await;
    let refused = Notice { reason: "restart_cannot_cure".to_owned(), ..notice(Outcome::Blocked) };
    let policy = Notice { reason: "policy".to_owned(), ..notice(Outcome::Blocked) };
    send_all(vec![receiver(&escalations.url, &[On::Escalated])], &[policy, refused]).await;
    let got = escalations.got();
    assert_eq!((got.len(), &got[0].1["reason"]), (1, &json!("restart_cannot_cure")));
}

#[tokio::test]
async fn approvals_and_storms_are_told_to_whom_they_concern() {
    let (escalations, approvals) = (Fake::answering(&[200], None).await, Fake::answering(&[200], None).await);
    let receivers =
        vec![receiver(&escalations.url, &[On::Escalated]), receiver(&approvals.url, &[On::Approval])];
    let of = |occasion| Notice { occasion, ..notice(Outcome::Succeeded) };
    send_all(receivers, &[of(Occasion::Approval), of(Occasion::Storm)]).await;
    let heard = |fake: &Fake| fake.got().iter().map(|(_, body)| body.clone()).collect::<Vec<_>>();
    let (escalations, approvals) = (heard(&escalations), heard(&approvals));
    assert_eq!((escalations.len(), &escalations[0]["outcome"]), (1, &json!("storm")));
    assert_eq!((approvals.len(), &approvals[0]["outcome"]), (1, &json!("awaiting_approval")));
    assert_eq!(approvals[0]["approve"], "evenkeel-remediator approve 7");
    assert!(escalations[0].get("approve").is_none());
}

#[tokio::test]
async fn a_receiver_that_recovers_gets_it_once() {
    let waiting = Waiting::new();
    let fake = Fake::answering(&[500, 429, 404, 200], None).await;
    let courier = waiting.courier(&fake.url);
    waiting.tell(std::slice::from_ref(&courier.receiver), &notice(Outcome::Failed)).await;
    let replaced = courier.replaced.clone();
    let delivering = tokio::spawn(courier.deliver());
    until(|| waiting.count(Delivery::Delivered) == 1).await;
    replaced.cancel();
    delivering.await.unwrap();
    assert_eq!((fake.got().len(), waiting.count(Delivery::Failed)), (4, 0));
}

#[tokio::test]
async fn what_a_receiver_cannot_take_and_what_is_a_day_old_is_given_up() {
    let waiting = Waiting::new();
    let fake = Fake::answering(&[400, 422, 500], None).await;
    let receivers = [receiver(&fake.url, &[On::All])];
    for _ in 0..3 {
        waiting.tell(&receivers, &notice(Outcome::Failed)).await;
    }
    let office = waiting.office(&receivers);
    until(|| fake.got().len() == 3).await;
    assert_eq!(waiting.count(Delivery::Failed), 2);
    office.close().await;
    let tries = fake.got().len();
    // The third one waits, over a restart too, and is tried once more when it is no news any more.
    *waiting.ahead.lock().unwrap() = crate::journal::LETTERS_KEPT;
    waiting.office(&receivers).close().await;
    assert_eq!((fake.got().len(), waiting.count(Delivery::Failed)), (tries + 1, 3));
    let left = waiting.post.journal.next_letter(receivers[0].key(), waiting.post.clock.now()).await;
    assert!(left.unwrap().is_none());
}

/// The process dies between the end of a remediation and its message, or while nobody listens: the next one tells.
#[tokio::test]
async fn a_message_outlives_the_process() {
    let waiting = Waiting::new();
    let fake = Fake::answering(&[200], None).await;
    let receivers = [receiver(&fake.url, &[On::All])];
    waiting.tell(&receivers, &notice(Outcome::Failed)).await;
    assert!(fake.got().is_empty());
    waiting.office(&receivers).close().await;
    assert_eq!(fake.got().len(), 1);
    // And only once.
    waiting.office(&receivers).close().await;
    assert_eq!(fake.got().len(), 1);
}

/// Whoever answers for the receiver does not get to send the message, and the token, elsewhere.
#[tokio::test]
async fn a_redirect_is_not_followed_and_not_taken_for_an_answer() {
    for code in [&[301], &[302], &[307], &[308]] {
        let elsewhere = Fake::answering(&[200], None).await;
        let fake = Fake::answering(code, Some(elsewhere.url.clone())).await;
        assert!(Waiting::new().courier(&fake.url).send("{}").await.is_err());
        assert!(elsewhere.got().is_empty());
    }
}

/// It takes connections and never answers: whoever tells does not wait, and what is too much is dropped and counted.
#[tokio::test]
async fn a_receiver_that_hangs_holds_nobody_up() {
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", hole.local_addr().unwrap());
    let fake = Fake::answering(&[200], None).await;
    let waiting = Waiting::new();
    let receivers = [receiver(&url, &[On::All]), receiver(&fake.url, &[On::All])];
    let office = waiting.office(&receivers);
    let began = std::time::Instant::now();
    for told in 1..=120 {
        waiting.tell(&receivers, &notice(Outcome::Failed)).await;
        // The other one is not held up.
        until(|| fake.got().len() == told).await;
    }
    assert!(began.elapsed() < Duration::from_secs(10), "telling took {:?}", began.elapsed());
    assert_eq!((waiting.count(Delivery::Dropped), waiting.count(Delivery::Failed)), (20, 0));
    office.running.abort();
}

/// The receivers of a new configuration are told from then on, and those of the old one no more.
#[tokio::test]
async fn a_new_configuration_brings_new_receivers() {
    let (old, new) = (Fake::answering(&[200], None).await, Fake::answering(&[200], None).await);
    let waiting = Waiting::new();
    let (old_one, new_one) = ([receiver(&old.url, &[On::All])], [receiver(&new.url, &[On::All])]);
    let office = waiting.office(&old_one);
    waiting.tell(&old_one, &notice(Outcome::Failed)).await;
    until(|| old.got().len() == 1).await;
    office.changes.send_replace(to(&new_one));
    waiting.tell(&new_one, &notice(Outcome::Failed)).await;
    until(|| new.got().len() == 1).await;
    office.close().await;
    assert_eq!(old.got().len(), 1);
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
        let receivers = [receiver(url, &[On::All])];
        let shown = format!("{receivers:?}");
        assert!(!shown.contains("s3cr3t") && !shown.contains("t0ken"), "{shown}");
        let waiting = Waiting::new();
        waiting.tell(&receivers, &notice(Outcome::Failed)).await;
        waiting.office(&receivers).close().await;
        assert_eq!(waiting.count(Delivery::Delivered), 0);
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
