//! A message head as the plainest reader sees it: split at CRLF and at the first colon. Anything that could be read in
//! another way is a failure here.

/// RFC 9112 2.1, nothing decided about it.
pub struct Message<'b> {
    /// The start line's three parts; a reason phrase is one of them with its spaces, or may be missing.
    pub start: [&'b [u8]; 3],
    /// Names as they stand, values without the SP and HTAB around them.
    pub fields: Vec<(&'b [u8], &'b [u8])>,
}

impl<'b> Message<'b> {
    /// `head` without empty lines in front.
    ///
    /// # Panics
    /// It is not made of lines that end with CRLF, each of them of the grammar (RFC 9112 3, 4 and 5), up to one empty line.
    pub fn read(head: &'b [u8]) -> Self {
        let text =
            head.strip_suffix(b"\r\n\r\n").unwrap_or_else(|| panic!("no end: {}", head.escape_ascii()));
        let mut lines = split(text, b"\r\n");
        assert!(
            lines.iter().all(|line| !line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0))),
            "a bare CR, LF or NUL"
        );
        let mut words = lines.remove(0).splitn(3, |b| *b == b' ');
        let start = [(); 3].map(|()| words.next().unwrap_or_default());
        Self { start, fields: lines.into_iter().map(field).collect() }
    }

    /// Values of all fields of this name, in any case.
    pub fn all(&self, name: &str) -> Vec<&'b [u8]> {
        let named = |(n, _): &&(&[u8], &[u8])| n.eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(named).map(|(_, value)| *value).collect()
    }
}

/// RFC 9112 5: no space before the colon, no folding, no controls but HTAB.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let colon = line.iter().position(|b| *b == b':').expect("a colon");
    let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
    assert!(is_token(name), "a name: {}", name.escape_ascii());
    assert!(
        value.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..)),
        "a value: {}",
        value.escape_ascii()
    );
    (name, value)
}

/// RFC 9110 5.6.2.
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// RFC 9110 5.6.3.
pub fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The members of a list (RFC 9110 5.6.1), empty ones left out.
pub fn members(value: &[u8]) -> Vec<&[u8]> {
    value.split(|b| *b == b',').map(trim).filter(|member| !member.is_empty()).collect()
}

/// As gateways name fields for an application: case and kind of separator are lost.
pub fn folded(name: &[u8]) -> String {
    name.iter()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b.to_ascii_lowercase()) } else { '-' })
        .collect()
}

pub fn split<'b>(text: &'b [u8], separator: &[u8]) -> Vec<&'b [u8]> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.windows(separator.len()).position(|w| w == separator) {
        parts.push(&rest[..at]);
        rest = &rest[at + separator.len()..];
    }
    parts.push(rest);
    parts
}

/// Percent-decoding; a `%` without two hexadecimal digits stands for itself.
pub fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let escape = text.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = escape
            .filter(|digits| text[at] == b'%' && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(byte.unwrap_or(text[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    out
}
