//! What this program was built from. The Makefile says the revision and the compiler; a plain `cargo build` does not.

/// The version of the workspace, which all its programs share.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit.
pub const REVISION: &str = match option_env!("EVENKEEL_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The compiler.
pub const RUSTC: &str = match option_env!("EVENKEEL_RUSTC") {
    Some(version) => version,
    None => "unknown",
};

/// All of it, as `--version` prints it.
pub fn line() -> String {
    format!("{VERSION} (revision {REVISION}, rustc {RUSTC})")
}
