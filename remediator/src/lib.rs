//! Receives Alertmanager's webhooks, looks at the host itself, runs the mapped repair within its limits, measures
//! whether it helped, and says so when it did not.
//!
//! A webhook's way: `server` → `webhook` → `rules` → `journal`, 200; then `worker` → `walk` → `assess` → `admission` →
//! `actions` → `verify`. What changes the host is in `actions` alone.

pub mod actions;
pub mod admission;
pub mod api;
pub mod assess;
pub mod attend;
pub mod check_config;
pub mod cli;
pub mod clock;
mod complaint;
mod conditions;
pub mod config;
pub mod control;
pub mod daemon;
pub mod drill;
pub mod explain;
pub mod filling;
pub mod fleet;
pub mod fullness;
pub mod generate;
mod greeting;
pub mod helper;
pub mod history;
mod hosts;
pub mod instance;
pub mod journal;
pub mod matcher;
pub mod metrics;
pub mod notify;
pub mod observe;
pub mod outcome;
mod outgoing;
mod page;
pub mod pattern;
pub mod pipeline;
pub mod policy;
pub mod reconcile;
pub mod rules;
pub mod selftest;
pub mod serve;
pub mod server;
pub mod simulate;
pub mod standing;
pub mod status;
pub mod systemd;
pub mod target;
pub mod text;
pub mod trust;
pub mod verify;
pub mod walk;
pub mod webhook;
pub mod worker;
