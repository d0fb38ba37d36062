//! A server that answers as Alertmanager and Prometheus do, for tests.

use std::sync::{Arc, Mutex};

use evenkeel_host::web::{self, Limits, Listener, Security, reply};
use hyper::StatusCode;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// What a path is answered with.
pub(crate) type Answer = (&'static str, u16, Value);

/// A server that answers each path with what a test says, and remembers what it was asked.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    answers: Arc<Mutex<Vec<Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    pub(crate) async fn start(answers: &[Answer]) -> (Self, String) {
        let fake = Self::default();
        fake.say(answers);
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr());
        let this = fake.clone();
        let answer = move |request: web::Request, _| {
            let this = this.clone();
            async move {
                this.asked.lock().unwrap().push(request.uri().to_string());
                let answers = this.answers.lock().unwrap();
                let known = answers.iter().find(|(path, ..)| request.uri().path() == *path);
                match known {
                    Some((_, code, value)) => reply::json(StatusCode::from_u16(*code).unwrap(), value),
                    None => reply::not_found(),
                }
            }
        };
        let (limits, stop) = (Limits::default(), CancellationToken::new());
        tokio::spawn(web::serve(vec![listener], limits, Security::default(), answer, stop));
        (fake, url)
    }

    pub(crate) fn say(&self, answers: &[Answer]) {
        *self.answers.lock().unwrap() = answers.to_vec();
    }

    /// The paths and queries that it was asked.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}
