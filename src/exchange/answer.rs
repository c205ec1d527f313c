//! The runner's answer: its head is read, written out for the client, and its body passed on.

use super::{FIRST_READ, Failed, Outgoing, Progress, enter};
use crate::buffers;
use crate::chunked::{self, ChunkReader};
use crate::client::Client;
use crate::counters::add;
use crate::error::Cause;
use crate::forward::{self, Confine, ResponsePlan};
use crate::framing::ResponseBody;
use crate::grant::Access;
use crate::head::{FieldId, RequestHead, ResponseHead, Version};
use crate::rate::Bucket;
use crate::relay::{Fault, Lane, SPLICE_MIN, SinkFraming, Way};
use crate::shard::Shard;
use crate::socket::{Moved, Socket};
use crate::turns;
use base64::Engine as _;
use std::pin::pin;
use std::time::Instant;

/// From so many bytes to come on, a body of a known length is cut when its right ends.
const LONG_BODY: u64 = 256 * 1024;

pub struct Answered {
    pub status: u16,
    /// Ended exactly where its framing said, and the runner keeps its connection.
    pub runner_reusable: bool,
    pub client_stays: bool,
    /// A 101 was passed on; what the runner sent behind it.
    pub switched: Option<Vec<u8>>,
}

/// What a head of the runner's means for the relay. Apart from the head itself, which is written out where it is read
/// and not kept over a wait.
enum Step {
    More,
    /// A 1xx, so many bytes of what was received.
    Informational(usize),
    /// The 101; what the runner sent behind it.
    Switched(Vec<u8>),
    Final(Final),
}

/// The final head, as far as the relay needs it.
struct Final {
    head_bytes: usize,
    status: u16,
    body: ResponseBody,
    keep_alive: bool,
    /// As the body goes out.
    framing: ResponseBody,
    client_stays: bool,
}

/// Reads the next head out of what was received and writes the client's to `out`. `uploaded`: nothing of the request is left
/// to come.
fn step(
    shard: &Shard,
    outgoing: &Outgoing<'_, '_>,
    received: &[u8],
    uploaded: bool,
    out: &mut Vec<u8>,
) -> Result<Step, Cause> {
    let head = outgoing.head;
    let parsed = ResponseHead::parse(received, head.method, &shard.config.limits);
    // By reference: a head is some 400 bytes to move.
    let answer = match &parsed {
        Err(_) => return Err(Cause::RunnerGarbage),
        Ok(None) => return Ok(Step::More),
        Ok(Some(answer)) => answer,
    };
    let head_bytes = answer.bytes.len();
    if answer.status == 101 {
        if !head.websocket || !accepts_websocket(head, answer) {
            return Err(Cause::RunnerGarbage);
        }
        forward::write_response(answer, &response_plan(shard, outgoing, ResponseBody::None, false), out);
        return Ok(Step::Switched(received[head_bytes..].to_vec()));
    }
    if answer.status < 200 {
        // RFC 9110 15.2: never to an HTTP/1.0 client.
        if head.version == Version::Http11 {
            forward::write_response(answer, &response_plan(shard, outgoing, ResponseBody::None, false), out);
        }
        return Ok(Step::Informational(head_bytes));
    }
    let framing = match answer.body {
        ResponseBody::Chunked | ResponseBody::UntilClose if head.version == Version::Http10 => {
            ResponseBody::UntilClose
        }
        ResponseBody::UntilClose => ResponseBody::Chunked,
        other => other,
    };
    // RFC 9110 10.1.1: a client that has not sent its body says by nothing whether it still will, so what comes next may be
    // that or another request. Nor is it known that the body ends in time.
    let close = !head.keep_alive || !uploaded || shard.draining.get() || framing == ResponseBody::UntilClose;
    forward::write_response(answer, &response_plan(shard, outgoing, framing, close), out);
    Ok(Step::Final(Final {
        head_bytes,
        status: answer.status,
        body: answer.body,
        keep_alive: answer.keep_alive,
        framing,
        client_stays: !close,
    }))
}

impl Final {
    /// Bytes still to come of a known length; 0 when nobody knows.
    fn left(&self, received: &[u8]) -> u64 {
        match self.body {
            ResponseBody::Length(length) => length.saturating_sub((received.len() - self.head_bytes) as u64),
            _ => 0,
        }
    }
}

/// Reads the runner's answer, of which `inbuf` holds the first bytes, and passes it on.
pub async fn respond(
    client: &Client,
    shard: &Shard,
    runner: &Socket,
    outgoing: &Outgoing<'_, '_>,
    mut inbuf: Vec<u8>,
    progress: &Progress,
) -> Result<Answered, Failed> {
    let limits = &shard.config.limits;
    let fail = |cause| Failed { cause: client.cause_or(cause), answerable: !progress.answered.get() };
    let mut out = shard.buffers.small();
    let (mut informational, mut waits) = (None, None);
    let last = loop {
        out.clear();
        let step = step(shard, outgoing, &inbuf, progress.uploaded.get(), &mut out).map_err(fail)?;
        // Marked, and not ended yet.
        if client.watch.revoked().is_some() {
            return Err(fail(Cause::Revoked));
        }
        match step {
            Step::Final(last) => break last,
            Step::More => {
                if waits.is_none() && !inbuf.is_empty() {
                    waits = enter(client, shard, runner, outgoing);
                }
                // Even if more is here: a head that comes in morsels is parsed anew for each, and others have their turn.
                turns::in_turn(runner.readable()).await.map_err(|_| fail(Cause::RunnerClosed))?;
                match runner.try_recv(buffers::with_room(&mut inbuf)) {
                    Ok(Moved::Bytes(_) | Moved::NotReady) => {}
                    Ok(Moved::End) if !inbuf.is_empty() => return Err(fail(Cause::RunnerGarbage)),
                    Ok(Moved::End) | Err(_) => return Err(fail(Cause::RunnerClosed)),
                }
            }
            Step::Switched(behind) => {
                progress.answered.set(true);
                client.send(shard, &out).await.map_err(|_| fail(Cause::ClientGone))?;
                let (status, switched) = (101, Some(behind));
                return Ok(Answered { status, runner_reusable: false, client_stays: false, switched });
            }
            Step::Informational(used) => {
                let bucket = informational.get_or_insert_with(|| Bucket::new(limits.informational));
                if !bucket.take(Instant::now()) {
                    return Err(fail(Cause::RunnerGarbage));
                }
                client.send(shard, &out).await.map_err(|_| fail(Cause::ClientGone))?;
                inbuf.drain(..used);
                // What comes at last, and the rest of a head above, may take hours; the right was looked at before.
                if waits.is_none() {
                    waits = enter(client, shard, runner, outgoing);
                }
            }
        }
    };
    let Final { framing, client_stays, .. } = last;
    // The first read took little, for the sake of what is to be spliced. All else goes on with what is here by now.
    if inbuf.len() >= FIRST_READ && last.left(&inbuf) < SPLICE_MIN {
        match runner.try_recv(buffers::with_room(&mut inbuf)) {
            Err(_) if last.body == ResponseBody::UntilClose => return Err(fail(Cause::RunnerClosed)),
            // A body that knows its end finds out by itself that the rest is missing, if it is.
            _ => {}
        }
    }
    client.watch.runner_answers(None);
    progress.answered.set(true);
    client.first_byte(shard, outgoing.located_at);
    let ends_answer = framing == ResponseBody::UntilClose;
    if ends_answer {
        client.watch.ends_answer(true);
    }
    let sink = if framing == ResponseBody::Chunked { SinkFraming::Chunked } else { SinkFraming::Bare };
    let means = client.means(shard);
    let _alive = match waits {
        None if goes_on(last.body, &inbuf[last.head_bytes..]) => enter(client, shard, runner, outgoing),
        waits => waits,
    };
    let lane = Lane { source: runner, sink: client.transport(), way: Way::Down, means: &means };
    let moved = async {
        let here = &inbuf[last.head_bytes..];
        match last.body {
            ResponseBody::None => {
                out = send_whole(shard, &lane, std::mem::take(&mut out)).await?;
                Ok(here.is_empty())
            }
            ResponseBody::Length(length) => {
                let take = usize::try_from(length).unwrap_or(usize::MAX).min(here.len());
                out.extend_from_slice(&here[..take]);
                let left = length - take as u64;
                if left > 0 {
                    // At once, so that the rest follows without a turn of the loop between.
                    lane.exact(&out, left).await?;
                } else {
                    out = pin!(send_whole(shard, &lane, std::mem::take(&mut out))).await?;
                }
                // Bytes behind the end: delivered is what was announced, and the connection is not used again.
                Ok(take == here.len())
            }
            ResponseBody::Chunked => {
                lane.send(&out).await?;
                let mut reader = ChunkReader::new(limits.head_bytes_max);
                let mut body = shard.buffers.small();
                body.extend_from_slice(here);
                let behind = lane.chunked(&mut reader, body, sink).await?;
                Ok(behind.is_empty())
            }
            ResponseBody::UntilClose => {
                lane.send(&out).await?;
                match sink {
                    SinkFraming::Bare => lane.send(here).await?,
                    SinkFraming::Chunked => lane.send_chunk(here).await?,
                }
                lane.until_end(sink).await?;
                if client.watch.fired().is_some() {
                    return Err(Fault::SourceEnded);
                }
                if sink == SinkFraming::Chunked {
                    let mut end = Vec::with_capacity(8);
                    chunked::write_end(b"", &mut end);
                    lane.send(&end).await?;
                }
                Ok(false)
            }
        }
    }
    .await;
    shard.buffers.give(out);
    shard.buffers.give(std::mem::take(&mut inbuf));
    match moved {
        Ok(clean) => {
            if ends_answer {
                client.watch.ends_answer(false);
            }
            let runner_reusable = clean && last.keep_alive;
            Ok(Answered { status: last.status, runner_reusable, client_stays, switched: None })
        }
        Err(fault) => {
            let cause = match fault {
                Fault::SinkBroke(_) | Fault::Revoked => Cause::ClientGone,
                Fault::SourceEnded | Fault::SourceBroke(_) | Fault::SourceSyntax(_) => {
                    add(&shard.counters.truncated, 1);
                    Cause::RunnerClosed
                }
            };
            Err(Failed { cause: client.cause_or(cause), answerable: false })
        }
    }
}

/// Sends an answer that is here as a whole; the buffer back.
async fn send_whole(
    shard: &Shard,
    lane: &Lane<'_, Socket, Socket>,
    answer: Vec<u8>,
) -> Result<Vec<u8>, Fault> {
    if shard.turns.leaves_together() {
        return lane.send_whole(answer).await;
    }
    let sent = lane.send_now(&answer)?;
    if sent < answer.len() {
        lane.send(&answer[sent..]).await?;
    }
    Ok(answer)
}

/// A body of which much is still to come, or nobody knows how much. What is left of others is not worth the trouble.
/// What looks like the end of chunks may be data of one: an app must not be able to hide a stream that way.
fn goes_on(body: ResponseBody, here: &[u8]) -> bool {
    match body {
        ResponseBody::None => false,
        ResponseBody::Length(length) => length > LONG_BODY + here.len() as u64,
        ResponseBody::Chunked => !here.ends_with(b"0\r\n\r\n") || !chunked::is_whole(here),
        ResponseBody::UntilClose => true,
    }
}

fn response_plan<'a>(
    shard: &Shard,
    outgoing: &Outgoing<'a, '_>,
    framing: ResponseBody,
    close: bool,
) -> ResponsePlan<'a> {
    let (head, grant) = (outgoing.head, outgoing.grant);
    let own_host = matches!(grant.access(), Access::Preview { .. });
    let confine = Confine { authority: head.authority.of(head.bytes), own_host };
    ResponsePlan {
        client_version: head.version,
        framing,
        close,
        request_id: outgoing.request_id,
        set_cookie: grant.set_cookie(),
        frame_ancestors: grant.frame_ancestors(),
        confine: shard.config.confine_apps.then_some(confine),
        sharing: outgoing.sharing,
        redirect_prefix: match grant.access() {
            Access::Toolbox { sandbox, .. } => Some(*sandbox),
            Access::Preview { .. } | Access::BuildLogs { .. } => None,
        },
    }
}

/// RFC 6455 4.1: `Upgrade: websocket` and the digest of the client's own key, or it is no tunnel.
fn accepts_websocket(request: &RequestHead<'_>, answer: &ResponseHead<'_>) -> bool {
    use sha1::{Digest, Sha1};
    let of_request = |id| request.fields.iter().find(|f| f.id == id).map(|f| f.value.of(request.bytes));
    let of_answer = |id| answer.fields.iter().find(|f| f.id == id).map(|f| f.value.of(answer.bytes));
    let Some(key) = of_request(FieldId::SecWebSocketKey) else { return false };
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let expected = base64::engine::general_purpose::STANDARD.encode(hash.finalize());
    of_answer(FieldId::Upgrade).is_some_and(|v| v.eq_ignore_ascii_case(b"websocket"))
        && of_answer(FieldId::SecWebSocketAccept) == Some(expected.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadlines::Fired;
    use crate::ring::{Driver, Wish, choose, on_a_shard};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_client_that_takes_nothing_of_its_answer_is_not_waited_for_whichever_way_the_answer_goes() {
        on_a_shard(|| async {
            let driver = choose(Wish::Auto).expect("a driver").driver;
            let shard = Shard::alone(driver, &[("SANDGATE_CLIENT_STALL_MS", "300")]);
            for together in [false, true] {
                let pair = || {
                    let (ours, theirs) = UnixStream::pair().expect("a pair");
                    ours.set_nonblocking(true).expect("open");
                    (Socket::new(ours.into()).expect("a socket"), theirs)
                };
                let ((ours, _silent), (runner, _app)) = (pair(), pair());
                while let Moved::Bytes(_) = ours.try_send(&[b'x'; 4096]).expect("open") {}
                let client = Client::new(&shard, ours, [127, 0, 0, 1].into(), false, None);
                let means = client.means(&shard);
                let lane = Lane { source: &runner, sink: client.transport(), way: Way::Down, means: &means };
                shard.turns.follow(together);
                let time_passes = async {
                    for _ in 0..100 {
                        shard.deadlines.sweep_at_once(false);
                        monoio::time::sleep(std::time::Duration::ZERO).await;
                    }
                    // Nothing has ended the wait.
                    client.transport().shutdown(rustix::net::Shutdown::Both);
                };
                let sending = send_whole(&shard, &lane, b"an answer".to_vec());
                let (sent, ()) = futures_util::future::join(sending, time_passes).await;
                assert!(matches!(sent, Err(Fault::SinkBroke(_))));
                assert_eq!(client.watch.fired(), Some(Fired::ClientWrite));
            }
            let by_ring = if driver == Driver::Epoll { 0 } else { 1 };
            assert_eq!(shard.counters.sent_together.get(), by_ring);
        });
    }
}
