//! What the commands for people have in common once they are inside: a runtime that ends when it is
//! asked to, and steps that say what they are doing.

use std::{
    future::Future,
    io::{Write as _, stdout},
    time::Instant,
};

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::namespace::Lifeline;

/// Runs `work` to its end, or until the outside process asks for the end: then `work` is dropped, and
/// with it everything that it has started.
///
/// # Errors
///
/// Those of `work`.
pub fn run(lifeline: Lifeline, work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        // Ctrl-C reaches this process too; the outside one decides, so that all ends in order.
        let _ignored = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ];
        let (asked, was_asked) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            lifeline.wait();
            // The work may have ended meanwhile.
            asked.send(()).ok();
        });
        tokio::select! {
            result = work => result,
            _ = was_asked => {
                println!("\nending …");
                Ok(())
            }
        }
    })
}

/// Says what is being done, does it, and says how long it took.
///
/// # Errors
///
/// Those of `work`.
pub async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    print!("{what} … ");
    stdout().flush()?;
    let start = Instant::now();
    let result = work.await;
    match &result {
        Ok(_) => println!("{:.1} s", start.elapsed().as_secs_f64()),
        Err(_) => println!("failed"),
    }
    result
}
