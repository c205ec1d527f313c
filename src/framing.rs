//! How a message's body ends: decided once, here, from the head, as a type (RFC 9112 6.3).
//!
//! Whoever relays a body is given one of these and never looks at `Content-Length` or `Transfer-Encoding` again.

use crate::head::{Method, Reject, Version};

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

/// What the framing fields of one head say, gathered field by field. Values come without surrounding SP and HTAB.
#[derive(Default)]
pub(crate) struct FramingFields {
    length: Option<u64>,
    chunked: bool,
}

impl FramingFields {
    /// Takes a `Content-Length` value. A second one is refused even if equal (RFC 9112 6.3 item 5 allows that), and
    /// so is a list: an honest sender has one length to say, and who collapses, joins or picks differs by hop.
    pub(crate) fn content_length(&mut self, value: &[u8]) -> Result<(), Reject> {
        if value.contains(&b',') || self.length.is_some() {
            return Err(Reject::LengthConflict);
        }
        self.length = Some(decimal(value).ok_or(Reject::LengthSyntax)?);
        Ok(())
    }

    /// Takes a `Transfer-Encoding` value. Only one field of exactly `chunked` is understood; a coding in front of it
    /// would pass undecoded to a reader that may know it under another name, and a coding behind it hides the end.
    pub(crate) fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Reject::TransferEncodingUnsupported);
        }
        self.chunked = true;
        Ok(())
    }

    /// RFC 9112 6.3 for requests.
    pub(crate) fn request(&self, version: Version) -> Result<RequestBody, Reject> {
        self.refuse_ambiguity(version)?;
        Ok(match (self.chunked, self.length) {
            (true, _) => RequestBody::Chunked,
            (false, Some(n)) => RequestBody::Length(n),
            (false, None) => RequestBody::None,
        })
    }

    /// RFC 9112 6.3 for responses to a request of method `request`.
    pub(crate) fn response(
        &self,
        version: Version,
        status: u16,
        request: Method,
    ) -> Result<ResponseBody, Reject> {
        self.refuse_ambiguity(version)?;
        Ok(match (self.chunked, self.length) {
            _ if request == Method::Head || matches!(status, 100..=199 | 204 | 304) => ResponseBody::None,
            (true, _) => ResponseBody::Chunked,
            (false, Some(n)) => ResponseBody::Length(n),
            (false, None) => ResponseBody::UntilClose,
        })
    }

    /// A body is announced where none may be (1xx, 204): such a sender may well send it, and what it sends would be
    /// read as the next response.
    pub(crate) fn announces_forbidden_body(&self, status: u16) -> bool {
        matches!(status, 100..=199 | 204) && (self.chunked || self.length.is_some_and(|n| n > 0))
    }

    /// `Transfer-Encoding` overrides `Content-Length` in RFC 9112 6.3 item 3, which also calls the pair a likely
    /// attack; and HTTP/1.0 does not know the field, so an old hop reads such a message differently (6.1).
    fn refuse_ambiguity(&self, version: Version) -> Result<(), Reject> {
        match (self.chunked, self.length, version) {
            (true, _, Version::Http10) => Err(Reject::TransferEncodingOnHttp10),
            (true, Some(_), _) => Err(Reject::LengthWithTransferEncoding),
            _ => Ok(()),
        }
    }
}

/// `1*DIGIT` that fits: `str::parse` would take a sign.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_digits_alone_and_fit_64_bits() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"0042"), Some(42));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "+5", "-5", " 5", "5 ", "0x5", "5a", "5.0", "1_0", "18446744073709551616", "\u{665}"]
        {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn no_body_follows_head_informational_204_and_304() {
        let fields = FramingFields { length: Some(5), chunked: false };
        for (status, method) in
            [(200, Method::Head), (101, Method::Get), (204, Method::Get), (304, Method::Get)]
        {
            assert_eq!(fields.response(Version::Http11, status, method), Ok(ResponseBody::None), "{status}");
        }
        for status in [200, 205, 404, 999] {
            assert_eq!(fields.response(Version::Http11, status, Method::Get), Ok(ResponseBody::Length(5)));
        }
    }

    /// Every pair of framing fields on every kind of message: the whole of RFC 9112 6.3 as this gate reads it.
    #[test]
    fn the_table_of_lengths_and_codings() {
        use Reject::{
            LengthConflict, LengthSyntax, LengthWithTransferEncoding, TransferEncodingOnHttp10,
            TransferEncodingUnsupported,
        };
        type Fields = (&'static [&'static str], &'static [&'static str]);
        let gather = |(lengths, codings): Fields| {
            let mut fields = FramingFields::default();
            lengths.iter().try_for_each(|value| fields.content_length(value.as_bytes()))?;
            codings.iter().try_for_each(|value| fields.transfer_encoding(value.as_bytes()))?;
            Ok::<_, Reject>(fields)
        };
        let request = |fields, version| gather(fields).and_then(|fields| fields.request(version));
        let response =
            |fields, version| gather(fields).and_then(|fields| fields.response(version, 200, Method::Get));
        let (old, new) = (Version::Http10, Version::Http11);
        type Row = (Fields, Result<RequestBody, Reject>, Result<RequestBody, Reject>);
        let rows: &[Row] = &[
            ((&[], &[]), Ok(RequestBody::None), Ok(RequestBody::None)),
            ((&["0"], &[]), Ok(RequestBody::Length(0)), Ok(RequestBody::Length(0))),
            ((&["5"], &[]), Ok(RequestBody::Length(5)), Ok(RequestBody::Length(5))),
            ((&[], &["chunked"]), Ok(RequestBody::Chunked), Err(TransferEncodingOnHttp10)),
            ((&[], &["CHUNKED"]), Ok(RequestBody::Chunked), Err(TransferEncodingOnHttp10)),
            ((&["5"], &["chunked"]), Err(LengthWithTransferEncoding), Err(TransferEncodingOnHttp10)),
            ((&["0"], &["chunked"]), Err(LengthWithTransferEncoding), Err(TransferEncodingOnHttp10)),
            ((&["5", "5"], &[]), Err(LengthConflict), Err(LengthConflict)),
            ((&["5", "6"], &[]), Err(LengthConflict), Err(LengthConflict)),
            ((&["5,5"], &[]), Err(LengthConflict), Err(LengthConflict)),
            ((&[","], &[]), Err(LengthConflict), Err(LengthConflict)),
            ((&[""], &[]), Err(LengthSyntax), Err(LengthSyntax)),
            ((&["+5"], &[]), Err(LengthSyntax), Err(LengthSyntax)),
            (
                (&[], &["chunked", "chunked"]),
                Err(TransferEncodingUnsupported),
                Err(TransferEncodingUnsupported),
            ),
            ((&[], &["identity"]), Err(TransferEncodingUnsupported), Err(TransferEncodingUnsupported)),
            ((&[], &["gzip, chunked"]), Err(TransferEncodingUnsupported), Err(TransferEncodingUnsupported)),
            ((&[], &[""]), Err(TransferEncodingUnsupported), Err(TransferEncodingUnsupported)),
            ((&["5"], &["identity"]), Err(TransferEncodingUnsupported), Err(TransferEncodingUnsupported)),
        ];
        for (fields, on_new, on_old) in rows {
            assert_eq!(request(*fields, new), *on_new, "{fields:?}");
            assert_eq!(request(*fields, old), *on_old, "{fields:?} on HTTP/1.0");
            // A response differs in one thing: without any framing it ends with its connection.
            let as_response = |body: &Result<RequestBody, Reject>| match body {
                Ok(RequestBody::None) => Ok(ResponseBody::UntilClose),
                Ok(RequestBody::Length(n)) => Ok(ResponseBody::Length(*n)),
                Ok(RequestBody::Chunked) => Ok(ResponseBody::Chunked),
                Err(reject) => Err(*reject),
            };
            assert_eq!(response(*fields, new), as_response(on_new), "{fields:?}");
            assert_eq!(response(*fields, old), as_response(on_old), "{fields:?} on HTTP/1.0");
        }
        // Ambiguity is refused where no body may follow, too: the runner that wrote it is not understood.
        let both = gather((&["5"], &["chunked"])).expect("gathered");
        assert_eq!(both.response(new, 204, Method::Get), Err(LengthWithTransferEncoding));
        assert_eq!(both.response(new, 200, Method::Head), Err(LengthWithTransferEncoding));
    }
}
