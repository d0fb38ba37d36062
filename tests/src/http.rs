//! Small HTTP requests on loopback, with the answer as text or JSON.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context, Result, bail};
use reqwest::{Client, Response};
use serde_json::Value;

/// Longer than anything on loopback takes; a test that measures a deadline sets its own.
const LIMIT: Duration = Duration::from_secs(10);

/// A new client. Not shared: its connections belong to the runtime that made them.
///
/// # Errors
///
/// When the client cannot be made.
pub fn client() -> Result<Client> {
    static TLS: OnceLock<()> = OnceLock::new();
    // reqwest wants a process-wide TLS provider even for plain HTTP.
    TLS.get_or_init(|| {
        rustls::crypto::ring::default_provider().install_default().ok();
    });
    // The machine's proxy has no business on loopback.
    Ok(Client::builder().no_proxy().timeout(LIMIT).build()?)
}

/// The body of a successful GET.
///
/// # Errors
///
/// When there is no answer or its status is not 2xx.
pub async fn get(url: &str) -> Result<String> {
    text(client()?.get(url).send().await?).await
}

/// The JSON of a successful GET.
///
/// # Errors
///
/// When there is no answer, its status is not 2xx, or it is not JSON.
pub async fn get_json(url: &str) -> Result<Value> {
    serde_json::from_str(&get(url).await?).with_context(|| format!("{url}: not JSON"))
}

/// Posts JSON and returns the body of the successful answer.
///
/// # Errors
///
/// When there is no answer or its status is not 2xx.
pub async fn post_json(url: &str, body: &Value) -> Result<String> {
    text(client()?.post(url).json(body).send().await?).await
}

async fn text(response: Response) -> Result<String> {
    let (status, url) = (response.status(), response.url().clone());
    let body = response.text().await?;
    if !status.is_success() {
        bail!("{url}: {status}: {}", body.chars().take(300).collect::<String>());
    }
    Ok(body)
}
