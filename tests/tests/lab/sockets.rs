//! The exporter on sockets that systemd has bound for it.

use std::time::Duration;

use anyhow::{Result, ensure};
use evenkeel_tests::{binaries::built, wait::wait_for};
use libtest_mimic::Trial;

use crate::{shared, trial};

const SOCKET: &str = "lab-exporter.socket";
const SERVICE: &str = "lab-exporter.service";
const PROGRAM: &str = "/usr/local/bin/lab-exporter";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("systemd_passes_its_sockets_to_the_exporter", systemd_passes_its_sockets)]
}

async fn systemd_passes_its_sockets() -> Result<()> {
    let (engine, host) = (shared::engine().await?, shared::host().await?);
    let program = built("evenkeel-exporter")?.display().to_string();
    engine.docker(&["cp", &program, &format!("{}:{PROGRAM}", host.name())]).await?;
    let service =
        format!("[Service]\nExecStart={PROGRAM} --web.systemd-socket --collector.disable-defaults\n");
    host.install_unit(SERVICE, &service).await?;
    let socket = "[Socket]\nListenStream=127.0.0.1:19847\nListenStream=/run/lab-exporter.sock\nFileDescriptorName=metrics\n";
    host.install_unit(SOCKET, socket).await?;
    host.systemctl(&["start", SOCKET]).await?;
    ensure!(host.property(SERVICE, "ActiveState").await?.trim() == "inactive", "nobody has asked yet");

    // The first connection starts it, and is answered all the same.
    let ask = "exec 3<>/dev/tcp/127.0.0.1/19847; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let answer = host.exec(&["bash", "-c", ask]).await?;
    ensure!(answer.contains("evenkeel_exporter_build_info{"), "{answer}");
    ensure!(host.property(SERVICE, "ActiveState").await?.trim() == "active");
    let listening =
        host.exec(&["sh", "-c", "journalctl --sync; journalctl --no-pager -u lab-exporter"]).await?;
    for address in ["127.0.0.1:19847", "unix:/run/lab-exporter.sock"] {
        ensure!(listening.contains(&format!("address=\"{address}\"")), "{listening}");
    }

    // The sockets are systemd's: they outlive the exporter, and the next connection starts it again.
    host.systemctl(&["stop", SERVICE]).await?;
    host.exec(&["test", "-S", "/run/lab-exporter.sock"]).await?;
    let answer = host.exec(&["bash", "-c", ask]).await?;
    ensure!(answer.contains("evenkeel_exporter_build_info{"), "{answer}");

    // A connection instead of a socket is no place to listen.
    host.systemctl(&["stop", SOCKET, SERVICE]).await?;
    host.install_unit(SOCKET, "[Socket]\nListenStream=127.0.0.1:19847\nAccept=yes\n").await?;
    host.install_unit("lab-exporter@.service", &service).await?;
    host.systemctl(&["start", SOCKET]).await?;
    host.exec(&["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/19847; cat <&3"]).await?;
    let said = wait_for("the refusal", Duration::from_secs(30), async || {
        let said =
            host.exec(&["sh", "-c", "journalctl --sync; journalctl --no-pager -u 'lab-exporter@*'"]).await?;
        ensure!(said.contains("in its socket unit write ListenStream= and Accept=no"), "{said}");
        Ok(())
    });
    let said = said.await;
    host.systemctl(&["stop", SOCKET]).await?;
    said
}
