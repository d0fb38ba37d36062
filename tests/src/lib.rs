//! The lab: real systemd, Docker, Redis, Prometheus and Alertmanager for the end-to-end tests,
//! `make up` and `make demo`.
//!
//! Everything the lab starts lives in namespaces of its own ([`namespace`]) and in one folder under
//! `.run/lab/`, so that whatever ends the run also ends all of it. The programs come from
//! `tests/fetch-tools.sh` ([`tools`]). Nothing here is part of the product: the two binaries are run
//! as a user would run them ([`binaries`]).

// The lab's purpose is to start other programs; the ban is for the two product binaries.
#![allow(clippy::disallowed_types)]

pub mod alerting;
pub mod alertmanager;
pub mod binaries;
pub mod dashboard;
pub mod demo;
pub mod disk;
pub mod engine;
pub mod exposition;
pub mod http;
pub mod inside;
pub mod mounts;
pub mod namespace;
pub mod peers;
pub mod private_host;
pub mod process;
pub mod prometheus;
pub mod receiver;
pub mod redis_server;
pub mod run_dir;
pub mod screen;
pub mod stack;
pub mod systemd_host;
pub mod tools;
pub mod up;
pub mod wait;
