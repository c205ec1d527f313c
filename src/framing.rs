//! How a message's body ends: decided once, here, from the head, as a type (RFC 9112 6.3).
//!
//! Whoever relays a body is given one of these and never looks at `Content-Length` or `Transfer-Encoding` again.

/// The body of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestBody {
    /// No framing field: no body, and none is announced to the runner.
    None,
    /// `Content-Length`, zero included (it is passed on).
    Length(u64),
    Chunked,
}

/// The body of a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseBody {
    /// No body may follow: HEAD, 1xx, 204, 304. A `Content-Length` in such a head is metadata and passed on.
    None,
    Length(u64),
    Chunked,
    /// Ends when the runner closes; its end cannot be told from truncation.
    UntilClose,
}
