//! `evenkeel-lab`: to be written.

fn main() {}
