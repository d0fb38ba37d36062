//! The HTTP server both binaries share: where to listen, limits, replies and the metrics text formats.
//! Not here: routes and their meaning (each binary's own).

mod body;
pub mod exposition;
mod listener;
pub mod reply;
mod serve;
mod stall;

pub use self::{
    body::Body,
    listener::{AddressError, BindError, ListenAddress, Listener, Peer},
    serve::{BodyError, Limits, read_body, serve},
};

/// What a handler gets.
pub type Request = hyper::Request<hyper::body::Incoming>;

/// What a handler gives back.
pub type Response = hyper::Response<Body>;
