use super::*;
use crate::buffers::Buffers;
use crate::counters::Counters;
use crate::deadlines::{Deadlines, Watch};
use crate::readiness;
use crate::relay::Patience;
use crate::ring::on_a_shard;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What a tunnel needs of its shard.
struct World {
    buffers: Buffers,
    counters: Counters,
    watch: Watch,
}

impl World {
    fn new() -> Self {
        Self { buffers: Buffers::new(1, 1), counters: Counters::default(), watch: Deadlines::new().watch(-1) }
    }

    fn means(&self) -> Means<'_> {
        let Self { buffers, counters, watch } = self;
        let none = Patience::default();
        Means { buffers, counters, watch, stall: none, runner_stall: none, in_use: None }
    }
}

/// One end of ours, the other end plain and never waiting.
fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).expect("set");
    }
    (Socket::new(ours.into()).expect("made"), theirs)
}

/// A turn of the loop: what waits goes to the ring, what is done comes back.
async fn turn() {
    monoio::time::sleep(Duration::ZERO).await;
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % n
    }
}

/// One direction as it should be: what was sent and is not here yet.
#[derive(Default)]
struct Flow {
    sent: u64,
    under_way: VecDeque<u8>,
}

impl Flow {
    fn send(&mut self, mut from: &UnixStream, length: usize) {
        let bytes: Vec<u8> = (0..length as u64).map(|n| (self.sent + n).to_le_bytes()[0] ^ 0x5a).collect();
        // What does not fit is not sent.
        let n = from.write(&bytes).unwrap_or(0);
        self.sent += n as u64;
        self.under_way.extend(&bytes[..n]);
    }

    /// Looks at what is there; `false`: the end.
    fn receive(&mut self, mut to: &UnixStream) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match to.read(&mut bytes) {
                Ok(0) => return false,
                Ok(n) => {
                    let expected: Vec<u8> = self.under_way.drain(..n).collect();
                    assert!(bytes[..n] == expected[..], "other bytes than were sent");
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn what_goes_in_comes_out_in_whatever_pieces_and_with_whatever_pauses_it_comes() {
    on_a_shard(|| async {
        let _set = readiness::open().expect("a set");
        let seed = std::env::var("SANDGATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
        println!("SANDGATE_TEST_SEED={seed}");
        let mut dice = Dice(seed);
        let ((client, theirs), (runner, app)) = (pair(), pair());
        let world = World::new();
        let early = b"before the tunnel";
        let (means, tunnel) = (world.means(), Tunnel::new(runner, early, b"", None));
        let tunnel = run(&client, &tunnel, &means);
        let script = async {
            let (mut up, mut down) = (Flow::default(), Flow::default());
            up.under_way.extend(early);
            for round in 0..4000_u64 {
                // The ring waits first, then the set.
                world.counters.tunnels_open.set(if round < 2000 { 1 } else { CROWD_MIN });
                let length = match dice.below(60) {
                    // More than a buffer holds, just one, and much more.
                    0 => 20_000,
                    1 => crate::buffers::SMALL,
                    2 => 150_000,
                    n => 1 + n as usize,
                };
                match dice.below(4) {
                    0 => up.send(&theirs, length),
                    1 => down.send(&app, length),
                    _ => turn().await,
                }
                assert!(up.receive(&app) && down.receive(&theirs), "open on both sides");
            }
            theirs.shutdown(std::net::Shutdown::Write).expect("open");
            while up.receive(&app) {
                turn().await;
            }
            down.send(&app, 100);
            app.shutdown(std::net::Shutdown::Write).expect("open");
            while down.receive(&theirs) {
                turn().await;
            }
            assert!(up.under_way.is_empty() && down.under_way.is_empty(), "something is missing");
            assert!(up.sent > 100_000 && down.sent > 100_000, "{} up, {} down", up.sent, down.sent);
        };
        futures_util::future::join(tunnel, script).await;
        let spliced = [&world.counters.bytes_up_spliced, &world.counters.bytes_down_spliced];
        assert!(spliced.iter().all(|bytes| bytes.get() > 0), "much at once is spliced");
    });
}
