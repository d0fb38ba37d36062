//! `evenkeel-exporter`: publishes the truth about this host for Prometheus and changes nothing.
//!
//! A scrape's way: [`routes`] → [`scrape`] (deadline, all collectors at once) → [`collectors`] → samples → text. What the
//! collectors saw is the [`evidence`] that [`expectations`] are judged by, in the same scrape.

pub mod by_root;
pub mod check;
pub mod cli;
pub mod collectors;
pub mod config;
pub mod evidence;
pub mod expectations;
pub mod generate;
mod landing;
pub mod routes;
pub mod scrape;

use std::sync::Arc;

use evenkeel_host::web::{self, Caller, Limits, Listener, Request, Security};
use tokio_util::sync::CancellationToken;

use crate::{
    collectors::Collector,
    config::{Options, WebOptions},
    expectations::Expectations,
    routes::App,
    scrape::Scraper,
};

/// Serves this host's metrics until `shutdown`, then lets running requests end.
pub async fn run(options: Options, listeners: Vec<Listener>, shutdown: CancellationToken) {
    let collectors = collectors::build(&options, &shutdown);
    let expectations = expectations(&options);
    let WebOptions { telemetry_path, max_requests, security } = options.web;
    let scraper = Scraper::new(collectors, expectations, security.clone());
    let app = Arc::new(App::new(scraper, telemetry_path, max_requests));
    // The log says at the start what is watched and what is not, and not only when somebody asks for it.
    let first = Arc::clone(&app);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move { first.look().await }));
    answer(app, security, listeners, shutdown).await;
}

/// What is expected of this host, unless a flag says that nothing is.
pub fn expectations(options: &Options) -> Option<Expectations> {
    options.collectors.contains(&expectations::NAME).then(|| Expectations::new(&options.config))
}

/// Serves the metrics of any collectors.
pub async fn serve(
    collectors: Vec<Arc<dyn Collector>>,
    expectations: Option<Expectations>,
    web: WebOptions,
    listeners: Vec<Listener>,
    shutdown: CancellationToken,
) {
    let WebOptions { telemetry_path, max_requests, security } = web;
    let scraper = Scraper::new(collectors, expectations, security.clone());
    let app = Arc::new(App::new(scraper, telemetry_path, max_requests));
    answer(app, security, listeners, shutdown).await;
}

async fn answer(app: Arc<App>, security: Security, listeners: Vec<Listener>, shutdown: CancellationToken) {
    let handler = move |request: Request, _: Caller| routes::handle(Arc::clone(&app), request);
    web::serve(listeners, Limits::default(), security, handler, shutdown).await;
}
