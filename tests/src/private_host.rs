//! A small host to watch or to break where the machine itself is none: Docker on a disk of its own, a
//! real systemd with one service, a container with a healthcheck, a Redis.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};

use crate::{
    binaries::Surroundings,
    engine::{Engine, Options},
    redis_server::RedisServer,
    systemd_host::SystemdHost,
    wait::wait_for,
};

/// The service on it.
pub const SERVICE: &str = "shop-api.service";
/// The container on it: well after every start, sick when `/well` is gone.
pub const CONTAINER: &str = "shop-web";

/// Long enough for a loaded machine; every wait ends as soon as the fact is there.
const SOON: Duration = Duration::from_secs(30);

const UNIT: &str = "[Unit]\nDescription=The shop's API\n[Service]\nExecStart=/bin/sleep infinity\n";

/// A running host. Dropping it ends everything on it.
#[derive(Debug)]
pub struct PrivateHost {
    /// Its Redis.
    pub redis: RedisServer,
    /// Its systemd.
    pub systemd: SystemdHost,
    /// Its Docker.
    pub engine: Arc<Engine>,
}

impl PrivateHost {
    /// Starts all of it and waits until service and container are well.
    ///
    /// # Errors
    ///
    /// When a part does not come up.
    pub async fn start(disk_mib: u64) -> Result<Self> {
        let engine = Arc::new(Engine::start(Options { disk_mib, ..Options::default() }).await?);
        let (systemd, redis) =
            tokio::try_join!(SystemdHost::start(Arc::clone(&engine)), RedisServer::start())?;
        let host = Self { redis, systemd, engine };
        host.systemd.install_unit(SERVICE, UNIT).await?;
        host.systemd.systemctl(&["start", SERVICE]).await?;
        host.run_container(CONTAINER, "test -e /well").await?;
        wait_for("the container to be healthy", SOON, async || {
            match host.health(CONTAINER).await?.as_str() {
                "healthy" => Ok(()),
                other => bail!("it is {other}"),
            }
        })
        .await?;
        // So that reports hold the service's last lines.
        wait_for("the host's journal", SOON, async || host.systemd.lend_journal().await).await?;
        Ok(host)
    }

    /// Starts a container whose healthcheck is `probe`, asked every second.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub async fn run_container(&self, name: &str, probe: &str) -> Result<()> {
        let often =
            ["--name", name, "--health-interval", "1s", "--health-retries", "2", "--health-cmd", probe];
        // Without the trap the first process of a container would not end when it is asked to.
        let program = "touch /well; trap 'exit 0' TERM; sleep 1000000 & wait";
        self.engine.run(&often, &["sh", "-c", program]).await.map(drop)
    }

    /// What Docker says of a container's health.
    ///
    /// # Errors
    ///
    /// When there is no such container or it has no healthcheck.
    pub async fn health(&self, container: &str) -> Result<String> {
        self.engine.inspect(container, "{{.State.Health.Status}}").await
    }

    /// Where exporter and remediator find it.
    #[must_use]
    pub fn surroundings(&self) -> Surroundings {
        Surroundings { bus: Some(self.systemd.bus_address()), docker: Some(self.engine.host()) }
    }
}
