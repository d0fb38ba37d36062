//! Many hosts over one Redis: alerts reach hosts that listen on no port, and what one host does counts for all.
//!
//! `names` is what things are called, `ledger` the front of the scripts in Redis (`lua/`), `reply` and `fault` what it
//! answers and what can be wrong with it. Time is Redis's own throughout: the clocks of the hosts count for nothing. The
//! limits of each host (`journal`) hold beside all of it.

pub mod fault;
pub mod ledger;
pub mod names;
mod reply;
