//! The `evenkeel-remediator` binary; see the library for how it works.

use std::process::ExitCode;

fn main() -> ExitCode {
    evenkeel_remediator::cli::main()
}
