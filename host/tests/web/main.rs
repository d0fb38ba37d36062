//! The HTTP server: its limits, and what its web configuration file makes of it.

mod bad_files;
mod certificates;
mod limits;
mod security;
mod server;
