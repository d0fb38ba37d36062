//! What can be known about the shipped rules, configurations and dashboards without running anything: that every
//! expression parses, that every metric and label in it exists, and that alerts, routes, the remediator's rules,
//! runbooks and dashboards agree with each other.
//!
//! What needs Prometheus's own programs is in `alerts/check.sh`; what needs running servers is in the lab.

#![allow(clippy::unwrap_used, reason = "what is not there is the failure that a test is for")]

mod alertmanager;
mod alerts;
mod dashboards;
mod metrics;
mod promql;
mod remediator;
mod repository;
mod rule_tests;
mod rules;
