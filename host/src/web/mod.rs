//! The HTTP server both binaries share: where to listen, who is let in, limits, replies and the metrics text formats.
//! Not here: routes and their meaning (each binary's own).

mod activation;
mod body;
mod connection;
pub mod exposition;
mod guard;
mod listener;
pub mod page;
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

#[cfg(feature = "foreign-input")]
pub(crate) use security::PARSERS as SECURITY_PARSERS;

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[
    crate::foreign_input::Parser {
        name: "Accept and Accept-Encoding",
        parse: exposition::negotiate,
        samples: &[
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "br, gzip;q=0.1, *;q=0",
        ],
    },
    crate::foreign_input::Parser {
        name: "listen addresses",
        parse: |bytes| drop(crate::foreign_input::text(bytes).parse::<ListenAddress>()),
        samples: &["127.0.0.1:19847", "[::1]:1", ":80", "unix:/run/x.sock"],
    },
];
