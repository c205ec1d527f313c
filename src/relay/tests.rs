use super::*;
use crate::deadlines::Deadlines;
use crate::ring::{count_turns, on_each_driver};
use std::io::Write;
use std::os::unix::net::UnixStream;

#[test]
fn a_body_of_tiny_chunks_leaves_the_others_their_turn() {
    const CHUNKS: usize = 20_000;
    on_each_driver(|| async {
        let pair = || {
            let (ours, theirs) = UnixStream::pair().expect("pair");
            ours.set_nonblocking(true).expect("set");
            for end in [&ours, &theirs] {
                socket2::SockRef::from(end).set_send_buffer_size(1 << 20).expect("open");
            }
            (Socket::new(ours.into()).expect("made"), theirs)
        };
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
        assert!(turns.get() >= 1, "nobody else had a turn");
    });
}
