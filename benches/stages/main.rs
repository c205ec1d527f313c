//! The pure stages of a request's way: nanoseconds and allocations of each. Run with `cargo bench --bench stages`.
//!
//! Whether a stage allocates at all is asserted by `tests/allocations.rs`, on the same inputs.

mod inputs;

use divan::{AllocProfiler, Bencher, black_box};
use inputs::{ANSWER, BEARER, BROWSER, HEADER_TOKEN, SHORT, World};
use sandgate::admission::{Admission, AdmissionRules};
use sandgate::chunked::{self, ChunkReader, Piece};
use sandgate::error::Cause;
use sandgate::forward;
use sandgate::head::{Reject, RequestHead, ResponseHead};
use sandgate::ids::SandboxId;
use sandgate::mailbox::Trouble;
use sandgate::rate::{ClientNet, Rate};
use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// A signed link's visitor.
const SIGNED_LINK: &[u8] = b"GET /api/items HTTP/1.1\r\n\
Host: 8080-signedtoken01234.preview.example\r\n\
Accept: application/json\r\n\
User-Agent: curl/8.5\r\n\r\n";

static SANDBOXES: LazyLock<(SandboxId, SandboxId)> = LazyLock::new(|| {
    let id = |text: &[u8]| SandboxId::parse(text).expect("an id");
    (id(b"3f1c8a52-9c1d-4f0e-8f43-0d6b0f9a7c11"), id(b"3f1c8a52-9c1d-4f0e-8f43-0d6b0f9a7c12"))
});

const REQUESTS: [(&str, &[u8]); 4] =
    [("browser", BROWSER), ("short", SHORT), ("header token", HEADER_TOKEN), ("bearer", BEARER)];

fn main() {
    divan::main();
}

fn bytes_of(name: &str) -> &'static [u8] {
    REQUESTS.iter().find(|(known, _)| *known == name).map(|(_, bytes)| *bytes).expect("a name of the list")
}

fn names() -> impl Iterator<Item = &'static str> {
    REQUESTS.into_iter().map(|(name, _)| name)
}

/// Tokens, framing, authority and target, all decided.
#[divan::bench(args = names())]
fn request_head(bencher: Bencher<'_, '_>, name: &str) {
    let (limits, bytes) = (inputs::config().limits.clone(), bytes_of(name));
    bencher.bench_local(|| {
        RequestHead::parse(black_box(bytes), &limits).is_ok_and(|head| head.is_some_and(|h| h.keep_alive))
    });
}

#[divan::bench]
fn response_head(bencher: Bencher<'_, '_>) {
    let limits = inputs::config().limits.clone();
    bencher.bench_local(|| {
        let head = ResponseHead::parse(black_box(ANSWER), sandgate::head::Method::Get, &limits);
        head.is_ok_and(|head| head.is_some_and(|h| h.keep_alive))
    });
}

#[divan::bench(args = names())]
fn route(bencher: Bencher<'_, '_>, name: &str) {
    let limits = inputs::config().limits.clone();
    let head = inputs::request(bytes_of(name), &limits);
    bencher.bench_local(|| inputs::routed(black_box(&head)));
}

/// Authorization with everything remembered: the public flag, or a proof by its hash.
#[divan::bench(args = names())]
fn grant_from_cache(bencher: Bencher<'_, '_>, name: &str) {
    let world = World::new();
    world.warm(bytes_of(name));
    let head = inputs::request(bytes_of(name), &world.limits);
    let route = inputs::routed(&head);
    bencher.bench_local(|| world.granted(black_box(&route), &head));
}

/// The session cookie: found among others, its signature checked (one HMAC), its origin looked at.
#[divan::bench]
fn grant_by_cookie(bencher: Bencher<'_, '_>) {
    let world = World::new();
    let bytes = inputs::cookie_request(&world.shard.cookie_keys);
    world.warm(&bytes);
    let head = inputs::request(&bytes, &world.limits);
    let route = inputs::routed(&head);
    bencher.bench_local(|| world.granted(black_box(&route), &head));
}

/// Where it leads is remembered; the cookie it leaves is made each time, for a client that does not keep it.
#[divan::bench]
fn grant_by_signed_link(bencher: Bencher<'_, '_>) {
    let world = World::new();
    world.warm(SIGNED_LINK);
    let head = inputs::request(SIGNED_LINK, &world.limits);
    let route = inputs::routed(&head);
    bencher.bench_local(|| world.granted(black_box(&route), &head));
}

/// All limits of a request: its client's rate, its sandbox's rate and one more under way, and that one's end. Together
/// with another shard, of the same client and sandbox or of others.
#[divan::bench(args = ["others", "the same"], threads = [1, 2])]
fn limits(bencher: Bencher<'_, '_>, whose: &str) {
    static SHARDS: AtomicU32 = AtomicU32::new(0);
    let most = Some(Rate { per_second: NonZeroU32::MAX, burst: NonZeroU32::MAX });
    let admission = Admission::new(&AdmissionRules {
        lookups: None,
        client_requests: most,
        sandbox_requests: most,
        client_connections_max: None,
        sandbox_requests_max: Some(u32::MAX),
        keys_max: 100_000,
    });
    thread_local!(static SHARD: u32 = SHARDS.fetch_add(1, Relaxed));
    bencher.bench(|| {
        let n = if whose == "others" { SHARD.with(|n| *n) } else { 0 };
        let (client, now) = (ClientNet::V4(n), Instant::now());
        let sandbox = if n % 2 == 0 { &SANDBOXES.0 } else { &SANDBOXES.1 };
        black_box(admission.client_request(client, now)).is_ok()
            && black_box(admission.sandbox_request(sandbox, now)).is_ok()
    });
}

#[divan::bench]
fn target_from_cache(bencher: Bencher<'_, '_>) {
    let world = World::new();
    world.warm(BROWSER);
    let head = inputs::request(BROWSER, &world.limits);
    let grant = world.granted(&inputs::routed(&head), &head);
    bencher.bench_local(|| world.located(black_box(&grant)));
}

/// The head to the runner: fields filtered, ours written.
#[divan::bench(args = names())]
fn write_request(bencher: Bencher<'_, '_>, name: &str) {
    let limits = inputs::config().limits.clone();
    let head = inputs::request(bytes_of(name), &limits);
    let (path, mut out) = (inputs::runner_path(), Vec::with_capacity(16 * 1024));
    let plan = inputs::request_plan(&path);
    bencher.bench_local(|| {
        out.clear();
        forward::write_request(black_box(&head), &plan, &mut out);
        out.len()
    });
}

#[divan::bench]
fn write_response(bencher: Bencher<'_, '_>) {
    let limits = inputs::config().limits.clone();
    let head = inputs::response(ANSWER, &limits);
    let (plan, mut out) = (inputs::response_plan(), Vec::with_capacity(16 * 1024));
    bencher.bench_local(|| {
        out.clear();
        forward::write_response(black_box(&head), &plan, &mut out);
        out.len()
    });
}

/// 64 KiB of body in chunks of this many bytes: the reader's cost by chunk size.
#[divan::bench(args = [16, 1024, 16 * 1024])]
fn chunk_reader(bencher: Bencher<'_, '_>, size: usize) {
    let body = inputs::chunked(64 * 1024 / size, size);
    bencher.counter(divan::counter::ItemsCount::new(64 * 1024 / size)).bench_local(|| {
        let (mut reader, mut at, mut data) = (ChunkReader::new(1024), 0, 0);
        loop {
            match reader.next(black_box(&body[at..])).expect("it is good") {
                (used, Piece::Data { n, .. }) => (at, data) = (at + used, data + n),
                _ => return data,
            }
        }
    });
}

#[divan::bench]
fn chunk_writer(bencher: Bencher<'_, '_>) {
    let mut out = Vec::with_capacity(1024);
    bencher.bench_local(|| {
        out.clear();
        chunked::write_chunk_line(black_box(16 * 1024), &mut out);
        chunked::write_end(b"", &mut out);
        out.len()
    });
}

/// From a cause to what the client is told.
#[divan::bench(args = [Cause::AuthRequired, Cause::Rejected(Reject::BareLf), Cause::Api(Trouble::ApiTimeout)])]
fn error_table(bencher: Bencher<'_, '_>, cause: &Cause) {
    bencher.bench_local(|| black_box(*cause).answer());
}
