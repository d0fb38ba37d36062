//! Whether node_exporter publishes this host's filesystems already: then the same series twice would double everybody's
//! alerts.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Containers, Services, Source};

/// Where it listens unless it is told otherwise.
const ADDRESS: &str = "127.0.0.1:9100";
/// A family of its filesystem collector.
const SERIES: &[u8] = b"\nnode_filesystem_size_bytes{";
/// More than any host's answer, in bytes.
const LONGEST: u64 = 8 << 20;
/// It looks at everything before it answers.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether something at its usual address publishes filesystems under its names.
pub(super) async fn publishes_filesystems() -> bool {
    timeout(PATIENCE, ask(ADDRESS)).await.is_ok_and(|answer| answer.is_ok_and(|answer| has_series(&answer)))
}

async fn ask(address: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer ends with the connection, and comes in one piece.
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn has_series(answer: &[u8]) -> bool {
    answer.windows(SERIES.len()).any(|window| window == SERIES)
}

/// Why it is taken to be here, from what it publishes, from its unit, or from its container.
pub(super) fn found(
    publishes: bool,
    systemd: &Source<Services>,
    docker: &Source<Containers>,
) -> Option<String> {
    if publishes {
        return Some(format!("{ADDRESS} publishes node_filesystem_size_bytes"));
    }
    let is_named = |text: &str| text.contains("node-exporter") || text.contains("node_exporter");
    if let Some(services) = systemd.found() {
        let mut services = services.own.iter().chain(&services.packaged);
        if let Some(service) = services.find(|service| is_named(&service.name) && service.state == "active") {
            return Some(format!("{} is active", service.name));
        }
    }
    let running = docker.found()?.running.iter().find(|container| is_named(&container.image))?;
    Some(format!("container {} runs {}", running.name, running.image))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        docker::Health,
        survey::{Running, Service},
    };

    const NOTHING: Source<Services> = Source::Absent(String::new());
    const NO_CONTAINERS: Source<Containers> = Source::Absent(String::new());

    #[tokio::test]
    async fn it_is_known_by_its_series() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("asked");
            let mut question = [0; 64];
            let asked = stream.read(&mut question).await.expect("read");
            assert!(question[..asked].starts_with(b"GET /metrics HTTP/1.0\r\n"));
            let answer =
                b"HTTP/1.0 200 OK\r\n\r\n# TYPE x gauge\nnode_filesystem_size_bytes{device=\"a\"} 1\n";
            stream.write_all(answer).await.expect("answered");
        });
        assert!(has_series(&ask(&address).await.expect("an answer")));
        assert!(!has_series(b"HTTP/1.0 200 OK\r\n\r\nnode_load1 0.1\n"));
    }

    #[test]
    fn it_is_known_by_its_unit_and_by_its_image() {
        let service = |name: &str, state: &str| Service { name: name.to_owned(), state: state.to_owned() };
        let units = |service| Source::Found(Services { packaged: vec![service], ..Services::default() });
        let active = units(service("prometheus-node-exporter.service", "active"));
        assert_eq!(
            found(false, &active, &NO_CONTAINERS).as_deref(),
            Some("prometheus-node-exporter.service is active")
        );
        assert_eq!(found(false, &units(service("node_exporter.service", "failed")), &NO_CONTAINERS), None);
        let container = Running {
            name: "metrics".to_owned(),
            image: "prom/node-exporter:v1".to_owned(),
            health: Health::None,
        };
        let containers = Source::Found(Containers { running: vec![container], ..Containers::default() });
        assert_eq!(
            found(false, &NOTHING, &containers).as_deref(),
            Some("container metrics runs prom/node-exporter:v1")
        );
        assert!(found(true, &NOTHING, &NO_CONTAINERS).is_some_and(|why| why.contains("127.0.0.1:9100")));
        assert_eq!(found(false, &NOTHING, &NO_CONTAINERS), None);
    }
}
