//! Who asks: a person who opens a page, or something else? Pure.
//!
//! Only a top-level navigation may be sent away to log in. A script, a WebSocket, an image or a form would get a page of
//! the provider's where it wants data, and a frame would show a login inside a stranger's page.

use crate::head::{FieldId, Method, RequestHead};

/// What a request is to the browser that sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asks {
    /// A person opens a page in a tab.
    Navigation,
    /// A page is opened inside another one's frame.
    Frame,
    /// Anything else, programs included.
    Other,
}

/// Fetch Metadata decides where the browser sends it (`Sec-Fetch-Mode`, `Sec-Fetch-Dest`); where not, `Accept` and
/// `X-Requested-With` do: pages accept `text/html` by name, scripts and programs mostly do not.
pub fn asks(head: &RequestHead<'_>) -> Asks {
    if !matches!(head.method, Method::Get | Method::Head) || head.websocket {
        return Asks::Other;
    }
    // A page loaded ahead of a click: nobody is there to log in.
    if ["sec-purpose", "purpose", "x-moz"].iter().any(|name| holds(head, name, b"prefetch")) {
        return Asks::Other;
    }
    match (value(head, "sec-fetch-mode"), value(head, "sec-fetch-dest")) {
        (Some(mode), Some(b"document")) if mode == b"navigate" => Asks::Navigation,
        (Some(mode), Some(b"iframe" | b"frame" | b"embed" | b"object" | b"fencedframe"))
            if mode == b"navigate" =>
        {
            Asks::Frame
        }
        (Some(_), _) | (_, Some(_)) => Asks::Other,
        (None, None) => {
            let by_script = value(head, "x-requested-with").is_some() || value(head, "origin").is_some();
            if !by_script && accepts_html(head) { Asks::Navigation } else { Asks::Other }
        }
    }
}

/// `text/html` by name and not refused by `q=0`; a wildcard says nothing about who asks.
fn accepts_html(head: &RequestHead<'_>) -> bool {
    let accept = head.fields.iter().filter(|f| f.id == FieldId::Accept);
    accept.flat_map(|field| field.value.of(head.bytes).split(|b| *b == b',')).any(|range| {
        let mut parts = range.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let html = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/html"));
        html && !parts.any(|part| part.eq_ignore_ascii_case(b"q=0"))
    })
}

fn value<'b>(head: &RequestHead<'b>, name: &str) -> Option<&'b [u8]> {
    let named = |f: &&crate::head::Field| f.name.of(head.bytes).eq_ignore_ascii_case(name.as_bytes());
    head.fields.iter().find(named).map(|f| f.value.of(head.bytes))
}

fn holds(head: &RequestHead<'_>, name: &str, word: &[u8]) -> bool {
    value(head, name).is_some_and(|v| memchr::memmem::find(&v.to_ascii_lowercase(), word).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    fn of(method: &str, fields: &str) -> Asks {
        let text = format!("{method} / HTTP/1.1\r\nHost: 3000-a.test\r\n{fields}\r\n");
        let head = RequestHead::parse(text.as_bytes(), &Limits::default()).expect("valid").expect("whole");
        asks(&head)
    }

    const PAGE: &str = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";

    #[test]
    fn only_a_get_or_head_of_a_whole_page_is_a_navigation() {
        let fetch =
            |mode: &str, dest: &str| format!("{PAGE}Sec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {dest}\r\n");
        for (method, fields, wanted) in [
            ("GET", fetch("navigate", "document"), Asks::Navigation),
            ("HEAD", fetch("navigate", "document"), Asks::Navigation),
            ("POST", fetch("navigate", "document") + "Content-Length: 0\r\n", Asks::Other),
            ("PUT", PAGE.to_owned(), Asks::Other),
            ("OPTIONS", PAGE.to_owned(), Asks::Other),
            ("GET", fetch("navigate", "iframe"), Asks::Frame),
            ("GET", fetch("navigate", "frame"), Asks::Frame),
            ("GET", fetch("navigate", "embed"), Asks::Frame),
            ("GET", fetch("cors", "empty"), Asks::Other),
            ("GET", fetch("no-cors", "image"), Asks::Other),
            ("GET", fetch("no-cors", "script"), Asks::Other),
            ("GET", fetch("same-origin", "empty"), Asks::Other),
            ("GET", fetch("websocket", "websocket"), Asks::Other),
            ("GET", format!("{PAGE}Sec-Fetch-Mode: navigate\r\n"), Asks::Other),
            ("GET", fetch("navigate", "document") + "Sec-Purpose: prefetch;prerender\r\n", Asks::Other),
            ("GET", format!("{PAGE}Purpose: prefetch\r\n"), Asks::Other),
        ] {
            assert_eq!(of(method, &fields), wanted, "{method} {fields}");
        }
    }

    #[test]
    fn without_fetch_metadata_a_page_is_asked_for_by_name() {
        for (fields, wanted) in [
            (PAGE.to_owned(), Asks::Navigation),
            ("Accept: application/json, TEXT/HTML;q=0.5\r\n".into(), Asks::Navigation),
            (String::new(), Asks::Other),
            ("Accept: */*\r\n".into(), Asks::Other),
            ("Accept: text/*\r\n".into(), Asks::Other),
            ("Accept: application/json\r\n".into(), Asks::Other),
            ("Accept: text/html;q=0\r\n".into(), Asks::Other),
            ("Accept: text/htmlx\r\n".into(), Asks::Other),
            (format!("{PAGE}X-Requested-With: XMLHttpRequest\r\n"), Asks::Other),
            (format!("{PAGE}Origin: https://app.example\r\n"), Asks::Other),
        ] {
            assert_eq!(of("GET", &fields), wanted, "{fields}");
        }
    }

    #[test]
    fn a_websocket_is_none() {
        let fields = format!(
            "{PAGE}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        assert_eq!(of("GET", &fields), Asks::Other);
    }
}
