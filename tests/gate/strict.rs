//! A reader of what runners received that shares nothing with the gate's own: whole streams, split at CRLF, every rule
//! of a canonical message checked.

use super::harness::find;

/// One request as a runner received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    fn values(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    fn one(&self, name: &str) -> Result<&str, String> {
        match self.values(name)[..] {
            [value] => Ok(value),
            ref values => Err(format!("{} fields {name}", values.len())),
        }
    }
}

/// What a connection carried, from its first byte to its last.
#[derive(Debug, Default)]
pub struct Stream {
    /// Whole requests.
    pub requests: Vec<Request>,
    /// A last one whose head is whole and whose body is not.
    pub cut_in_body: bool,
    /// Bytes behind a WebSocket request that are no requests: a tunnel's.
    pub tunnel: Vec<u8>,
}

impl Stream {
    /// How many requests a runner could have begun to execute.
    pub fn begun(&self) -> usize {
        self.requests.len() + usize::from(self.cut_in_body)
    }
}

/// Reads a connection's bytes; an error says which rule was broken and where. A stream may stop anywhere.
pub fn stream(bytes: &[u8]) -> Result<Stream, String> {
    let mut found = Stream::default();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = find(rest, b"\r\n\r\n");
        let read = match length {
            Some(length) => head(&rest[..length]).map(Some),
            None => check_partial(rest).map(|()| None),
        };
        let asked = found.requests.last().is_some_and(|last| last.values("Upgrade") == ["websocket"]);
        let (request, length) = match (read, length) {
            (Ok(Some(request)), Some(length)) => (request, length),
            (Ok(_), _) => return Ok(found),
            (Err(_), _) if asked => {
                found.tunnel = rest.to_vec();
                return Ok(found);
            }
            (Err(rule), _) => {
                let shown = &rest[..rest.len().min(1000)];
                return Err(format!("at {at}: {rule} in {}", shown.escape_ascii()));
            }
        };
        at += length + 4;
        match body(&request, &bytes[at..]).map_err(|rule| format!("at {at}: {rule}"))? {
            Some((body, used)) => {
                at += used;
                found.requests.push(Request { body, ..request });
            }
            None => {
                found.cut_in_body = true;
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// The beginning of a head: what is there must be in order.
fn check_partial(bytes: &[u8]) -> Result<(), String> {
    match bytes.iter().enumerate().find(|(at, b)| **b == b'\n' && (*at == 0 || bytes[at - 1] != b'\r')) {
        Some((at, _)) => Err(format!("bare LF at {at} of a partial head")),
        None => Ok(()),
    }
}

fn head(bytes: &[u8]) -> Result<Request, String> {
    let mut lines = crlf_lines(bytes)?.into_iter();
    let first = lines.next().ok_or("no request line")?;
    let words: Vec<&[u8]> = first.split(|b| *b == b' ').collect();
    let &[method, target, b"HTTP/1.1"] = words.as_slice() else { return Err("request line".into()) };
    if method.is_empty() || !method.iter().all(is_token) {
        return Err("method".into());
    }
    if target.first() != Some(&b'/') || !target.iter().all(u8::is_ascii_graphic) {
        return Err("target".into());
    }
    let mut fields = Vec::new();
    for line in lines {
        let colon = line.iter().position(|b| *b == b':').ok_or("a line without a colon")?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(is_token) {
            return Err(format!("field name {}", name.escape_ascii()));
        }
        let value = value.strip_prefix(b" ").ok_or("no single space behind the colon")?;
        if value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
            return Err(format!("control byte in {}", line.escape_ascii()));
        }
        let edge = |b: Option<&u8>| b.is_some_and(|b| matches!(b, b' ' | b'\t'));
        if edge(value.first()) || edge(value.last()) {
            return Err(format!("space around {}", line.escape_ascii()));
        }
        fields
            .push((String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned()));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let request = Request { method: text(method), target: text(target), fields, body: Vec::new() };
    vouched(&request)?;
    Ok(request)
}

/// What the gate says to a runner: once each, in no other spelling.
fn vouched(request: &Request) -> Result<(), String> {
    const ONCE: [&str; 6] = [
        "host",
        "x-daytona-authorization",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-request-id",
    ];
    const NEVER: [&str; 6] = [
        "keep-alive",
        "proxy-connection",
        "te",
        "http2-settings",
        "x-daytona-preview-token",
        "proxy-authorization",
    ];
    for (name, _) in &request.fields {
        let folded: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let known = ONCE.contains(&&*folded) || ["content-length", "transfer-encoding"].contains(&&*folded);
        if NEVER.contains(&&*folded) || (known && !name.eq_ignore_ascii_case(&folded)) {
            return Err(format!("field {name}"));
        }
    }
    for name in ONCE {
        request.one(name)?;
    }
    if !request.one("x-daytona-authorization")?.starts_with("Bearer ") {
        return Err("the runner's key".into());
    }
    let upgrade = request.values("Upgrade");
    let connection = request.values("Connection");
    match (upgrade.as_slice(), connection.as_slice()) {
        ([], []) | (["websocket"], ["Upgrade"]) => Ok(()),
        other => Err(format!("upgrade {other:?}")),
    }
}

/// `None`: it goes on. Otherwise the body and how many bytes it took.
fn body(request: &Request, bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    match (request.values("Content-Length").as_slice(), request.values("Transfer-Encoding").as_slice()) {
        ([], []) => Ok(Some((Vec::new(), 0))),
        ([length], []) => {
            let n: usize = length.parse().map_err(|_| "length")?;
            if n.to_string() != **length {
                return Err(format!("length {length}"));
            }
            Ok(bytes.get(..n).map(|body| (body.to_vec(), n)))
        }
        ([], ["chunked"]) => chunked(bytes),
        other => Err(format!("framing {other:?}")),
    }
}

fn chunked(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            let rest = &bytes[at..];
            return if rest.len() <= 17 { Ok(None) } else { Err("a size line without end".into()) };
        };
        let line = &bytes[at..at + end];
        let digits = std::str::from_utf8(line).map_err(|_| "size line")?;
        let n = usize::from_str_radix(digits, 16).map_err(|_| format!("size line {digits:?}"))?;
        if format!("{n:x}") != digits {
            return Err(format!("size line {digits:?}"));
        }
        at += end + 2;
        if n == 0 {
            break;
        }
        let Some(data) = bytes.get(at..at + n) else { return Ok(None) };
        body.extend_from_slice(data);
        at += n;
        match bytes.get(at..at + 2) {
            Some(b"\r\n") => at += 2,
            None => return Ok(None),
            Some(other) => return Err(format!("{} behind a chunk", other.escape_ascii())),
        }
    }
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let line = &bytes[at..at + end];
        at += end + 2;
        if line.is_empty() {
            return Ok(Some((body, at)));
        }
        let colon = line.iter().position(|b| *b == b':').ok_or("a trailer without a colon")?;
        let text = line[colon..].iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..));
        if colon == 0 || !line[..colon].iter().all(is_token) || !text {
            return Err(format!("trailer {}", line.escape_ascii()));
        }
    }
}

fn crlf_lines(bytes: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    loop {
        let end = find(rest, b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        if line.iter().any(|b| matches!(b, b'\r' | b'\n')) {
            return Err(format!("CR or LF alone in {}", line.escape_ascii()));
        }
        lines.push(line);
        match end {
            Some(end) => rest = &rest[end + 2..],
            None => return Ok(lines),
        }
    }
}

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// The checker must be able to say no.
#[test]
fn the_strict_reader_finds_what_is_not_canonical() {
    const FIELDS: &str = "Host: r\r\nX-Daytona-Authorization: Bearer k\r\nX-Forwarded-For: 1\r\n\
        X-Forwarded-Host: h\r\nX-Forwarded-Proto: http\r\nX-Request-Id: 1\r\n";
    let good = format!("POST /x HTTP/1.1\r\n{FIELDS}");
    let two = format!(
        "{good}Content-Length: 2\r\n\r\nhi{good}Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    );
    let read = stream(two.as_bytes()).expect("canonical");
    assert_eq!((read.begun(), read.requests[1].body.as_slice()), (2, &b"hi"[..]));
    for end in 0..two.len() {
        let cut = stream(&two.as_bytes()[..end]).expect("a beginning of something canonical");
        assert!(cut.begun() <= 2);
    }
    for bad in [
        format!("{good}Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi"),
        format!("{good}Content-Length: 02\r\n\r\nhi"),
        format!("{good}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{good}Transfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\n\r\n"),
        format!("{good}Transfer-Encoding: chunked\r\n\r\n02\r\nhi\r\n0\r\n\r\n"),
        format!("{good}Transfer-Encoding: chunked\r\n\r\n2\r\nhiX0\r\n\r\n"),
        format!("{good}X: a\nY: b\r\n\r\n"),
        format!("{good}X:a\r\n\r\n"),
        format!("{good}X : a\r\n\r\n"),
        format!("{good}Host: r\r\n\r\n"),
        format!("{good}X_Forwarded_For: 2\r\n\r\n"),
        format!("{good}Connection: close\r\n\r\n"),
        format!("{good}Keep-Alive: 1\r\n\r\n"),
        format!("POST /x HTTP/1.1\r\n{}\r\n", FIELDS.replace("X-Request-Id: 1\r\n", "")),
        format!("POST x HTTP/1.1\r\n{FIELDS}\r\n"),
        format!("POST /x HTTP/1.0\r\n{FIELDS}\r\n"),
        format!("\r\nPOST /x HTTP/1.1\r\n{FIELDS}\r\n"),
    ] {
        assert!(stream(bad.as_bytes()).is_err(), "{bad:?}");
    }
}
