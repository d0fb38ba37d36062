//! Looks at one Linux host and changes nothing: each module asks one source and answers with plain structs.
//!
//! Both binaries see the host through this crate, so the remediator verifies a repair with the same eyes that
//! raised the alert. What they share besides is here too: the HTTP server, strict config loading, metrics as values.

pub mod blocking;
pub mod build;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod diagnose;
pub mod docker;
pub mod environ;
pub mod filesystem;
#[cfg(feature = "foreign-input")]
pub mod foreign_input;
pub mod journal;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod progress;
pub mod redis;
pub mod resolve;
pub mod survey;
pub mod systemd;
pub mod text;
pub mod web;
