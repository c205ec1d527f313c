use super::*;
use crate::buffers::Buffers;
use crate::counters::{Counters, Revoked};
use crate::deadlines::{Deadlines, Watch};
use crate::readiness;
use crate::relay::Patience;
use crate::ring::{count_turns, on_a_shard, on_each_driver};
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

/// Small messages that are all there already: read by read, each of them is little.
#[test]
fn a_tunnel_with_much_to_say_leaves_the_others_their_turn_be_it_waited_for_by_the_set_or_the_ring() {
    const MESSAGES: usize = 512;
    const TURNS_MIN: usize = MESSAGES * UNIT as usize / TURN as usize - 1;
    on_each_driver(|| async {
        let _set = readiness::open().expect("a set");
        for tunnels_open in [1, CROWD_MIN] {
            // Of packets each read gets one.
            let (ours, app) =
                socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None).expect("a pair");
            app.set_nonblocking(true).expect("set");
            ours.set_nonblocking(true).expect("set");
            let (client, theirs) = UnixStream::pair().expect("a pair");
            client.set_nonblocking(true).expect("set");
            // For all of it.
            for sends in [socket2::SockRef::from(&app), socket2::SockRef::from(&client)] {
                sends.set_send_buffer_size(4 << 20).expect("open");
            }
            let client = Socket::new(client.into()).expect("made");
            let world = World::new();
            let runner = Socket::new(ours.into()).expect("made");
            let (means, tunnel) = (world.means(), Tunnel::new(runner, b"", b"", None));
            let mut tunnel = pin!(run(&client, &tunnel, &means));
            // `run` has counted itself.
            world.counters.tunnels_open.set(tunnels_open);
            // It waits, for the ring or in the set.
            assert!(futures_util::FutureExt::now_or_never(tunnel.as_mut()).is_none());
            for _ in 0..MESSAGES {
                app.send(b"x").expect("so many fit, there and where they go");
            }
            app.shutdown(std::net::Shutdown::Both).expect("open");
            theirs.shutdown(std::net::Shutdown::Write).expect("open");
            let turns = count_turns().await;
            tunnel.await;
            let had = turns.get() as usize;
            assert!(had >= TURNS_MIN, "others had {had} turns, not {TURNS_MIN}, with {tunnels_open} open");
            assert_eq!(world.counters.bytes_down_copied.get(), MESSAGES as u64);
        }
    });
}

#[test]
fn a_crowd_for_which_the_set_has_no_room_is_served_by_the_ring() {
    on_each_driver(|| async {
        // No set has no room either.
        let ((client, mut theirs), (runner, mut app)) = (pair(), pair());
        let world = World::new();
        let (means, tunnel) = (world.means(), Tunnel::new(runner, b"", b"", None));
        let tunnel = run(&client, &tunnel, &means);
        world.counters.tunnels_open.set(CROWD_MIN);
        let script = async {
            for (mut from, mut to) in [(&theirs, &app), (&app, &theirs)] {
                let mut received = [0; 5];
                turn().await;
                from.write_all(b"hello").expect("open");
                while to.read(&mut received).is_err() {
                    turn().await;
                }
                assert_eq!(&received, b"hello");
            }
            for end in [&mut theirs, &mut app] {
                end.shutdown(std::net::Shutdown::Write).expect("open");
            }
        };
        futures_util::future::join(tunnel, script).await;
    });
}

/// A client that has not taken a message yet when its right goes is still given all of it, and then told why.
#[test]
fn a_message_that_is_not_sent_yet_comes_before_the_last_words() {
    const FRAME: usize = 4 + 3000;
    on_each_driver(|| async {
        let ((client, mut theirs), (runner, mut app)) = (pair(), pair());
        // The least there is: less than two frames.
        socket2::SockRef::from(&client.fd()).set_send_buffer_size(1).expect("open");
        let table = Deadlines::new();
        let world = World { watch: table.watch(client.raw_fd()), ..World::new() };
        let (means, tunnel) = (world.means(), Tunnel::new(runner, b"", b"", None));
        let running = run(&client, &tunnel, &means);
        let script = async {
            let frame = [&[0x82, 126], &3000_u16.to_be_bytes()[..], &[b'x'; 3000]].concat();
            for _ in 0..8 {
                app.write_all(&frame).expect("open");
                for _ in 0..3 {
                    turn().await;
                }
            }
            assert!(tunnel.owing.get(), "nothing is stuck");
            assert!(table.revoke(world.watch.index(), Revoked::Stopped));
            table.end_all();
            let (mut heard, mut part) = (Vec::new(), [0; 4096]);
            loop {
                match theirs.read(&mut part) {
                    Ok(0) => break,
                    Ok(n) => heard.extend(&part[..n]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => turn().await,
                    Err(error) => panic!("{error}"),
                }
            }
            // Lingering ends with the client's own end.
            drop(theirs);
            let (code, reason) = last_words::farewell(Revoked::Stopped);
            let close = frames::close_frame(code, reason);
            let data = heard.strip_suffix(&close[..]).expect("told why");
            assert!(data.len() > FRAME && data.len().is_multiple_of(FRAME), "{} bytes", data.len());
            assert!(data.chunks(FRAME).all(|whole| whole == frame));
        };
        futures_util::future::join(running, script).await;
    });
}
