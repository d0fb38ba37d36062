//! The exporter on sockets that systemd has bound for it, and on sockets that others can reach.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use evenkeel_tests::{
    binaries::built,
    namespace,
    process::{Process, free_port},
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use rcgen::{CertificateParams, KeyPair};

use crate::{shared, trial};

const SOCKET: &str = "lab-exporter.socket";
const SERVICE: &str = "lab-exporter.service";
const PROGRAM: &str = "/usr/local/bin/lab-exporter";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("systemd_passes_its_sockets_to_the_exporter", systemd_passes_its_sockets),
        trial("sockets_beyond_loopback_are_warned_about", beyond_loopback_is_warned_about),
    ]
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

/// Nobody is there to reach them: the lab's network is loopback and nothing else.
async fn beyond_loopback_is_warned_about() -> Result<()> {
    let dir = namespace::place("beyond")?;
    let (key, parameters) = (KeyPair::generate()?, CertificateParams::default());
    fs::write(dir.join("server.crt"), parameters.self_signed(&key)?.pem())?;
    fs::write(dir.join("server.key"), key.serialize_pem())?;
    let tls = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n";
    let users = "basic_auth_users: {lab: $2b$04$1Y8gS3FNPMt5i4GlTSEQleQv8nZ0EzD2sLDg6rsZ3dJ0mBHjXEg9a}\n";
    let both = format!("{tls}{users}");
    let (everyone, in_clear) = ("no authentication: whoever reaches", "no TLS: passwords cross");
    for (host, web, expected) in [
        ("127.0.0.1", "", [false, false]),
        ("", "", [true, false]),
        ("0.0.0.0", "", [true, false]),
        ("0.0.0.0", tls, [true, false]),
        ("0.0.0.0", users, [false, true]),
        ("0.0.0.0", &both, [false, false]),
    ] {
        let log = log_of_start(&dir, host, web).await?;
        let said = [everyone, in_clear].map(|words| log.contains(words));
        ensure!(said == expected, "on {host:?} with {web:?}: {log}");
    }
    Ok(())
}

/// What the exporter says when it starts to listen on an address with a web configuration.
async fn log_of_start(dir: &Path, host: &str, web: &str) -> Result<String> {
    let web_file = dir.join("web.yml");
    fs::write(&web_file, web)?;
    let mut command = tools::command(built("evenkeel-exporter")?);
    let address = format!("{host}:{}", free_port()?);
    command.args(["--collector.disable-defaults", "--web.listen-address"]).arg(&address);
    command.arg("--web.config.file").arg(web_file);
    let mut process = Process::start(&format!("listening-{address}"), dir, command)?;
    wait_for("the exporter to listen", Duration::from_secs(20), async || {
        process.check_alive()?;
        ensure!(process.log().contains(" listening "), "{}", process.log());
        Ok(())
    })
    .await?;
    // What it says comes before what it does at the end.
    process.stop()?;
    Ok(process.log())
}
