//! The journal under concurrency, failure, crash and flood.
