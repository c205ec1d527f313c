//! WebSocket frames from the client's side (RFC 6455): what an echo needs. Knows no socket.

use crate::failure::Failure;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Longest message taken; messages sent are shorter.
const MESSAGE_MAX: u64 = 4 << 20;

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Message(Vec<u8>),
    /// To be answered with a pong of the same payload.
    Ping(Vec<u8>),
    Pong,
    Close,
}

const OPCODE_CONTINUATION: u8 = 0;
const OPCODE_TEXT: u8 = 1;
const OPCODE_BINARY: u8 = 2;
const OPCODE_CLOSE: u8 = 8;
const OPCODE_PING: u8 = 9;
const OPCODE_PONG: u8 = 10;

/// The handshake's further field lines. Whether the server understood shows in the 101 alone: what is measured is the
/// proxy, which must check `Sec-WebSocket-Accept` itself.
pub fn handshake_fields(random: u64) -> String {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&random.to_le_bytes());
    key[8..].copy_from_slice(&(!random).to_be_bytes());
    format!(
        "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {}\r\n",
        STANDARD.encode(key)
    )
}

/// Adds a masked binary message (RFC 6455 5.3).
pub fn write_message(out: &mut Vec<u8>, payload: &[u8], mask: u32) {
    write_frame(out, OPCODE_BINARY, payload, mask);
}

pub fn write_pong(out: &mut Vec<u8>, payload: &[u8], mask: u32) {
    write_frame(out, OPCODE_PONG, payload, mask);
}

/// A close with code 1000.
pub fn write_close(out: &mut Vec<u8>, mask: u32) {
    write_frame(out, OPCODE_CLOSE, &1000u16.to_be_bytes(), mask);
}

fn write_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: u32) {
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = mask.to_be_bytes();
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Puts frames together to messages.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    message: Vec<u8>,
    in_message: bool,
}

impl FrameReader {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event out of what was fed, `None`: more is needed.
    pub fn next_event(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            let Some((head, length)) = self.head()? else { return Ok(None) };
            if self.buffer.len() < head + length {
                return Ok(None);
            }
            let (last, opcode) = (self.buffer[0] & 0x80 != 0, self.buffer[0] & 0x0f);
            let payload: Vec<u8> = self.buffer.drain(..head + length).skip(head).collect();
            match opcode {
                OPCODE_TEXT | OPCODE_BINARY if !self.in_message => self.message = payload,
                OPCODE_CONTINUATION if self.in_message => self.message.extend_from_slice(&payload),
                OPCODE_CLOSE => return Ok(Some(Event::Close)),
                OPCODE_PING => return Ok(Some(Event::Ping(payload))),
                OPCODE_PONG => return Ok(Some(Event::Pong)),
                _ => return Err(Failure::Malformed),
            }
            self.in_message = !last;
            if last {
                return Ok(Some(Event::Message(std::mem::take(&mut self.message))));
            }
            if self.message.len() as u64 > MESSAGE_MAX {
                return Err(Failure::Malformed);
            }
        }
    }

    /// Length of the first frame's head and of its payload.
    fn head(&self) -> Result<Option<(usize, usize)>, Failure> {
        let [first, second, ..] = self.buffer[..] else { return Ok(None) };
        // Reserved bits without an extension; a masked frame from a server (RFC 6455 5.1).
        if first & 0x70 != 0 || second & 0x80 != 0 {
            return Err(Failure::Malformed);
        }
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            length => return Ok(Some((2, usize::from(length)))),
        };
        let Some(bytes) = self.buffer.get(2..2 + extended) else { return Ok(None) };
        let length = bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if length > MESSAGE_MAX || first & 0x08 != 0 {
            return Err(Failure::Malformed);
        }
        Ok(Some((2 + extended, length as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frame as a server sends it: the same without a mask.
    fn from_server(opcode: u8, payload: &[u8], last: bool) -> Vec<u8> {
        let mut frame = vec![u8::from(last) << 7 | opcode];
        match payload.len() {
            length @ 0..=125 => frame.push(length as u8),
            length @ 126..=0xffff => {
                frame.push(126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn messages_of_every_length_arrive_whatever_the_split() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![7; length];
            let frame = from_server(OPCODE_BINARY, &payload, true);
            for step in [1, 3, 70_000] {
                let mut reader = FrameReader::default();
                let mut events = Vec::new();
                for piece in frame.chunks(if length > 1000 { step.max(1000) } else { step }) {
                    reader.feed(piece);
                    events.extend(reader.next_event().expect("well-formed"));
                }
                assert_eq!(events, [Event::Message(payload.clone())]);
            }
        }
    }

    #[test]
    fn fragments_are_put_together_around_control_frames() {
        let mut reader = FrameReader::default();
        reader.feed(&from_server(OPCODE_TEXT, b"ab", false));
        reader.feed(&from_server(OPCODE_PING, b"p", true));
        reader.feed(&from_server(OPCODE_CONTINUATION, b"c", true));
        reader.feed(&from_server(OPCODE_CLOSE, b"", true));
        let mut next = || reader.next_event().expect("well-formed");
        assert_eq!(next(), Some(Event::Ping(b"p".into())));
        assert_eq!(next(), Some(Event::Message(b"abc".into())));
        assert_eq!((next(), next()), (Some(Event::Close), None));
    }

    #[test]
    fn what_a_server_must_not_send_is_malformed() {
        for frame in [
            &[0x82, 0x81, 0, 0, 0, 0, 1][..],
            &[0xc2, 0],
            &[0x80, 0],
            &[0x83, 0],
            &[0x82, 127, 1, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let mut reader = FrameReader::default();
            reader.feed(frame);
            assert_eq!(reader.next_event(), Err(Failure::Malformed), "{frame:?}");
        }
    }

    #[test]
    fn messages_leave_masked() {
        let mut out = Vec::new();
        write_message(&mut out, b"abc", 0x0102_0304);
        assert_eq!(out, [0x82, 0x83, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3]);
    }
}
