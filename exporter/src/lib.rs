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

use evenkeel_host::web::{self, Limits, Listener};
use tokio_util::sync::CancellationToken;

use crate::{collectors::Collector, config::Options, routes::App, scrape::Scraper};

/// Serves this host's metrics until `shutdown`, then lets running requests end.
pub async fn run(options: Options, listeners: Vec<Listener>, shutdown: CancellationToken) {
    let collectors = collectors::build(&options, &shutdown);
    serve(collectors, options.telemetry_path, listeners, shutdown).await;
}

/// Serves the metrics of any collectors.
pub async fn serve(
    collectors: Vec<Arc<dyn Collector>>,
    telemetry_path: String,
    listeners: Vec<Listener>,
    shutdown: CancellationToken,
) {
    let app = Arc::new(App { scraper: Scraper::new(collectors), telemetry_path });
    let handler = move |request, _peer| routes::handle(Arc::clone(&app), request);
    web::serve(listeners, Limits::default(), handler, shutdown).await;
}
