//! The walk with scripted eyes and fake hands: every end, every limit, every crash. No daemon, no root, no real time.

mod approvals;
mod asking;
mod bench;
mod between;
mod busy;
mod crash;
mod ends;
mod holds;
mod hostile;
mod limits;
mod refusals;
mod schedules;
mod texts;
mod together;
