//! The properties of `fuzz/`, whose targets let libFuzzer look for bytes that break them: here on its seeds, among them
//! what has broken one before, and on as many seeded changes of them as take no time.

#[path = "../fuzz/src/lib.rs"]
mod properties;

use properties::{browser, chunks, frames, news, provider, request, response, route, session, told};
use std::fs;
use std::path::Path;

/// Changed inputs per reader.
const ROUNDS: usize = 20_000;
const BYTES_MAX: usize = 2048;

#[test]
fn requests_are_read_one_way_and_arrive_as_they_were_decided() {
    replay("request", request::holds);
}

#[test]
fn answers_are_read_one_way_and_arrive_as_they_were_decided() {
    replay("response", response::holds);
}

#[test]
fn chunks_are_what_a_plain_reader_finds() {
    replay("chunks", chunks::holds);
}

#[test]
fn frames_are_followed_as_a_plain_reader_does() {
    replay("frames", frames::holds);
}

#[test]
fn routes_stay_below_their_sandbox_in_every_reading_of_a_path() {
    replay("route", route::holds);
}

#[test]
fn browsers_words_count_for_a_sandboxs_own_pages_alone() {
    replay("browser", browser::holds);
}

#[test]
fn nothing_opens_that_was_not_signed_or_sealed_here() {
    replay("session", session::holds);
}

#[test]
fn what_the_control_plane_is_told_stays_in_its_place() {
    replay("told", told::holds);
}

#[test]
fn news_take_away_what_they_say_and_give_nothing() {
    replay("news", news::holds);
}

#[test]
fn a_providers_endpoints_are_where_it_says_and_a_callback_says_a_thing_once() {
    replay("provider", provider::holds);
}

fn replay(target: &str, holds: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let files = fs::read_dir(folder.join("seeds").join(target)).expect("seeds");
    let mut files: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("a seed")).collect();
    assert!(!seeds.is_empty());
    let words = words(&fs::read_to_string(folder.join("dictionary.txt")).expect("a dictionary"));

    let seed = std::env::var("SANDGATE_TEST_SEED").ok().map_or(1, |seed| seed.parse().expect("a number"));
    let mut chance = Chance(seed);
    let changed = (0..ROUNDS).map(|_| changed(&seeds, &words, &mut chance));
    for input in seeds.iter().cloned().chain(changed) {
        let told = Told { seed, input };
        holds(&told.input);
    }
}

/// Says what broke a property.
struct Told {
    seed: u64,
    input: Vec<u8>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}: b\"{}\"", self.seed, self.input.escape_ascii());
        }
    }
}

/// One seed, with one to four changes.
fn changed(seeds: &[Vec<u8>], words: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(4) {
        let at = chance.below(input.len() + 1);
        let end = at + chance.below(input.len() - at + 1).min(chance.below(40));
        match chance.below(6) {
            0 => drop(input.splice(at..at, words[chance.below(words.len())].iter().copied())),
            1 => drop(input.splice(at..end, words[chance.below(words.len())].iter().copied())),
            2 => drop(input.drain(at..end)),
            3 => {
                let part = input[at..end].to_vec();
                input.splice(end..end, part);
            }
            4 => {
                let other = &seeds[chance.below(seeds.len())];
                let from = chance.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = chance.below(256) as u8;
                }
            }
        }
    }
    input.truncate(BYTES_MAX);
    input
}

/// xorshift64*.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }
}

/// Lines of a dictionary of libFuzzer's: in quotes, `\xNN` for a byte, `\\` and `\"`.
fn words(text: &str) -> Vec<Vec<u8>> {
    let quoted = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(word).collect()
}

fn word(text: &str) -> Vec<u8> {
    let (mut word, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((byte, behind)) = rest.split_first() {
        let (byte, used) = match (byte, behind) {
            (b'\\', [b'x', high, low, ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("ASCII");
                (u8::from_str_radix(digits, 16).expect("two digits"), 3)
            }
            (b'\\', [byte, ..]) => (*byte, 1),
            (byte, _) => (*byte, 0),
        };
        word.push(byte);
        rest = &behind[used..];
    }
    word
}
