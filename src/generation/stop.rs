//! Stop strings, found across the borders of tokens.

use super::error::GenerateError;

/// Refuses lists of more than `most` strings, and strings of more than `bytes`, with the numbers.
pub(super) fn check_stops(stops: &[String], most: usize, bytes: usize) -> Result<(), GenerateError> {
    if stops.len() > most {
        let message = format!("must be at most {most} strings. Given: {}", stops.len());
        return Err(GenerateError::invalid("stop", message));
    }
    match stops.iter().enumerate().find(|(_, stop)| !(1..=bytes).contains(&stop.len())) {
        Some((i, stop)) => Err(GenerateError::invalid(
            &format!("stop[{i}]"),
            format!("must be 1 to {bytes} bytes. Given: {}", stop.len()),
        )),
        None => Ok(()),
    }
}

/// Watches a growing text for stop strings. What it lets out is what the whole text would be, cut before the stop
/// string that is complete first (of several complete at the same byte, the longest), however the text was chopped.
/// Text that may be the beginning of a stop string is held back until it is known not to be.
#[derive(Debug)]
pub struct StopMatcher {
    /// Each at least one byte.
    stops: Vec<String>,
    held: String,
}

/// What may be shown after a push.
#[derive(Debug, PartialEq, Eq)]
pub struct Released {
    pub text: String,
    /// A stop string came; nothing that follows belongs to the text.
    pub stopped: bool,
}

impl StopMatcher {
    /// None of the strings is empty.
    pub fn new(stops: Vec<String>) -> Self {
        assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop string matches everywhere");
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text, lets out what is certain.
    pub fn push(&mut self, piece: &str) -> Released {
        self.held.push_str(piece);
        if let Some(start) = self.first_stop() {
            self.held.truncate(start);
            return Released { text: std::mem::take(&mut self.held), stopped: true };
        }
        let kept = self.held.split_off(self.possible_start());
        Released { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// The text ends here: what was held back belongs to it.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string begins that is complete first.
    fn first_stop(&self) -> Option<usize> {
        let starts = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)));
        starts.min().map(|(_, start)| start)
    }

    /// The first byte from which the text may be the beginning of a stop string; the text's length if there is none.
    fn possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let mut tails = self.held.char_indices().map(|(i, _)| i).filter(|i| *i >= from);
        tails.find(|i| self.begins_a_stop(&self.held[*i..])).unwrap_or(self.held.len())
    }

    fn begins_a_stop(&self, tail: &str) -> bool {
        self.stops.iter().any(|stop| stop.starts_with(tail))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(ToString::to_string).collect()
    }

    fn run(stops: &[String], pieces: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut out = String::new();
        for piece in pieces {
            let released = matcher.push(piece);
            out += &released.text;
            if released.stopped {
                return (out, true);
            }
        }
        (out + &matcher.flush(), false)
    }

    /// The whole text, byte by byte: the first end of a stop string, and its longest there.
    fn oracle(stops: &[String], text: &str) -> (String, bool) {
        for end in 0..=text.len() {
            let ending = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(longest) = ending.map(String::len).max() {
                return (text[..end - longest].into(), true);
            }
        }
        (text.into(), false)
    }

    #[test]
    fn holds_back_what_may_begin_a_stop_string() {
        let mut matcher = StopMatcher::new(strings(&["\n\nQ:"]));
        assert_eq!(matcher.push("Paris.\n"), Released { text: "Paris.".into(), stopped: false });
        assert_eq!(matcher.push("\n"), Released { text: String::new(), stopped: false });
        assert_eq!(matcher.push("Next"), Released { text: "\n\nNext".into(), stopped: false });
        assert_eq!(matcher.push("\n\nQ"), Released { text: String::new(), stopped: false });
        assert_eq!(matcher.push(": more"), Released { text: String::new(), stopped: true });
        assert_eq!(matcher.flush(), "");
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        let mut matcher = StopMatcher::new(Vec::new());
        assert_eq!(matcher.push("é"), Released { text: "é".into(), stopped: false });
    }

    #[test]
    fn limits_are_refused_with_numbers() {
        assert_eq!(check_stops(&strings(&["a"; 16]), 16, 256), Ok(()));
        let error = check_stops(&strings(&["a"; 17]), 16, 256).unwrap_err();
        assert_eq!(error.to_string(), "stop: must be at most 16 strings. Given: 17");
        let error = check_stops(&strings(&["a", ""]), 16, 256).unwrap_err();
        assert_eq!(error.to_string(), "stop[1]: must be 1 to 256 bytes. Given: 0");
        assert!(check_stops(&["x".repeat(256)], 16, 256).is_ok());
        assert!(check_stops(&["x".repeat(257)], 16, 256).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn equals_the_oracle_however_the_text_is_chopped(
            stops in prop::collection::vec("[abé漢]{1,5}", 0..4),
            pieces in prop::collection::vec("[abé漢]{0,6}", 0..12),
        ) {
            prop_assert_eq!(run(&stops, &pieces), oracle(&stops, &pieces.concat()));
        }
    }
}
