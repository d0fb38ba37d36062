//! One Redis.

use std::fs;

use anyhow::Result;
use evenkeel_tests::{namespace, redis_server::RedisServer};

use crate::{
    cpu::Clock,
    floors,
    period::{self, Cost, Station},
    program::{Program, Setting},
    table::{Row, ms, short},
};

/// In milliseconds.
const GOAL: f64 = 0.3;

pub(crate) struct Redis {
    server: RedisServer,
    source: Clock,
}

impl Redis {
    pub(crate) async fn start() -> Result<Self> {
        let server = RedisServer::start().await?;
        // What it does by itself ten times a second would hide what it does for us.
        server.ask("CONFIG SET hz 1").await?;
        let source = Clock::of(&[server.id()]);
        Ok(Self { server, source })
    }

    pub(crate) fn station(&self) -> Result<Station> {
        let config = namespace::place("redis-config")?.join("exporter.yml");
        fs::write(&config, format!("redis: [{{name: bench, url: \"{}\"}}]\n", self.server.url()))?;
        let config = format!("--config.file={}", config.display());
        let setting = Setting::flags(&["--collector.disable-defaults", "--collector.redis", &config]);
        Ok(Station { setting, source: self.source.clone() })
    }

    pub(crate) async fn rows(&self, (program, cost): (Program, Cost)) -> Result<Vec<Row>> {
        drop(program);
        let port = self.server.port();
        let mut kept = floors::redis(port)?;
        let bare = floors::measure(self.source.clone(), 20, move || floors::ping_info(&mut kept)).await?;
        let anew = floors::measure(self.source.clone(), 20, move || floors::connect_ping_info(port)).await?;
        let address = format!("--redis.addr=redis://127.0.0.1:{port}");
        let peer = Program::peer("redis_exporter", &Setting::flags(&[&address])).await?;
        let peer = period::peer(&peer, &self.source, 20).await?;
        let beside = format!(
            "PING and INFO alone {}, with a new connection {}; redis_exporter {} ({:.0} ×)",
            ms(bare.total()),
            ms(anew.total()),
            ms(peer.0 + peer.1),
            (peer.0 + peer.1) / cost.total()
        );
        let measured = format!("{} ({} + {})", ms(cost.total()), short(cost.exporter), short(cost.source));
        let row = Row::new("Redis: CPU per scrape, exporter and redis-server", measured);
        Ok(vec![row.beside(beside).at_most(cost.total(), GOAL, "ms")])
    }
}
