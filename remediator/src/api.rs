//! Questions to Alertmanager and Prometheus, where the configuration names them: bounded in time and size, counted, and
//! never what the rest depends on. What is asked is in the two files below.

pub mod alertmanager;
#[cfg(test)]
pub(crate) mod fake;
pub mod prometheus;

use std::time::Duration;

use evenkeel_host::config::Secret;
use hyper::{Method, StatusCode};
use reqwest::{Certificate, Client, Identity, RequestBuilder, Url, redirect};
use serde::{Deserialize, Serialize};

use crate::outgoing;

/// How long one question may take, with its whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// An answer's size at most, in bytes.
const BODY_MAX: usize = 4 << 20;

/// One server that is asked.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client,
    url: Url,
    login: Login,
}

/// What lets us in.
#[derive(Debug, Clone)]
pub enum Login {
    /// Nothing is asked for.
    None,
    /// A token.
    Bearer(Secret),
    /// A user and a password.
    Basic(String, Secret),
}

/// What came of the last question to a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// When it was asked, milliseconds since 1970.
    pub at_ms: i64,
    /// Why it gave no answer, for people; none when it did.
    pub fault: Option<String>,
    /// When it last answered, milliseconds since 1970.
    pub answered_ms: Option<i64>,
}

/// Why there is no answer; the words are metric labels.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No connection, or one that broke.
    #[error("cannot be reached")]
    Unreachable,
    /// Too slow.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It said no.
    #[error("it answered {0}{1}")]
    Status(StatusCode, String),
    /// Too long.
    #[error("its answer is larger than {BODY_MAX} bytes")]
    TooLarge,
    /// Not what it should be.
    #[error("its answer cannot be read")]
    Unreadable,
}

impl Fault {
    fn of(error: &reqwest::Error) -> Self {
        if error.is_timeout() { Self::Timeout } else { Self::Unreachable }
    }

    /// As in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Status(..) => "status",
            Self::TooLarge => "too_large",
            Self::Unreadable => "unreadable",
        }
    }
}

impl Api {
    /// A client of this server, which trusts these authorities, or the system's where there are none.
    ///
    /// # Errors
    /// When no client can be made of this.
    pub fn new(
        url: Url,
        login: Login,
        authorities: &[Certificate],
        identity: Option<&Identity>,
    ) -> reqwest::Result<Self> {
        // reqwest takes the process's default provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = outgoing::client(|| {
            let mut client = Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(TIMEOUT);
            if !authorities.is_empty() {
                client = client.tls_certs_only(authorities.iter().cloned());
            }
            if let Some(identity) = identity {
                client = client.identity(identity.clone());
            }
            client
        })?;
        Ok(Self { client, url, login })
    }

    /// Its address; the configuration lets no password stand in it.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// What lets us in, by the name of its kind.
    pub fn login(&self) -> &'static str {
        match self.login {
            Login::None => "no login",
            Login::Bearer(_) => "bearer token",
            Login::Basic(..) => "basic authentication",
        }
    }

    /// Whether it runs on this host.
    pub(crate) fn is_local(&self) -> bool {
        let address = |host: &str| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().ok();
        self.url.host_str().is_some_and(|host| {
            host == "localhost" || address(host).is_some_and(|address| address.is_loopback())
        })
    }

    /// A question to one of its paths.
    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    /// Something to tell it.
    fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.url.as_str().trim_end_matches('/'));
        let request = self.client.request(method, url);
        match &self.login {
            Login::None => request,
            Login::Bearer(token) => request.bearer_auth(token.expose()),
            Login::Basic(user, password) => request.basic_auth(user, Some(password.expose())),
        }
    }
}

/// The answer's status and body, read no further than it may be long.
async fn answer(request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), Fault> {
    let mut answer = request.send().await.map_err(|error| Fault::of(&error))?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| Fault::of(&error))? {
        if body.len() + chunk.len() > BODY_MAX {
            return Err(Fault::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok((answer.status(), body))
}
