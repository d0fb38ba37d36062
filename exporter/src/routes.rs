//! The exporter's few paths: what is asked for, and what is refused with which code.

use std::sync::Arc;

use evenkeel_host::web::{Request, Response, reply};
use hyper::{HeaderMap, Method, StatusCode};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    landing,
    scrape::{Budget, Scraper},
};

/// What every request needs.
pub struct App {
    scraper: Scraper,
    telemetry_path: String,
    max_requests: usize,
    /// One for each scrape that may be under way; `None` for any number.
    scrapes: Option<Semaphore>,
}

impl App {
    /// These collectors' metrics at this path, asked for by at most `max_requests` at a time; 0 for any number.
    pub fn new(scraper: Scraper, telemetry_path: String, max_requests: usize) -> Self {
        let scrapes = (max_requests > 0).then(|| Semaphore::new(max_requests.min(Semaphore::MAX_PERMITS)));
        Self { scraper, telemetry_path, max_requests, scrapes }
    }

    /// Looks once, for the log alone.
    pub async fn look(&self) {
        self.scraper.all(Budget::of(Instant::now(), &HeaderMap::new())).await;
    }
}

/// Answers one request.
pub async fn handle(app: Arc<App>, request: Request) -> Response {
    let arrival = Instant::now();
    let path = request.uri().path();
    let is_metrics = path == app.telemetry_path;
    if !is_metrics && !matches!(path, "/" | "/-/healthy" | "/-/ready") {
        return reply::not_found();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return reply::method_not_allowed("GET, HEAD");
    }
    match path {
        _ if is_metrics => metrics(&app, &request, arrival).await,
        "/" => landing::page(&app.telemetry_path, &app.scraper.status()),
        "/-/healthy" => reply::text(StatusCode::OK, "healthy\n"),
        _ => reply::text(StatusCode::OK, "ready\n"),
    }
}

async fn metrics(app: &App, request: &Request, arrival: Instant) -> Response {
    let _turn = match app.scrapes.as_ref().map(Semaphore::try_acquire).transpose() {
        Ok(turn) => turn,
        Err(_) => {
            let limit = app.max_requests;
            return reply::text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("limit of concurrent requests reached ({limit}), try again later\n"),
            );
        }
    };
    let budget = Budget::of(arrival, request.headers());
    let names: Vec<&'static str> = app.scraper.names().collect();
    match Selection::of(request.uri().query().unwrap_or_default(), &names) {
        Ok(Selection::All) => app.scraper.all(budget).await.respond(request.headers()),
        Ok(Selection::Some(chosen)) => app.scraper.some(&chosen, budget).await.respond(request.headers()),
        Err(refusal) => reply::text(StatusCode::BAD_REQUEST, format!("{refusal}\n")),
    }
}

/// Which collectors a scrape asks for, with node_exporter's `collect[]` and `exclude[]`.
#[derive(Debug, PartialEq, Eq)]
enum Selection {
    All,
    Some(Vec<&'static str>),
}

/// Why a query is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("collect[] and exclude[] exclude each other, use one of them")]
    Both,
    #[error("no collector `{name}` is running, only: {running}")]
    Unknown { name: String, running: String },
}

impl Selection {
    fn of(query: &str, running: &[&'static str]) -> Result<Self, Refusal> {
        let (mut collect, mut exclude) = (Vec::new(), Vec::new());
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let list = match key.as_ref() {
                "collect[]" => &mut collect,
                "exclude[]" => &mut exclude,
                // Prometheus may add parameters of its own.
                _ => continue,
            };
            match running.iter().find(|name| **name == value) {
                Some(name) => list.push(*name),
                None => {
                    let name = value.chars().filter(|c| !c.is_control()).take(64).collect();
                    return Err(Refusal::Unknown { name, running: running.join(", ") });
                }
            }
        }
        match (collect.is_empty(), exclude.is_empty()) {
            (true, true) => Ok(Self::All),
            (false, true) => Ok(Self::Some(collect)),
            (true, false) => {
                Ok(Self::Some(running.iter().filter(|name| !exclude.contains(name)).copied().collect()))
            }
            (false, false) => Err(Refusal::Both),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_selected_by_query() {
        let running = ["systemd", "docker", "redis"];
        let unknown = |name: &str| {
            Err(Refusal::Unknown { name: name.to_owned(), running: "systemd, docker, redis".to_owned() })
        };
        for (query, selection) in [
            ("", Ok(Selection::All)),
            ("other=1&&=", Ok(Selection::All)),
            ("collect[]=docker", Ok(Selection::Some(vec!["docker"]))),
            ("collect%5B%5D=docker&collect%5B%5D=redis", Ok(Selection::Some(vec!["docker", "redis"]))),
            ("exclude[]=docker", Ok(Selection::Some(vec!["systemd", "redis"]))),
            ("exclude[]=docker&exclude[]=systemd&exclude[]=redis", Ok(Selection::Some(vec![]))),
            ("collect[]=docker&exclude[]=redis", Err(Refusal::Both)),
            ("collect[]=", unknown("")),
            ("collect[]=nope", unknown("nope")),
            ("exclude[]=%0a%1b[31mx", unknown("[31mx")),
        ] {
            assert_eq!(Selection::of(query, &running), selection, "{query}");
        }
    }
}
