use super::*;
use crate::chunked::ChunkReader;
use crate::deadlines::Deadlines;
use crate::ring::{count_turns, on_each_driver};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Ours, and the other end of it; a megabyte fits in between.
fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    ours.set_nonblocking(true).expect("set");
    for end in [&ours, &theirs] {
        socket2::SockRef::from(end).set_send_buffer_size(1 << 20).expect("open");
    }
    (Socket::new(ours.into()).expect("made"), theirs)
}

#[test]
fn a_body_that_began_without_a_pipe_goes_on_through_the_first_that_is_free() {
    const PART: usize = 200_000;
    on_each_driver(|| async {
        let ((source, mut app), (sink, mut client)) = (pair(), pair());
        let (buffers, counters, watch) = (Buffers::new(1, 1), Counters::default(), Deadlines::new().nobody());
        let (stall, runner_stall, in_use) = (Patience::default(), Patience::default(), None);
        let means =
            Means { buffers: &buffers, counters: &counters, watch: &watch, stall, runner_stall, in_use };
        let lane = Lane { source: &source, sink: &sink, way: Way::Down, means: &means };
        let others = buffers.pipe().expect("made").expect("the only one");
        let body = lane.exact(b"head", 2 * PART as u64);
        let peers = async {
            app.write_all(&[b'a'; PART]).expect("it fits");
            while counters.bytes_down_copied.get() < (4 + PART) as u64 {
                turns::pass().await;
            }
            others.give_back();
            app.write_all(&[b'b'; PART]).expect("it fits");
        };
        let (moved, ()) = futures_util::future::join(body, peers).await;
        moved.expect("all of it");
        assert_eq!(counters.bytes_down_spliced.get(), PART as u64);
        assert!(buffers.pipe().expect("made").is_some(), "it is given back");
        let mut received = vec![0; 4 + 2 * PART];
        client.read_exact(&mut received).expect("sent");
        let expected = [&b"head"[..], &[b'a'; PART], &[b'b'; PART]].concat();
        assert!(received == expected, "the bytes are the same");
    });
}

/// How a body may be moved for ever.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Endless {
    Spliced,
    Copied,
    Chunked,
    UntilEnd,
}

/// Whoever is revoked is ended when his turn comes; up to then not even his own bytes go on.
#[test]
fn a_body_whose_right_is_gone_moves_no_further_though_nobody_has_ended_it() {
    for how in [Endless::Spliced, Endless::Copied, Endless::Chunked, Endless::UntilEnd] {
        on_each_driver(move || async move {
            let ((source, mut app), (sink, mut client)) = (pair(), pair());
            let sending = std::thread::spawn(move || {
                let block = [b"10000\r\n".as_slice(), &[b'x'; 65_536], b"\r\n"].concat();
                while app.write_all(&block).is_ok() {}
            });
            let taking = std::thread::spawn(move || std::io::copy(&mut client, &mut std::io::sink()));
            let table = Deadlines::new();
            let (buffers, counters, watch) =
                (Buffers::new(1, usize::from(how == Endless::Spliced)), Counters::default(), table.nobody());
            let (stall, runner_stall, in_use) = (Patience::default(), Patience::default(), None);
            let means =
                Means { buffers: &buffers, counters: &counters, watch: &watch, stall, runner_stall, in_use };
            let lane = Lane { source: &source, sink: &sink, way: Way::Down, means: &means };
            let moved = || counters.bytes_down_copied.get() + counters.bytes_down_spliced.get();
            let mut reader = ChunkReader::new(4096);
            let body = async {
                match how {
                    Endless::Spliced | Endless::Copied => lane.exact(b"", u64::MAX).await,
                    Endless::Chunked => {
                        lane.chunked(&mut reader, Vec::new(), SinkFraming::Bare).await.map(drop)
                    }
                    Endless::UntilEnd => lane.until_end(SinkFraming::Bare).await.map(drop),
                }
            };
            let marked = async {
                while moved() < 4 * TURN {
                    turns::pass().await;
                }
                assert!(table.revoke(watch.index(), crate::counters::Revoked::Private));
                moved()
            };
            let (ended, before) = futures_util::future::join(body, marked).await;
            assert!(matches!(ended, Err(Fault::Revoked)), "{how:?}: {ended:?}");
            assert!(moved() - before <= 2 * TURN, "{how:?}: {} more", moved() - before);
            source.shutdown(Shutdown::Both);
            sink.shutdown(Shutdown::Both);
            sending.join().expect("no panic");
            taking.join().expect("no panic").expect("an end");
        });
    }
}

/// Every read is a byte, and there is always one more: their number counts, not their bytes.
#[test]
fn a_body_that_comes_byte_by_byte_leaves_the_others_their_turn() {
    const READS: usize = 250;
    on_each_driver(|| async {
        // Of packets, each read gets one.
        let packets = || socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None);
        let (ours, theirs) = packets().expect("a pair");
        ours.set_nonblocking(true).expect("set");
        theirs.set_nonblocking(true).expect("set");
        theirs.set_send_buffer_size(4 << 20).expect("open");
        let (sink, mut client) = pair();
        let source = Socket::new(ours.into()).expect("made");
        let (buffers, counters, watch) = (Buffers::new(1, 0), Counters::default(), Deadlines::new().nobody());
        let (stall, runner_stall, in_use) = (Patience::default(), Patience::default(), None);
        let means =
            Means { buffers: &buffers, counters: &counters, watch: &watch, stall, runner_stall, in_use };
        let lane = Lane { source: &source, sink: &sink, way: Way::Down, means: &means };
        for _ in 0..READS {
            theirs.send(b"x").expect("so many fit, there and where they go");
        }
        let turns = count_turns().await;
        lane.exact(b"", READS as u64).await.expect("all of it");
        let least = READS as u64 * READ_WEIGHT / TURN;
        assert!(u64::from(turns.get()) >= least, "others had {} turns, not {least}", turns.get());
        let mut received = vec![0; READS];
        client.read_exact(&mut received).expect("sent");
    });
}

#[test]
fn a_body_of_tiny_chunks_leaves_the_others_their_turn() {
    const CHUNKS: usize = 20_000;
    on_each_driver(|| async {
        let ((source, mut client), (sink, _app)) = (pair(), pair());
        // All is here before the first of it is read, and fits where it goes.
        client.write_all(&b"1\r\nx\r\n".repeat(CHUNKS)).expect("it fits");
        client.write_all(b"0\r\n\r\n").expect("it fits");
        let (buffers, counters, watch) = (Buffers::new(1, 0), Counters::default(), Deadlines::new().nobody());
        let (stall, runner_stall, in_use) = (Patience::default(), Patience::default(), None);
        let means =
            Means { buffers: &buffers, counters: &counters, watch: &watch, stall, runner_stall, in_use };
        let lane = Lane { source: &source, sink: &sink, way: Way::Up, means: &means };
        let turns = count_turns().await;
        let behind = lane.chunked(&mut ChunkReader::new(4096), Vec::new(), SinkFraming::Bare).await;
        assert!(behind.expect("well framed").is_empty());
        assert_eq!(counters.bytes_up_copied.get(), CHUNKS as u64);
        // A chunk weighs some 50 ns: a turn is a quarter of a millisecond.
        assert!(turns.get() >= 3, "others had {} turns", turns.get());
    });
}
