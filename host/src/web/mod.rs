//! The HTTP server both binaries share: where to listen, who is let in, limits, replies and the metrics text formats.
//! Not here: routes and their meaning (each binary's own).

mod activation;
mod body;
mod connection;
pub mod exposition;
mod guard;
mod listener;
pub mod reply;
mod security;
mod serve;
mod slots;

pub use self::{
    activation::{Inherited, InheritedError},
    body::Body,
    connection::Caller,
    listener::{AddressError, BindError, ListenAddress, Listener, Peer},
    security::{Offers, Security},
    serve::{BodyError, Limits, read_body, serve},
};

/// What a handler gets.
pub type Request = hyper::Request<hyper::body::Incoming>;

/// What a handler gives back.
pub type Response = hyper::Response<Body>;
