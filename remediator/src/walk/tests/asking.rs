//! Alertmanager and Prometheus as they are asked: what they say counts, and whatever is wrong with them holds nothing
//! up. Real connections to a scripted server, so in real time.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::bench::{Bench, Does, failed, unit_rule};
use crate::{
    api::{
        alertmanager::{self, Standing},
        fake::{Answer, Fake},
        prometheus::{self, Exporter},
    },
    journal::Record,
    outcome::Outcome,
    policy::Class,
};

const APP: &str = "app.service";

fn up_for(seconds: i64) -> Answer {
    let since = Timestamp::now() - SignedDuration::from_secs(seconds);
    ("/api/v2/status", 200, json!({"uptime": since.to_string(), "cluster": {}, "config": {}}))
}

/// An alert as `/api/v2/alerts` shows it.
fn alert(fingerprint: &str, unit: &str, silenced: &[&str], inhibited: &[&str]) -> Value {
    let state = if silenced.is_empty() && inhibited.is_empty() { "active" } else { "suppressed" };
    json!({
        "fingerprint": fingerprint, "startsAt": "2026-01-01T00:00:00Z", "annotations": {}, "receivers": [],
        "labels": {"alertname": "unit", "host": "vps1", "name": unit},
        "status": {"state": state, "silencedBy": silenced, "inhibitedBy": inhibited, "mutedBy": []},
    })
}

fn alerts(alerts: &[Value]) -> Answer {
    ("/api/v2/alerts", 200, json!(alerts))
}

fn bench(more: &str, rule: &str) -> Bench {
    let policy = format!("policy: {{mode: auto, limits: {{S2: [100/1h]}}}}\n{more}");
    let mut bench = Bench::under(&policy, &[unit_rule("unit", &format!("    cooldown: 0s\n{rule}"))]);
    let restart = bench.fake("restart", Class::S2, Does::Cure);
    bench.steps("unit", [restart]);
    bench.world.show(APP, failed());
    bench
}

async fn standing(bench: &Bench) -> Standing {
    let walker = bench.walker();
    let config = &walker.assessor.config;
    alertmanager::standing(config, &config.rules[0], &bench.last(), &walker.metrics).await
}

/// One that was held back by a pause, which is over, and taken up again.
async fn taken_up(bench: &Bench) -> i64 {
    let author = "root".to_owned();
    bench.journal().pause("x".to_owned(), author.clone(), None, bench.now()).await.unwrap();
    bench.alert("unit", APP).await;
    bench.walk(bench.last().id).await.unwrap();
    bench.journal().resume(author, bench.now()).await.unwrap();
    bench.journal().take_up(bench.last().id, true, bench.now()).await.unwrap().unwrap()
}

fn ended(record: &Record) -> (Outcome, &str) {
    (record.outcome.unwrap(), record.reason.as_deref().unwrap())
}

#[tokio::test]
async fn an_alert_is_active_muted_gone_or_nobody_knows() {
    let (fake, url) = Fake::start(&[]).await;
    let bench = bench(&format!("alertmanager: {{url: '{url}'}}\n"), "");
    bench.alert("unit", APP).await;
    let other = alert("other", "app-other.service", &[], &[]);
    for (said, up, expected) in [
        (vec![alert("ab", "renamed.service", &[], &[])], 1000, Standing::Active),
        (vec![alert("", APP, &[], &[]), other.clone()], 1000, Standing::Active),
        (
            vec![alert("ab", APP, &["s-1"], &[])],
            1000,
            Standing::Muted("silenced in Alertmanager by s-1".to_owned()),
        ),
        (
            vec![alert("cd", APP, &[], &["ef"])],
            1000,
            Standing::Muted("inhibited in Alertmanager by the alert ef".to_owned()),
        ),
        // Of two Prometheus servers one is silenced: the other still asks for it.
        (vec![alert("ab", APP, &["s-1"], &[]), alert("cd", APP, &[], &[])], 1000, Standing::Active),
        (vec![other], 1000, Standing::Gone),
        (vec![], 1000, Standing::Gone),
        // It has just started and knows nothing yet.
        (vec![], 10, Standing::Unknown),
    ] {
        fake.say(&[alerts(&said), up_for(up)]);
        assert_eq!(standing(&bench).await, expected, "{said:?}");
    }
    let asked = fake.asked().first().unwrap().clone();
    assert!(asked.starts_with("/api/v2/alerts?filter=alertname%3D%22unit%22&active=true"), "{asked}");
}

#[tokio::test]
async fn what_was_silenced_while_it_waited_is_left_alone_and_done_when_the_silence_is_over() {
    let (fake, url) = Fake::start(&[alerts(&[alert("ab", APP, &["s-1"], &[])]), up_for(1000)]).await;
    let bench = bench(&format!("alertmanager: {{url: '{url}'}}\n"), "");
    let id = taken_up(&bench).await;
    bench.walk(id).await.unwrap();
    let record = bench.last();
    assert_eq!(ended(&record), (Outcome::Blocked, "silenced"));
    assert_eq!(record.detail.as_deref(), Some("silenced in Alertmanager by s-1"));
    assert!(bench.world.calls().is_empty());
    fake.say(&[alerts(&[alert("ab", APP, &[], &[])]), up_for(1000)]);
    let id = bench.journal().take_up(record.id, true, bench.now()).await.unwrap().unwrap();
    bench.walk_into_the_action(id).await;
    assert_eq!(bench.world.called(), ["restart"]);
    assert_eq!(bench.walker().metrics.times_asked("alertmanager", "success"), 4);
}

/// A server that takes a connection and then does this with it.
async fn raw(head: &'static str, endless: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(head.as_bytes()).await;
                while endless && stream.write_all(&[b' '; 65536]).await.is_ok() {}
                if !endless {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    url
}

/// Down, refusing, silent, endless, talking nonsense, only just restarted: it is repaired all the same, and soon.
#[tokio::test]
async fn an_alertmanager_that_does_not_work_never_gates() {
    let garbage = json!({"alerts": "none"});
    let (_one, refusing) = Fake::start(&[("/api/v2/alerts", 500, json!("x")), up_for(1000)]).await;
    let (_two, nonsense) = Fake::start(&[("/api/v2/alerts", 200, garbage), up_for(1000)]).await;
    let (_three, restarted) = Fake::start(&[alerts(&[]), up_for(1)]).await;
    let elsewhere = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    for (url, outcome) in [
        ("http://127.0.0.1:1".to_owned(), "unreachable"),
        (refusing, "status"),
        (nonsense, "unreadable"),
        (restarted, "success"),
        (raw("", false).await, "timeout"),
        (raw("HTTP/1.1 200 OK\r\n\r\n", true).await, "too_large"),
        (raw(elsewhere, false).await, "status"),
    ] {
        let bench = bench(&format!("alertmanager: {{url: '{url}'}}\n"), "");
        let id = taken_up(&bench).await;
        let began = Instant::now();
        bench.walk_into_the_action(id).await;
        assert!(began.elapsed() < Duration::from_secs(30), "{outcome}: {:?}", began.elapsed());
        assert_eq!(bench.world.called(), ["restart"], "{outcome}");
        assert!(bench.walker().metrics.times_asked("alertmanager", outcome) > 0, "{outcome}");
    }
}

fn result(value: Value) -> Answer {
    ("/api/v1/query", 200, json!({"status": "success", "data": value}))
}

#[tokio::test]
async fn a_condition_holds_while_it_has_a_result_and_is_closed_when_nobody_knows() {
    let (fake, url) = Fake::start(&[]).await;
    let more = format!("prometheus: {{url: '{url}'}}\n");
    let closed = bench(&more, "    gates: [{promql: 'up == 0'}]\n");
    let open = bench(&more, "    gates: [{promql: 'up == 0', on_error: open}]\n");
    let series = |value: &str| json!({"metric": {"instance": "vps1:1"}, "value": [1.0, value]});
    let vector = |result: Vec<Value>| json!({"resultType": "vector", "result": result});
    let refused = json!({"status": "error", "errorType": "bad_data", "error": "parse error"});
    for (said, holds, holds_open) in [
        // Whatever the value, as in an alerting rule.
        (result(vector(vec![series("0")])), true, true),
        (result(vector(vec![])), false, false),
        (result(json!({"resultType": "scalar", "result": [1.0, "2"]})), true, true),
        (result(json!({"resultType": "scalar", "result": [1.0, "0"]})), false, false),
        (result(json!({"resultType": "string", "result": [1.0, "x"]})), false, false),
        (("/api/v1/query", 400, refused), false, true),
        (("/api/v1/query", 503, json!("x")), false, true),
        (("/api/v1/query", 200, json!({"data": 1})), false, true),
    ] {
        fake.say(std::slice::from_ref(&said));
        for (bench, expected) in [(&closed, holds), (&open, holds_open)] {
            let walker = bench.walker();
            let config = &walker.assessor.config;
            let rule = &config.rules[0];
            let answer = prometheus::admit(config, rule, Class::S2, Some(&walker.metrics)).await;
            assert_eq!(answer.is_ok(), expected, "{said:?}: {answer:?}");
            assert!(prometheus::admit(config, rule, Class::S0, None).await.is_ok(), "looking is free");
        }
    }
    // On the way: it waits, says why, and goes on when the condition holds.
    closed.alert("unit", APP).await;
    closed.walk(1).await.unwrap();
    let waiting = closed.last();
    assert_eq!((waiting.outcome, waiting.reason.as_deref()), (None, Some("condition")));
    assert!(waiting.detail.unwrap().contains("up == 0"));
    fake.say(&[result(vector(vec![series("0")]))]);
    closed.walk_into_the_action(1).await;
    assert_eq!(closed.world.called(), ["restart"]);
}

#[tokio::test]
async fn the_exporter_of_this_host_is_up_down_absent_or_nobody_knows() {
    let (fake, url) = Fake::start(&[]).await;
    let bench = bench(&format!("prometheus: {{url: '{url}', job: own}}\n"), "");
    let up = |instance: &str, value: &str| json!({"metric": {"instance": instance}, "value": [1.0, value]});
    for (series, expected) in [
        (vec![up("vps1:19847", "1"), up("vps2:19847", "0")], Exporter::Up),
        (vec![up("vps1:19847", "0"), up("vps2:19847", "1")], Exporter::Down),
        (vec![up("vps2:19847", "1")], Exporter::Absent),
        // Asked on this host, loopback is this host.
        (vec![up("127.0.0.1:19847", "1")], Exporter::Up),
    ] {
        fake.say(&[result(json!({"resultType": "vector", "result": series}))]);
        let walker = bench.walker();
        assert_eq!(prometheus::exporter(&walker.assessor.config, &walker.metrics).await, Some(expected));
    }
    fake.say(&[]);
    let walker = bench.walker();
    assert_eq!(prometheus::exporter(&walker.assessor.config, &walker.metrics).await, Some(Exporter::Unknown));
    assert!(fake.asked()[0].contains("query=up%7Bjob%3D%22own%22%7D"));
}
