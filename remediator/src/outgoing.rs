//! HTTP clients of the remediator's own: for messages, and for what else it asks of others.

use reqwest::{Client, ClientBuilder};

/// A client, also on a host that has no certificates of authorities: then https fails, and http does not.
///
/// # Errors
/// When no client can be made.
pub(crate) fn client(settings: impl Fn() -> ClientBuilder) -> reqwest::Result<Client> {
    settings().build().or_else(|error| {
        let client = settings().tls_certs_only([]).build()?;
        tracing::warn!(%error, "https is not to be had: install the package ca-certificates");
        Ok(client)
    })
}
