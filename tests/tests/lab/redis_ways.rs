//! Every way to a real Redis, and everything that can be wrong with it: each has its own reason, and one does not cost the
//! others their answer.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Exporter, built},
    exposition::Exposition,
    namespace,
    process::free_port,
    redis_server::RedisServer,
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::net::TcpStream;

use crate::trial;

const SOON: Duration = Duration::from_secs(30);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("redis_every_way_to_it_says_what_is_wrong", every_way_says_what_is_wrong)]
}

async fn every_way_says_what_is_wrong() -> Result<()> {
    let dir = namespace::place("ways")?;
    let (at, free) = (dir.display(), free_port()?);
    fs::write(dir.join("pass"), "s3cret-of-the-lab\n")?;
    fs::set_permissions(dir.join("pass"), fs::Permissions::from_mode(0o600))?;
    let guarded = guarded(&dir).await?;
    let (secured, tls_port) = secured(&dir).await?;
    let misconfigured = misconfigured().await?;
    let loading = loading(&dir).await?;
    let full = RedisServer::start_with(&["--save", "", "--maxclients", "1"]).await?;
    let held = TcpStream::connect(("127.0.0.1", full.port())).await?;
    let frozen = RedisServer::start().await?;
    let frost = frozen.freeze()?;

    // The name of each, the way to it, and what is to be found: reached, ready, and why not.
    let user = format!("username: exporter, password_file: {at}/pass");
    let ca = format!("ca_file: {at}/ca.pem");
    let address = |server: &RedisServer| format!("url: 'redis://127.0.0.1:{}'", server.port());
    let ways = [
        ("acl", format!("{}, {user}", address(&guarded)), (1.0, 1.0, None)),
        ("socket", format!("url: 'unix://{at}/redis.sock', {user}"), (1.0, 1.0, None)),
        ("tls", format!("url: 'rediss://127.0.0.1:{tls_port}', {ca}"), (1.0, 1.0, None)),
        ("no-password", address(&guarded), (0.0, 0.0, Some("auth"))),
        ("not-trusted", format!("url: 'rediss://127.0.0.1:{tls_port}'"), (0.0, 0.0, Some("tls"))),
        ("another-name", format!("url: 'rediss://localhost:{tls_port}', {ca}"), (0.0, 0.0, Some("tls"))),
        // It waits for the end of what it takes for a line.
        (
            "not-tls",
            format!("url: 'rediss://127.0.0.1:{}', {ca}", secured.port()),
            (0.0, 0.0, Some("response_timeout")),
        ),
        ("nobody", format!("url: 'redis://127.0.0.1:{free}'"), (0.0, 0.0, Some("refused"))),
        ("no-socket", format!("url: 'unix://{at}/none.sock'"), (0.0, 0.0, Some("refused"))),
        ("no-name", "url: 'redis://no-such-host.invalid'".to_owned(), (0.0, 0.0, Some("dns"))),
        ("misconfigured", address(&misconfigured), (1.0, 0.0, Some("error_reply"))),
        ("loading", address(&loading), (1.0, 0.0, Some("loading"))),
        ("full", address(&full), (0.0, 0.0, Some("error_reply"))),
        ("frozen", address(&frozen), (0.0, 0.0, Some("response_timeout"))),
    ];
    let entries: Vec<String> = ways.iter().map(|(name, way, _)| format!("{{name: {name}, {way}}}")).collect();
    fs::write(dir.join("exporter.yml"), format!("redis: [{}]\n", entries.join(", ")))?;
    let mut command = tools::command(built("evenkeel-exporter")?);
    command.args(["--collector.disable-defaults", "--collector.redis", "--log.level=trace"]);
    command.arg(format!("--config.file={at}/exporter.yml"));
    let exporter = Exporter::start_as(&dir, free_port()?, command).await?;

    let expected: BTreeMap<&str, _> = ways.iter().map(|(name, _, found)| (*name, *found)).collect();
    wait_for("what is to be found", SOON, async || {
        let scrape = exporter.scrape().await?;
        let mut seen = BTreeMap::new();
        for name in expected.keys() {
            seen.insert(*name, found(&scrape, name)?);
        }
        let as_expected = |name: &str, (up, ready, failure): &(f64, f64, Option<String>)| {
            expected[name] == (*up, *ready, failure.as_deref())
        };
        let wrong: Vec<_> = seen.iter().filter(|(name, found)| !as_expected(name, found)).collect();
        ensure!(wrong.is_empty(), "{wrong:?}");
        Ok(())
    })
    .await?;
    let log = exporter.process().log();
    ensure!(!log.contains("s3cret"), "the password is in the log: {log}");
    drop((held, frost));
    Ok(())
}

/// Reached, ready, and the reason.
fn found(scrape: &Exposition, name: &str) -> Result<(f64, f64, Option<String>)> {
    let labels = [("redis", name)];
    let value = |metric| scrape.value(metric, &labels).with_context(|| format!("no {metric} of {name}"));
    let failure = scrape.all("redis_probe_failure", &labels).find(|sample| sample.value > 0.0);
    Ok((value("redis_up")?, value("redis_ready")?, failure.map(|sample| sample.labels["reason"].clone())))
}

/// Lets in one user only, who may do only what a probe does; also by a socket file.
async fn guarded(dir: &Path) -> Result<RedisServer> {
    let socket = dir.join("redis.sock");
    let socket = socket.to_str().context("the lab's paths are UTF-8")?;
    let exporter = ["--user", "exporter", "on", ">s3cret-of-the-lab", "+ping", "+info"];
    let settings = [&["--save", "", "--unixsocket", socket][..], &exporter, &["--user", "default", "off"]];
    RedisServer::start_with(&settings.concat()).await
}

/// Speaks TLS on a second port, with a certificate for 127.0.0.1 by the CA in `ca.pem`.
async fn secured(dir: &Path) -> Result<(RedisServer, u16)> {
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
    let (key, mut parameters) = (KeyPair::generate()?, CertificateParams::default());
    parameters.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse()?)];
    let certificate = parameters.signed_by(&key, &authority)?;
    for (name, pem) in
        [("ca.pem", authority.pem()), ("server.crt", certificate.pem()), ("server.key", key.serialize_pem())]
    {
        fs::write(dir.join(name), pem)?;
    }
    let port = free_port()?;
    let at = |name: &str| dir.join(name).display().to_string();
    let (port_text, ca, crt, key) = (port.to_string(), at("ca.pem"), at("server.crt"), at("server.key"));
    let files = ["--tls-ca-cert-file", &ca, "--tls-cert-file", &crt, "--tls-key-file", &key];
    let settings = [&["--save", "", "--tls-port", &port_text, "--tls-auth-clients", "no"][..], &files];
    Ok((RedisServer::start_with(&settings.concat()).await?, port))
}

/// Could not write its last snapshot, and therefore refuses writes, and PING.
async fn misconfigured() -> Result<RedisServer> {
    let server = RedisServer::start_with(&["--save", "3600 1", "--dir", "/proc"]).await?;
    server.ask("SET a 1").await?;
    server.ask("BGSAVE").await?;
    wait_for("redis to refuse PING", SOON, async || {
        let answer = server.ask("PING").await?;
        ensure!(answer.starts_with("-MISCONF"), "{answer}");
        Ok(())
    })
    .await?;
    Ok(server)
}

/// Reads its data, slowly.
async fn loading(dir: &Path) -> Result<RedisServer> {
    let before = RedisServer::start_in(dir, &["--save", ""]).await?;
    before.ask("EVAL \"for i=1,20000 do redis.call('SET','k'..i,i) end\" 0").await?;
    let saved = before.ask("SAVE").await?;
    ensure!(saved == "+OK", "{saved}");
    drop(before);
    // Microseconds for each key, and how often it listens meanwhile.
    let slow = ["--save", "", "--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"];
    let server = RedisServer::start_in(dir, &slow).await?;
    let answer = server.ask("PING").await?;
    ensure!(answer.starts_with("-LOADING"), "{answer}");
    Ok(server)
}
