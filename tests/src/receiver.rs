//! A webhook receiver that keeps what it was sent, for tests that ask what was delivered.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::wait::wait_for;

/// A running receiver on a free port of loopback. Dropping it closes the port.
#[derive(Debug)]
pub struct Receiver {
    port: u16,
    received: Arc<Mutex<Vec<Value>>>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Starts listening.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(accept(listener, Arc::clone(&received)));
        Ok(Self { port, received, task })
    }

    /// Where to send to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// The JSON bodies received so far, in order.
    #[must_use]
    pub fn received(&self) -> Vec<Value> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the first body that `wanted` accepts.
    ///
    /// # Errors
    ///
    /// When none has come within `within`.
    pub async fn wait_for(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait_for(what, within, async || {
            let received = self.received();
            let count = received.len();
            received.into_iter().find(&wanted).with_context(|| format!("{count} others received"))
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, received: Arc<Mutex<Vec<Value>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let received = Arc::clone(&received);
        let service = service_fn(move |request| keep(request, Arc::clone(&received)));
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // The sender may close a kept connection whenever it likes.
            connection.await.ok();
        });
    }
}

async fn keep(
    request: Request<Incoming>,
    received: Arc<Mutex<Vec<Value>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = match body(request).await {
        Ok(value) => {
            received.lock().unwrap_or_else(PoisonError::into_inner).push(value);
            Response::new(Full::default())
        }
        Err(error) => {
            let mut answer = Response::new(Full::from(format!("{error:#}")));
            *answer.status_mut() = hyper::StatusCode::BAD_REQUEST;
            answer
        }
    };
    Ok(answer)
}

async fn body(request: Request<Incoming>) -> Result<Value> {
    let bytes = request.into_body().collect().await?.to_bytes();
    if bytes.len() > 16 * 1024 * 1024 {
        bail!("too large");
    }
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http;

    #[tokio::test]
    async fn keeps_what_it_was_sent_and_refuses_what_is_no_json() {
        let receiver = Receiver::start().await.unwrap();
        http::post_json(&receiver.url(), &json!({"n": 1})).await.unwrap();
        let refused = http::client().unwrap().post(receiver.url()).body("not json").send().await.unwrap();
        assert_eq!(refused.status(), 400);
        http::post_json(&receiver.url(), &json!({"n": 2})).await.unwrap();
        let second =
            receiver.wait_for("the second", Duration::from_secs(5), |body| body["n"] == 2).await.unwrap();
        assert_eq!(second, json!({"n": 2}));
        assert_eq!(receiver.received().len(), 2);
    }
}
