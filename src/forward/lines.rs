//! Field lines: the other side's as they are, ours without the formatting machinery.

use crate::head::Field;
use std::io::Write as _;
use std::net::IpAddr;
use std::ops::Range;

/// Lines of the other side that pass unchanged, copied as far as they stand together in its head.
pub struct Lines<'h> {
    bytes: &'h [u8],
    /// What is kept and not yet written.
    run: Range<usize>,
}

impl<'h> Lines<'h> {
    pub fn of(bytes: &'h [u8]) -> Self {
        Self { bytes, run: 0..0 }
    }

    pub fn keep(&mut self, field: &Field, out: &mut Vec<u8>) {
        match self.as_it_stands(field) {
            Some(line) if line.start == self.run.end => self.run.end = line.end,
            Some(line) => {
                self.flush(out);
                self.run = line;
            }
            None => {
                self.flush(out);
                write_line(self.bytes, field, out);
            }
        }
    }

    /// Where the line is, if it is spelled as we would: one space, and nothing behind the value but CRLF.
    fn as_it_stands(&self, field: &Field) -> Option<Range<usize>> {
        let start = usize::from(field.name.start);
        let colon = start + usize::from(field.name.len);
        let value = usize::from(field.value.start);
        let end = value + usize::from(field.value.len);
        let canonical = value == colon + 2
            && self.bytes.get(colon..value) == Some(b": ")
            && self.bytes.get(end..end + 2) == Some(b"\r\n");
        canonical.then_some(start..end + 2)
    }

    pub fn flush(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[std::mem::take(&mut self.run)]);
    }
}

/// A field line of the other side, name and value byte-identical.
pub fn write_line(bytes: &[u8], field: &Field, out: &mut Vec<u8>) {
    let (name, value) = (field.name.of(bytes), field.value.of(bytes));
    debug_assert!(
        !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)),
        "the head's parser let a break through"
    );
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Inlined for the name: text of a known length is stored, without a call.
#[inline(always)]
pub fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub fn write_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Length: ");
    write_number(length, out);
    out.extend_from_slice(b"\r\n");
}

pub fn write_ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        // By hand: the formatting machinery costs more than the rest of the field.
        IpAddr::V4(ip) => {
            let (mut text, mut len) = ([b'.'; "255.255.255.255.".len()], 0);
            for octet in ip.octets() {
                let digits = [octet / 100, octet / 10, octet].map(|n| digit(n.into()));
                let leading = usize::from(octet < 10) + usize::from(octet < 100);
                for digit in &digits[leading..] {
                    text[len] = *digit;
                    len += 1;
                }
                // Behind each but the last one, which is cut off, its dot.
                len += 1;
            }
            out.extend_from_slice(&text[..len - 1]);
        }
        IpAddr::V6(ip) => write!(out, "{ip}").expect("a Vec takes all that is written"),
    }
}

/// The last digit.
pub fn digit(number: u16) -> u8 {
    b'0' + (number % 10) as u8
}

pub fn write_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
