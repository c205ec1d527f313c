//! Where one WebSocket frame ends and the next begins (RFC 6455 5.2), followed while a server's bytes pass.
//!
//! Only headers are looked at, so it costs per frame, not per byte; what is in a payload, an extension or a message does
//! not matter. Between two frames another may be put, even inside of a fragmented message if it is a control frame
//! (5.4). Bytes that break the rules of framing end the following for good: nothing may be said about them any more.

/// Followed from the first byte behind the `101`.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// Of the payload still to pass; inside of a header its length as far as it is known.
    left: u64,
    /// Of the frame under way, or of the last one.
    payload: u32,
    at: At,
    opcode: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Between two frames, or behind so many bytes of a header that has `of`; 2 as long as it is not known.
    Header {
        passed: u8,
        of: u8,
    },
    Payload,
    /// The server has closed: no frame may follow (5.5.1).
    Closed,
    Lost,
}

/// What may be done at this point of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Another frame may be put here.
    Between,
    /// Inside of a frame; it ends after so many bytes, or they tell when.
    Within(u64),
    /// Nothing of ours may follow: the server has said its last, or it is not known where this is.
    Nowhere,
}

const CLOSE: u8 = 0x8;

impl Default for Frames {
    fn default() -> Self {
        Self { left: 0, payload: 0, at: BETWEEN, opcode: 0 }
    }
}

impl Frames {
    pub fn place(&self) -> Place {
        match self.at {
            BETWEEN => Place::Between,
            At::Header { passed, of } => Place::Within(u64::from(of - passed)),
            At::Payload => Place::Within(self.left),
            At::Closed | At::Lost => Place::Nowhere,
        }
    }

    /// How many bytes may pass without a look. Where nothing is known any more, all of them.
    pub fn unseen(&self) -> u64 {
        match self.at {
            At::Header { .. } => 0,
            At::Payload => self.left,
            At::Closed | At::Lost => u64::MAX,
        }
    }

    /// Of the payload of the frame under way or, between two, of the last one.
    pub fn payload(&self) -> u64 {
        u64::from(self.payload)
    }

    /// `n` bytes pass without a look, no more than [`Self::unseen`].
    pub fn pass_unseen(&mut self, n: u64) {
        debug_assert!(n <= self.unseen(), "headers must be looked at");
        if self.at == At::Payload {
            self.left -= n;
            if self.left == 0 {
                self.at = self.behind();
            }
        }
    }

    /// These bytes pass.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.at {
                At::Payload => {
                    let n = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                    self.pass_unseen(n as u64);
                    bytes = &bytes[n..];
                }
                At::Header { passed, of } => {
                    self.at = self.header_byte(bytes[0], passed, of);
                    bytes = &bytes[1..];
                }
                At::Closed | At::Lost => return,
            }
        }
    }

    fn header_byte(&mut self, byte: u8, passed: u8, of: u8) -> At {
        match passed {
            0 => {
                // FIN and opcode; the reserved bits are the extensions'.
                (self.left, self.opcode) = (0, byte & 0x8f);
                return At::Header { passed: 1, of };
            }
            1 => {
                let is_control = self.opcode & 0x08 != 0;
                let is_last = self.opcode & 0x80 != 0;
                // Servers do not mask (5.1); control frames are whole and short (5.5).
                if byte & 0x80 != 0 || is_control && (byte > 125 || !is_last) {
                    return At::Lost;
                }
                match byte {
                    126 => return At::Header { passed: 2, of: 4 },
                    127 => return At::Header { passed: 2, of: 10 },
                    length => self.left = u64::from(length),
                }
            }
            _ => {
                self.left = self.left << 8 | u64::from(byte);
                if passed + 1 < of {
                    return At::Header { passed: passed + 1, of };
                }
                // The shortest form is the only one, and the highest bit is zero (5.2).
                let shortest = if of == 4 { 126 } else { 1 << 16 };
                if self.left < shortest || self.left > u64::MAX >> 1 {
                    return At::Lost;
                }
            }
        }
        self.payload = u32::try_from(self.left).unwrap_or(u32::MAX);
        if self.left == 0 { self.behind() } else { At::Payload }
    }

    /// Behind the frame under way.
    fn behind(&self) -> At {
        if self.opcode & 0x0f == CLOSE { At::Closed } else { BETWEEN }
    }
}

const BETWEEN: At = At::Header { passed: 0, of: 2 };

/// A server's close frame.
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let length = u8::try_from(2 + reason.len()).unwrap_or(u8::MAX);
    assert!(length <= 125, "a control frame is short");
    let mut frame = vec![0x80 | CLOSE, length];
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(reason.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(first: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match length {
            0..=125 => frame.push(length as u8),
            126..=65_535 => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        // Payloads that look like headers.
        frame.extend((0..length).map(|at| if at % 2 == 0 { 0x88 } else { 0xff }));
        frame
    }

    /// Any frame but a close: text, binary, continuation, ping, pong; with and without reserved bits and FIN.
    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![
            0usize..=130,
            Just(65_535),
            Just(65_536),
            60_000usize..70_000,
            Just(125),
            Just(126),
            Just(127)
        ];
        let data = (0u8..=2, 0u8..16, length).prop_map(|(opcode, bits, n)| frame(opcode | bits << 4, n));
        let control =
            (9u8..=10, 8u8..16, 0usize..=125).prop_map(|(opcode, bits, n)| frame(opcode | bits << 4, n));
        prop_oneof![data, control]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn every_boundary_is_found_whatever_pieces_the_bytes_come_in(
            sequence in prop::collection::vec(any_frame(), 1..8),
            cuts in prop::collection::vec(1usize..70_000, 1..12),
            small in any::<bool>(),
        ) {
            let bytes = sequence.concat();
            let mut ends = Vec::new();
            for one in &sequence {
                ends.push(ends.last().unwrap_or(&0) + one.len());
            }
            let mut frames = Frames::default();
            let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
            while at < bytes.len() {
                let piece = cuts.next().expect("endless") % if small { 7 } else { usize::MAX };
                let piece = piece.clamp(1, bytes.len() - at);
                // What needs no look is sometimes not given one.
                let unseen = frames.unseen().min(piece as u64);
                if unseen > 0 && piece % 2 == 0 {
                    frames.pass_unseen(unseen);
                    frames.pass(&bytes[at + unseen as usize..at + piece]);
                } else {
                    frames.pass(&bytes[at..at + piece]);
                }
                at += piece;
                let end = *ends.iter().find(|end| **end >= at).expect("the last is the end of all");
                match frames.place() {
                    Place::Between => prop_assert_eq!(at, end),
                    Place::Within(n) => prop_assert!(n > 0 && at + n as usize <= end, "{} + {} > {}", at, n, end),
                    Place::Nowhere => prop_assert!(false, "lost"),
                }
            }
            prop_assert_eq!(frames.place(), Place::Between);
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (mut whole, mut single) = (Frames::default(), Frames::default());
            whole.pass(&bytes);
            bytes.iter().for_each(|byte| single.pass(&[*byte]));
            prop_assert_eq!(whole.place(), single.place());
        }
    }

    #[test]
    fn what_breaks_the_rules_is_followed_no_further() {
        let broken: [&[u8]; 7] = [
            b"HTTP/1.1 200 OK\r\n",
            // Masked.
            &[0x81, 0x80],
            // A ping that is not the last of its message, and one that is too long.
            &[0x09, 0x00],
            &[0x89, 126],
            // Lengths that have a shorter form.
            &[0x82, 126, 0, 125],
            &[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            // A length of more than 63 bits.
            &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ];
        for bytes in broken {
            let mut frames = Frames::default();
            frames.pass(&frame(0x81, 3));
            frames.pass(bytes);
            assert_eq!(frames.place(), Place::Nowhere, "{bytes:x?}");
            frames.pass(&frame(0x81, 3));
            assert_eq!(frames.place(), Place::Nowhere, "{bytes:x?}");
        }
    }

    #[test]
    fn nothing_follows_the_servers_own_close() {
        let close = close_frame(1000, "done");
        let mut frames = Frames::default();
        frames.pass(&close[..close.len() - 1]);
        assert_eq!(frames.place(), Place::Within(1));
        frames.pass(&close[close.len() - 1..]);
        assert_eq!(frames.place(), Place::Nowhere);
    }

    #[test]
    fn a_close_frame_carries_code_and_reason() {
        assert_eq!(close_frame(1001, "bye"), b"\x88\x05\x03\xe9bye");
    }

    #[test]
    fn it_fits_in_three_words() {
        assert!(size_of::<Frames>() <= 24, "{}", size_of::<Frames>());
    }
}
