//! What several tests use together, because starting it costs seconds: never broken by any of them.

use std::sync::Arc;

use anyhow::Result;
use evenkeel_tests::engine::{Engine, Options};
use tokio::sync::OnceCell;

/// An engine for small containers and systemd hosts. A test that fills or freezes an engine starts its own.
pub(crate) async fn engine() -> Result<Arc<Engine>> {
    static ENGINE: OnceCell<Arc<Engine>> = OnceCell::const_new();
    let start = async || Ok(Arc::new(Engine::start(Options::default()).await?));
    ENGINE.get_or_try_init(start).await.cloned()
}
