//! A HAR file's form (HAR 1.2, as browsers write it), as far as requests need it. Everything else is skipped unread.

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;

/// Entries of one file.
pub(super) const ENTRIES_MAX: usize = 10_000;

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    log: Option<Log<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Log<'a> {
    #[serde(borrow, default)]
    pages: Option<Items<'a>>,
    #[serde(borrow)]
    entries: Option<Items<'a>>,
}

/// A list whose items are looked at one by one, so that one that is odd does not spoil the others.
#[derive(Default)]
struct Items<'a> {
    items: Vec<&'a RawValue>,
    count: usize,
}

impl<'a> Log<'a> {
    /// `Err` says what is wrong with the file, without anything that stands in it.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let no_har = "it is JSON without `log.entries`, so no HAR: export it from a browser's network panel";
        let file: File<'a> = serde_json::from_slice(text).map_err(|error| match error.classify() {
            // Its words would quote the file.
            serde_json::error::Category::Data => no_har.to_owned(),
            _ => format!(
                "it is no JSON (line {}, column {}): export it again as HAR",
                error.line(),
                error.column()
            ),
        })?;
        let log = file.log.filter(|log| log.entries.is_some()).ok_or(no_har)?;
        match log.entries.as_ref().map_or(0, |entries| entries.count) {
            0 => Err("`log.entries` is empty: load the page while the network panel is open".into()),
            count if count > ENTRIES_MAX => {
                Err(format!("it holds {count} entries, and {ENTRIES_MAX} is the most: record less at a time"))
            }
            _ => Ok(log),
        }
    }

    /// `None` stands for an entry that has not an entry's form.
    pub fn entries(&self) -> impl Iterator<Item = Option<Entry>> + '_ {
        let items = self.entries.iter().flat_map(|entries| &entries.items);
        items.map(|item| serde_json::from_str(item.get()).ok())
    }

    /// Chromium has the first page's URL there; others have its title.
    pub fn first_page(&self) -> Option<String> {
        let first = self.pages.as_ref()?.items.first()?;
        serde_json::from_str::<Page>(first.get()).ok().map(|page| page.title)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut found = Items::default();
                while found.items.len() < ENTRIES_MAX {
                    match list.next_element()? {
                        Some(item) => found.items.push(item),
                        None => break,
                    }
                }
                found.count = found.items.len();
                while list.next_element::<IgnoredAny>()?.is_some() {
                    found.count += 1;
                }
                Ok(found)
            }
        }
        deserializer.deserialize_seq(Each)
    }
}

#[derive(Deserialize)]
struct Page {
    title: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub started_date_time: String,
    pub request: Request,
    pub response: Response,
    /// Chromium: `memory` or `disk`.
    #[serde(rename = "_fromCache", default, deserialize_with = "is_set")]
    from_cache: bool,
    #[serde(rename = "_resourceType")]
    resource_type: Option<String>,
    #[serde(rename = "_webSocketMessages")]
    web_socket_messages: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    pub method: String,
    pub url: String,
    #[serde(default, deserialize_with = "or_none")]
    pub headers: Vec<Pair>,
    pub post_data: Option<PostData>,
    /// -1 where it is not known.
    pub body_size: Option<f64>,
}

#[derive(Deserialize)]
pub(super) struct Pair {
    pub name: String,
    #[serde(default, deserialize_with = "or_none")]
    pub value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PostData {
    #[serde(default, deserialize_with = "or_none")]
    pub mime_type: String,
    pub text: Option<String>,
    pub encoding: Option<String>,
    #[serde(default, deserialize_with = "or_none")]
    pub params: Vec<Pair>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Response {
    /// 0: there was no answer. Playwright: -1.
    #[serde(deserialize_with = "status")]
    pub status: u16,
    content: Option<Content>,
    /// Where it sent the browser, if anywhere.
    #[serde(rename = "redirectURL")]
    redirect_url: Option<String>,
    #[serde(rename = "_fetchedViaServiceWorker", default, deserialize_with = "or_none")]
    by_service_worker: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    mime_type: Option<String>,
}

/// `null` is as good as absent.
fn or_none<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Anything but `null` and `false`.
fn is_set<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Value::deserialize(from).map(|value| !matches!(value, Value::Null | Value::Bool(false)))
}

fn status<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let status = i32::deserialize(from)?;
    u16::try_from(status.max(0)).map_err(D::Error::custom)
}

impl Entry {
    /// A WebSocket or an event stream: its answer has no end.
    pub fn is_stream(&self) -> bool {
        let mime_type = self.response.content.as_ref().and_then(|content| content.mime_type.as_deref());
        let of_type = |name: &str| self.resource_type.as_deref() == Some(name);
        self.web_socket_messages.is_some()
            || ["ws://", "wss://"].iter().any(|scheme| self.request.url.starts_with(scheme))
            || of_type("websocket")
            || of_type("eventsource")
            || (100..200).contains(&self.response.status)
            || mime_type.is_some_and(|mime_type| mime_type.starts_with("text/event-stream"))
    }

    /// Where its answer sent the browser, as it stands there: it may be relative.
    pub fn redirect(&self) -> Option<&str> {
        let is_redirect = matches!(self.response.status, 301 | 302 | 303 | 307 | 308);
        self.response.redirect_url.as_deref().filter(|_| is_redirect)
    }

    /// The browser answered it itself.
    pub fn is_cached(&self) -> bool {
        self.from_cache || self.response.by_service_worker
    }
}
