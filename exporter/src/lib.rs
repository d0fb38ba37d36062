//! `evenkeel-exporter`: publishes the truth about this host for Prometheus and changes nothing.
//!
//! A scrape's way: [`routes`] → [`scrape`] (deadline, all collectors at once) → [`collectors`] → samples → text.

pub mod cli;
pub mod collectors;
pub mod config;
mod landing;
pub mod routes;
pub mod scrape;

use std::sync::Arc;

use evenkeel_host::web::{self, Caller, Limits, Listener, Request};
use tokio_util::sync::CancellationToken;

use crate::{
    collectors::Collector,
    config::{Options, WebOptions},
    routes::App,
    scrape::Scraper,
};

/// Serves this host's metrics until `shutdown`, then lets running requests end.
pub async fn run(options: Options, listeners: Vec<Listener>, shutdown: CancellationToken) {
    let collectors = collectors::build(&options, &shutdown);
    serve(collectors, options.web, listeners, shutdown).await;
}

/// Serves the metrics of any collectors.
pub async fn serve(
    collectors: Vec<Arc<dyn Collector>>,
    web: WebOptions,
    listeners: Vec<Listener>,
    shutdown: CancellationToken,
) {
    let WebOptions { telemetry_path, max_requests, security } = web;
    let scraper = Scraper::new(collectors, security.clone());
    let app = Arc::new(App::new(scraper, telemetry_path, max_requests));
    let handler = move |request: Request, _: Caller| routes::handle(Arc::clone(&app), request);
    web::serve(listeners, Limits::default(), security, handler, shutdown).await;
}
