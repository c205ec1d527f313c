//! Sets of octets, for the grammars that say what may stand in a name.

/// Which octets may stand somewhere.
pub struct Octets {
    /// By octet, 1 for one that may not. As a number: of truth values each would be tested.
    foreign: [u8; 256],
}

impl Octets {
    /// ASCII letters and digits, and these.
    pub const fn alphanumeric_and(others: &[u8]) -> Self {
        let mut foreign = [1; 256];
        let mut octet = 0;
        while octet < 128 {
            foreign[octet] = !(octet as u8).is_ascii_alphanumeric() as u8;
            octet += 1;
        }
        let mut at = 0;
        while at < others.len() {
            foreign[others[at] as usize] = 0;
            at += 1;
        }
        Self { foreign }
    }

    /// May all of them stand there? Looks at every one whatever the others are: without a branch for each it costs less than
    /// half.
    pub fn hold_all(&self, octets: &[u8]) -> bool {
        octets.iter().fold(0, |foreign, octet| foreign | self.foreign[usize::from(*octet)]) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::Octets;

    #[test]
    fn a_set_holds_letters_digits_and_what_was_named_and_nothing_else() {
        const SET: Octets = Octets::alphanumeric_and(b"-_\xfe");
        for octet in 0..=u8::MAX {
            let named = octet.is_ascii_alphanumeric() || b"-_\xfe".contains(&octet);
            assert_eq!(SET.hold_all(&[octet]), named, "{octet}");
            assert_eq!(SET.hold_all(&[b'a', octet, b'0']), named, "{octet} among others");
        }
        assert!(SET.hold_all(b""));
    }
}
