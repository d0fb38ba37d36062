//! What several tests use together, because starting it costs seconds: never broken by any of them.
//! Units, containers and disks that a test makes there have names of its own.

use std::sync::Arc;

use anyhow::Result;
use evenkeel_tests::{
    binaries::Surroundings,
    engine::{Engine, Options},
    systemd_host::SystemdHost,
};
use tokio::sync::OnceCell;

/// An engine for small containers and systemd hosts. A test that fills or freezes an engine starts its own.
pub(crate) async fn engine() -> Result<Arc<Engine>> {
    static ENGINE: OnceCell<Arc<Engine>> = OnceCell::const_new();
    let start = async || Ok(Arc::new(Engine::start(Options::default()).await?));
    ENGINE.get_or_try_init(start).await.cloned()
}

/// A systemd host for units. A test that freezes or stops a bus starts its own.
pub(crate) async fn host() -> Result<Arc<SystemdHost>> {
    static HOST: OnceCell<Arc<SystemdHost>> = OnceCell::const_new();
    let start = async || Ok(Arc::new(SystemdHost::start(engine().await?).await?));
    HOST.get_or_try_init(start).await.cloned()
}

/// Where exporter and remediator find both.
pub(crate) async fn surroundings() -> Result<Surroundings> {
    Ok(Surroundings { bus: Some(host().await?.bus_address()), docker: Some(engine().await?.host()) })
}
